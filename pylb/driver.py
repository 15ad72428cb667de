"""The engine in an asyncio loop: its one descriptor, its tick, and the way out."""

import asyncio
import logging
import time

from pylb.forward.engine import Engine
from pylb.forward.timers import TICK

log = logging.getLogger("pylb")

LAG_DECAY = 0.99  # per tick: a stall stays visible for a scrape or two (half after 7 s)


class Driver:
    """Runs `engine` in the running loop from its making until `stop`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time()
        self.lag = 0.0  # seconds that ticks came late, the worst of late
        self._warned = False
        self._tick()
        self._loop.add_reader(engine.fileno(), self._ready)

    def stop(self) -> None:
        self._loop.remove_reader(self._engine.fileno())
        self._timer.cancel()

    async def drained(self, *, at_once: asyncio.Event) -> None:
        """Until the last session has ended: by itself, at the engine's drain deadline, or when `at_once` is set."""
        while self._engine.counters.open_sessions:
            if at_once.is_set():
                self._engine.drain(time.monotonic())  # the next tick resets them
            await asyncio.sleep(TICK / 2)

    def _ready(self) -> None:
        if self._engine.on_ready():
            self._loop.call_soon(self._ready)

    def _tick(self) -> None:
        now = self._loop.time()
        self.lag = max(now - self._due, self.lag * LAG_DECAY)
        self._due = now + TICK
        if self._engine.counters.pipe_fallbacks and not self._warned:
            self._warned = True
            log.warning(
                "no pipe for splice: bulk goes on by recv and send, which costs more CPU and loses nothing. "
                "Raise the limit of open files, or sysctl fs.pipe-user-pages-soft. pylb_pipe_fallbacks_total counts them"
            )
        self._timer = self._loop.call_later(TICK, self._tick)
        self._engine.tick(time.monotonic())
