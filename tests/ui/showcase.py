"""A pylb in this process, whose counters a test writes: many frontends that all change, or fifteen minutes of them."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import uvloop

from pylb.control.event_log import Event
from pylb.control.health.prober import Ask
from pylb.control.health.prober import ask as ask_server
from pylb.control.registry import Registry
from pylb.control.storage.store import Store
from pylb.core.address import Listen
from pylb.core.auth import Keyring
from pylb.core.policy import Rules
from pylb.core.session import SessionView
from pylb.forward.counters import FrontendCounters
from pylb.forward.engine import Engine
from pylb.statuspage.page import Page
from pylb.statuspage.stream import PageStream
from pylb.statuspage.timeseries import TimeSeries
from pylb.web.admin import Admin
from pylb.web.server import HttpServer
from pylb.workers.in_process import InProcessEngine
from pylb.workers.sampler import Sampler
from tests.ui.many import blank
from tests.web.loopback import bind_free
from tests.web.running import _Watcher

ABOUT = {
    "version": "0.1.0",
    "host": "lb.example.net",
    "pid": 1,
    "workers": 0,
    "started": 0,
    "most_sessions": 9392,
    "command": "pylb",
    "option": " -c /etc/pylb/pylb.yaml",
    "first_steps": {},
}


class Showcase:
    """Serves on `port` from `__enter__` to `__exit__`, in a thread with a loop of its own.

    `prepare` runs there before the page does, `traffic` before each look at the counters.
    """

    def __init__(
        self,
        folder: Path,
        rules: Rules,
        traffic: Callable[[Mapping[Listen, FrontendCounters]], None],
        *,
        keyring: Keyring | None = None,
        about: Mapping[str, Any] = ABOUT,
        sessions: Callable[[], Iterable[SessionView]] = lambda: (),
        prepare: Callable[["Showcase"], Any] | None = None,
        ask: Ask = ask_server,
        ago: float = 0.0,
        peers: Callable[[], list[dict[str, Any]]] = list,
    ) -> None:
        self._folder = folder
        self._rules = rules
        self._traffic = traffic
        self._keyring = keyring or Keyring(())
        self._about = about
        self._sessions = sessions
        self._prepare = prepare
        self._ask = ask
        self._peers = peers
        self.ago(seconds=ago, clock=ago)
        self.counters: dict[Listen, FrontendCounters] = {}

    def __enter__(self) -> Self:
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._main, name="showcase", daemon=True)
        self._thread.start()
        assert self._up.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    def call(self, coroutine: Any) -> Any:
        """Runs it in the loop there; its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def _main(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        driver = InProcessEngine(Engine(observer=_Watcher(), max_connections=1000, on_fault=lambda _what, _error: None))
        self.registry = registry = Registry(
            rules=self._rules,
            keyring=self._keyring,
            sink=driver,
            store=Store(self._folder / "showcase"),
            on_event=self._heard,
            ask=self._ask,
            wall=self.wall,
            clock=self.clock,
        )
        about = {**self._about, "started": round(time.time()) - 93_000}
        history = TimeSeries()
        self.feed = PageStream(registry, history, lambda: dict(about), peers=self._peers, wall=self.wall, clock=self.clock)
        sampled = self.feed.sampled
        self.sampler = Sampler(lambda: registry.table, self.parts, [history], sampled=sampled, wall=self.wall, clock=self.clock)
        await registry.start()
        server = HttpServer(bind_free(), self._pages(driver))
        server.start()
        self.port = server.port
        if self._prepare is not None:
            await self._prepare(self)
        running = [self._loop.create_task(work()) for work in (self.feed.run, self.sampler.run)]
        self._up.set()
        await self._over.wait()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await server.stop()
        await registry.stop()
        driver.close()

    def _heard(self, event: Event) -> None:
        self.feed.note(event)

    def _pages(self, driver: InProcessEngine) -> Any:
        async def sessions() -> list[SessionView]:
            return list(self._sessions())

        async def scrape() -> bytes:
            return b""

        driver.sessions = sessions
        routes = Page(self.feed.stream).routes()
        return Admin(self.registry, driver.counters, scrape, page=routes, live=driver).handler()

    def ago(self, *, seconds: float, clock: float) -> None:
        """What happens from now on happened so long ago: on the wall, and on the clock of leases."""
        self._seconds, self._clock = seconds, clock

    def wall(self) -> float:
        return time.time() - self._seconds

    def clock(self) -> float:
        return time.monotonic() - self._clock

    def parts(self) -> list[Mapping[Listen, FrontendCounters]]:
        for listen, frontend in self.registry.table.frontends.items():
            if listen not in self.counters:
                self.counters[listen] = blank(frontend)
        self._traffic(self.counters)
        return [self.counters]
