"""The messages between main and a worker, and how they are written into frames.

Every message is a NamedTuple of core's types; its index in KINDS is the frame's kind. What arrives is checked field by field
(core/codec.py) before it is used. Both ends must be of the same version: Hello and Ready say which they are.
"""

import json
from collections.abc import Iterable, Mapping
from itertools import islice
from operator import attrgetter
from typing import Any, NamedTuple

from pylb import __version__
from pylb.core.address import Address, Listen
from pylb.core.codec import Malformed, from_plain, to_plain
from pylb.core.log import Format, Selection
from pylb.core.policy import Policy
from pylb.core.recorder import Coverage, Query, SessionTrace
from pylb.core.session import SessionView
from pylb.core.table import Frontend, Server
from pylb.forward.counters import Counters, DatagramCounters, FrontendCounters, Histogram, ServerCounters
from pylb.forward.shared_limits import FrontendUse
from pylb.workers.channel import BadFrame, Frame

VERSION = f"{__version__}/6"


# ------------------------------------------------------------ main to worker


class Hello(NamedTuple):
    """The first message: what the worker is to be."""

    version: str
    worker: int
    workers: int  # how many workers there are
    max_connections: int
    max_pipes: int
    max_buffered: int  # bytes
    log_format: Format
    recorded: int = 0  # how many ended sessions it remembers
    log_selection: Selection = Selection()


class PassedSockets(NamedTuple):
    """Listening sockets, one descriptor each, for the next table."""

    listens: tuple[Listen, ...]


class NumberedFrontend(NamedTuple):
    """A frontend whose policy is given by its number."""

    name: str
    listen: Listen
    policy: int
    servers: tuple[Server, ...]


class TablePart(NamedTuple):
    """New and changed frontends of the TableChange that follows: reading a thousand at once would delay the bytes."""

    policies: dict[int, Policy]  # new ones
    frontends: tuple[NumberedFrontend, ...]


class TableChange(NamedTuple):
    """From generation `base` to `generation`, in force at once. Policies are numbered, and each is sent only once."""

    base: int
    generation: int
    forget: tuple[int, ...]  # policies that no frontend uses any more
    closed: tuple[Listen, ...]


class Request(NamedTuple):
    """A question; its answer has the same number."""

    number: int
    what: str  # sessions, counters, shutdown session, shutdown sessions, ended, trace, expect
    listen: Listen | None
    address: Address | None
    query: Query | None = None  # for "ended"
    session: int = 0  # its number, for "trace" and "shutdown session"


class OtherWorkerUse(NamedTuple):
    """What another worker uses of limited frontends; `gone`: that worker has ended."""

    worker: int
    uses: tuple[FrontendUse, ...]
    gone: bool


class ReportAllUse(NamedTuple):
    """Report all use: there is a process that knows none of them."""


class Drain(NamedTuple):
    """Accept no more; at `deadline` (monotonic) reset what is still live, and end. Like Engine.drain."""

    deadline: float
    accept: bool


# ------------------------------------------------------------ worker to main


class Ready(NamedTuple):
    version: str


class Applied(NamedTuple):
    generation: int


class LogLines(NamedTuple):
    """Session lines as one text, and their number. `dropped`: since the last message, because the queue was full."""

    text: str
    lines: int
    dropped: int


class ConnectEnded(NamedTuple):
    """A connect that failed, or the first one that succeeded again. Like Observer.connect_ended."""

    listen: Listen
    server: Server
    failure: str | None


class FaultReport(NamedTuple):
    """Something failed in the worker, and it goes on: what failed, and the traceback."""

    what: str
    text: str


class ServerCount(NamedTuple):
    """Like forward.counters.ServerCounters."""

    sessions: int
    sessions_total: int
    failures: dict[str, int]
    closed: dict[str, int]
    bytes_in: int
    bytes_out: int
    attempts: int
    redispatches: int
    queue_seconds: float
    connect_seconds: float
    total_seconds: float
    longest_queue: float
    longest_connect: float
    longest_total: float
    last_at: float


class DatagramCount(NamedTuple):
    """Like forward.counters.DatagramCounters."""

    relayed_in: int
    relayed_out: int
    rehomed: int
    dropped: dict[str, int]


class FrontendCount(NamedTuple):
    """Like forward.counters.FrontendCounters."""

    listen: Listen
    name: str
    sessions: int
    sessions_total: int
    bytes_in: int
    bytes_out: int
    denied: dict[str, int]
    queued: int
    connect_seconds: tuple[int, ...]
    connect_total: float
    session_seconds: tuple[int, ...]
    session_total: float
    servers: dict[str, ServerCount]
    forgotten: int
    connections: int
    datagrams: DatagramCount | None = None  # of a frontend of UDP


class Report(NamedTuple):
    """A sign of life, once a second and on request. Frontends: those that changed since the last report."""

    lag: float  # seconds
    open_sessions: int
    max_connections: int
    buffered: int  # bytes
    faults: int
    pipe_fallbacks: int
    accept_errors: dict[str, int]
    frontends: tuple[FrontendCount, ...]
    bytes_spliced: int
    pipes_lent: int
    runnable: int
    open_flows: int = 0


class LimitUse(NamedTuple):
    """What changed in this worker's use of limited frontends, for the other workers."""

    uses: tuple[FrontendUse, ...]


class Response(NamedTuple):
    number: int
    touched: int  # sessions that were reset
    sessions: tuple[SessionView, ...]
    ended: tuple[SessionTrace, ...] = ()
    more: bool = False  # another message continues it
    reach: Coverage | None = None  # for "ended", in its last part


KINDS: tuple[type[Any], ...] = (
    Hello,
    PassedSockets,
    TableChange,
    Request,
    Drain,
    Ready,
    Applied,
    LogLines,
    ConnectEnded,
    FaultReport,
    Report,
    Response,
    OtherWorkerUse,
    ReportAllUse,
    LimitUse,
    TablePart,
)
_NUMBERS = {kind: number for number, kind in enumerate(KINDS)}


def encoded(message: Any) -> tuple[int, bytes]:
    """The kind and body of a message."""
    return _NUMBERS[type(message)], json.dumps(to_plain(tuple(message)), separators=(",", ":")).encode()


def decoded(frame: Frame) -> Any:
    """The message. Raises BadFrame."""
    try:
        return from_plain(KINDS[frame.kind], json.loads(frame.body))
    except (IndexError, ValueError, Malformed, RecursionError) as error:
        raise BadFrame(f"a frame of kind {frame.kind} is malformed: {error}") from None


# ------------------------------------------------------------ counters as messages

CountsByListen = Mapping[Listen, FrontendCounters] | Mapping[Listen, FrontendCount]  # an engine's own, or reported ones


def frontend_count(listen: Listen, counters: FrontendCounters) -> FrontendCount:
    return FrontendCount(
        listen,
        counters.name,
        counters.sessions,
        counters.sessions_total,
        counters.bytes_in,
        counters.bytes_out,
        dict(counters.denied),
        counters.queued,
        tuple(counters.connect_seconds.counts),
        counters.connect_seconds.total,
        tuple(counters.session_seconds.counts),
        counters.session_seconds.total,
        {name: _server_count(one) for name, one in counters.servers.items()},
        counters.forgotten,
        counters.connections,
        _datagram_count(counters.datagrams) if counters.datagrams is not None else None,
    )


def _datagram_count(one: DatagramCounters) -> DatagramCount:
    return DatagramCount(one.relayed_in, one.relayed_out, one.rehomed, dict(one.dropped))


_server_values = attrgetter(*ServerCount._fields)
_BY_WORD = tuple(place for place, kind in enumerate(ServerCount.__annotations__.values()) if kind == dict[str, int])


def _server_count(one: ServerCounters) -> ServerCount:
    values = list(_server_values(one))
    for place in _BY_WORD:
        values[place] = dict(values[place])
    return tuple.__new__(ServerCount, values)  # what ServerCount(…) does, without a call for it


def report(counters: Counters, lag: float, changed: tuple[FrontendCount, ...]) -> Report:
    return Report(
        lag,
        counters.open_sessions,
        counters.max_connections,
        counters.buffered,
        counters.faults,
        counters.pipe_fallbacks,
        dict(counters.accept_errors),
        changed,
        counters.bytes_spliced,
        counters.pipes_lent,
        counters.runnable,
        counters.open_flows,
    )


PIECE = 32  # frontends in one report or part of a table: 1-2 ms of work


class ChangedCounters:
    """The frontends whose counters changed and were not reported yet. Each stays here until it is reported, however often
    `look` is called meanwhile.
    """

    def __init__(self) -> None:
        self._marks: dict[Listen, tuple[int, ...]] = {}
        self._waiting: dict[Listen, None] = {}

    def look(self, counters: Counters) -> None:
        """Add the frontends whose counters changed since the last look, and forget those that are gone."""
        before, self._marks = self._marks, {listen: _mark(one) for listen, one in counters.frontends.items()}
        self._waiting = {
            listen: None for listen, mark in self._marks.items() if listen in self._waiting or before.get(listen) != mark
        }

    def waiting(self) -> list[Listen]:
        """Frontends to report, those that wait longest first, and no more than one report may have."""
        return list(islice(self._waiting, PIECE))

    def reported(self, listens: Iterable[Listen]) -> None:
        for listen in listens:
            self._waiting.pop(listen, None)

    def __bool__(self) -> bool:
        return bool(self._waiting)


def _mark(one: FrontendCounters) -> tuple[int, ...]:
    """Differs whenever something changed that is worth reporting."""
    dials = sum(server.attempts + server.sessions_total for server in one.servers.values())
    seen = (one.sessions_total, one.sessions, one.bytes_in, one.bytes_out, one.queued, one.denied.total(), len(one.servers))
    if (of := one.datagrams) is None:
        return (*seen, dials)
    return (*seen, dials, of.relayed_in, of.relayed_out, of.rehomed, of.dropped.total())


class _Fields(NamedTuple):
    """Names of counters, by how they add up."""

    sums: tuple[str, ...]
    lasting: tuple[str, ...]  # of the sums: what does not end with its process
    by_word: tuple[str, ...]  # a count for each word
    highest: tuple[str, ...] = ()


_LIVE = ("sessions", "queued")


def _fields(count: type, numbers: tuple[type, ...], highest: tuple[str, ...] = ()) -> _Fields:
    kinds = count.__annotations__
    sums = tuple(name for name, kind in kinds.items() if kind in numbers and name not in highest)
    by_word = tuple(name for name, kind in kinds.items() if kind == dict[str, int])
    return _Fields(sums, tuple(name for name in sums if name not in _LIVE), by_word, highest)


_OF_SERVER = _fields(ServerCount, (int, float), ("longest_queue", "longest_connect", "longest_total", "last_at"))
_OF_DATAGRAMS = _fields(DatagramCount, (int,))
_OF_FRONTEND = _fields(FrontendCount, (int,))  # its floats belong to histograms


def add(into: FrontendCounters, count: FrontendCount, *, live: bool = True) -> None:
    """Add `count` to `into`. `live` False: its process is gone, so none of its sessions live. Raises BadFrame."""
    _add_histogram(into.connect_seconds, count.connect_seconds, count.connect_total)
    _add_histogram(into.session_seconds, count.session_seconds, count.session_total)
    _add_up(into, count, _OF_FRONTEND, live=live)
    if count.datagrams is not None:
        into.datagrams = into.datagrams or DatagramCounters()
        _add_up(into.datagrams, count.datagrams, _OF_DATAGRAMS, live=live)
    for name, one in count.servers.items():
        _add_up(into.servers.setdefault(name, ServerCounters()), one, _OF_SERVER, live=live)


def _add_up(into: object, one: object, fields: _Fields, *, live: bool) -> None:
    for name in fields.sums if live else fields.lasting:
        setattr(into, name, getattr(into, name) + getattr(one, name))
    for name in fields.by_word:
        getattr(into, name).update(getattr(one, name))
    for name in fields.highest:
        if (value := getattr(one, name)) > getattr(into, name):
            setattr(into, name, value)


def _add_histogram(into: Histogram, counts: tuple[int, ...], total: float) -> None:
    if len(counts) != len(into.counts):
        raise BadFrame(f"a histogram of {len(counts)} buckets, not {len(into.counts)}")
    into.counts = [one + other for one, other in zip(into.counts, counts, strict=True)]
    into.total += total


def numbered_frontend(frontend: Frontend, policy: int) -> NumberedFrontend:
    return NumberedFrontend(frontend.name, frontend.listen, policy, frontend.servers)
