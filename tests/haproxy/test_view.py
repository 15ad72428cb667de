"""A thousand frontends with three servers each: no step of looking at them, or of telling of them, holds the loop for long."""

import asyncio
import time
from collections.abc import Coroutine, Sized
from pathlib import Path
from typing import Any

from pylb.control.registry import Registry
from pylb.control.storage.store import Store
from pylb.core.address import Address, Listen
from pylb.core.auth import Keyring
from pylb.core.policy import Policy, Rules, StaticFrontend, StaticServer
from pylb.forward.counters import Counters, FrontendCounters, ServerCounters
from pylb.haproxy.commands import Commands
from pylb.haproxy.exporter import Exporter
from pylb.haproxy.info import Facts
from pylb.haproxy.rates import Rates
from pylb.haproxy.view import View
from pylb.metrics.exposition import TEXT, written
from pylb.statuspage.timeseries import TimeSeries
from pylb.workers.sampler import Sampler
from tests.support.baseline import collected_as_in_service

FRONTENDS, SERVERS = 1000, 3
MOST = 0.010  # seconds of processor time between two turns of the loop, at the better of two tries: others' caches are not ours


class Sink:
    """In place of an engine: a thousand ports that nobody opens."""

    def open(self, listen: Listen, *, freebind: bool) -> None: ...

    def discard(self, listen: Listen) -> None: ...

    def apply(self, _table: object) -> dict[Listen, OSError]:
        return {}

    async def applied(self) -> None: ...


def rules() -> Rules:
    frontends = []
    for number in range(FRONTENDS):
        servers = tuple(StaticServer(Address(f"192.0.2.{host}", 30000 + number)) for host in range(1, SERVERS + 1))
        frontends.append(StaticFrontend(f"front-{number}", Listen("tcp", "127.0.0.1", 10000 + number), servers, Policy()))
    return Rules(frontends=tuple(frontends))


def counted(what: Rules) -> Counters:
    found = Counters(100_000)
    for frontend in what.frontends:
        one = found.frontends[frontend.listen] = FrontendCounters(frontend.name)
        for server in frontend.servers:
            one.servers[str(server.address)] = counters = ServerCounters()
            counters.closed.update({"--": 5, "CD": 1})
    return found


async def longest(work: Coroutine[Any, Any, Sized]) -> tuple[float, Sized]:
    """Seconds of processor time between two turns of the loop while `work` is done, at most; and what it found."""
    worst, task = 0.0, asyncio.get_running_loop().create_task(work)
    before = time.thread_time()
    while not task.done():
        await asyncio.sleep(0)
        now = time.thread_time()
        worst, before = max(worst, now - before), now
    return worst, await task


async def test_all_families_share_the_labels_of_a_row(tmp_path: Path) -> None:
    """A dict for each sample was an eighth of what a scrape took."""
    what = rules()
    counters = counted(what)

    async def current() -> Counters:
        return counters

    registry = Registry(rules=what, keyring=Keyring(()), sink=Sink(), store=Store(tmp_path))
    await registry.start()
    view = View(registry, current, lambda: Facts(0.0, 0, 1, 1, FRONTENDS, 1, 0, False, "here"), Rates())
    parts = [*(await Exporter(view).scrape()).collect()]
    await registry.stop()
    shared = {id(one.labels) for part in parts for one in part.samples if one.labels and "state" not in one.labels}
    assert len(shared) == FRONTENDS * (1 + SERVERS + 1) + 1  # rows, and the labels of the version


async def test_no_step_holds_the_loop(tmp_path: Path) -> None:
    what = rules()
    counters = counted(what)

    async def current() -> Counters:
        return counters

    async def answered(_question: object) -> str:
        return "yes"

    registry = Registry(rules=what, keyring=Keyring(()), sink=Sink(), store=Store(tmp_path), ask=answered)
    await registry.start()
    facts = Facts(0.0, 0, 1, 1, FRONTENDS, 1, 0, False, "here")
    rates = Rates()
    sampler = Sampler(lambda: registry.table, lambda: [counters.frontends], [rates, TimeSeries()])
    view = View(registry, current, lambda: facts, rates)
    commands = Commands(view, {}, None)  # type: ignore[arg-type]

    async def show_stat() -> Sized:
        answer = await commands.answer(["show", "stat"])
        assert not isinstance(answer, str)
        return [piece async for piece in answer]

    async def export() -> Sized:
        return await written([Exporter(view).scrape], TEXT)

    async def sample() -> Sized:
        await sampler.sample()
        return rates.proxies

    for work, size in ((sample, FRONTENDS), (show_stat, FRONTENDS + 1), (export, 15_000_000)):
        with collected_as_in_service():
            tries = [await longest(work()) for _ in range(2)]
        assert min(worst for worst, _ in tries) < MOST, work.__name__
        assert all(len(found) >= size for _, found in tries), work.__name__
    await registry.stop()
