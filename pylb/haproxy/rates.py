"""What HAProxy shows and no counter holds: rates of the last second, their maxima, averages, and since when a backend is down.

Looked at once a second. A maximum is the highest of these looks: a peak between two of them is not seen.
"""

import asyncio
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import count

from pylb.control.steps import in_turns
from pylb.core.address import Listen
from pylb.core.table import DOWN, Frontend, Table
from pylb.forward.counters import FrontendCounters, ServerCounters
from pylb.workers.messages import Counted, FrontendCount, ServerCount

STEP = 50  # frontends between two turns of the loop: ~1 ms
WINDOW = 1024  # sessions that an average is taken over, as HAProxy's (TIME_STATS_SAMPLES)
_TICKS = os.sysconf("SC_CLK_TCK")

AnyFrontend = FrontendCounters | FrontendCount
AnyServer = ServerCounters | ServerCount
Sums = tuple[int, int, int]  # sessions, connections, bytes


class Meter:
    """Of a counter: what it gained a second, the highest that was, and the highest of a second number."""

    __slots__ = ("most", "peak", "rate", "total")

    def __init__(self) -> None:
        self.total = 0
        self.rate = 0
        self.most = 0  # of `rate`
        self.peak = 0  # of `now`

    def look(self, total: int, now: int, seconds: float) -> None:
        """`total` began anew where it is less than it was. `seconds` 0: the first look, which has no rate."""
        gained = total - self.total if total >= self.total else total
        self.total = total
        if seconds:
            self.rate = round(gained / seconds)
            self.most = max(self.most, self.rate)
        self.peak = max(self.peak, now)


class Average:
    """Of a time, over about the last WINDOW sessions: new ones move it by their share."""

    __slots__ = ("_seconds", "_sessions", "value")

    def __init__(self) -> None:
        self.value = 0.0  # seconds
        self._sessions = 0
        self._seconds = 0.0

    def look(self, sessions: int, seconds: float) -> None:
        """Both as summed up since the start."""
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
    """Of a frontend and its backend."""

    __slots__ = (
        "_numbers",
        "busy",
        "changed_at",
        "connections",
        "down_seconds",
        "downs",
        "frontend",
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
        self.frontend: Frontend | None = None  # as it was at the last look
        self.busy = True  # had it a client, or a new one, then?
        self.usable = True
        self.changed_at = now  # monotonic
        self.downs = 0
        self.down_seconds = 0.0  # of the times that are over

    def server(self, label: str) -> ServerRates:
        known = self.servers.get(label)
        if known is None:
            known = self.servers[label] = ServerRates(next(self._numbers))
        return known

    def judge(self, frontend: Frontend, now: float) -> None:
        """Has it a server that may be used?"""
        usable = any(server.rank < DOWN for server in frontend.servers)
        if usable is self.usable:
            return
        if usable:
            self.down_seconds += now - self.changed_at
        else:
            self.downs += 1
        self.usable, self.changed_at = usable, now


class Rates:
    """`sample` once a second. What left the table is forgotten; in the sums of the process it stays."""

    def __init__(self) -> None:
        self.proxies: dict[Listen, ProxyRates] = {}
        self.sessions, self.connections, self.bytes = Meter(), Meter(), Meter()
        self.idle = 100  # percent of their time that the processes that forward had nothing to do
        self._numbers: set[int] = set()
        self._gone: Sums = (0, 0, 0)  # of frontends that left
        self._last: dict[Listen, Sums] = {}
        self._at = 0.0
        self._cpu = (0, 0.0)  # processes, and seconds they had used

    def proxy(self, listen: Listen, now: float) -> ProxyRates:
        """Its iid is its port, which says something; or, where another address has that port too, a number above all ports."""
        known = self.proxies.get(listen)
        if known is None:
            numbers = self._numbers
            number = listen.port if listen.port not in numbers else next(free for free in count(65536) if free not in numbers)
            numbers.add(number)
            known = self.proxies[listen] = ProxyRates(number, now)
        return known

    def totals(self, frontends: Iterable[AnyFrontend]) -> Sums:
        """Sessions, connections and bytes since the start, with those of frontends that are gone."""
        return _added(self._gone, _sums(frontends))

    async def sample(self, parts: Sequence[Counted], table: Table, now: float, pids: Sequence[int] = ()) -> None:
        """`parts`: counts to be added up; `pids`: of the processes that forward."""
        seconds = now - self._at if self._at else 0.0
        self._at = now
        for listen in self._last.keys() - table.frontends.keys():
            self._gone = _added(self._gone, self._last.pop(listen))
        for listen in self.proxies.keys() - table.frontends.keys():
            self._numbers.discard(self.proxies.pop(listen).number)
        live = 0
        async for listen, frontend in in_turns(table.frontends.items(), STEP):
            found = [part[listen] for part in parts if listen in part]
            proxy = self.proxy(listen, now)
            sessions = sum([one.sessions for one in found])
            live += sessions
            seen, before = _sums(found), self._last.get(listen)
            busy = bool(sessions) or seen != before or any(one.queued for one in found)
            # One look more after the last client, for rates that go to 0. Most of a thousand frontends are quiet: this is all
            # they cost.
            if busy or proxy.busy or frontend is not proxy.frontend:
                self._last[listen], proxy.busy, proxy.frontend = seen, busy, frontend
                proxy.judge(frontend, now)
                self._look(proxy, seen, found, seconds)
        sums = [gone + sum(last[place] for last in self._last.values()) for place, gone in enumerate(self._gone)]
        for meter, total in zip((self.sessions, self.connections, self.bytes), sums, strict=True):
            meter.look(total, live, seconds)
        self._look_at_processors(await asyncio.to_thread(lambda: [_cpu_seconds(pid) for pid in pids]), seconds)

    @staticmethod
    def _look(proxy: ProxyRates, seen: Sums, found: Sequence[AnyFrontend], seconds: float) -> None:
        proxy.sessions.look(seen[0], sum(one.sessions for one in found), seconds)
        proxy.connections.look(seen[1], 0, seconds)
        proxy.queue.look(0, sum(one.queued for one in found), seconds)
        servers: dict[str, list[AnyServer]] = defaultdict(list)
        for one in found:
            for label, server in one.servers.items():
                servers[label].append(server)
        servers.pop("", None)
        for label, group in servers.items():
            rates = proxy.server(label)
            begun = sum(one.sessions_total for one in group)
            rates.sessions.look(begun, sum(one.sessions for one in group), seconds)
            rates.queue.look(begun, sum(one.queue_seconds for one in group))
            rates.connect.look(begun, sum(one.connect_seconds for one in group))
            rates.total.look(sum(sum(one.closed.values()) for one in group), sum(one.total_seconds for one in group))
        for label in proxy.servers.keys() - servers.keys():
            del proxy.servers[label]

    def _look_at_processors(self, used: Sequence[float], seconds: float) -> None:
        before, self._cpu = self._cpu, (len(used), sum(used))
        if seconds and before[0] == len(used) and used:
            share = (self._cpu[1] - before[1]) / seconds / len(used)
            self.idle = min(100, max(0, round(100 - 100 * share)))


def _sums(frontends: Iterable[AnyFrontend]) -> Sums:
    sessions = connections = moved = 0
    for one in frontends:
        sessions += one.sessions_total
        connections += one.connections
        moved += one.bytes_in + one.bytes_out
    return sessions, connections, moved


def _added(one: Sums, other: Sums) -> Sums:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process (proc(5), stat); 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS
