"""Plain integers, counted where things happen and read at a scrape. No metric objects, locks or labels on the hot path."""

from bisect import bisect_left
from collections import Counter

from pylb.core.address import Listen

CONNECT_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
SESSION_BOUNDS = (0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 1800.0, 3600.0, 14400.0, 86400.0)


class Histogram:
    """Counts per bucket, not cumulative: `counts[i]` counts values in (bounds[i-1], bounds[i]], the last one the rest."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds  # seconds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0  # sum of all values, seconds

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


class ServerCounters:
    __slots__ = (
        "attempts",
        "bytes_in",
        "bytes_out",
        "closed",
        "connect_seconds",
        "failures",
        "last_at",
        "longest_connect",
        "longest_queue",
        "longest_total",
        "queue_seconds",
        "redispatches",
        "sessions",
        "sessions_total",
        "total_seconds",
    )

    def __init__(self) -> None:
        self.sessions = 0  # live, connected ones
        self.sessions_total = 0
        self.failures: Counter[str] = Counter()  # failed connects by reason
        self.closed: Counter[str] = Counter()  # ended sessions by termination code
        self.bytes_in = 0  # as current as the frontend's, see there
        self.bytes_out = 0
        self.attempts = 0  # times it was chosen and dialled
        self.redispatches = 0  # times another server was chosen because this one had failed
        self.queue_seconds = 0.0  # sum over the connected sessions that waited in the queue
        self.connect_seconds = 0.0  # sum over connected sessions, without their time in the queue
        self.total_seconds = 0.0  # sum over ended sessions
        self.longest_queue = 0.0
        self.longest_connect = 0.0
        self.longest_total = 0.0
        self.last_at = 0.0  # time of the last connect, monotonic; 0: none yet


# Why a datagram is dropped. `kernel`: a socket's buffer was full; `gone`: our address or the route to the client is.
DROPS = (
    "truncated",
    "source_port",
    "buffer_full",
    "no_server",
    "too_large",
    "limit",
    "access",
    "gone",
    "fault",
    "kernel",
)


class DatagramCounters:
    """Counts of a frontend of UDP. Every datagram that came is in exactly one of them, or is still in the kernel."""

    __slots__ = ("dropped", "rehomed", "relayed_in", "relayed_out")

    def __init__(self) -> None:
        self.relayed_in = 0  # sent on to a server; as current as the bytes
        self.relayed_out = 0  # sent on to a client
        self.dropped: Counter[str] = Counter()  # by reason, of DROPS
        self.rehomed = 0  # flows that moved to another server


class FrontendCounters:
    __slots__ = (
        "bytes_in",
        "bytes_out",
        "connect_seconds",
        "connections",
        "datagrams",
        "denied",
        "forgotten",
        "name",
        "queued",
        "servers",
        "session_seconds",
        "sessions",
        "sessions_total",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.sessions = 0  # live
        self.sessions_total = 0
        # Exact once a session has ended. The sweep adds a live session's bytes, so these are at most one sweep period late.
        self.bytes_in = 0
        self.bytes_out = 0
        self.denied: Counter[str] = Counter()  # clients that pylb refused, by reason
        self.queued = 0  # sessions that wait for a server
        self.connect_seconds = Histogram(CONNECT_BOUNDS)
        self.session_seconds = Histogram(SESSION_BOUNDS)
        self.servers: dict[str, ServerCounters] = {}  # by label; "" for sessions that never had a server
        self.connections = 0  # accepted: sessions, and clients that were refused right after the accept
        self.datagrams: DatagramCounters | None = None  # None: it is a frontend of TCP
        self.forgotten = 0  # ended sessions of servers that left the table; with those of `servers` this makes all ended ones


class Counters:
    __slots__ = (
        "accept_errors",
        "buffered",
        "bytes_spliced",
        "faults",
        "frontends",
        "guaranteed",
        "max_connections",
        "open_flows",
        "open_sessions",
        "pipe_fallbacks",
        "pipes_lent",
        "runnable",
        "shared",
    )

    def __init__(self, max_connections: int) -> None:
        self.frontends: dict[Listen, FrontendCounters] = {}
        self.open_sessions = 0
        self.open_flows = 0  # of UDP; they are not part of open_sessions, because they take none of its places
        self.buffered = 0  # bytes in memory and pipes that wait for blocked destinations
        self.max_connections = max_connections
        self.guaranteed = 0  # the part of max_connections that each frontend has for itself
        self.shared = 0  # open sessions beyond what their frontends are guaranteed
        self.accept_errors: Counter[str] = Counter()  # errno names
        self.faults = 0  # pylb's own faults; each ended at most one session, or held up one port for a moment
        self.pipe_fallbacks = 0  # sessions that wanted a pipe and got none
        self.bytes_spliced = 0  # through pipes that were given back since
        self.pipes_lent = 0  # at the last tick
        self.runnable = 0  # sessions and ports in the run queue, at the last tick
