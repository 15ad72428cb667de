"""Log targets: a descriptor, a file that logrotate moves away, a syslog that may come and go.

Everything here runs in the writer's thread, and failures do no harm: what cannot be written is lost, and the caller counts it.
"""

import logging
import os
import select
import socket
import stat
import sys
import time
from pathlib import Path

from pylb.core.log import Target, priority
from pylb.logs.async_writer import Output
from pylb.logs.formats import syslog_date

log = logging.getLogger("pylb")

MODE = 0o640  # of a new file: root writes, its group may read
PATIENCE = 1.0  # seconds to wait for a full syslog
RETRY = 1.0  # seconds between two attempts to reach a syslog


def open_target(target: Target, facility: str, tag: str) -> Output:
    """Raises OSError for a file that cannot be opened. A syslog may appear later."""
    if target.kind == "file":
        return LogFile(Path(target.place))
    if target.kind == "stdout":
        return Stream(sys.stdout.fileno())
    return Syslog(target, priority(facility), tag)


class Stream:
    """A descriptor that belongs to somebody else and is not closed here."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._torn = False  # the last line is incomplete: the disk was full

    def write(self, text: str, count: int) -> int:
        data = f"{text}\n".encode("utf-8", "backslashreplace")
        view = memoryview(b"\n" + data if self._torn else data)
        whole = len(view)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                # Another process shares the descriptor and made it non-blocking.
                waiting = select.poll()
                waiting.register(self._fd, select.POLLOUT)
                waiting.poll()
            except OSError:
                # The reader is gone (EPIPE) or the disk is full: no message would arrive either, only the counter shows it.
                self._torn = self._torn or len(view) < whole
                return count
        self._torn = False
        return 0

    def reopen(self) -> None:
        """Nothing to do: the descriptor belongs to somebody else."""

    def close(self) -> None:
        """Nothing to do, as above."""


class LogFile(Stream):
    """A file that is appended to. Raises OSError."""

    def __init__(self, path: Path) -> None:
        super().__init__(_open(path))
        self._path = path
        self.reopen_failures = 0

    def reopen(self) -> None:
        try:
            fd = _open(self._path)
        except OSError as error:
            self.reopen_failures += 1
            log.error("log.target: %s cannot be opened again: %s; the old file stays in use", self._path, error.strerror)
            return
        os.dup2(fd, self._fd, inheritable=False)
        os.close(fd)
        self._torn = False
        log.info("log.target: %s was opened again", self._path)

    def close(self) -> None:
        os.close(self._fd)


def _open(path: Path) -> int:
    """Raises OSError. O_NONBLOCK: a FIFO without a reader is an error, and does not block."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        fd = os.open(path, flags | os.O_CREAT, MODE)
        os.fchmod(fd, MODE)  # the unit's umask gives the group no access
    if stat.S_ISREG(os.fstat(fd).st_mode):
        os.set_blocking(fd, True)
    return fd


class Syslog:
    """RFC 3164 datagrams as HAProxy sends them: `<134>Nov 25 03:10:23 tag[pid]: line`, with a newline at the end.

    While no syslog is there, lines are lost. A restarted syslog makes a new socket, which is found.
    """

    def __init__(self, target: Target, priority: int, tag: str) -> None:
        self._target = target
        self._head = f"<{priority}>"
        self._name = f" {tag}[{os.getpid()}]: "
        self._sock: socket.socket | None = None
        self._retry_at = 0.0  # monotonic

    def write(self, text: str, count: int) -> int:  # noqa: ARG002 - each line is a separate message
        head = f"{self._head}{syslog_date(time.time())}{self._name}".encode()
        lost = 0
        for line in text.split("\n"):
            lost += self._send(b"%b%b\n" % (head, line.encode("utf-8", "backslashreplace")))
        return lost

    def _send(self, message: bytes) -> int:
        """How many messages were lost, as far as is known."""
        lost = 0
        for _ in range(2):
            sock = self._sock or self._connect()
            if sock is None:
                break
            try:
                sock.send(message)
            except BlockingIOError:
                if not _writable(sock):
                    self._forget()
                    self._retry_at = time.monotonic() + RETRY  # lines until then are dropped without another wait for each
                    break
            except ConnectionRefusedError:
                if self._target.kind == "udp":
                    lost = 1  # the previous message: the next call reports its ICMP error (udp(7)), and sends nothing
                else:
                    self._forget(at_once=True)  # the receiver is gone, and may have made a new socket
            except OSError:
                self._forget(at_once=True)
            else:
                return lost
        return lost + 1

    def _connect(self) -> socket.socket | None:
        now = time.monotonic()
        if now < self._retry_at:
            return None
        self._retry_at = now + RETRY
        place: str | tuple[str, int] = self._target.place
        family = socket.AF_UNIX
        sock = None
        try:
            if self._target.kind == "udp":
                found = socket.getaddrinfo(self._target.place, self._target.port, type=socket.SOCK_DGRAM)
                family, place = found[0][0], found[0][4][:2]  # type: ignore[assignment]
            sock = socket.socket(family, socket.SOCK_DGRAM)
            sock.setblocking(False)
            sock.connect(place)
        except (OSError, UnicodeError):  # UnicodeError: a label that IDNA does not allow
            if sock is not None:
                sock.close()
            return None
        self._sock = sock
        return sock

    def _forget(self, *, at_once: bool = False) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if at_once:
            self._retry_at = 0.0

    def reopen(self) -> None:
        """Nothing to do: the next line finds the socket anew."""
        self._forget(at_once=True)

    def close(self) -> None:
        self._forget()


def _writable(sock: socket.socket) -> bool:
    waiting = select.poll()
    waiting.register(sock, select.POLLOUT)
    return bool(waiting.poll(PATIENCE * 1000))
