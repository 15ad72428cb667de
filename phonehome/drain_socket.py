"""How `phonehome drain` reaches the running process: an abstract unix socket, so that no writable folder is needed.

Its name comes from the user, the registration's name and its instance. An abstract socket is visible in the whole
network namespace, which pods with hostNetwork share, and anybody there may bind or connect to any abstract name. The
user id (SO_PEERCRED) says little: containers of many pods run under the same one. So each side proves that it knows a
token of this phone-home, which both read from their environment or its files; the token is never sent.

    caller                       running process
    NONCE
                                 NONCE PROOF…      for each token: HMAC-SHA256 over role, socket name and both nonces
    drain PROOF…
                                 {"lines": […]}    the outcome
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence

MAX_LINE = 16 * 1024  # bytes
NONCE_BYTES = 16
_CALLER, _SERVER = "caller", "bell"  # the roles, as the proofs name them
LINE_TIMEOUT = 2.0  # seconds for a line that needs no work
BIND_AGAIN = 5.0  # seconds; the previous process on this node may still have the name

Answer = Callable[[], "list[str]"]


class BusyError(Exception):
    """A process answers on the socket but did not take the order."""


def socket_name(name: str, instance: str, uid: int) -> str:
    digest = hashlib.sha256(f"{name}\0{instance}".encode()).hexdigest()
    return f"\0phonehome/{uid}/{digest[:32]}"


def trusted(sock: socket.socket) -> bool:
    """Whether the other end runs as our own user or as root."""
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return uid in (os.getuid(), 0)


class _Handshake:
    """The data that the proofs of one handshake are made from."""

    def __init__(self, name: str, tokens: Sequence[str], caller: str, server: str) -> None:
        """`caller` and `server` are their nonces."""
        self._said = f"{name} {caller} {server}"
        self._tokens = tokens

    def proofs(self, role: str) -> list[str]:
        return [hmac.new(token.encode(), f"{role} {self._said}".encode(), "sha256").hexdigest() for token in self._tokens]

    def proven(self, role: str, given: Sequence[str]) -> bool:
        """One common token is enough: a join file may have been extended since the process started."""
        return any(hmac.compare_digest(mine.encode(), one.encode()) for mine in self.proofs(role) for one in given)


def request_drain(name: str, instance: str, tokens: Sequence[str], timeout: float) -> list[str] | None:
    """Tell the running process to drain. Returns the lines that it reports, or None if no process proves to be that one.

    Raises BusyError if one did, and did not answer the order within `timeout` seconds.
    """
    where = socket_name(name, instance, os.getuid())
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(LINE_TIMEOUT)
        mine = os.urandom(NONCE_BYTES).hex()
        try:
            sock.connect(where)
            if not trusted(sock):
                return None
            sock.sendall(mine.encode() + b"\n")
            theirs, *given = _words(sock)
        except (OSError, ValueError):
            return None
        handshake = _Handshake(where, tokens, mine, theirs)
        if not handshake.proven(_SERVER, given):
            return None
        try:
            sock.settimeout(timeout)
            sock.sendall(" ".join(["drain", *handshake.proofs(_CALLER)]).encode() + b"\n")
            answer = json.loads(_line(sock, timeout))
            return [str(line) for line in answer["lines"]]
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise BusyError(f"the running phonehome did not answer ({type(exc).__name__})") from None


class DrainSocket:
    """The running process's side; `answer` carries out the order and returns the lines for the caller.

    `tokens` returns the current ones: files may have changed since the start.
    """

    def __init__(
        self, name: str, instance: str, tokens: Callable[[], Sequence[str]], answer: Answer, log: Callable[[str], None]
    ) -> None:
        self._name = socket_name(name, instance, os.getuid())
        self._tokens = tokens
        self._answer = answer
        self._log = log
        self._stopped = threading.Event()
        self._sock: socket.socket | None = None

    def open(self) -> bool:
        """Bind now, so that a drain right after the start finds us; False if another process has the name."""
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
        """Runs until `close`. One caller at a time: there is only one order, and repeating it changes nothing."""
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
                return  # `close` closed the socket to end this thread
            with caller:
                self._attend(caller)

    def close(self) -> None:
        self._stopped.set()
        if self._sock is not None:
            try:
                self._sock.shutdown(socket.SHUT_RDWR)  # wakes accept
            except OSError:
                pass  # never connected; nothing but the close remains to be done
            self._sock.close()

    def _attend(self, caller: socket.socket) -> None:
        caller.settimeout(LINE_TIMEOUT)
        try:
            if trusted(caller) and self._ordered(caller):
                caller.sendall(json.dumps({"lines": self._answer()}).encode() + b"\n")
        except (OSError, ValueError):
            pass  # the caller left, or is not one of ours; an order that arrived is carried out all the same

    def _ordered(self, caller: socket.socket) -> bool:
        [theirs] = _words(caller)
        mine = os.urandom(NONCE_BYTES).hex()
        handshake = _Handshake(self._name, self._tokens(), theirs, mine)
        caller.sendall(" ".join([mine, *handshake.proofs(_SERVER)]).encode() + b"\n")
        order, *given = _words(caller)
        return order == "drain" and handshake.proven(_CALLER, given)


def _words(sock: socket.socket) -> list[str]:
    """The words of one line of our protocol. Raises ValueError for a line that is not ASCII or is empty."""
    words = _line(sock, LINE_TIMEOUT).decode("ascii").split()
    if not words:
        raise ValueError("an empty line")
    return words


def _line(sock: socket.socket, timeout: float) -> bytes:
    """One line without its end, or what came before the other side closed or sent too much. Raises OSError."""
    deadline, data = time.monotonic() + timeout, b""
    while b"\n" not in data and len(data) < MAX_LINE:
        sock.settimeout(max(deadline - time.monotonic(), 0.001))  # the time that remains for the whole line
        chunk = sock.recv(MAX_LINE)
        if not chunk:
            break
        data += chunk
    return data.partition(b"\n")[0]
