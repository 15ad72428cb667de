"""Values that HAProxy shows and no counter has: rates of the last second, maxima, averages, and since when a backend is down.

The sampler reads the counters once a second. A maximum is the highest of these readings; a peak between two is missed.
"""

from collections.abc import Iterable, Sequence
from itertools import count

from pylb.core.address import Listen
from pylb.core.table import DOWN, Frontend, Table
from pylb.forward.counters import FrontendCounters
from pylb.workers.sampler import FrontendSum, Moment

WINDOW = 1024  # sessions in an average, as in HAProxy (TIME_STATS_SAMPLES)

Sums = tuple[int, int, int]  # sessions, connections, bytes


class Meter:
    """The rate of a counter, the highest rate so far, and the highest value so far of a gauge beside it."""

    __slots__ = ("most", "peak", "rate", "total")

    def __init__(self) -> None:
        self.total = 0
        self.rate = 0
        self.most = 0  # the highest `rate`
        self.peak = 0  # the highest `now`

    def look(self, total: int, now: int, seconds: float) -> None:
        """A `total` below the last one means that the counter started again. `seconds` 0: the first reading, without a rate."""
        gained = total - self.total if total >= self.total else total
        self.total = total
        if seconds:
            self.rate = round(gained / seconds)
            self.most = max(self.most, self.rate)
        self.peak = max(self.peak, now)


class Average:
    """The average of a time over about the last WINDOW sessions. New sessions move it by their share."""

    __slots__ = ("_seconds", "_sessions", "value")

    def __init__(self) -> None:
        self.value = 0.0  # seconds
        self._sessions = 0
        self._seconds = 0.0

    def look(self, sessions: int, seconds: float) -> None:
        """Both arguments are sums since the start."""
        new, took = sessions - self._sessions, seconds - self._seconds
        if new < 0:
            new, took, self.value = sessions, seconds, 0.0
        self._sessions, self._seconds = sessions, seconds
        if new:
            self.value += (took / new - self.value) * new / max(new, min(sessions, WINDOW))


class ServerRates:
    __slots__ = ("connect", "number", "queue", "sessions", "total")

    def __init__(self, number: int) -> None:
        self.number = number  # HAProxy's sid
        self.sessions = Meter()
        self.queue, self.connect, self.total = Average(), Average(), Average()


class ProxyRates:
    """The rates of a frontend and its backend."""

    __slots__ = (
        "_numbers",
        "busy",
        "changed_at",
        "connections",
        "down_seconds",
        "downs",
        "number",
        "queue",
        "servers",
        "sessions",
        "usable",
    )

    def __init__(self, number: int, now: float) -> None:
        self.number = number  # HAProxy's iid
        self.sessions, self.connections, self.queue = Meter(), Meter(), Meter()
        self.servers: dict[str, ServerRates] = {}
        self._numbers = count(1)
        self.busy = True  # it had a client, or a new one, at the last reading
        self.usable = True
        self.changed_at = now  # monotonic
        self.downs = 0
        self.down_seconds = 0.0  # without the present time of being down

    def server(self, label: str) -> ServerRates:
        known = self.servers.get(label)
        if known is None:
            known = self.servers[label] = ServerRates(next(self._numbers))
        return known

    def judge(self, frontend: Frontend, now: float) -> None:
        """Note whether the backend has a server that may be used, and since when."""
        usable = any(server.rank < DOWN for server in frontend.servers)
        if usable is self.usable:
            return
        if usable:
            self.down_seconds += now - self.changed_at
        else:
            self.downs += 1
        self.usable, self.changed_at = usable, now


class Rates:
    """Consumes the sampler's readings. A frontend that left the table is forgotten, but the process's sums still contain it."""

    def __init__(self) -> None:
        self.proxies: dict[Listen, ProxyRates] = {}
        self.sessions, self.connections, self.bytes = Meter(), Meter(), Meter()
        self.idle = 100  # percentage of time in which the forwarding processes had nothing to do
        self._numbers: set[int] = set()
        self._gone: Sums = (0, 0, 0)  # of frontends that left the table
        self._sums: Sums = (0, 0, 0)  # of all frontends there ever were
        self._live = 0
        self._last: dict[Listen, FrontendSum] = {}
        self._table: Table | None = None
        self._moment = Moment(0.0, 0.0)
        self._seconds = 0.0  # since the previous reading; 0: there was none

    def proxy(self, listen: Listen, now: float) -> ProxyRates:
        """The rates of one frontend. Its iid is its port, or a number above all ports if another address has the same port."""
        known = self.proxies.get(listen)
        if known is None:
            numbers = self._numbers
            number = listen.port if listen.port not in numbers else next(free for free in count(65536) if free not in numbers)
            numbers.add(number)
            known = self.proxies[listen] = ProxyRates(number, now)
        return known

    def totals(self, frontends: Iterable[FrontendCounters]) -> Sums:
        """Sessions, connections and bytes since the start, including frontends that are gone."""
        sums = self._gone
        for one in frontends:
            sums = _added(sums, (one.sessions_total, one.connections, one.bytes_in + one.bytes_out))
        return sums

    def begin(self, moment: Moment, table: Table) -> None:
        if self._table is not None:
            self._seconds = moment.clock - self._moment.clock
            self._look_at_processors(moment.used)
        if table is not self._table:
            # No difference of sets of keys: that would sort the table's.
            for listen in [listen for listen in self.proxies if listen not in table.frontends]:
                self._numbers.discard(self.proxies.pop(listen).number)
                if (last := self._last.pop(listen, None)) is not None:
                    self._gone = _added(self._gone, _sums(last))
        self._moment, self._table, self._live = moment, table, 0

    def add(self, frontend: Frontend, new: FrontendSum) -> None:
        listen = frontend.listen
        self._live += new.sessions
        proxy, old = self.proxy(listen, self._moment.clock), self._last.get(listen)
        busy = new is not old
        # A frontend is read once more after its last client, so that its rates go to 0. Most of a thousand frontends are
        # quiet, and this line is all that they cost.
        if busy or proxy.busy:
            self._last[listen], proxy.busy = new, busy
            if old is not None:
                self._sums = _less(self._sums, _sums(old))
            self._sums = _added(self._sums, _sums(new))
            proxy.judge(frontend, self._moment.clock)
            self._look(proxy, new)

    def end(self) -> None:
        for meter, total in zip((self.sessions, self.connections, self.bytes), self._sums, strict=True):
            meter.look(total, self._live, self._seconds)

    def _look(self, proxy: ProxyRates, new: FrontendSum) -> None:
        seconds = self._seconds
        proxy.sessions.look(new.total, new.sessions, seconds)
        proxy.connections.look(new.connections, 0, seconds)
        proxy.queue.look(0, new.queued, seconds)
        for label, server in new.servers.items():
            if label:
                rates = proxy.server(label)
                rates.sessions.look(server.total, server.sessions, seconds)
                rates.queue.look(server.total, server.queue_seconds)
                rates.connect.look(server.total, server.connect_seconds)
                rates.total.look(server.ended, server.total_seconds)
        for label in proxy.servers.keys() - new.servers.keys():
            del proxy.servers[label]

    def _look_at_processors(self, used: Sequence[float]) -> None:
        before = self._moment.used
        if self._seconds and len(before) == len(used) and used:
            share = (sum(used) - sum(before)) / self._seconds / len(used)
            self.idle = min(100, max(0, round(100 - 100 * share)))


def _sums(one: FrontendSum) -> Sums:
    return one.total, one.connections, one.bytes_in + one.bytes_out


def _added(one: Sums, other: Sums) -> Sums:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _less(one: Sums, other: Sums) -> Sums:
    return one[0] - other[0], one[1] - other[1], one[2] - other[2]
