"""A session: two mirrored halves and their counters, and what is reported of it. What it does is elsewhere."""

from collections.abc import Callable
from enum import Enum
from socket import AF_INET, AF_INET6, SocketType
from typing import TYPE_CHECKING, NamedTuple

from pylb.core.address import Address
from pylb.core.balance import Balancer, balancer
from pylb.core.policy import Backups, Balance
from pylb.core.recorder import Attempt, RecordedSession
from pylb.core.session import Event, SessionRecord, State
from pylb.core.table import DOWN, Frontend, Server
from pylb.forward.admission import Admission, AdmissionRules, needs_admission
from pylb.forward.counters import FrontendCounters, ServerCounters
from pylb.forward.pipes import Pipe
from pylb.forward.sockets import folded
from pylb.forward.wait_queue import WaitQueue

if TYPE_CHECKING:
    from pylb.forward.live_sessions import SweepGroup

_DIALING = State.DIALING


class Half:
    """One connection of a session. Bytes *read from* it go to its peer; `pending` bytes wait to be *written to* it."""

    __slots__ = (
        "armed",
        "blocked",
        "broken",
        "bulk",
        "copies",
        "early",
        "eof",
        "fd",
        "full_reads",
        "held",
        "is_client",
        "peer",
        "pending",
        "pipe",
        "queued",
        "read_on",
        "reads",
        "received",
        "session",
        "silence",
        "sock",
        "stalled",
    )

    def __init__(self, sock: SocketType, session: "Session", is_client: bool) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.session = session
        self.is_client = is_client
        self.peer: Half | None = None
        self.pending: bytes | None = None
        self.pipe: Pipe | None = None  # bytes read from this half by splice, on their way to the peer
        self.received = 0  # bytes read from this half
        self.reads = False  # it took more than kernels buffer: it is not a reader that has stalled from the start
        self.held = 0  # bytes that waited for this half when it last blocked, as counted in counters.buffered
        self.full_reads = 0  # in a row; many of them mean bulk
        self.copies = False  # splice does not work for it: recv and send
        self.bulk = False  # its last read was a full one, or it has a pipe: its bytes are moved from the run queue
        self.queued = False  # it waits in the run queue for its share of a turn
        self.early = 0  # epoll events that came while the session was still dialing
        self.armed = is_client  # closing it sends a reset, see linger.py
        self.blocked = False  # `pending` or the peer's pipe waits until this half becomes writable
        self.stalled = False  # it was blocked once: read less ahead for it
        self.read_on = 0  # events RDHUP, HUP, ERR and PRI so far: with any, a short read no longer means "nothing more"
        self.broken = False  # reset or otherwise in error: a read of 0 is not a clean end
        self.eof = False  # everything has been read
        # Since when (monotonic) bytes are on their way to a peer that is silent, and how many segments it had sent by then.
        self.silence: tuple[float, int] | None = None


class ServerState:
    """A server of a frontend as the engine sees it. It outlives a table as long as its label and address stay."""

    __slots__ = (
        "counters",
        "failing",
        "family",
        "identity",
        "in_range",
        "most",
        "pool",
        "server",
        "sessions",
        "share",
        "target",
        "turn",
        "weight",
    )

    def __init__(self, server: Server, counters: ServerCounters) -> None:
        self.server = server
        self.counters = counters
        self.weight: float = server.weight
        self.share = 1.0  # the part of its weight that counts; less than 1 during its slow start
        self.most = server.max_connections
        # Of a range the IP alone: then all ports of a client meet one server, and FTP or RTP need that.
        self.identity = str(server.address) if not server.address.last else server.address.ip
        self.family = AF_INET6 if server.address.is_ipv6 else AF_INET
        self.target = (server.address.ip, server.address.port)  # as connect() takes it; of a range its first port
        self.in_range = False  # its frontend has a range of ports: the one that a client called decides about the port here
        self.sessions = 0  # includes those that are dialing: leastconn must count them
        self.turn = 0.0
        self.failing = False  # the last connect failed: the next success is worth a report
        self.pool: Balancer[ServerState] | None = None  # informed when a session ends; None: it does not need that

    def allow(self, most: int) -> None:
        """Set how many sessions a server with a limit may have: what other processes leave of the limit."""
        before, self.most = self.most, max(most, -1) or -1  # 0 would mean no limit
        if self.most > before and self.pool is not None:
            self.pool.ended(self)


LEAST_SHARE = 0.1  # of its weight, when a slow start begins


def _in_use(server: Server) -> bool:
    return server.rank < DOWN and server.weight > 0


class NoServer(Enum):
    """Why there is no server for a session right now."""

    FULL = "full"  # there will be one


FULL = NoServer.FULL


class FrontendState:
    """A frontend in force. A new table replaces `frontend` and what follows from it; neither is ever edited."""

    __slots__ = (
        "_leaving",
        "_next_source",
        "_only",
        "_pools",
        "_random",
        "_tiers",
        "accepted",
        "admission_rules",
        "allowance",
        "counters",
        "frontend",
        "kill_at",
        "others",
        "queue",
        "queued",
        "ramping",
        "routes",
        "servers",
        "sweep_group",
    )

    def __init__(self, frontend: Frontend, random: Callable[[], float]) -> None:
        self.counters = FrontendCounters(frontend.name)
        self.others = 0  # sessions in other processes, see shared_limits.py
        self.accepted = 0  # since the last report to the other processes, if the rate is limited
        self.sweep_group: SweepGroup | None = None  # of its sessions, if short timeouts require more visits than usual
        self.kill_at: float | None = None  # monotonic; set when the frontend was removed
        self.servers: dict[tuple[str, Address], ServerState] = {}
        self.queue: WaitQueue[Session] = WaitQueue()  # sessions that wait for a server
        self.queued = False  # the waiting sessions are in the run queue, to look for room
        self.allowance = float(frontend.policy.limits.rate)  # connections it may accept now, if its rate is limited
        self.admission_rules: AdmissionRules | None = None
        self.routes: dict[str, FrontendState] = {}  # of a port, by server name
        self.frontend = frontend
        self._random = random
        self._next_source = 0
        self._leaving: list[ServerState] = []  # servers that left the table and still have sessions
        self.ramping: dict[ServerState, float | None] = {}  # servers in their slow start, and since when; None: just now
        self.update(frontend)

    def update(self, frontend: Frontend) -> list[tuple[ServerState, Server]]:
        """Take over a new table's frontend. Live sessions keep their ServerState.

        Returns the servers that stayed but changed, each with its previous value.
        """
        self.frontend = frontend
        self.counters.name = frontend.name
        self._update_admission()
        known, self.servers = self.servers, {}
        changed = []
        tiers: dict[tuple[int, bool], list[ServerState]] = {}
        for server in frontend.servers:
            key = (server.name, server.address)
            state = known.get(key)
            if state is None:
                state = ServerState(server, self.counters.servers.setdefault(server.name, ServerCounters()))
                state.in_range = frontend.listen.last != 0
                comes = bool(known)  # the first servers of a frontend have no others to share the load with
            else:
                same = state.server is server or state.server == server
                comes = not same and _in_use(server) and not _in_use(state.server)
                if not same:
                    changed.append((state, state.server))
            if comes and frontend.policy.slow_start:
                state.share = LEAST_SHARE
                self.ramping[state] = None
            state.server, state.most = server, server.max_connections
            state.weight = server.weight if state.share == 1.0 else server.weight * state.share
            self.servers[key] = state
            if frontend.serves(server):
                tiers.setdefault((server.rank, server.backup), []).append(state)
            else:
                state.pool = None
        self._tiers = sorted(tiers.items())
        self._pool()
        # Every new pod has a new label. Its counters are dropped with its last session, at the next table.
        gone = [state for key, state in known.items() if key not in self.servers]
        for state in gone:
            state.pool = None
        self._leaving = [state for state in (*self._leaving, *gone) if state.sessions]
        kept = {server.name for server in frontend.servers} | {state.server.name for state in self._leaving} | {""}
        for label in self.counters.servers.keys() - kept:
            self.counters.forgotten += self.counters.servers.pop(label).closed.total()
        return changed

    def set_route(self, server_name: str, route: "FrontendState | None") -> None:
        """Add a route to this port, or take it away (None)."""
        if route is None:
            self.routes.pop(server_name, None)
        else:
            self.routes[server_name] = route
        self._update_admission()

    def _update_admission(self) -> None:
        policy = self.frontend.policy
        if not (self.routes or needs_admission(policy)):
            self.admission_rules = None
        elif self.admission_rules is None:
            self.admission_rules = AdmissionRules(policy)
        else:
            self.admission_rules.update(policy)

    def ramp(self, now: float) -> bool:
        """Give the servers in their slow start a little more. False: none is left."""
        slow = self.frontend.policy.slow_start
        for state, since in list(self.ramping.items()):
            begun = now if since is None else since
            state.share = min(1.0, max(LEAST_SHARE, (now - begun) / slow)) if slow else 1.0
            state.weight = state.server.weight if state.share == 1.0 else state.server.weight * state.share
            if state.share == 1.0 or self.servers.get((state.server.name, state.server.address)) is not state:
                del self.ramping[state]
            else:
                self.ramping[state] = begun
        self._pool()
        return bool(self.ramping)

    def _pool(self) -> None:
        """Rebuild the balancers, one per rank. Backups are used in their order, so their algorithm may differ."""
        self._only: ServerState | None = None
        self._pools: list[Balancer[ServerState]] = []
        policy = self.frontend.policy
        for (_rank, backup), tier in self._tiers:
            algorithm = Balance.FIRST if backup and policy.backups is Backups.FIRST else policy.balance
            pool = balancer(algorithm, tier, self._random)
            self._pools.append(pool)
            for state in tier:
                state.pool = pool
        if len(self.servers) == 1 and self._tiers:  # the usual case
            [(_, [state])] = self._tiers
            if state.weight and not state.most:
                self._only, state.pool = state, None

    def break_cycles(self) -> None:
        """Break the reference cycles between pools and servers, once the port is closed and the last session has ended.

        A reload may close a thousand frontends. Their cycles would wait for the garbage collector and cause a pause.
        """
        for state in self.servers.values():
            state.pool = None
        self._only, self._pools = None, []

    def pick(self, client: str, tried: list[ServerState] | None) -> ServerState | NoServer | None:
        """The balancer's choice in the lowest rank with an untried server of weight; FULL if that rank has no room.

        `client`: its IP address.
        """
        if self._only is not None:
            return None if tried and self._only in tried else self._only
        for pool in self._pools:
            chosen = pool.pick(folded(client), tried or ())
            if chosen is not None:
                return chosen
            if pool.is_full(tried or ()):
                return FULL
        return None

    def sources(self, family: int) -> list[str]:
        """The source addresses to try for a dial, each once, beginning with the next in turn. [""]: the kernel chooses one."""
        wanted = [ip for ip in self.frontend.policy.source_addresses if (AF_INET6 if ":" in ip else AF_INET) == family]
        if not wanted:
            return [""]
        self._next_source = turn = (self._next_source + 1) % len(wanted)
        return [*wanted[turn:], *wanted[:turn]]


class End(NamedTuple):
    """What is only known at the end of a session, or of a live one right now. The counts of sessions include this one."""

    at: float  # monotonic
    clock_offset: float  # unix time minus monotonic time then
    frontend: Frontend
    server: Server | None
    retries: int
    bytes_in: int
    bytes_out: int
    active: int
    frontend_active: int
    server_active: int  # without this one
    client_tcp: bytes  # TCP_INFO, b"" without one
    server_tcp: bytes


class Session:
    __slots__ = (
        "accepted",
        "address",
        "admission",
        "at_rest",
        "attempts",
        "client",
        "code",
        "connected",
        "deadline",
        "delivered",
        "dialed",
        "dialed_from",
        "end",
        "failure",
        "first",
        "first_at",
        "frontend",
        "generation",
        "last_from_client",
        "number",
        "picked_from",
        "quiet_since",
        "seen",
        "seen_in",
        "seen_out",
        "server",
        "source",
        "state",
        "sweep_group",
        "tried",
        "upstream",
        "waits_among",
    )

    def __init__(self, frontend: FrontendState, address: tuple[str, int], accepted: float, number: int) -> None:
        self.number = number  # the engine numbers all its sessions
        self.frontend = frontend
        self.address = address  # from accept, or from the PROXY header
        self.accepted = accepted  # monotonic
        self.connected = 0.0  # monotonic; 0: not yet
        self.state = _DIALING
        self.admission: Admission | None = None
        self.source: bytes | None = None  # the key under which source_share.py counts it, while it counts
        self.client: Half | None = None
        self.upstream: Half | None = None
        self.server: ServerState | None = None
        self.tried: list[ServerState] | None = None  # servers that failed this session
        self.failure = ""  # why the last of them did
        self.code = ""  # set by whatever ended the session first
        self.first: Event | None = None  # a FIN, or the event that set the code, whichever came first
        self.first_at = 0.0  # monotonic
        self.picked_from: Frontend | None = None  # the frontend from which its server was last picked
        self.generation = 0  # of the table that was in force
        self.dialed = 0.0  # monotonic; time of the last dial
        self.dialed_from: tuple[str, int] | None = None  # only known for dials that might come back to us
        self.attempts: list[Attempt] | None = None  # failed attempts, and waits in the queue
        self.deadline = 0.0  # monotonic; of the header, the queue, a delayed dial, the dial or the flush
        self.waits_among: dict[Session, None] | None = None  # the others with the same timeout, see deadlines.py
        self.sweep_group: SweepGroup | None = None  # None: it is fresh, see live_sessions.py
        self.delivered: int | None = None  # bytes delivered, as of the last look before a deadline
        self.seen = False  # by the sweep
        self.at_rest = False  # the peers had confirmed all bytes, and none moved since
        self.seen_in = 0  # bytes already in the counters
        self.seen_out = 0
        self.quiet_since = accepted
        self.last_from_client = False  # as long as neither has sent anything, the client is expected to
        self.end: End | None = None

    def record(self, end: End, code: str) -> SessionRecord:
        """What the log says of it."""
        server, admission = end.server, self.admission
        waited = admission.waited if admission is not None else 0.0
        # By position: a NamedTuple takes keywords at twice the cost, and this is paid per session that is logged.
        return SessionRecord(
            end.frontend.name,
            server.name if server is not None else "",
            folded(self.address[0]),
            self.address[1],
            (admission.called if admission is not None else 0) or end.frontend.listen.port,
            end.clock_offset + self.accepted,
            round(waited * 1000) if server is not None or waited else -1,
            round((self.connected - self.accepted - waited) * 1000) if self.connected else -1,
            round((end.at - self.accepted) * 1000),
            end.bytes_in,
            end.bytes_out,
            code,
            end.retries,
            end.retries > 0,
            end.active,
            end.frontend_active,
            end.server_active,
            admission.ahead if admission is not None else 0,
            admission.unique_id.hex() if admission is not None else "",
            self.number,
            admission.asked if admission is not None else "",
        )

    def story(self, end: End, code: str) -> RecordedSession:
        """All that is known of it."""
        return RecordedSession(
            self.record(end, code),
            self.state,
            self.picked_from or end.frontend,
            self.generation,
            end.server.address if end.server is not None else None,
            self.attempts or (),
            self.connected - self.dialed if self.connected else None,
            self.first,
            self.first_at - self.accepted,
            end.client_tcp,
            end.server_tcp,
            self.failure,
        )

    def recorded(self) -> RecordedSession:
        """The story of an ended session, for the recorder, when somebody asks."""
        if self.end is None:
            raise ValueError(f"session {self.number} has not ended")
        return self.story(self.end, self.code)
