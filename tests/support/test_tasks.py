"""The guard around every asyncio test sees what it is there for."""

import asyncio

import pytest

from tests.support.tasks import tasks_end_well


async def test_a_task_that_still_runs_fails_the_test() -> None:
    waiting = asyncio.get_running_loop().create_future()

    async def wait() -> None:
        await waiting

    with pytest.raises(AssertionError, match="still running"):
        async with tasks_end_well(within=0.01):
            task = asyncio.get_running_loop().create_task(wait())
    waiting.set_result(None)
    await task


async def test_a_task_that_is_ending_may_do_so() -> None:
    async with tasks_end_well():
        task = asyncio.get_running_loop().create_task(asyncio.sleep(0.01))
    assert task.done()


def fail_at_once() -> None:
    raise RuntimeError("a bug")


async def fail() -> None:
    fail_at_once()


@tasks_end_well()
async def _nobody_awaits_it() -> None:
    asyncio.get_running_loop().create_task(fail())
    await asyncio.sleep(0)
    await asyncio.sleep(0)


@tasks_end_well()
async def _a_callback_fails() -> None:
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)


@tasks_end_well()
async def _it_fails_after_the_test() -> None:
    async def fail_late() -> None:
        await asyncio.sleep(0.01)
        fail_at_once()

    asyncio.get_running_loop().create_task(fail_late())


async def test_a_failure_that_nobody_awaited_fails_the_test() -> None:
    with pytest.raises(AssertionError, match="a bug"):
        await _nobody_awaits_it()
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        await _a_callback_fails()
    with pytest.raises(AssertionError, match="a bug"):
        await _it_fails_after_the_test()
