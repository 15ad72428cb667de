"""A live session: two mirrored halves and what is counted of them. Behaviour is elsewhere; this is what it works on."""

from collections.abc import Callable
from socket import SocketType

from pylb.core.address import Address
from pylb.core.balance import leastconn, roundrobin
from pylb.core.policy import Balance
from pylb.core.session import State
from pylb.core.table import Frontend, Server
from pylb.forward.counters import FrontendCounters, ServerCounters
from pylb.forward.pipes import Pipe

_DIALING = State.DIALING
_BALANCE: dict[Balance, Callable[[list["ServerState"]], "ServerState | None"]] = {
    Balance.LEASTCONN: leastconn,
    Balance.ROUNDROBIN: roundrobin,
}


class Half:
    """One connection of a session. Bytes *read from* it go to its peer; `pending` are bytes that wait to be *written to* it."""

    __slots__ = (
        "blocked",
        "broken",
        "early",
        "eof",
        "fd",
        "full_reads",
        "held",
        "is_client",
        "peer",
        "pending",
        "pipe",
        "read_on",
        "received",
        "recv_into",
        "send",
        "session",
        "silence",
        "sock",
        "stalled",
    )

    def __init__(self, sock: SocketType, session: "Session", is_client: bool) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.recv_into = sock.recv_into
        self.send = sock.send
        self.session = session
        self.is_client = is_client
        self.peer: Half | None = None
        self.pending: bytes | None = None
        self.pipe: Pipe | None = None  # bytes read from this half by splice, on their way to the peer
        self.received = 0  # bytes read from this half
        self.held = 0  # bytes that waited for this half when it last blocked, as counted in counters.buffered
        self.full_reads = 0  # in a row; many of them mean bulk
        self.early = 0  # epoll events that came while the session was still dialing
        self.blocked = False  # pending or the peer's pipe waits for this half to become writable
        self.stalled = False  # was blocked once: read less ahead for it
        self.read_on = False  # an event said RDHUP, HUP, ERR or PRI: a short read no longer means "nothing more"
        self.broken = False  # reset or otherwise in error: a read of 0 is no clean end
        self.eof = False  # everything was read
        # Since when (monotonic) something is on its way to a peer that says nothing, and its segments counted by then.
        self.silence: tuple[float, int] | None = None


class ServerState:
    """A server of a frontend as the engine sees it; it outlives a table as long as label and address stay."""

    __slots__ = ("counters", "credit", "failing", "server", "sessions", "weight")

    def __init__(self, server: Server, counters: ServerCounters) -> None:
        self.server = server
        self.counters = counters
        self.weight = server.weight
        self.sessions = 0  # dialing ones included: leastconn must see them
        self.credit = 0
        self.failing = False  # the last connect failed: the next success is worth telling


class FrontendState:
    """A frontend in force. `frontend` and `tiers` are replaced by a new table, never edited."""

    __slots__ = ("_balance", "_leaving", "counters", "frontend", "kill_at", "servers", "sessions", "tiers")

    def __init__(self, frontend: Frontend) -> None:
        self.counters = FrontendCounters(frontend.name)
        self.sessions = 0
        self.kill_at: float | None = None  # monotonic; set when the frontend was removed
        self.servers: dict[tuple[str, Address], ServerState] = {}
        self.tiers: list[list[ServerState]] = []
        self._leaving: list[ServerState] = []  # left the table, still have sessions
        self.frontend = frontend
        self.update(frontend)

    def update(self, frontend: Frontend) -> None:
        """Take over a new table's picture. Live sessions keep the ServerState they have."""
        self.frontend = frontend
        self._balance = _BALANCE[frontend.policy.balance]
        self.counters.name = frontend.name
        known, self.servers = self.servers, {}
        tiers: dict[int, list[ServerState]] = {}
        for server in frontend.servers:
            key = (server.name, server.address)
            state = known.get(key)
            if state is None:
                state = ServerState(server, self.counters.servers.setdefault(server.name, ServerCounters()))
            state.server = server
            state.weight = server.weight
            self.servers[key] = state
            tiers.setdefault(server.rank, []).append(state)
        self.tiers = [tiers[rank] for rank in sorted(tiers)]
        # Every new pod is a new label: its counters go with its last session, at the next table.
        gone = [state for key, state in known.items() if key not in self.servers]
        self._leaving = [state for state in (*self._leaving, *gone) if state.sessions]
        kept = {server.name for server in frontend.servers} | {state.server.name for state in self._leaving} | {""}
        for label in self.counters.servers.keys() - kept:
            self.counters.forgotten += self.counters.servers.pop(label).closed.total()

    def pick(self, tried: list[ServerState] | None) -> ServerState | None:
        """The balance's choice within the lowest rank that has an untried server of weight, or None."""
        for tier in self.tiers:
            chosen = self._balance([server for server in tier if server not in tried] if tried else tier)
            if chosen is not None:
                return chosen
        return None


class Session:
    __slots__ = (
        "accepted",
        "address",
        "at_rest",
        "client",
        "code",
        "connected",
        "deadline",
        "delivered",
        "failure",
        "frontend",
        "last_from_client",
        "quiet_since",
        "seen",
        "seen_in",
        "seen_out",
        "server",
        "state",
        "tried",
        "upstream",
    )

    def __init__(self, frontend: FrontendState, address: tuple[str, int], accepted: float) -> None:
        self.frontend = frontend
        self.address = address  # as accept gave it
        self.accepted = accepted  # monotonic
        self.connected = 0.0  # monotonic; 0: not yet
        self.state = _DIALING
        self.client: Half | None = None
        self.upstream: Half | None = None
        self.server: ServerState | None = None
        self.tried: list[ServerState] | None = None  # servers that failed this session
        self.failure = ""  # why the last one did
        self.code = ""  # set by what ended it first
        self.deadline = 0.0  # monotonic; of the dial or of the flush, whichever is under way
        self.delivered: int | None = None  # bytes that were delivered at the last look before a deadline
        self.seen = False  # by the sweep
        self.at_rest = False  # all bytes were found confirmed by the peers, and none moved since
        self.seen_in = 0  # bytes already in the counters
        self.seen_out = 0
        self.quiet_since = accepted
        self.last_from_client = True
