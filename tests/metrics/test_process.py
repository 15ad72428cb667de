"""What the kernel says of a process, also of one that has no descriptor left."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pylb.metrics import process as module
from pylb.metrics.process import process_usage


@contextmanager
def no_descriptor_left() -> Iterator[int]:
    """→ how many there are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.open(os.devnull, os.O_RDONLY)]
    limit = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        while True:
            try:
                held.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        yield limit
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_process_that_is_gone_is_left_out() -> None:
    assert list(process_usage({"main": os.getpid(), "worker-1": 2**22 + 1})) == ["main"]


@pytest.mark.parametrize("kernel", ["has a count", "has none"])
def test_at_the_limit_of_open_files_their_number_is_still_told(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernel == "has none":  # before Linux 6.2 the size of the directory is 0
        monkeypatch.setattr(module.os, "stat", lambda _path: os.stat_result((0,) * 10))
    with no_descriptor_left() as limit:
        found = process_usage({"main": os.getpid()})
    assert found["main"] == (limit, None, None)
    assert process_usage({"main": os.getpid()})["main"].open_fds < limit
