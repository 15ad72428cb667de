"""The one boundary of all work beside the writer."""

import asyncio
import logging
from pathlib import Path

import pytest

from pylb.control import publisher, tasks
from pylb.control.tasks import Part, Tasks
from tests.control.harness import NODE_A, NODE_B, Clock, control, target, until
from tests.support.ports import free_ports


def bug() -> None:
    raise RuntimeError("a bug")


async def test_what_runs_for_ever_begins_again_after_a_pause_that_grows_until_it_runs_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, pauses, runs = Clock(), [], 0

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def body() -> None:
        nonlocal runs
        runs += 1
        if runs == 9:
            clock.now += tasks.STEADY
        if runs < 11:
            bug()

    monkeypatch.setattr(asyncio, "sleep", sleep)
    made = Tasks(clock)
    await made.forever(Part.PAGE, body)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 1, 2]
    assert made.failures[Part.PAGE] == 10


def test_every_failure_is_counted_and_one_a_minute_is_told_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    clock, heard = Clock(), list[tuple[Part, str]]()
    made = Tasks(clock)
    made.on_failure = lambda part, text: heard.append((part, text))
    call = made.guarded(Part.EVENTS, bug)
    for _ in range(5):
        call()
    with made.surviving(Part.KEYS):
        bug()
    clock.now += tasks.COMPLAIN
    call()
    assert (made.failures[Part.EVENTS], made.failures[Part.KEYS], made.failures[Part.PAGE]) == (6, 1, 0)
    assert [part for part, _ in heard] == [Part.EVENTS, Part.KEYS, Part.EVENTS]
    assert heard[0][1] == "events failed, everything else goes on: RuntimeError: a bug"
    assert all(record.exc_info for record in caplog.records)


def test_who_listens_may_fail_too() -> None:
    made = Tasks()
    made.on_failure = lambda _part, _text: made.guarded(Part.EVENTS, bug)()
    made.failed(Part.PAGE, RuntimeError())
    made.on_failure = lambda _part, _text: bug()
    made.failed(Part.KEYS, RuntimeError())
    assert (made.failures[Part.PAGE], made.failures[Part.KEYS], made.failures[Part.EVENTS]) == (1, 1, 2)


async def test_a_callback_of_the_loop_that_raises_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    loop, made = asyncio.get_running_loop(), Tasks()
    loop.set_exception_handler(made.on_loop_error)
    loop.call_soon(bug)
    await asyncio.sleep(0)
    assert made.failures[Part.CALLBACK] == 1
    loop.call_exception_handler({"message": "what it is", "exception": RuntimeError(), "part": Part.WORKERS})
    assert made.failures[Part.WORKERS] == 1
    caplog.set_level(logging.ERROR)
    loop.call_exception_handler({"message": "a word without an exception"})
    assert "a word without an exception" in caplog.text
    assert sum(made.failures.values()) == 2


async def test_news_of_a_server_that_cannot_be_used_delays_no_later_news(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        asyncio.get_running_loop().set_exception_handler(c.registry.tasks.on_loop_error)
        with target(30001, NODE_A, NODE_B):
            await c.put({port: 30001})
            await c.put({port: 30001}, NODE_B, instance="pod-2")
        listen, server = c.server(port)
        with monkeypatch.context() as patch:
            patch.setattr(publisher, "compose_frontend", lambda *_: bug())
            for _ in range(3):
                c.registry.connect_ended(listen, server, "refused")
            await until(lambda: c.registry.task_failures["callback"])
        for failure in (None, None, None, "refused", "refused", "refused"):
            c.registry.connect_ended(listen, server, failure)
        await until(lambda: len(set(c.ranks(port).values())) == 2)  # one of them is down
