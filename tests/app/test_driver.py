"""The engine in a loop: what it says of itself while it runs."""

import asyncio
import logging

import pytest

from pylb.driver import Driver
from pylb.forward.engine import Engine
from tests.support.drive import Witness


def test_a_want_of_pipes_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        engine = Engine(observer=Witness(), max_connections=4, on_fault=pytest.fail)
        driver = Driver(engine)
        try:
            engine.counters.pipe_fallbacks = 1
            ticks: asyncio.Queue[None] = asyncio.Queue()
            tick = engine.tick

            def counted(now: float) -> None:
                tick(now)
                ticks.put_nowait(None)

            engine.tick = counted  # type: ignore[method-assign]
            for _ in range(4):
                await asyncio.wait_for(ticks.get(), 5)
                engine.counters.pipe_fallbacks += 1
        finally:
            driver.close()

    with caplog.at_level(logging.WARNING, "pylb"):
        asyncio.run(run())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "pipe-user-pages-soft" in caplog.text
