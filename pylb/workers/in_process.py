"""The engine in an asyncio loop (`workers: 0`): its one descriptor, its tick, and the way out.

From outside it looks like a fleet of workers (workers/fleet.py): it takes tables, and answers questions, maybe a moment later.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from pylb.control.steps import in_turns
from pylb.core.address import Address, Listen
from pylb.core.flow import FlowBatch
from pylb.core.recorder import Query, SearchResult, SessionTrace, joined
from pylb.core.session import SessionView
from pylb.core.table import Table, diff
from pylb.core.text import counted
from pylb.forward.counters import Counters, FrontendCounters
from pylb.forward.engine import Engine
from pylb.forward.timers import TICK

log = logging.getLogger("pylb")


class InProcessEngine:
    """Runs `engine` in the running loop from now until `close`. `closed` is called with ports that must not be reachable."""

    lines_dropped = 0  # by workers
    restarts = 0  # of workers
    rate_samples = 1  # counts are those of this moment

    def __init__(
        self,
        engine: Engine,
        closed: Callable[[Listen], None] = lambda _listen: None,
        on_tick: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine = engine
        self._closed = closed
        self._on_tick = on_tick
        self._draining = False
        self._loop = asyncio.get_running_loop()
        self._warned = False
        self._soon: asyncio.Handle | None = None  # the engine's next turn, if it has more to do at once
        self._tick()
        self._loop.add_reader(engine.fileno(), self._ready)

    def close(self) -> None:
        self._loop.remove_reader(self._engine.fileno())
        self._timer.cancel()
        if self._soon is not None:
            self._soon.cancel()
        self._engine.close()

    def drain(self, deadline: float, *, accept: bool = True) -> None:
        """Like Engine.drain."""
        self._draining = True
        self._engine.drain(deadline, accept=accept)

    async def drained(self, *, at_once: asyncio.Event) -> None:
        """Wait until the last session or flow has ended: by itself, at the drain's deadline, or when `at_once` is set."""
        counters = self._engine.counters
        while counters.open_sessions or counters.open_flows:
            if at_once.is_set():
                self._engine.drain(time.monotonic())  # the next tick resets them
            await asyncio.sleep(TICK / 2)

    # ------------------------------------------------------------ flows of UDP, from one pylb to the next

    def pause_flows(self) -> None:
        if (handover := self._engine.flow_handover) is not None:
            handover.pause()

    def resume_flows(self) -> None:
        if (handover := self._engine.flow_handover) is not None:
            handover.resume()

    def described_flows(self) -> Iterator[FlowBatch]:
        return iter(()) if (handover := self._engine.flow_handover) is None else handover.described()

    def take_flows(self, batches: Iterable[FlowBatch]) -> None:
        self._engine.take_flows(batches)

    def flows_taken(self) -> None:
        handover = self._engine.flow_handover
        if handover is not None and (left := handover.passed.close()):
            log.warning("%s of the previous pylb ended: their ports are not open any more", counted(left, "flow"))

    # ------------------------------------------------------------ the sink

    def open(self, listen: Listen, *, freebind: bool) -> None:
        self._engine.open(listen, freebind=freebind)

    def discard(self, listen: Listen) -> None:
        if listen not in self._engine.table.frontends:
            self._close(listen)
        self._engine.discard(listen)

    def apply(self, table: Table) -> Mapping[Listen, OSError]:
        if not self._draining:
            for frontend in diff(self._engine.table, table).closed:
                self._close(frontend.listen)
        failed = self._engine.apply(table)
        if self._engine.busy:
            self._go_on()
        return failed

    def _close(self, listen: Listen) -> None:
        for one in listen.each():
            self._closed(one)

    async def applied(self) -> None:
        """Nothing to wait for: `apply` is done when it returns."""

    # ------------------------------------------------------------ what it knows

    @property
    def open_sessions(self) -> int:
        return self._engine.counters.open_sessions

    @property
    def recording(self) -> bool:
        """Are ended sessions recorded?"""
        return self._engine.recording

    async def counters(self) -> Counters:
        return self._engine.counters

    def parts(self) -> list[Mapping[Listen, FrontendCounters]]:
        """The counts whose sum is `counters`, as they are now."""
        return [self._engine.counters.frontends]

    async def sessions(self) -> list[SessionView]:
        found: list[SessionView] = []
        async for some in in_turns(self._engine.live(), 1):
            found += some
        return found

    async def ended(self, query: Query) -> SearchResult:
        found: list[SessionTrace] = []
        async for some in in_turns(self._engine.ended(query), 1):
            found += some
        return SearchResult(found, joined([self._engine.reach], query.codes))

    async def trace(self, number: int) -> SessionTrace | None:
        return self._engine.trace(number)

    async def expect(self, client: Address) -> None:
        self._engine.expect(client)

    async def shutdown_session(self, number: int) -> int:
        return self._engine.shutdown_session(number)

    async def shutdown_sessions(self, listen: Listen, server: Address) -> int:
        return self._engine.shutdown_sessions(listen, server)

    def workers(self) -> dict[str, tuple[int, float]]:
        """There are none."""
        return {}

    def pids(self) -> list[int]:
        """This process's."""
        return [os.getpid()]

    # ------------------------------------------------------------ from the loop

    def _ready(self) -> None:
        """The engine's descriptor is readable. If its next turn is due anyway, this waits for that: one per turn of the loop.

        With two they would become four: each asks for another one while bulk flows, and the loop would have no time for the
        rest.
        """
        if self._soon is None:
            self._turn()

    def _turn(self) -> None:
        self._soon = None
        if self._engine.on_ready():
            self._go_on()

    def _go_on(self) -> None:
        if self._soon is None:
            self._soon = self._loop.call_soon(self._turn)

    def _tick(self) -> None:
        if self._engine.counters.pipe_fallbacks and not self._warned:
            self._warned = True
            log.warning("%s", NO_PIPE)
        self._timer = self._loop.call_later(TICK, self._tick)
        if self._engine.tick(time.monotonic()):
            self._go_on()
        self._on_tick()


NO_PIPE = (
    "no pipe for splice: bulk transfers use recv and send, which cost more CPU and lose nothing. "
    "Raise the limit of open files, or sysctl fs.pipe-user-pages-soft. pylb_pipe_fallbacks_total counts them"
)
