"""What the kernel reports about pylb's processes."""

import errno
import os
import resource
from collections.abc import Mapping
from typing import NamedTuple

from pylb.host.process_stat import process_stat


class ProcessUsage(NamedTuple):
    """None: could not be read, for want of a descriptor."""

    open_fds: int
    cpu_seconds: float | None = None  # user and system, since its start
    resident_bytes: int | None = None


def process_usage(pids: Mapping[str, int]) -> dict[str, ProcessUsage]:
    """What live processes use, by name. Call it in a thread: listing 40,000 descriptors takes long."""
    found = {}
    for name, pid in pids.items():
        try:
            open_fds = _open_fds(pid)
        except OSError:
            continue
        stat = process_stat(pid)
        found[name] = ProcessUsage(open_fds) if stat is None else ProcessUsage(open_fds, stat.cpu_seconds, stat.resident_bytes)
    return found


def _open_fds(pid: int) -> int:
    """The number of open descriptors. Raises OSError if the process has ended."""
    folder = f"/proc/{pid}/fd"
    if count := os.stat(folder).st_size:  # Linux 6.2 and later
        return count
    try:
        return len(os.listdir(folder)) - (pid == os.getpid())  # our own listing is in it
    except OSError as error:
        if error.errno == errno.EMFILE and pid == os.getpid():  # when it matters most
            return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        raise
