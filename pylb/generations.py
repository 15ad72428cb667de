"""All processes of one state directory: this pylb and its workers, and those of before that only end their sessions still.

A main process that died cannot tell its successor whom it left. So each one writes them down, and a stop reaches all.
"""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger("pylb")

FILE = "processes"


class Generations:
    """Kept in a file of lines `PID START`, START in clock ticks since the boot: a number given anew is no longer it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._ours: dict[int, str] = {}
        self.note(os.getpid())

    def note(self, pid: int) -> None:
        """One of ours: this process, or a worker."""
        if (start := _start(pid)) is not None:
            self._ours[pid] = start
        known = dict(_read(self._path)) | self._ours  # of the file as it is now: a successor may have written there
        living = {pid: start for pid, start in known.items() if _start(pid) == start}
        try:
            self._path.write_text("".join(f"{pid} {start}\n" for pid, start in living.items()))
        except OSError as error:
            log.warning("%s cannot be written (%s): a stop may miss processes of before", self._path, error.strerror)

    def stop_those_before(self) -> None:
        """SIGTERM: they give their sessions timeouts.shutdown. Workers whose main lives do not heed it: that one tells them."""
        for pid, start in _read(self._path):
            if pid in self._ours:
                continue
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                continue
            try:
                if _start(pid) == start:  # looked at after it was opened: so it is the same one that is signalled
                    signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            except OSError:
                pass  # it has just ended
            finally:
                os.close(pidfd)


def _read(path: Path) -> Iterator[tuple[int, str]]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        pid, _, start = line.partition(" ")
        if pid.isascii() and pid.isdigit() and int(pid) != os.getpid():
            yield int(pid), start


def _start(pid: int) -> str | None:
    """When it was started (proc(5), /proc/PID/stat, the 22nd field); None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
