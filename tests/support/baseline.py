"""The base line every test that runs an engine has to come back to.

No descriptor, session or half is left, memory is sane, and whoever idles does not burn CPU. Garbage collection is off while the
test runs: sessions must go by reference counts alone, because the composition roots freeze the heap and set high thresholds.
"""

import gc
import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.processes import cpu_seconds
from pylb.forward.session import Half, Session

IDLE_CPU = 0.02  # share of one core
MEMORY = 192 << 20  # bytes a single test may leave behind; kernel buffers are not ours, big literals of tests are
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Baseline:
    """Asked for by name where a test starts processes: `baseline.watch(pid)` has their idle CPU measured at the end."""

    def __init__(self) -> None:
        gc.collect()
        gc.disable()
        self._descriptors = descriptors()
        self._memory = resident()
        self._pids: list[int] = []

    def watch(self, pid: int) -> None:
        """A process that should be idle once the test is over. One that has ended by then is not measured."""
        self._pids.append(pid)

    def check(self) -> None:
        try:
            live = [each for each in gc.get_objects() if isinstance(each, Half | Session)]
            assert not live, f"still referenced, or in a cycle: {[describe(each) for each in live[:4]]}"
        finally:
            gc.enable()
            gc.collect()
        left = descriptors().items() - self._descriptors.items()
        assert not left, f"descriptors left open: {sorted(left)}"
        assert resident() - self._memory < MEMORY
        for pid in self._pids:
            share = idle_cpu(pid)
            assert share < IDLE_CPU, f"process {pid} burns {share:.0%} of a core while nothing happens"


@pytest.fixture
def baseline() -> Iterator[Baseline]:
    """Made autouse by the conftest of tests/forward and tests/e2e."""
    line = Baseline()
    yield line
    line.check()


def descriptors() -> dict[str, str]:
    """This process's open descriptors and what each is. The one that lists the directory is gone again and left out."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            pass
    return found


def resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def idle_cpu(*pids: int, window: float = 0.5, windows: int = 8) -> float:
    """The CPU share of the busiest of `pids` in the first quiet window of at most `windows` (seconds each), else in the last.

    At most 0 of those that have ended.
    """
    share = 0.0
    for _ in range(windows):
        before = [cpu_seconds([pid]) for pid in pids]
        select.select([], [], [], window)  # the time over which we measure, not a wait for something to happen
        used = [cpu_seconds([pid]) - start for pid, start in zip(pids, before, strict=True)]
        share = max(used) / window
        if share < IDLE_CPU:
            return share
    return share


def describe(each: Half | Session) -> str:
    holders = [type(holder).__name__ for holder in gc.get_referrers(each)]
    return f"{type(each).__name__} held by {holders}"
