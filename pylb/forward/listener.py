"""Listening ports: level-triggered in the engine's epoll, watched only while there is room for another session."""

import errno
import os
import select
from collections.abc import Callable
from select import EPOLLIN
from socket import SOCK_STREAM, SocketType

from pylb.core.address import Listen
from pylb.forward.counters import Counters
from pylb.forward.session import FrontendState
from pylb.forward.sockets import Opener
from pylb.forward.turn import ACCEPT, Turn

RESERVE = 16  # sessions that a frontend has for itself
BATCH = 8  # accepts in a row, then others get their turn
# Out of descriptors or memory: level-triggered, the port would be reported at once again. Paused until the next tick.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Port:
    """A listening socket. Without a frontend it was opened ahead of its table: clients wait in its backlog."""

    __slots__ = ("family", "fd", "frontend", "listen", "queued", "sock", "watched")

    def __init__(self, listen: Listen, sock: SocketType) -> None:
        self.listen = listen
        self.sock = sock
        self.fd = sock.fileno()
        self.family = sock.family
        self.frontend: FrontendState | None = None
        self.watched = False
        self.queued = False  # it waits for its share of a turn


class Reserve:
    """One descriptor held back for the server's side of a client that took the last one."""

    def __init__(self) -> None:
        self._fd = -1
        self.hold()

    def hold(self) -> bool:
        """Is there a descriptor to spare again?"""
        if self._fd < 0:
            try:
                self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return False
        return True

    def spend(self) -> bool:
        """True if there is a free descriptor now that was not before."""
        if self._fd < 0:
            return False
        os.close(self._fd)
        self._fd = -1
        return True


class Ports:
    def __init__(
        self,
        epoll: select.epoll,
        counters: Counters,
        begin: Callable[[FrontendState, SocketType, tuple[str, int]], None],
        opener: Opener,
        turn: Turn,
    ) -> None:
        self._epoll = epoll
        self._counters = counters
        self._begin = begin
        self._opener = opener
        self._turn = turn
        self.by_listen: dict[Listen, Port] = {}
        self.by_fd: dict[int, Port] = {}
        self._waiting: dict[Port, None] = {}  # unwatched for want of room
        self._rated: dict[Port, None] = {}  # whose frontend limits its rate
        self._retired: list[FrontendState] = []  # their ports are closed, they still have sessions
        self.shareable = counters.max_connections  # sessions beyond the frontends' reserves
        self._reserve = Reserve()
        self._paused = False  # descriptors or memory ran out: nobody accepts before the next tick

    def open(self, listen: Listen, *, freebind: bool) -> Port:
        """Bind and listen; idempotent. Raises OSError."""
        port = self.by_listen.get(listen)
        if port is None:
            port = Port(listen, self._opener(listen, freebind=freebind))
            self.by_listen[listen] = self.by_fd[port.fd] = port
        return port

    def close_all(self) -> None:
        for listen in list(self.by_listen):
            self.close(listen)
        self._reserve.spend()

    def close(self, listen: Listen) -> None:
        """Idempotent. Clients still in the backlog are reset by the kernel."""
        port = self.by_listen.pop(listen, None)
        if port is not None:
            del self.by_fd[port.fd]
            self._waiting.pop(port, None)
            self._rated.pop(port, None)
            if port.frontend is not None and port.frontend.sessions:
                self._retired.append(port.frontend)
            if (
                port.watched
            ):  # by hand: while main, a successor or systemd holds the same socket, close() leaves it in epoll (epoll(7))
                self._epoll.unregister(port.fd)
            port.sock.close()

    def serve(self, port: Port, frontend: FrontendState) -> None:
        """From its opening on, and again when its policy may have changed."""
        port.frontend = frontend
        if frontend.frontend.policy.limits.rate:
            self._rated[port] = None
        else:
            self._rated.pop(port, None)
        self.rewatch(port)

    def rewatch(self, port: Port) -> None:
        """Watch the port if it may accept, stop watching if not. Clients then wait in the backlog, nothing spins."""
        wanted = self._has_room(port)
        if wanted and not port.watched:
            self._epoll.register(port.fd, EPOLLIN)
        elif port.watched and not wanted:
            self._epoll.unregister(port.fd)
        port.watched = wanted
        if wanted:
            self._waiting.pop(port, None)
        else:
            self._waiting[port] = None

    def reserve(self) -> None:
        """Share max_connections out anew: a quarter of it is divided among the frontends, at most RESERVE for each.

        So no frontend takes what the others need to be reached at all.
        """
        counters, serving = self._counters, [port.frontend for port in self.by_listen.values() if port.frontend is not None]
        reserve = min(RESERVE, counters.max_connections // (4 * max(1, len(serving))))
        self.shareable = counters.max_connections - reserve * len(serving)
        self._retired = [frontend for frontend in self._retired if frontend.sessions]
        if reserve != counters.reserve:
            counters.reserve = reserve
            counters.shared = sum(max(0, frontend.sessions - reserve) for frontend in (*serving, *self._retired))

    def resume(self, elapsed: float) -> None:
        """The tick's: accept again, once the reserve descriptor is there, and as much as the rates allow.

        A frontend that was quiet may accept a second's worth at once.
        """
        for port in self._rated:
            if port.frontend is not None:
                rate = port.frontend.frontend.policy.limits.rate
                port.frontend.allowance = min(float(rate), port.frontend.allowance + rate * elapsed)
                if not port.watched:
                    self.rewatch(port)
        if self._paused and self._reserve.hold():
            self._paused = False
            for port in self.by_listen.values():
                self.rewatch(port)

    def exhausted(self) -> bool:
        """No descriptor was left for the server's side of an accepted client. True: there is one now, from the reserve."""
        self._paused = True
        return self._reserve.spend()

    def session_ended(self) -> None:
        """There is room for one more: free of charge unless a port waits for just that."""
        if self._waiting and not self._paused:
            for port in list(self._waiting):
                self.rewatch(port)

    def accept(self, port: Port) -> bool:
        """Up to BATCH clients. True: there may be more."""
        frontend = port.frontend
        rated = port in self._rated
        for _ in range(BATCH):
            if frontend is None or not self._has_room(port):
                self.rewatch(port)
                return False
            try:
                # Below socket.socket.accept(): that one builds two Python objects and asks for the timeout.
                fd, address = port.sock._accept()  # type: ignore[attr-defined]  # noqa: SLF001
            except BlockingIOError:
                return False
            except OSError as error:
                self._counters.accept_errors[errno.errorcode.get(error.errno or 0, "?")] += 1
                if error.errno in _EXHAUSTED:
                    self._paused = True
                    self.rewatch(port)
                    return False
                continue  # ECONNABORTED and network errors of that one client (accept(2))
            self._turn.left -= ACCEPT
            if rated:
                frontend.allowance -= 1
                frontend.accepted += 1
            self._begin(frontend, SocketType(port.family, SOCK_STREAM, 0, fd), address)
        return True

    def _has_room(self, port: Port) -> bool:
        frontend, counters = port.frontend, self._counters
        if self._paused or frontend is None or counters.open_sessions >= counters.max_connections:
            return False
        if counters.shared >= self.shareable and frontend.sessions >= counters.reserve:
            return False
        policy = frontend.frontend.policy
        if policy.limits.rate and frontend.allowance < 1:
            return False
        return not policy.max_connections or frontend.sessions + frontend.others < policy.max_connections
