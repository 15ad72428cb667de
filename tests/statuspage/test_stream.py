"""What watchers are told, in what order, and what becomes of those that do not listen. With a real registry and engine."""

import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pylb.core.address import Listen
from pylb.core.announcement import parse_native
from pylb.core.auth import Caller
from pylb.core.errors import Refused
from pylb.core.policy import AdminState
from pylb.forward.counters import FrontendCounters
from pylb.haproxy.rates import Rates
from pylb.statuspage.stream import BACKLOG, MOST_OF_ONE, MOST_STREAMS, PageStream
from pylb.statuspage.timeseries import TimeSeries
from pylb.web.admin import Admin
from pylb.workers.sampler import Sampler
from tests.support.baseline import freeze_what_stays
from tests.support.ports import free_port
from tests.ui.many import FRONTENDS, SERVERS, blank, busy, rules
from tests.web.running import Control, running

TARGET = free_port()  # nobody listens there, so a connect is refused


@dataclass
class Watched:
    control: Control
    feed: PageStream
    sampler: Sampler
    about: dict[str, Any] = field(default_factory=lambda: {"host": "here"})

    async def announce(self, port: int, instance: str = "pod-1") -> None:
        caller = Caller("127.0.0.1", self.control.keyring.tokens[0], "native")
        body = json.dumps({"frontends": [{"port": port, "target_port": TARGET}], "ttl": 60})
        await self.control.registry.calls.announce("mosquitto", instance, parse_native(body.encode()), caller)


@asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[Watched]:
    about = {"host": "here"}
    async with running(folder) as control:

        def parts() -> list[Mapping[Listen, FrontendCounters]]:
            return [control.engine.counters.frontends]

        history = TimeSeries()
        feed = PageStream(control.registry, history, lambda: dict(about))
        yield Watched(control, feed, Sampler(lambda: control.registry.table, parts, [history], sampled=feed.sampled), about)


class Reader:
    def __init__(self, feed: PageStream, source: bytes = b"") -> None:
        self.messages = feed.stream(source)

    async def next(self) -> Any:
        async with asyncio.timeout(5):
            raw = await anext(self.messages)
        assert raw.startswith(b"data: ")
        assert raw.endswith(b"\n\n")
        assert raw.count(b"\n") == 2  # one event
        return json.loads(raw[6:])


async def test_the_first_message_is_whole_and_the_next_only_what_changed(tmp_path: Path) -> None:
    async with watched(tmp_path) as here:
        port = free_port()
        await here.announce(port)
        reader = Reader(here.feed)
        begun = asyncio.get_running_loop().create_task(reader.next())
        await asyncio.sleep(0)
        await here.sampler.sample()
        await here.feed.look()
        whole = await begun
        assert whole["whole"]
        assert whole["about"] == {"host": "here"}
        assert whole["sentence"].startswith("the one frontend is ")
        [(listen, frontend)] = whole["frontends"].items()
        assert (listen, frontend["name"]) == (f"127.0.0.1:{port}", f"mosquitto-{port}")
        [(place, server)] = whole["servers"].items()
        assert place == f"{listen}|127.0.0.1:{TARGET}"
        assert (server["frontend"], server["accepts"], server["check"]) == (listen, "refused", "refused")
        assert server["held_by"] == [["mosquitto/mosquitto/pod-1", ""]]
        assert list(whole["registrations"]) == ["mosquitto/mosquitto/pod-1"]
        assert whole["events"][-1]["kind"] == "created"
        await here.sampler.sample()
        await here.feed.look()
        quiet = await reader.next()
        assert not {"whole", "about", "frontends", "servers", "registrations"} & quiet.keys()
        assert quiet["point"]["connections"] == 0
        await here.control.registry.operator.set_admin(f"127.0.0.1:{port}/pod-1", AdminState.DRAIN)
        await here.feed.look()
        drained = await reader.next()
        assert drained["servers"] == {place: {"rank": 5, "weight": 0, "state": "drain"}}
        assert "point" not in drained
        assert [event["kind"] for event in drained["events"]] == ["admin"]
        assert drained["events"][0]["mark"]


async def test_what_is_gone_is_named(tmp_path: Path) -> None:
    async with watched(tmp_path) as here:
        port = free_port()
        await here.announce(port)
        reader = Reader(here.feed)
        await _joined(here, reader)
        await here.control.registry.operator.release_any("mosquitto")
        await here.feed.look()
        said = await reader.next()
        listen = f"127.0.0.1:{port}"
        assert said["gone_frontends"] == [listen]
        assert said["gone_servers"] == [f"{listen}|127.0.0.1:{TARGET}"]
        assert said["gone_registrations"] == ["mosquitto/mosquitto/pod-1"]
        assert said["sentence"] == "no frontends yet"


async def test_who_comes_later_gets_a_whole_picture_and_the_others_only_what_changed(tmp_path: Path) -> None:
    async with watched(tmp_path) as here:
        first, second = Reader(here.feed), None
        await _joined(here, first)
        await here.announce(free_port())
        second = Reader(here.feed)
        waiting = asyncio.get_running_loop().create_task(second.next())
        await asyncio.sleep(0)
        await here.feed.look()
        whole, delta = await waiting, await first.next()
        assert whole["whole"]
        assert "whole" not in delta
        assert whole["frontends"] == delta["frontends"]
        assert [event["kind"] for event in delta["events"]] == ["created"]


async def test_a_reader_that_takes_nothing_is_dropped_with_what_waited_for_it(tmp_path: Path) -> None:
    async with watched(tmp_path) as here:
        slow, quick = Reader(here.feed), Reader(here.feed)
        await _joined(here, slow)
        await _joined(here, quick)
        for _ in range(BACKLOG + 1):
            await here.sampler.sample()
            await here.feed.look()
            await quick.next()
        with pytest.raises(StopAsyncIteration):
            await slow.next()
        await here.sampler.sample()
        await here.feed.look()
        await quick.next()


async def test_so_many_may_watch_and_a_place_is_free_again_when_one_leaves(tmp_path: Path) -> None:
    async with watched(tmp_path) as here:
        readers = [Reader(here.feed, bytes([number // MOST_OF_ONE])) for number in range(MOST_STREAMS)]
        with pytest.raises(Refused, match="are open already"):
            here.feed.stream()
        await _joined(here, readers[0])
        await readers[0].messages.aclose()
        here.feed.stream()


async def test_one_source_has_half_of_the_places(tmp_path: Path) -> None:
    async with watched(tmp_path) as here:
        readers = [Reader(here.feed, b"one") for _ in range(MOST_OF_ONE)]
        with pytest.raises(Refused, match="pages from your address are open already"):
            here.feed.stream(b"one")
        readers.append(Reader(here.feed, b"another"))
        for reader in readers:
            await _joined(here, reader)
            await reader.messages.aclose()


async def test_a_reload_that_changes_what_pylb_is_called_is_told_once(tmp_path: Path) -> None:
    async with watched(tmp_path) as here:
        reader = Reader(here.feed)
        await _joined(here, reader)
        here.about["host"] = "lb.example.net"
        await here.sampler.sample()
        await here.feed.look()
        assert (await reader.next())["about"] == {"host": "lb.example.net"}
        await here.sampler.sample()
        await here.feed.look()
        assert "about" not in await reader.next()


async def test_an_event_is_told_long_before_the_next_second(tmp_path: Path) -> None:
    async with watched(tmp_path) as here:
        loop = asyncio.get_running_loop()
        running = asyncio.gather(here.feed.run(), here.sampler.run())
        reader = Reader(here.feed)
        await reader.next()
        said = await reader.next()  # a point: the next one is a second away
        while "point" not in said:
            said = await reader.next()
        at = loop.time()
        here.feed.note(next(iter(here.control.registry.events())))
        said = await reader.next()
        assert "point" not in said
        assert loop.time() - at < 0.6
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        async with asyncio.timeout(5):
            async for _rest in reader.messages:  # the end of pylb is the end of the stream
                pass


@pytest.mark.parametrize("count", [FRONTENDS, 2 * FRONTENDS])
async def test_no_step_of_telling_it_holds_the_loop(tmp_path: Path, count: int) -> None:
    """In processor time: others share this machine. What is there at the start is frozen, as in a pylb that serves: a
    collection of all the tests' objects is no step of the feed.
    """
    longest = 0.0

    async def _watch() -> None:
        nonlocal longest
        while True:
            at = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - at)

    try:
        async with running(tmp_path, rules(count)) as control:
            counters = {listen: blank(frontend) for listen, frontend in control.registry.table.frontends.items()}
            history = TimeSeries()
            feed = PageStream(control.registry, history, dict)
            sampler = Sampler(lambda: control.registry.table, lambda: [counters], [history, Rates()], sampled=feed.sampled)

            async def counted() -> Any:
                return control.engine.counters

            admin = Admin(control.registry, counted, counted, live=control.driver)
            messages = feed.stream()
            reading = asyncio.get_running_loop().create_task(anext(messages))
            await asyncio.sleep(0)
            gc.collect()
            gc.freeze()
            for _ in range(3):
                busy(counters)  # ours, not the feed's: it is not watched
                watching = asyncio.get_running_loop().create_task(_watch())
                await sampler.sample()
                await feed.look()
                await admin._health(None)  # what other pylbs' pages ask for
                watching.cancel()
            assert len(await reading) > 1000 * count * SERVERS / 4
            await messages.aclose()
    finally:
        freeze_what_stays()
    assert longest < 0.01  # seconds: measured 0.003


async def test_a_fault_of_the_page_is_logged_and_costs_only_the_page(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with watched(tmp_path) as here:
        broken = True

        def about() -> dict[str, str]:
            if broken:
                raise RuntimeError("a bug")
            return {}

        here.feed._about = about
        running = asyncio.get_running_loop().create_task(here.feed.run())
        with pytest.raises(StopAsyncIteration):
            await Reader(here.feed).next()
        with pytest.raises(StopAsyncIteration):
            await Reader(here.feed).next()
        assert [record.message for record in caplog.records].count("page failed, everything else goes on") == 1
        broken = False
        assert (await Reader(here.feed).next())["whole"]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _joined(here: Watched, reader: Reader) -> None:
    """Its first message is taken."""
    waiting = asyncio.get_running_loop().create_task(reader.next())
    await asyncio.sleep(0)
    await here.feed.look()
    assert (await waiting)["whole"]
