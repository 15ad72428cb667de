"""Once a second: the counts of all processes that forward, frontend by frontend. Everything that shows rates uses them.

Most of a thousand frontends are quiet. If nothing happened since the last look, the count is the same object, so a comparison
checks identity first.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from pylb.control.steps import in_turns, let_loop_run
from pylb.core.address import Listen
from pylb.core.table import Frontend, Table
from pylb.forward.counters import CONNECT_BOUNDS, FrontendCounters, Histogram
from pylb.host.process_stat import process_stat
from pylb.workers.messages import CountsByListen, FrontendCount

PERIOD = 1.0  # seconds between two looks
PER_TURN = 20  # frontends between two turns of the loop: with ten servers each, ~2 ms


class ServerSum(NamedTuple):
    """The counts of a server, over all processes; times are sums in seconds."""

    sessions: int = 0  # live
    total: int = 0
    ended: int = 0
    queue_seconds: float = 0.0
    connect_seconds: float = 0.0
    total_seconds: float = 0.0


class FrontendSum(NamedTuple):
    """The counts of a frontend, over all processes."""

    sessions: int = 0  # live
    total: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    connects: tuple[int, ...] = (0,) * (len(CONNECT_BOUNDS) + 1)  # by the buckets of CONNECT_BOUNDS
    queued: int = 0
    denied: int = 0
    connections: int = 0  # sessions, and clients that were refused right after the accept
    servers: Mapping[str, ServerSum] = {}  # by label


NOTHING = FrontendSum()


class Moment(NamedTuple):
    clock: float  # monotonic
    wall: float  # unix time
    used: Sequence[float] = ()  # seconds of processor time of each process that forwards


class Consumer(Protocol):
    """Receives each look: its time, the counts of each frontend of the table, and that the look is complete."""

    def begin(self, moment: Moment, table: Table) -> None: ...

    def add(self, frontend: Frontend, new: FrontendSum) -> None: ...

    def end(self) -> None: ...


class Sampler:
    """`parts`: the counts to add up. `pids`: the processes that forward. `sampled` is called when a look is complete."""

    def __init__(
        self,
        table: Callable[[], Table],
        parts: Callable[[], Sequence[CountsByListen]],
        consumers: Sequence[Consumer],
        *,
        pids: Callable[[], Sequence[int]] = tuple,
        sampled: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._table = table
        self._parts = parts
        self._consumers = consumers
        self._pids = pids
        self._sampled = sampled
        self._clock = clock
        self._wall = wall
        self._frontends: Mapping[Listen, Frontend] = {}  # as of the last look
        self._counts: Mapping[Listen, FrontendSum] = {}

    async def run(self) -> None:
        """Runs for ever."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            await self.sample()
            due = max(due + PERIOD, loop.time())  # after a stall it does not catch up
            await asyncio.sleep(due - loop.time())

    async def sample(self) -> None:
        """One look, in steps."""
        used = await asyncio.to_thread(_cpu_seconds, self._pids())
        moment, table, parts = Moment(self._clock(), self._wall(), used), self._table(), self._parts()
        counts: dict[Listen, FrontendSum] = {}
        for consumer in self._consumers:
            consumer.begin(moment, table)
        await let_loop_run()  # to put ten thousand frontends in order takes 4 ms alone
        async for listen, frontend in in_turns(table.frontends.items(), PER_TURN):
            # For a frontend that changed everything is added up: labels of servers come and go without a session.
            known = self._counts.get(listen) if self._frontends.get(listen) is frontend else None
            counts[listen] = new = count(listen, parts, known)
            for consumer in self._consumers:
                consumer.add(frontend, new)
        self._frontends, self._counts = table.frontends, counts
        for consumer in self._consumers:
            consumer.end()
        self._sampled()


def count(listen: Listen, parts: Sequence[CountsByListen], known: FrontendSum | None = None) -> FrontendSum:
    """The sum over all parts; or `known`, the previous sum, if nothing has happened there since."""
    found = [one for part in parts if (one := part.get(listen)) is not None]
    if known is not None and _quiet(found, known):
        return known
    connects: Sequence[int] = ()
    servers: dict[str, ServerSum] = {}
    for one in found:
        seconds = one.connect_seconds
        counts = seconds.counts if isinstance(seconds, Histogram) else seconds
        connects = [a + b for a, b in zip(connects, counts, strict=True)] if connects else counts
        for label, server in one.servers.items():
            before, ended = servers.get(label, _NO_SERVER), sum(server.closed.values())
            servers[label] = ServerSum(
                before.sessions + server.sessions,
                before.total + server.sessions_total,
                before.ended + ended,
                before.queue_seconds + server.queue_seconds,
                before.connect_seconds + server.connect_seconds,
                before.total_seconds + server.total_seconds,
            )
    return FrontendSum(
        sum([one.sessions for one in found]),
        sum([one.sessions_total for one in found]),
        sum([one.bytes_in for one in found]),
        sum([one.bytes_out for one in found]),
        tuple(connects) or NOTHING.connects,
        sum([one.queued for one in found]),
        sum([sum(one.denied.values()) for one in found]),
        sum([one.connections for one in found]),
        servers,
    )


_NO_SERVER = ServerSum()


def _quiet(found: Iterable[FrontendCounters | FrontendCount], known: FrontendSum) -> bool:
    """No client is, was or came there: that holds for most of a thousand frontends, and must cost almost nothing.

    Bytes, connects and the servers' counts need a session, so these few numbers are enough.
    """
    if known.sessions or known.queued:
        return False
    total = denied = connections = 0
    for one in found:
        if one.sessions or one.queued:
            return False
        total += one.sessions_total
        connections += one.connections
        if one.denied:
            denied += sum(one.denied.values())
    return total == known.total and connections == known.connections and denied == known.denied


def _cpu_seconds(pids: Sequence[int]) -> list[float]:
    """0 for a process that is gone."""
    return [0.0 if (stat := process_stat(pid)) is None else stat.cpu_seconds for pid in pids]
