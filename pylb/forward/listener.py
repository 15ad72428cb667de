"""Listening ports: level-triggered in the engine's epoll, watched only while there is room for another session."""

import errno
import select
from collections.abc import Callable
from select import EPOLLIN
from socket import SOCK_STREAM, SocketType

from pylb.core.address import Listen
from pylb.forward.counters import Counters
from pylb.forward.session import FrontendState
from pylb.forward.sockets import open_listener

BATCH = 64  # accepts per event and port, then others get their turn
# Out of descriptors or memory: level-triggered, the port would be reported at once again. Paused until the next tick.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Port:
    """A listening socket. Without a frontend it was opened ahead of its table: clients wait in its backlog."""

    __slots__ = ("family", "fd", "frontend", "listen", "sock", "watched")

    def __init__(self, listen: Listen, sock: SocketType) -> None:
        self.listen = listen
        self.sock = sock
        self.fd = sock.fileno()
        self.family = sock.family
        self.frontend: FrontendState | None = None
        self.watched = False


class Ports:
    def __init__(
        self,
        epoll: select.epoll,
        counters: Counters,
        begin: Callable[[FrontendState, SocketType, tuple[str, int]], None],
    ) -> None:
        self._epoll = epoll
        self._counters = counters
        self._begin = begin
        self.by_listen: dict[Listen, Port] = {}
        self.by_fd: dict[int, Port] = {}
        self._waiting: dict[Port, None] = {}  # unwatched for want of room
        self._paused = False  # some port is unwatched for want of descriptors or memory

    def open(self, listen: Listen) -> Port:
        """Bind and listen; idempotent. Raises OSError."""
        port = self.by_listen.get(listen)
        if port is None:
            port = Port(listen, open_listener(listen))
            self.by_listen[listen] = self.by_fd[port.fd] = port
        return port

    def close(self, listen: Listen) -> None:
        """Idempotent. Clients still in the backlog are reset by the kernel."""
        port = self.by_listen.pop(listen, None)
        if port is not None:
            del self.by_fd[port.fd]
            self._waiting.pop(port, None)
            port.sock.close()  # epoll forgets it: nobody else holds the descriptor

    def serve(self, port: Port, frontend: FrontendState) -> None:
        port.frontend = frontend
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

    def resume(self) -> None:
        """The tick's: try again what was paused."""
        if self._paused:
            self._paused = False
            self.rewatch_all()

    def rewatch_all(self) -> None:
        for port in self.by_listen.values():
            self.rewatch(port)

    def session_ended(self) -> None:
        """There is room for one more: free of charge unless a port waits for just that."""
        if self._waiting:
            for port in list(self._waiting):
                self.rewatch(port)

    def accept(self, port: Port) -> None:
        frontend = port.frontend
        for _ in range(BATCH):
            if frontend is None or not self._has_room(port):
                self.rewatch(port)
                return
            try:
                # Below socket.socket.accept(): that one builds two Python objects and asks for the timeout.
                fd, address = port.sock._accept()  # type: ignore[attr-defined]  # noqa: SLF001
            except BlockingIOError:
                return
            except OSError as error:
                self._counters.accept_errors[errno.errorcode.get(error.errno or 0, "?")] += 1
                if error.errno in _EXHAUSTED:
                    self._pause(port)
                    return
                continue  # ECONNABORTED and network errors of that one client (accept(2))
            self._begin(frontend, SocketType(port.family, SOCK_STREAM, 0, fd), address)

    def _pause(self, port: Port) -> None:
        if port.watched:
            self._epoll.unregister(port.fd)
            port.watched = False
        self._paused = True

    def _has_room(self, port: Port) -> bool:
        frontend = port.frontend
        if frontend is None or self._counters.open_sessions >= self._counters.max_connections:
            return False
        most = frontend.frontend.policy.max_connections
        return not most or frontend.sessions < most
