"""What the kernel says of pylb's processes."""

import errno
import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Vitals(NamedTuple):
    """None: could not be read, for want of a descriptor."""

    open_fds: int
    cpu_seconds: float | None = None  # user and system, since its start
    resident_bytes: int | None = None


def vitals(pids: Mapping[str, int]) -> dict[str, Vitals]:
    """By name, of those that live. Not for the loop: a listing of 40,000 descriptors takes long."""
    found = {}
    for name, pid in pids.items():
        try:
            found[name] = Vitals(_open_fds(pid), *_stat(pid))
        except OSError:
            continue
    return found


def _open_fds(pid: int) -> int:
    """Raises OSError: it has ended."""
    folder = f"/proc/{pid}/fd"
    if count := os.stat(folder).st_size:  # Linux 6.2 and later
        return count
    try:
        return len(os.listdir(folder)) - (pid == os.getpid())  # our own listing is in it
    except OSError as error:
        if error.errno == errno.EMFILE and pid == os.getpid():  # when it matters most
            return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        raise


def _stat(pid: int) -> tuple[float | None, int | None]:
    try:
        # Behind the name, which may hold anything (proc(5)): state is field 3, utime and stime 14 and 15, rss 24.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None, None
    return (int(fields[11]) + int(fields[12])) / _TICKS, int(fields[21]) * _PAGE
