"""The engine in a loop: what it says of itself while it runs."""

import asyncio
import logging
from dataclasses import replace

import pytest

from pylb.core.table import make_table
from pylb.forward.engine import Engine
from pylb.workers.in_process import InProcessEngine
from tests.support.drive import Drive, Witness, server_at


async def test_a_want_of_pipes_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "pylb"):
        engine = Engine(observer=Witness(), max_connections=4, on_fault=pytest.fail)
        driver = InProcessEngine(engine)
        try:
            engine.counters.pipe_fallbacks = 1
            ticks: asyncio.Queue[None] = asyncio.Queue()
            tick = engine.tick

            def counted(now: float) -> bool:
                more = tick(now)
                ticks.put_nowait(None)
                return more

            engine.tick = counted  # type: ignore[method-assign]
            for _ in range(4):
                await asyncio.wait_for(ticks.get(), 5)
                engine.counters.pipe_fallbacks += 1
        finally:
            driver.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "pipe-user-pages-soft" in caplog.text


async def test_the_engine_has_one_turn_in_each_turn_of_the_loop() -> None:
    """Also while its descriptor stays readable and it always has more to do, as with bulk."""
    drive = Drive(splice=False)
    engine = drive.engine
    drive.connect(drive.serve())  # waits in the backlog: nobody accepts it here
    turns, rounds = 0, 100

    def always_more(_wait: float = 0.0) -> bool:
        nonlocal turns
        turns += 1
        return True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "on_ready", always_more)
        patch.setattr(engine, "close", lambda: None)  # the drive does
        driver = InProcessEngine(engine)
        try:
            for _ in range(rounds):
                await asyncio.sleep(0)  # one turn of the loop
        finally:
            driver.close()
        before = turns
        await asyncio.sleep(0)
        assert turns == before, "a turn after the end"
    drive.finish()
    assert rounds - 1 <= turns <= rounds + 1


async def test_a_table_that_gives_the_engine_more_to_do_is_followed_by_a_turn_at_once() -> None:
    """Not only by the next tick: clients that waited have room now."""
    drive = Drive(splice=False)
    engine, backend = drive.engine, drive.backend()
    listen = drive.serve(server_at(backend, most=1))
    drive.connect(listen)
    drive.accept(backend)
    for _ in range(20):
        drive.connect(listen)
    drive.run_until(lambda: engine.counters.frontends[listen].queued == 20)
    roomy = make_table(9, {listen: replace(engine.table.frontends[listen], servers=(server_at(backend),))})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "close", lambda: None)  # the drive does
        driver = InProcessEngine(engine)
        try:
            with pytest.MonkeyPatch.context() as no_tick:
                no_tick.setattr(engine, "tick", lambda _now: False)
                driver.apply(roomy)
                for _ in range(20):
                    await asyncio.sleep(0)  # one turn of the loop
        finally:
            driver.close()
    assert engine.counters.frontends[listen].queued == 0
    drive.finish()
