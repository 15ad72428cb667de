"""How `phonehome drain` reaches the running process: an abstract unix socket, so that no writable folder is needed.

Its name comes from the user, the registration's name and its instance: an abstract socket is visible in the whole
network namespace, which pods with hostNetwork share. Each side looks at the other's SO_PEERCRED, because anybody in
that namespace may bind or connect to any abstract name. One line each way: `drain`, then a JSON object.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import threading
from collections.abc import Callable

MAX_LINE = 16 * 1024  # bytes of an answer
LINE_TIMEOUT = 2.0  # seconds for the caller's line
BIND_AGAIN = 5.0  # seconds; the predecessor on this node may still hold the name

Answer = Callable[[], "list[str]"]


class BusyError(Exception):
    """A process answers at the door and did not take the order."""


def door(name: str, instance: str, uid: int) -> str:
    digest = hashlib.sha256(f"{name}\0{instance}".encode()).hexdigest()
    return f"\0phonehome/{uid}/{digest[:32]}"


def trusted(sock: socket.socket) -> bool:
    """Whether the other end is our own user or root."""
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return uid in (os.getuid(), 0)


def ring(name: str, instance: str, timeout: float) -> list[str] | None:
    """Tell the running process to drain; the lines it has to say, or None when no process of ours runs.

    Raise BusyError when one runs and the order did not get through within `timeout` seconds.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect(door(name, instance, os.getuid()))
        except OSError:
            return None
        if not trusted(sock):
            return None
        try:
            sock.sendall(b"drain\n")
            answer = json.loads(_line(sock, MAX_LINE))
            return [str(line) for line in answer["lines"]]
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise BusyError(f"the running phonehome did not answer ({type(exc).__name__})") from None


class Doorbell:
    """The running process's side; `answer` carries the order out and returns what to tell the caller."""

    def __init__(self, name: str, instance: str, answer: Answer, log: Callable[[str], None]) -> None:
        self._name = door(name, instance, os.getuid())
        self._answer = answer
        self._log = log
        self._stopped = threading.Event()
        self._sock: socket.socket | None = None

    def open(self) -> bool:
        """Bind now, so that a drain that follows the start finds us; False when another process holds the name."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(self._name)
            sock.listen(4)
        except OSError:
            sock.close()
            return False
        self._sock = sock
        return True

    def serve(self) -> None:
        """Until `close`. One caller at a time: there is one order, and giving it twice changes nothing."""
        if self._sock is None:
            self._log("another phonehome of this name and instance runs here: `phonehome drain` reaches that one")
        while self._sock is None and not self._stopped.wait(BIND_AGAIN):
            self.open()
        if self._stopped.is_set():
            self.close()  # again: this thread may just have bound
        while self._sock is not None and not self._stopped.is_set():
            try:
                caller, _ = self._sock.accept()
            except OSError:
                return  # closed under us: that is how `close` ends this thread
            with caller:
                self._attend(caller)

    def close(self) -> None:
        self._stopped.set()
        if self._sock is not None:
            try:
                self._sock.shutdown(socket.SHUT_RDWR)  # wakes accept
            except OSError:
                pass  # never connected; closing is all there is to do
            self._sock.close()

    def _attend(self, caller: socket.socket) -> None:
        caller.settimeout(LINE_TIMEOUT)
        try:
            if trusted(caller) and _line(caller, 64) == b"drain":
                caller.sendall(json.dumps({"lines": self._answer()}).encode() + b"\n")
        except OSError:
            pass  # the caller left; the order, if it came through, is carried out all the same


def _line(sock: socket.socket, limit: int) -> bytes:
    """One line without its end; what came before the other side closed or `limit` was reached."""
    data = b""
    while b"\n" not in data and len(data) < limit:
        chunk = sock.recv(limit)
        if not chunk:
            break
        data += chunk
    return data.partition(b"\n")[0]
