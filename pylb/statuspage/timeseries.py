"""Fifteen minutes of the whole machine, a point a second, and the moments worth a mark. Pure: times are arguments.

Bounded: between 900 and 1,800 points of seven doubles (100 KB); 300 marks; and of each frontend the counts of the last
`window` samples (some 500 bytes each).
"""

from array import array
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from math import isnan, nan
from operator import add
from typing import NamedTuple

from pylb.control.event_log import Event
from pylb.core.address import Listen
from pylb.forward.counters import CONNECT_BOUNDS, Histogram
from pylb.workers.messages import Counted

POINTS = 900  # a second each
LATELY = 10  # samples whose connects a quantile is made of: of one second's dozen the p99 would be the slowest
MARKS = 300

# What is drawn on the time axis, by the event's kind; "admin" is of `pylb ctl`.
MARKED = frozenset(
    {
        *("moved", "draining", "admin", "reloaded", "started", "upgraded", "server_down", "server_up"),
        *("mass_lapse", "mass_lapse_over", "unbound", "bound"),
    }
)


class Count(NamedTuple):
    """What was counted of one frontend, by all who count."""

    sessions: int = 0  # live
    total: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    connects: tuple[int, ...] = (0,) * (len(CONNECT_BOUNDS) + 1)  # by the buckets of CONNECT_BOUNDS
    queued: int = 0
    denied: int = 0
    servers: Mapping[str, tuple[int, int]] = {}  # by label: live, and in all


_NOTHING = Count()


class Rate(NamedTuple):
    """A second."""

    connections: float = 0.0
    bytes_in: float = 0.0
    bytes_out: float = 0.0


class Point(NamedTuple):
    """A second of the whole machine."""

    time: float  # unix
    connections: float  # a second
    active: float
    bytes_in: float  # a second
    bytes_out: float
    p50: float  # seconds to connect, of the last LATELY samples; NaN where nobody did
    p99: float


class Mark(NamedTuple):
    time: float  # unix
    kind: str
    text: str


def count(listen: Listen, parts: Sequence[Counted], known: Count | None = None) -> Count:
    """The sum over all parts; `known` itself, what was counted before, if nothing has happened there since."""
    if known is not None and _quiet(listen, parts, known):
        return known
    sessions = total = bytes_in = bytes_out = queued = denied = 0
    connects: Sequence[int] = ()
    servers: dict[str, tuple[int, int]] = {}
    for part in parts:
        one = part.get(listen)
        if one is None:
            continue
        sessions += one.sessions
        total += one.sessions_total
        bytes_in += one.bytes_in
        bytes_out += one.bytes_out
        queued += one.queued
        denied += sum(one.denied.values())
        seconds = one.connect_seconds
        counts = seconds.counts if isinstance(seconds, Histogram) else seconds
        connects = [a + b for a, b in zip(connects, counts, strict=True)] if connects else counts
        for label, server in one.servers.items():
            live, ever = servers.get(label, (0, 0))
            servers[label] = live + server.sessions, ever + server.sessions_total
    return Count(sessions, total, bytes_in, bytes_out, tuple(connects) or _NOTHING.connects, queued, denied, servers)


def _quiet(listen: Listen, parts: Iterable[Counted], known: Count) -> bool:
    """No client is there, none was, and none came: of a thousand frontends that is most, and must cost next to nothing.

    Bytes, connects and servers' counts need a session, so these few tell.
    """
    if known.sessions or known.queued:
        return False
    total = denied = 0
    for part in parts:
        one = part.get(listen)
        if one is None:
            continue
        if one.sessions or one.queued:
            return False
        total += one.sessions_total
        if one.denied:
            denied += sum(one.denied.values())
    return total == known.total and denied == known.denied


def rate(new: Count, old: Count, seconds: float) -> Rate:
    """Never negative: counters go back when what counted them has left."""
    pairs = (new.total, old.total), (new.bytes_in, old.bytes_in), (new.bytes_out, old.bytes_out)
    return Rate(*(max(0.0, (now - before) / seconds) for now, before in pairs))


def quantile(counts: Sequence[int], share: float, bounds: Sequence[float] = CONNECT_BOUNDS) -> float:
    """Inside its bucket as if the values were spread evenly, as Prometheus' histogram_quantile does; NaN without values.

    Above the last bound nothing is known but that: it is the answer.
    """
    wanted = sum(counts) * share
    if not wanted:
        return nan
    below, low = 0, 0.0
    for number, bound in zip(counts, bounds, strict=False):
        if number and below + number >= wanted:
            return low + (bound - low) * (wanted - below) / number
        below += number
        low = bound
    return low


class Sample:
    """One look at all counters, compared with an older one (`old`; None: the first look) `seconds` ago."""

    def __init__(self, clock: float, seconds: float, old: Mapping[Listen, Count] | None) -> None:
        self.clock = clock
        self.old = old
        self._seconds = seconds
        self.counts: dict[Listen, Count] = {}
        self.rates: dict[Listen, Rate] = {}
        self.total = Rate()
        self.active = 0
        self.connects = [0] * (len(CONNECT_BOUNDS) + 1)

    def add(self, listen: Listen, new: Count) -> None:
        self.counts[listen] = new
        self.active += new.sessions
        if self.old is None:
            return
        old = self.old.get(listen, _NOTHING)
        if new is old:
            return
        self.rates[listen] = one = rate(new, old, self._seconds)
        self.total = Rate(*map(add, self.total, one))
        if new.connects != old.connects:
            both = zip(self.connects, new.connects, old.connects, strict=True)
            self.connects = [so_far + max(0, now - then) for so_far, now, then in both]


class History:
    """`window`: over how many samples a rate is taken; workers report once a second, so one sample may miss a report."""

    def __init__(self, window: int = 1, points: int = POINTS) -> None:
        self._columns = [array("d") for _ in Point._fields]
        self._points = points
        self._samples: deque[tuple[float, Mapping[Listen, Count]]] = deque(maxlen=window)
        self._marks: deque[Mark] = deque(maxlen=MARKS)
        self._connects: deque[list[int]] = deque(maxlen=LATELY)
        self.rates: dict[Listen, Rate] = {}

    def note(self, event: Event) -> None:
        """To be told every event: a flood of others does not push the marks out."""
        if event.kind in MARKED:
            self._marks.append(Mark(event.at, event.kind, event.text))

    def marks(self, since: float) -> list[Mark]:
        return [mark for mark in self._marks if mark.time >= since]

    def sample(self, wall: float, clock: float, counts: Mapping[Listen, Count]) -> Point | None:
        """As `begin`, all at once."""
        sample = self.begin(clock)
        for listen, one in counts.items():
            sample.add(listen, one)
        return self.end(sample, wall)

    def begin(self, clock: float) -> "Sample":
        """To be given what was counted of each frontend, in as many steps as it takes, and then to `end`."""
        before, old = self._samples[0] if self._samples else (clock, None)
        return Sample(clock, max(clock - before, 0.001), old)

    def end(self, sample: "Sample", wall: float) -> Point | None:
        """The point; None for the first sample, which has nothing to be compared with."""
        self._samples.append((sample.clock, sample.counts))
        self.rates = sample.rates
        if sample.old is None:
            return None
        self._connects.append(sample.connects)
        lately = [*map(sum, zip(*self._connects, strict=True))]
        middle, high = quantile(lately, 0.5), quantile(lately, 0.99)
        total = sample.total
        point = Point(wall, total.connections, sample.active, total.bytes_in, total.bytes_out, middle, high)
        self._keep(point)
        return point

    def _keep(self, point: Point) -> None:
        for column, value in zip(self._columns, point, strict=True):
            column.append(value)
        if len(self._columns[0]) >= 2 * self._points:  # cut now and then, not at each point
            for column in self._columns:
                del column[: -self._points]

    def columns(self) -> dict[str, list[float | None]]:
        """By the names of Point, oldest first, None for NaN; rounded to what can be seen."""
        columns = (column[-self._points :] for column in self._columns)
        return {name: [plain(name, value) for value in column] for name, column in zip(Point._fields, columns, strict=True)}


_DIGITS = {"time": 1, "connections": 2, "active": 0, "bytes_in": 0, "bytes_out": 0, "p50": 6, "p99": 6}


def plain(name: str, value: float) -> float | None:
    """For JSON, which knows no NaN."""
    return None if isnan(value) else round(value, _DIGITS[name])
