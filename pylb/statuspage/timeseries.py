"""Fifteen minutes of the whole machine, one point per second, and marks for notable events. It measures nothing itself.

Bounded: between 900 and 1,800 points of seven doubles (100 KB); 300 marks; and of each frontend the counts of the last
`window` samples (some 500 bytes each).
"""

from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from math import isnan, nan
from operator import add
from typing import NamedTuple

from pylb.control.event_log import Event
from pylb.core.address import Listen
from pylb.core.table import Frontend, Table
from pylb.forward.counters import CONNECT_BOUNDS
from pylb.workers.sampler import NOTHING, FrontendSum, Moment

POINTS = 900  # a second each
LATELY = 10  # samples for a quantile of connect times: from one second's dozen the p99 would just be the slowest
MARKS = 300

# What is marked on the time axis, by kind of event; "admin" is `pylb ctl`.
MARKED = frozenset(
    {
        *("moved", "draining", "admin", "reloaded", "started", "upgraded", "server_down", "server_up"),
        *("mass_lapse", "mass_lapse_over", "unbound", "bound"),
    }
)


class Rate(NamedTuple):
    """Rates of one second."""

    connections: float = 0.0
    bytes_in: float = 0.0
    bytes_out: float = 0.0


_NO_RATE = Rate()


class Point(NamedTuple):
    """One second of the whole machine."""

    time: float  # unix
    connections: float  # per second
    active: float
    bytes_in: float  # per second
    bytes_out: float
    p50: float  # seconds to connect, over the last LATELY samples; NaN without connects
    p99: float


class EventMark(NamedTuple):
    time: float  # unix
    kind: str
    text: str


def rate(new: FrontendSum, old: FrontendSum, seconds: float) -> Rate:
    """Never negative: counters go back when the process that counted them is gone."""
    pairs = (new.total, old.total), (new.bytes_in, old.bytes_in), (new.bytes_out, old.bytes_out)
    return Rate(*(max(0.0, (now - before) / seconds) for now, before in pairs))


def quantile(counts: Sequence[int], share: float, bounds: Sequence[float] = CONNECT_BOUNDS) -> float:
    """Interpolated inside its bucket like Prometheus' histogram_quantile; NaN without values.

    Above the last bound nothing more is known, so the bound is the answer.
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


class _Sample:
    """One look at the counters, compared with an older one `seconds` ago (`old`; None: this is the first)."""

    def __init__(self, moment: Moment, seconds: float, old: Mapping[Listen, FrontendSum] | None) -> None:
        self.moment = moment
        self.seconds = seconds
        self.old = old
        self.counts: dict[Listen, FrontendSum] = {}
        self.rates: dict[Listen, Rate] = {}
        self.total = _NO_RATE
        self.active = 0
        self.connects = [0] * (len(CONNECT_BOUNDS) + 1)

    def add(self, listen: Listen, new: FrontendSum) -> None:
        self.counts[listen] = new
        self.active += new.sessions
        if self.old is None:
            return
        old = self.old.get(listen, NOTHING)
        if new is old:
            return
        self.rates[listen] = one = rate(new, old, self.seconds)
        self.total = Rate(*map(add, self.total, one))
        if new.connects != old.connects:
            both = zip(self.connects, new.connects, old.connects, strict=True)
            self.connects = [so_far + max(0, now - then) for so_far, now, then in both]


class TimeSeries:
    """A consumer of the sampler's looks. `window`: the number of looks that a rate covers; workers report once a second at
    different moments, so one look may miss a report."""

    def __init__(self, window: int = 1, points: int = POINTS) -> None:
        self._columns = [array("d") for _ in Point._fields]
        self._points = points
        self._looks: deque[tuple[float, Mapping[Listen, FrontendSum]]] = deque(maxlen=window)
        self._marks: deque[EventMark] = deque(maxlen=MARKS)
        self._connects: deque[list[int]] = deque(maxlen=LATELY)
        self._new = self._last = _Sample(Moment(0.0, 0.0), 0.0, None)
        self.point: Point | None = None  # the last one; None until there were two looks

    def begin(self, moment: Moment, _table: Table) -> None:
        before, old = self._looks[0] if self._looks else (moment.clock, None)
        self._new = _Sample(moment, max(moment.clock - before, 0.001), old)

    def add(self, frontend: Frontend, new: FrontendSum) -> None:
        self._new.add(frontend.listen, new)

    def end(self) -> None:
        self._last = look = self._new
        self._looks.append((look.moment.clock, look.counts))
        if look.old is None:
            return
        self._connects.append(look.connects)
        lately = [*map(sum, zip(*self._connects, strict=True))]
        middle, high = quantile(lately, 0.5), quantile(lately, 0.99)
        total = look.total
        self.point = Point(look.moment.wall, total.connections, look.active, total.bytes_in, total.bytes_out, middle, high)
        self._keep(self.point)

    def count(self, listen: Listen) -> FrontendSum:
        """The frontend's sums at the last look."""
        return self._last.counts.get(listen, NOTHING)

    def rate(self, listen: Listen) -> Rate:
        return self._last.rates.get(listen, _NO_RATE)

    def server_rates(self, listen: Listen) -> dict[str, float]:
        """Sessions per second by label; empty for a frontend where nothing happened."""
        look, new = self._last, self.count(listen)
        if look.old is None or (old := look.old.get(listen, NOTHING)) is new:
            return {}
        known = old.servers
        gained = {label: one.total - (known[label].total if label in known else 0) for label, one in new.servers.items()}
        return {label: max(0, more) / look.seconds for label, more in gained.items()}

    def note(self, event: Event) -> None:
        """To be called with every event: a flood of others does not push the marks out."""
        if event.kind in MARKED:
            self._marks.append(EventMark(event.at, event.kind, event.text))

    def marks(self, since: float) -> list[EventMark]:
        return [mark for mark in self._marks if mark.time >= since]

    def _keep(self, point: Point) -> None:
        for column, value in zip(self._columns, point, strict=True):
            column.append(value)
        if len(self._columns[0]) >= 2 * self._points:  # cut from time to time, not at each point
            for column in self._columns:
                del column[: -self._points]

    def columns(self) -> dict[str, list[float | None]]:
        """By the names of Point, oldest first, None for NaN; rounded to what is visible."""
        columns = (column[-self._points :] for column in self._columns)
        return {name: [plain(name, value) for value in column] for name, column in zip(Point._fields, columns, strict=True)}


_DIGITS = {"time": 1, "connections": 2, "active": 0, "bytes_in": 0, "bytes_out": 0, "p50": 6, "p99": 6}


def plain(name: str, value: float) -> float | None:
    """For JSON, which has no NaN."""
    return None if isnan(value) else round(value, _DIGITS[name])
