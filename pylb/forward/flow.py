"""A flow: one client's datagrams to one of our addresses, its connected socket, and what is reported of it."""

from collections import OrderedDict
from socket import SocketType

from pylb.core.address import Listen
from pylb.core.flow import FlowEvent, FlowState
from pylb.core.recorder import Attempt, RecordedSession, session_id
from pylb.core.session import SessionRecord, SessionView
from pylb.core.table import Frontend
from pylb.forward.admission import Admission
from pylb.forward.datagram_sockets import Ancillary, Client, kernel_drops
from pylb.forward.session import End, FrontendState, ServerState
from pylb.forward.sockets import folded
from pylb.forward.source_share import source

Key = tuple[Client, bytes]  # the client, and the local address that it called
_NEW = FlowState.NEW


class DatagramPort:
    """A listening socket. Without a frontend it was opened before its table, and datagrams wait in the kernel."""

    __slots__ = ("fd", "flows", "frontend", "kernel_dropped", "listen", "queued", "sock", "watched")

    def __init__(self, listen: Listen, sock: SocketType) -> None:
        self.listen = listen
        self.sock = sock
        self.fd = sock.fileno()
        self.frontend: FrontendState | None = None
        self.flows: dict[Key, Flow] = {}
        self.queued = False  # it waits for its share of a turn
        self.watched = False
        self.kernel_dropped = kernel_drops(sock)  # datagrams, as counted so far; an inherited socket has a past


class Flow:
    """`check_in` and `check_out`: the next datagram in that direction needs a look before it is, or after it was, passed on.

    Everything that is not done for each datagram hangs on them, so the others cost one test.
    """

    __slots__ = (
        "accepted",
        "admission",
        "answered",
        "attempts",
        "bytes_in",
        "bytes_out",
        "check_in",
        "check_out",
        "client",
        "code",
        "counted",
        "datagrams_in",
        "datagrams_out",
        "end",
        "failed",
        "failure",
        "fd",
        "first",
        "frontend",
        "generation",
        "header",
        "homed_at",
        "local",
        "number",
        "picked_from",
        "port",
        "queued",
        "quiet_since",
        "reply",
        "reported",
        "server",
        "single",
        "sock",
        "state",
    )

    def __init__(  # noqa: PLR0917 - each of another type
        self,
        port: DatagramPort,
        frontend: FrontendState,
        client: Client,
        local: bytes,
        reply: Ancillary,
        now: float,
        number: int,
    ) -> None:
        self.number = number  # the engine numbers all its sessions and flows
        self.port: DatagramPort | None = port
        self.frontend = frontend
        self.client = client
        self.local = local  # the address that the client called; b"": there is one only
        self.reply = reply  # the ancillary data that makes it the source of the answers
        self.accepted = self.quiet_since = now  # monotonic
        self.state = _NEW
        self.sock: SocketType | None = None
        self.homed_at = now  # since when it has its server, monotonic
        self.fd = -1
        self.server: ServerState | None = None
        self.admission: Admission | None = None
        self.check_in = self.check_out = True
        self.queued = False  # it waits for its share of a turn
        self.single = False  # its route cannot cut trains: datagrams are sent one by one
        self.header = b""  # PROXY header that has to go in front of the next datagram
        self.answered = False  # by the server that it has now
        self.failed = False  # that server is unreachable: another one is picked for the next datagram
        self.reported = False  # that failure is counted
        self.failure = ""  # the last one's name
        self.datagrams_in = self.datagrams_out = 0  # passed on: client to server, server to client
        self.bytes_in = self.bytes_out = 0
        self.counted = (0, 0, 0, 0)  # of these, what is in the counters
        self.attempts: list[Attempt] | None = None
        self.generation = 0
        self.picked_from: Frontend | None = None
        self.code = ""
        self.first: FlowEvent | None = None
        self.end: End | None = None

    @property
    def key(self) -> Key:
        return self.client, self.local

    def record(self, end: End, code: str) -> SessionRecord:
        """What the log says of it."""
        server, called = end.server, self.admission.called if self.admission is not None else 0
        return SessionRecord(
            end.frontend.name,
            server.name if server is not None else "",
            folded(self.client[0]),
            self.client[1],
            called or end.frontend.listen.port,
            end.clock_offset + self.accepted,
            0 if server is not None else -1,
            0 if server is not None else -1,
            round((end.at - self.accepted) * 1000),
            end.bytes_in,
            end.bytes_out,
            code,
            end.retries,
            end.retries > 0,
            end.active,
            end.frontend_active,
            end.server_active,
            number=self.number,
        )

    def story(self, end: End, code: str) -> RecordedSession:
        """All that is known of the flow."""
        return RecordedSession(
            self.record(end, code),
            self.state,
            self.picked_from or end.frontend,
            self.generation,
            end.server.address if end.server is not None else None,
            self.attempts or (),
            None,
            self.first,
            end.at - self.accepted,
            b"",
            b"",
            self.failure,
        )

    def recorded(self) -> RecordedSession:
        """The story of a flow that has ended: for the recorder, when somebody asks."""
        if self.end is None:
            raise ValueError(f"flow {self.number} has not ended")
        return self.story(self.end, self.code)

    def view(self, now: float) -> SessionView:
        """What the list of live sessions says of it."""
        server, frontend = self.server, self.frontend.frontend
        return SessionView(
            folded(self.client[0]),
            self.client[1],
            frontend.name,
            frontend.listen,
            server.server.name if server is not None else "",
            server.server.address if server is not None else None,
            str(self.state),
            now - self.accepted,
            self.bytes_in,
            self.bytes_out,
            session_id(self.number),
        )


class FrontendFlows:
    """The flows of one frontend, in the order of their last visit by the sweep."""

    __slots__ = ("closed", "flows", "frontend", "owed", "period", "ports", "unsettled")

    def __init__(self, frontend: FrontendState, ports: list[DatagramPort]) -> None:
        self.frontend = frontend
        self.ports = ports
        # Plain dicts find their first key by walking over all entries deleted before it.
        self.flows: OrderedDict[Flow, None] = OrderedDict()
        self.unsettled: OrderedDict[Flow, None] = OrderedDict()  # new ones included, the oldest first
        self.period = 0.0  # seconds in which each is visited once
        self.closed = False  # its ports are: the flows end as fast as the turns allow, and none of them passes anything on
        self.owed = 0.0  # visits that are due, a fraction included


class LoggedSources:
    """Sources of which a refusal, or a flow that made room, was logged and recorded a short while ago.

    A flood must fill neither the disk nor the recorder: one line for each source in `PERIOD`, and `MOST` of all of them.
    """

    PERIOD = 60.0  # seconds
    MOST = 4096

    def __init__(self) -> None:
        self._known: set[tuple[FrontendState, bytes]] = set()
        self._forget = 0.0  # monotonic

    def tick(self, now: float) -> None:
        if now >= self._forget:
            self._forget = now + self.PERIOD
            self._known.clear()

    def is_first(self, frontend: FrontendState, ip: str) -> bool:
        """True: this one is to be logged and recorded. All are counted."""
        key = (frontend, source(ip))
        if key in self._known or len(self._known) >= self.MOST:
            return False
        self._known.add(key)
        return True
