"""What pylb reports to systemd (sd_notify(3)): that it serves, what it does, that its loop still turns, that it stops.

The protocol is one datagram of KEY=VALUE lines to the socket in $NOTIFY_SOCKET; without one nothing is sent.
"""

import array
import errno
import os
import re
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence

MOST_WAITING = 2048  # messages that systemd has not accepted yet: a large table at the start, while systemd is busy
# unix(7), sendmsg(2): the socket is there, and accepts no more for now. ETOOMANYREFS: too many descriptors are in flight.
BUSY = {errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS}


class SystemdService:
    """What pylb reports to systemd. No method raises or waits: pylb serves even if systemd reads nothing."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        # One socket for good: signs of life must go on when no descriptor is free for another.
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) if address else None
        self._waiting: deque[tuple[str, Sequence[int]]] = deque()  # with duplicates of the descriptors
        self.muted = False  # while another process is the service: systemd accepts only the main process (NotifyAccess=main)
        self.watchdog = _seconds(environ)  # seconds within which systemd expects a sign of life; 0: it expects none

    def ready(self, status: str) -> None:
        self._say(f"READY=1\nSTATUS={status}")

    def status(self, text: str) -> None:
        self._say(f"STATUS={text}")

    def stopping(self, status: str) -> None:
        self._say(f"STOPPING=1\nSTATUS={status}")

    def alive(self) -> None:
        self._say("WATCHDOG=1")

    def successor(self, pid: int) -> bool:
        """From now on another process is the service. False: systemd is too busy to take it now, so ask again.

        Never queued: systemd ignores what the new one says before this, and the old one may end while its queue waits.
        """
        self.flush()
        return not self._waiting and self._send(f"MAINPID={pid}", ())

    def store(self, name: str, fd: int) -> None:
        """Store a duplicate of the descriptor for the next start (FileDescriptorStoreMax= of the unit)."""
        self._say(f"FDSTORE=1\nFDNAME={name}", fd)

    def unstore(self, name: str) -> None:
        """Remove all descriptors of that name from the store."""
        self._say(f"FDSTOREREMOVE=1\nFDNAME={name}")

    @property
    def listens(self) -> bool:
        """Does a supervisor hold our sockets for us?"""
        return bool(self._address)

    def _say(self, text: str, *fds: int) -> None:
        if self._sock is None or self.muted:
            return
        if self._waiting or not self._send(text, fds):
            self._wait(text, fds)

    def _wait(self, text: str, fds: Sequence[int]) -> None:
        """Send it later. Only the last status, sign of life or removal counts; a removal cancels what waits to be stored.

        At most MOST_WAITING messages for the store wait; more are dropped. A port that is not stored refuses clients while pylb
        restarts; one that is not removed is closed by the next pylb.
        """
        key = text.partition("=")[0]
        if key == "FDSTOREREMOVE":
            name = text.partition("\n")[2]
            self._forget(lambda waiting: waiting in (text, f"FDSTORE=1\n{name}"))
        elif key != "FDSTORE":
            self._forget(lambda waiting: waiting.partition("=")[0] == key)
        if not key.startswith("FDSTORE") or len(self._waiting) < MOST_WAITING:
            try:
                self._waiting.append((text, [os.dup(fd) for fd in fds]))
            except OSError:
                pass  # no descriptor for a duplicate

    def _forget(self, meant: Callable[[str], bool]) -> None:
        for waiting in [one for one in self._waiting if meant(one[0])]:
            self._waiting.remove(waiting)
            for fd in waiting[1]:
                os.close(fd)

    def flush(self) -> None:
        """Send what a busy supervisor did not accept: its queue holds some hundred datagrams (net.unix.max_dgram_qlen)."""
        while self._waiting and self._send(*self._waiting[0]):
            for fd in self._waiting.popleft()[1]:
                os.close(fd)

    def close(self) -> None:
        """Nothing more will be sent."""
        self._forget(lambda _waiting: True)
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _send(self, text: str, fds: Sequence[int]) -> bool:
        """False: not possible now."""
        if self._sock is None:
            return True
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._sock.sendmsg([text.encode()], rights, 0, self._address)
        except OSError as error:
            return error.errno not in BUSY  # any other error means that nobody is there
        return True


def _seconds(environ: Mapping[str, str]) -> float:
    """$WATCHDOG_USEC, if it applies to this process ($WATCHDOG_PID; sd_watchdog_enabled(3))."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = environ.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if re.fullmatch("[0-9]{1,20}", text) else 0.0  # it has 64 bits
