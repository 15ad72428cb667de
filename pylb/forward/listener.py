"""Listening ports: level-triggered in the engine's epoll, watched only while there is room for another session."""

import errno
import os
import select
from collections import Counter
from collections.abc import Callable, Iterator
from enum import Enum
from select import EPOLLIN
from socket import AF_INET6, SOCK_STREAM, SocketType

from pylb.core.address import Listen
from pylb.forward.counters import Counters
from pylb.forward.faults import Faults
from pylb.forward.pipes import pipe_limit
from pylb.forward.run_queue import ACCEPT, RunQueue
from pylb.forward.session import FrontendState
from pylb.forward.sockets import Opener, backlog, close

GUARANTEED = 16  # sessions that a frontend has for itself
BATCH = 8  # accepts in a row, then other work gets its turn
RESERVE = 192  # descriptors that a process which only forwards needs besides its sessions (else see pylb.app.descriptors)


def connection_limit(nofile: int, listeners: int = 0, reserve: int = RESERVE) -> int:
    """Sessions that fit under RLIMIT_NOFILE: two sockets each, after the pipes, the reserve and the listeners."""
    return max(1, (nofile - reserve - 2 * pipe_limit(nofile) - listeners) // 2)


class AcceptResult(Enum):
    """What an error of accept() means for the port."""

    EMPTY = "empty"  # no client waits any more
    CLIENT = "client"  # of that one client, which is gone: the next one may be fine
    EXHAUSTED = "exhausted"  # no descriptors or memory: epoll reports it again at once, so no port accepts before the next tick
    PORT = "port"  # of the listening socket: epoll would report it for ever; retried later, at growing intervals


_EMPTY, _CLIENT, _EXHAUSTED, _PORT = AcceptResult.EMPTY, AcceptResult.CLIENT, AcceptResult.EXHAUSTED, AcceptResult.PORT

# Every errno that accept(2) of Linux man-pages names. Any other one counts as the port's. Some have two meanings (EPERM,
# EOPNOTSUPP, EPROTO): they count as the client's, unless a whole batch meets nothing but errors.
ACCEPT_ERRORS = {
    errno.EAGAIN: _EMPTY,
    errno.ECONNABORTED: _CLIENT,
    errno.EINTR: _CLIENT,
    errno.EPERM: _CLIENT,  # a firewall forbids this connection
    errno.EPROTO: _CLIENT,
    errno.ETIMEDOUT: _CLIENT,
    # network errors that waited for the new socket
    errno.EHOSTDOWN: _CLIENT,
    errno.EHOSTUNREACH: _CLIENT,
    errno.ENETDOWN: _CLIENT,
    errno.ENETUNREACH: _CLIENT,
    errno.ENONET: _CLIENT,
    errno.ENOPROTOOPT: _CLIENT,
    errno.EOPNOTSUPP: _CLIENT,
    errno.EMFILE: _EXHAUSTED,
    errno.ENFILE: _EXHAUSTED,
    errno.ENOBUFS: _EXHAUSTED,
    errno.ENOMEM: _EXHAUSTED,
    errno.ENOSR: _EXHAUSTED,
    errno.EBADF: _PORT,
    errno.EFAULT: _PORT,
    errno.EINVAL: _PORT,  # it does not listen any more: another process that shares it has shut it down
    errno.ENOTSOCK: _PORT,
    errno.EPROTONOSUPPORT: _PORT,
    errno.ESOCKTNOSUPPORT: _PORT,
}
FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 30.0  # seconds between two attempts on a port whose accept fails
REPORTED_BACKOFF = 1.0  # a failure this long is not a race with a table that is about to close the port: it is reported, once


class ListeningPort:
    """A listening socket. Without a frontend it was opened before its table, and clients wait in its backlog.

    `twin`: the second socket, for IPv6 only, of a systemd socket unit that has two instead of one for both families.
    """

    __slots__ = ("backoff", "backoff_left", "family", "fd", "frontend", "listen", "queued", "sock", "twin", "watched")

    def __init__(self, listen: Listen, sock: SocketType, twin: SocketType | None = None) -> None:
        self.listen = listen
        self.sock = sock
        self.twin = twin
        self.fd = sock.fileno()
        self.family = sock.family
        self.frontend: FrontendState | None = None
        self.watched = False
        self.queued = False  # it waits for its share of a turn
        self.backoff = 0.0  # seconds from the last failure to the next attempt; 0: it works
        self.backoff_left = 0.0  # seconds that are left of `backoff`


def _waiting(sock: SocketType) -> int:
    """Clients in its backlog. Another process that shares it may have taken them by the time of the accept."""
    try:
        return backlog(sock)
    except OSError:
        return BATCH + 1  # accept() will say what is wrong with it


def _fds(port: ListeningPort) -> tuple[int, ...]:
    return (port.fd,) if port.twin is None else (port.fd, port.twin.fileno())


class SpareDescriptor:
    """One descriptor held back for the server's side of a client that took the last one."""

    def __init__(self) -> None:
        self._fd = -1
        self.hold()

    def hold(self) -> bool:
        """Open the spare descriptor again. False: there is none to spare."""
        if self._fd < 0:
            try:
                self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return False
        return True

    def spend(self) -> bool:
        """Free the spare descriptor. True: there is a free descriptor now that was not there before."""
        if self._fd < 0:
            return False
        fd, self._fd = self._fd, -1
        try:
            os.close(fd)
        except OSError:
            pass  # it is free all the same (close(2), NOTES)
        return True


class ListeningPorts:
    def __init__(  # noqa: PLR0917 - the parts of one engine, each of another type
        self,
        epoll: select.epoll,
        counters: Counters,
        faults: Faults,
        begin: Callable[[FrontendState, SocketType, tuple[str, int]], None],
        opener: Opener,
        twin: Callable[[Listen], SocketType | None],
        run_queue: RunQueue,
    ) -> None:
        self._epoll = epoll
        self._counters = counters
        self._faults = faults
        self._begin = begin
        self._opener = opener
        self._twin = twin
        self._run_queue = run_queue
        self.by_listen: dict[Listen, ListeningPort] = {}  # each port of a range by itself
        self.by_fd: dict[int, ListeningPort] = {}
        self.numbers: Counter[int] = Counter()  # on how many addresses each port number listens
        self._waiting: dict[ListeningPort, None] = {}  # not watched, because there is no room
        self._rated: dict[FrontendState, None] = {}  # those that limit their rate
        self._serving: dict[FrontendState, int] = {}  # and the number of its ports
        self._retired: list[FrontendState] = []  # frontends whose ports are closed and that still have sessions
        self.shareable = counters.max_connections  # sessions possible beyond what the frontends are guaranteed
        self._spare = SpareDescriptor()
        self._backing_off: dict[ListeningPort, None] = {}  # those whose sockets are in error
        self._paused = False  # descriptors or memory ran out: no port accepts before the next tick

    def open(self, listen: Listen, *, freebind: bool) -> ListeningPort:
        """Bind and listen; idempotent. Raises OSError."""
        port = self.by_listen.get(listen)
        if port is None:
            port = ListeningPort(listen, self._opener(listen, freebind=freebind), self._twin(listen))
            self.by_listen[listen] = self.by_fd[port.fd] = port
            if port.twin is not None:
                self.by_fd[port.twin.fileno()] = port
            self.numbers[listen.port] += 1
        return port

    def of(self, listen: Listen) -> Iterator[ListeningPort]:
        """The open ports of a frontend."""
        return (self.by_listen[one] for one in listen.each() if one in self.by_listen)

    def frontend(self, listen: Listen) -> FrontendState | None:
        """What serves there."""
        return next((port.frontend for port in self.of(listen)), None)

    def close_all(self) -> None:
        for listen in list(self.by_listen):
            self.close(listen)
        self._spare.spend()

    def close(self, listen: Listen) -> None:
        """Idempotent. Clients still in the backlog are reset by the kernel."""
        port = self.by_listen.pop(listen, None)
        if port is not None:
            del self.by_fd[port.fd]
            self.numbers[listen.port] -= 1
            if not self.numbers[listen.port]:
                del self.numbers[listen.port]
            self._waiting.pop(port, None)
            if port.frontend is not None:
                self._leave(port.frontend)
            self._backing_off.pop(port, None)
            if port.watched:
                self._unwatch(port)
            if port.twin is not None:
                del self.by_fd[port.twin.fileno()]
                close(port.twin)
            close(port.sock)

    def _leave(self, frontend: FrontendState) -> None:
        """One of its ports is closed."""
        self._serving[frontend] -= 1
        if self._serving[frontend]:
            return
        del self._serving[frontend]
        self._rated.pop(frontend, None)
        if frontend.counters.sessions:
            self._retired.append(frontend)  # sessions that still look for a server may find one
        else:
            frontend.break_cycles()

    def serve(self, port: ListeningPort, frontend: FrontendState) -> None:
        """Serve `port` with `frontend`. Called when it is opened, and again when its policy may have changed."""
        if port.frontend is None:
            self._serving[frontend] = self._serving.get(frontend, 0) + 1
        port.frontend = frontend
        if frontend.frontend.policy.limits.rate:
            self._rated[frontend] = None
        else:
            self._rated.pop(frontend, None)
        self.rewatch(port)

    def rewatch(self, port: ListeningPort) -> None:
        """Watch the port if it may accept, else stop watching: clients wait in the backlog, and the loop does not spin."""
        wanted = port not in self._backing_off and self._room(port) > 0
        if wanted and not port.watched:
            wanted = self._watch(port)
        elif port.watched and not wanted:
            self._unwatch(port)
        port.watched = wanted
        if wanted:
            self._waiting.pop(port, None)
        else:
            self._waiting[port] = None

    def _watch(self, port: ListeningPort) -> bool:
        for fd in _fds(port):
            try:
                self._epoll.register(fd, EPOLLIN)
            except FileExistsError:
                pass
            except OSError as error:  # ENOMEM, ENOSPC: more than fs.epoll.max_user_watches
                self._back_off(port, error)
                return False
        return True

    def _unwatch(self, port: ListeningPort) -> None:
        """Needed even before close(): as long as main, a successor or systemd has it open, epoll reports it (epoll(7))."""
        port.watched = False
        for fd in _fds(port):
            try:
                self._epoll.unregister(fd)
            except OSError:
                pass  # it was not watched

    def _back_off(self, port: ListeningPort, error: Exception) -> None:
        """Accepting fails at the moment: the port is not watched until its backoff ends. Each is longer than the last."""
        if port.watched:
            self._unwatch(port)
        port.backoff = port.backoff_left = min(LONGEST_BACKOFF, max(FIRST_BACKOFF, 2 * port.backoff))
        self._backing_off[port] = None
        if port.backoff / 2 < REPORTED_BACKOFF <= port.backoff:
            self._faults.report(
                f"nobody can be accepted on {port.listen}; retries are at most {LONGEST_BACKOFF:g} s apart", error
            )

    def set_guarantee(self) -> None:
        """Divide max_connections again: a quarter is split among the frontends, at most GUARANTEED for each.

        So no frontend can take what the others need to be reachable at all. Costs a visit of all only when their shares change.
        """
        counters = self._counters
        guaranteed = min(GUARANTEED, counters.max_connections // (4 * max(1, len(self._serving))))
        self.shareable = counters.max_connections - guaranteed * len(self._serving)
        retired, self._retired = self._retired, []
        for frontend in retired:
            if frontend.counters.sessions:
                self._retired.append(frontend)
            else:
                frontend.break_cycles()
        if guaranteed != counters.guaranteed:
            counters.guaranteed = guaranteed
            counters.shared = sum(
                max(0, frontend.counters.sessions - guaranteed) for frontend in (*self._serving, *self._retired)
            )

    def resume(self, elapsed: float) -> None:
        """Called by the tick: accept again, once the spare descriptor is back, and as much as the rates allow.

        A frontend that was quiet may accept a second's worth at once.
        """
        for port in list(self._backing_off):
            port.backoff_left -= elapsed
            if port.backoff_left <= 0:
                del self._backing_off[port]
                self._try_again(port)
        for frontend in self._rated:
            rate = frontend.frontend.policy.limits.rate
            frontend.allowance = min(float(rate), frontend.allowance + rate * elapsed)
        for port in [port for port in self._waiting if port.frontend in self._rated] if self._rated else ():
            self._try_again(port)
        if self._paused and self._spare.hold():
            self._paused = False
            for port in self.by_listen.values():
                self._try_again(port)

    def _try_again(self, port: ListeningPort) -> None:
        self._faults.guard(f"{port.listen} could not be watched", self.rewatch, port)

    def exhausted(self) -> bool:
        """No descriptor is left for the server's side of an accepted client. True: the spare one has been freed."""
        self._paused = True
        return self._spare.spend()

    def session_ended(self) -> None:
        """There is room for one more session. Costs nothing unless a port waits for that."""
        if self._waiting and not self._paused:
            for port in list(self._waiting):
                self._try_again(port)

    def accept(self, port: ListeningPort) -> bool:
        """Up to BATCH clients. True: there may be more. Never raises."""
        try:
            return self._accept(port)
        except Exception as error:  # noqa: BLE001 - the boundary of one port: it backs off, the others go on
            self._faults.add(f"clients of {port.listen} have to wait", error)
            self._back_off(port, error)
            return False

    def empty(self, port: ListeningPort) -> None:
        """Accept the clients that wait now, before the port closes. Not later ones: under load there would be no end."""
        waiting = backlog(port.sock) + (0 if port.twin is None else backlog(port.twin))
        for _ in range(0, waiting, BATCH - 1):  # going on to the twin takes one of a batch
            if not self.accept(port):
                return

    def _accept(self, port: ListeningPort) -> bool:
        frontend, sock, other = port.frontend, port.sock, port.twin
        rated, accepted = frontend in self._rated, False
        failure: OSError | None = None
        # To ask takes an eighth of an accept() that finds nobody. At least one is tried: only accept() tells of an error.
        waiting = BATCH + 1 if other is not None else max(1, _waiting(sock))
        room = self._room(port)
        for _ in range(BATCH):
            if not waiting:
                return False
            # Asked again before it gives up: clients that were refused at once have taken no place.
            if frontend is None or ((room <= 0 or self._paused) and (room := self._room(port)) <= 0):
                self.rewatch(port)
                return False
            try:
                # One level below socket.socket.accept(), which builds two Python objects and asks for the timeout.
                fd, address = sock._accept()  # type: ignore[attr-defined]  # noqa: SLF001
            except BlockingIOError:
                if other is None:
                    return False
                sock, other = other, None
                continue
            except OSError as error:
                self._counters.accept_errors[errno.errorcode.get(error.errno or 0, "?")] += 1
                failure, verdict = error, ACCEPT_ERRORS.get(error.errno or 0, _PORT)
                if verdict is _CLIENT:
                    continue
                if verdict is _EXHAUSTED:
                    self._paused = True
                    self.rewatch(port)
                else:
                    self._back_off(port, error)
                return False
            accepted = True
            room -= 1
            waiting -= 1  # not for a client that failed: nothing but failures must come to the end of the batch
            port.backoff = 0.0
            self._run_queue.budget -= ACCEPT
            if rated:
                frontend.allowance -= 1
                frontend.accepted += 1
            family = port.family if sock is not port.twin else AF_INET6
            self._begin(frontend, SocketType(family, SOCK_STREAM, 0, fd), address)
            if other is not None:  # alternately: a flood on one socket must not lock out the clients of the other
                sock, other = other, sock
        if failure is not None and not accepted:  # nothing but errors: whatever their kind, they may never end
            self._back_off(port, failure)
            return False
        return waiting > 0

    def _room(self, port: ListeningPort) -> int:
        """How many sessions it may begin now; 0 or less: none."""
        frontend, counters = port.frontend, self._counters
        if self._paused or frontend is None:
            return 0
        sessions, policy = frontend.counters.sessions, frontend.frontend.policy
        own, shared = counters.guaranteed - sessions, self.shareable - counters.shared
        room = min(counters.max_connections - counters.open_sessions, max(own, 0) + max(shared, 0))
        if policy.limits.rate:
            room = min(room, int(frontend.allowance))
        if policy.max_connections:
            room = min(room, policy.max_connections - sessions - frontend.others)
        return room
