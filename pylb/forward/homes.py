"""A flow's home: the server that it has now, and the connected socket on which its datagrams go there.

A home is looked for at the first datagram, and again at the next one after the server refused, was found down, or left the
table. Nothing waits for a connect, so a server is tried and left within one call.
"""

import errno
from collections.abc import Callable
from select import EPOLLIN, epoll
from socket import SocketType
from typing import Protocol

from pylb.core.address import UDP, Address
from pylb.core.connect_failures import RESOURCE, failure_name
from pylb.core.flow import FLOW_TRANSITIONS, FlowEvent, FlowState
from pylb.core.policy import ProxyProtocol
from pylb.core.proxy_protocol import header
from pylb.core.recorder import Attempt
from pylb.core.table import DOWN
from pylb.forward import datagram_sockets, sockets
from pylb.forward.accounts import Accounts
from pylb.forward.datagram_sockets import Client, kernel_drops, local_text
from pylb.forward.flow import DatagramPort, Flow
from pylb.forward.run_queue import DIAL, RunQueue
from pylb.forward.session import FULL, NoServer, ServerState

# Level-triggered: a read after the last datagram, only to see that there is none, costs a tenth of a round trip. Not EPOLLOUT:
# a full buffer drops. EPOLLERR always comes.
WATCHED = EPOLLIN
MOST_ATTEMPTS = 8  # noted of a flow, which may live long


class FlowsByDescriptor(Protocol):
    """The engine's map from descriptors to what has events."""

    def __setitem__(self, fd: int, flow: Flow) -> None: ...

    def pop(self, fd: int, default: None) -> object: ...


class Homes:
    """Finds servers for all flows of an engine."""

    def __init__(  # noqa: PLR0917 - the parts of one engine, each of another type
        self,
        events: epoll,
        by_fd: FlowsByDescriptor,
        accounts: Accounts,
        run_queue: RunQueue,
        clock: Callable[[], float],
        close_later: Callable[[SocketType], None],
    ) -> None:
        self._epoll = events
        self._by_fd = by_fd
        self._accounts = accounts
        self._run_queue = run_queue
        self._clock = clock
        self._close_later = close_later
        self.make_room: Callable[[Flow], bool] = lambda _flow: False  # all servers are full: end an unsettled flow
        self.generation: Callable[[], int] = lambda: 0  # of the table in force
        self.is_ours: Callable[[int], bool] = lambda _port: False  # do we listen on that port number?
        self.own: dict[Client, None] = {}  # local addresses of flows that may come back to us

    def find(self, flow: Flow) -> bool:
        """Find a home for a flow that has none, or whose server is lost or unreachable. True: it moved to another one.

        It stays where it is if no other server is better. Without any it has no socket.
        """
        frontend, before = flow.frontend, flow.server
        tried = [before] if before is not None and flow.failed else []
        while True:
            server = frontend.pick(flow.client[0], tried)
            if server is FULL and self.make_room(flow):
                server = frontend.pick(flow.client[0], tried)
            if server is None or isinstance(server, NoServer):
                if before is not None and self.is_lost(flow):
                    self.leave(flow)
                return False
            if server is before:
                return False
            sock = self._connect(flow, server)
            if sock is not None:
                self.leave(flow)
                self.enter(flow, server, sock)
                return before is not None
            tried.append(server)

    @staticmethod
    def is_lost(flow: Flow) -> bool:
        """Is its server down, released or replaced? One that drains, is stale or in maintenance keeps its flows."""
        server = flow.server
        if server is None:
            return True
        known = flow.frontend.servers.get((server.server.name, server.server.address))
        return known is not server or server.server.rank == DOWN

    def _connect(self, flow: Flow, server: ServerState) -> SocketType | None:
        self._run_queue.budget -= DIAL
        server.counters.attempts += 1
        target, error = _target(flow, server), 0
        for source in flow.frontend.sources(server.family):
            sock, error = datagram_sockets.connect(server.family, target, source)
            if sock is not None and (error := self._watch(sock)) == 0:
                return sock
        self._note_failure(flow, server, error)
        return None

    def _watch(self, sock: SocketType) -> int:
        """Register with epoll. If that fails the socket is closed; returns the errno."""
        try:
            self._epoll.register(sock.fileno(), WATCHED)
        except OSError as error:  # ENOMEM, ENOSPC: more than fs.epoll.max_user_watches
            sockets.close(sock)
            return error.errno or errno.EIO
        except BaseException:
            sock.close()
            raise
        return 0

    def enter(self, flow: Flow, server: ServerState, sock: SocketType) -> None:
        """`sock` is connected to `server`, and becomes the flow's."""
        flow.server, flow.sock, flow.fd = server, sock, sock.fileno()
        flow.failed = flow.reported = flow.answered = False
        flow.check_out = True
        self._by_fd[flow.fd] = flow
        server.sessions += 1
        server.counters.sessions += 1
        server.counters.sessions_total += 1
        server.counters.last_at = flow.homed_at = self._clock()
        flow.generation = self.generation()
        flow.picked_from = flow.frontend.frontend
        if server.server.send_proxy is not ProxyProtocol.NONE and flow.port is not None:
            flow.header = _header(flow, flow.port)
        if self.is_ours(_target(flow, server)[1]):
            self.own[sock.getsockname()[:2]] = None

    def leave(self, flow: Flow, *, lives_on: bool = False) -> None:
        """Leave the server, if it has one. Idempotent. `lives_on`: in the next pylb, which counts what the kernel dropped."""
        server, sock = flow.server, flow.sock
        if server is None or sock is None:
            return
        if self.own:
            self.own.pop(sock.getsockname()[:2], None)
        counters = flow.frontend.counters.datagrams
        if counters is not None and not lives_on and (dropped := kernel_drops(sock)):
            counters.dropped["kernel"] += dropped
        self._by_fd.pop(flow.fd, None)
        flow.server = flow.sock = None
        flow.fd = -1
        self._close_later(sock)
        server.sessions -= 1
        server.counters.sessions -= 1
        if server.pool is not None:
            server.pool.ended(server)

    def on_error(self, flow: Flow, error: int) -> None:
        """The server of `flow` cannot be reached. Counted and reported once for each home."""
        server = flow.server
        if server is None or error in (0, errno.EMSGSIZE):
            return
        flow.failed = flow.check_in = flow.check_out = True
        if not flow.reported:
            flow.reported = True
            self._note_failure(flow, server, error)

    def on_answer(self, flow: Flow) -> None:
        """The server can be reached."""
        flow.failed = flow.reported = False
        server = flow.server
        if server is not None and server.failing:
            server.failing = False
            self._accounts.connect_ended(flow.frontend, server.server, None)

    def _note_failure(self, flow: Flow, server: ServerState, error: int) -> None:
        flow.failure = reason = failure_name(error)
        server.counters.failures[reason] += 1
        if reason != RESOURCE:  # a shortage on our side says nothing about the server
            server.failing = True
        flow.attempts = flow.attempts or []
        if len(flow.attempts) < MOST_ATTEMPTS:
            took = round((self._clock() - flow.accepted) * 1000)
            name = errno.errorcode.get(error, "")
            flow.attempts.append(Attempt(server.server.name, server.server.address, reason, name, took))
        self._accounts.connect_ended(flow.frontend, server.server, reason)


def _target(flow: Flow, server: ServerState) -> tuple[str, int]:
    """Where the flow's datagrams go: of a range that goes to a range, each port has its own."""
    ip, port = server.target
    if server.server.address.last and flow.port is not None:
        port += flow.port.listen.port - flow.frontend.frontend.listen.port
    return ip, port


def _header(flow: Flow, port: DatagramPort) -> bytes:
    policy, client = flow.frontend.frontend.policy, flow.client
    ip = sockets.folded(client[0]).partition("%")[0]
    local = Address(local_text(flow.local, port.sock), port.listen.port, UDP)
    return header(ProxyProtocol.V2, Address(ip, client[1], UDP), local, crc32c=policy.send_crc32c)


def moved(flow: Flow, event: FlowEvent) -> FlowState:
    """The flow's next state."""
    flow.state = FLOW_TRANSITIONS[flow.state, event]
    return flow.state
