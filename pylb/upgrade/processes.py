"""All processes of one state directory: this pylb, its workers, and previous ones that only end their sessions.

A main process that died cannot tell its successor which processes it left. So each one writes its own down, and a stop reaches
all.
"""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from pylb.control.storage.files import read_regular, set_aside, write_private
from pylb.host.process_stat import process_stat

log = logging.getLogger("pylb")

FILE = "processes"
_MOST_BYTES = 1 << 20
_DIGITS = 7  # of a pid: PID_MAX_LIMIT is 4,194,304 (proc(5))


class ProcessList:
    """Stored in a file of lines `PID START`, START in clock ticks since the boot: a reused pid has another start.

    All of it is for threads: it touches files.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._ours: dict[int, str] = {}
        self._lock = threading.Lock()
        self.note(os.getpid())

    def note(self, pid: int) -> None:
        """Add one of ours: this process, or a worker."""
        with self._lock:
            self._note(pid)

    def _note(self, pid: int) -> None:
        if (start := _start(pid)) is not None:
            self._ours[pid] = start
        known = dict(_read(self._path)) | self._ours  # the file as it is now: a successor may have written to it
        living = {pid: start for pid, start in known.items() if _start(pid) == start}
        try:
            write_private(self._path, "".join(f"{pid} {start}\n" for pid, start in living.items()).encode(), sync=False)
        except OSError as error:
            log.warning("%s cannot be written (%s): a stop may miss previous processes", self._path, error.strerror)

    def stop_previous(self) -> None:
        """SIGTERM: they give their sessions timeouts.shutdown. Workers whose main process lives ignore it: main tells them."""
        for pid, start in _read(self._path):
            if pid in self._ours:
                continue
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                continue
            try:
                if _start(pid) == start:  # checked after it was opened: so the signal goes to the same process
                    signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            except OSError:
                pass  # it has just ended
            finally:
                os.close(pidfd)

    def previous(self) -> list[int]:
        """Pids of those that are still alive."""
        return [pid for pid, start in _read(self._path) if pid not in self._ours and _start(pid) == start]


def _read(path: Path) -> Iterator[tuple[int, str]]:
    try:
        lines = read_regular(path, _MOST_BYTES).decode("ascii").splitlines()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        log.warning("%s cannot be used: %s%s; a stop may miss previous processes", path, error, set_aside(path))
        return
    for line in lines:
        pid, _, start = line.partition(" ")
        if pid.isdigit() and 0 < len(pid) <= _DIGITS and int(pid) != os.getpid():
            yield int(pid), start


def _start(pid: int) -> str | None:
    """When it was started; None if it is gone."""
    stat = process_stat(pid)
    return None if stat is None or stat.ended else stat.started
