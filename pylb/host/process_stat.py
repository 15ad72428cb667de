"""What /proc/PID/stat says about a process (proc(5)). The only reader of that file."""

import os
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class ProcessStat(NamedTuple):
    ended: bool  # a zombie: it has ended, and its parent has not reaped it yet
    cpu_seconds: float  # user and system, since its start
    started: str  # in clock ticks since the boot: together with the pid it identifies a process for good
    resident_bytes: int


def process_stat(pid: int) -> ProcessStat | None:
    """None: the process is gone, or no descriptor is free to read the file."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    # After the name, which may contain anything: state is field 3, utime and stime 14 and 15, starttime 22, rss 24.
    fields = text.rpartition(b")")[2].split()
    cpu = (int(fields[11]) + int(fields[12])) / _TICKS
    return ProcessStat(fields[0] == b"Z", cpu, fields[19].decode(), int(fields[21]) * _PAGE)
