"""What lies between two turns of the loop, counted and not timed."""

import asyncio
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pylb.control.steps import in_turns

MADE = 60  # objects a step
YOUNG, MIDDLE = 1_000, 2


@contextmanager
def collections() -> Iterator[list[int]]:
    """How many objects each collection looks at while the block runs."""
    looked: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            looked.append(sum(len(gc.get_objects(generation)) for generation in range(info["generation"] + 1)))

    before = gc.get_threshold()
    gc.collect()
    gc.set_threshold(YOUNG, MIDDLE, 1_000_000)
    gc.callbacks.append(note)
    try:
        yield looked
    finally:
        gc.callbacks.remove(note)
        gc.set_threshold(*before)


async def test_whoever_stops_in_the_middle_leaves_nothing_for_the_loop_to_close() -> None:
    """Of an async generator that is not closed the collector tells the loop, which starts a task for it."""
    made: list[object] = []
    before = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(firstiter=made.append)
    try:
        async for item in in_turns(range(9), 2):
            if item == 3:
                break
    finally:
        sys.set_asyncgen_hooks(*before)
    assert made == []


@pytest.mark.parametrize(
    ("count", "expected"), [(0, []), (2, [0, 1]), (3, [0, 1, 2, "loop"]), (7, [0, 1, 2, "loop", 3, 4, 5, "loop", 6])]
)
async def test_the_loop_runs_after_so_many_items_and_none_is_lost(count: int, expected: list[object]) -> None:
    log: list[object] = []

    async def others() -> None:
        while True:
            log.append("loop")
            await asyncio.sleep(0)

    task = asyncio.get_running_loop().create_task(others())
    async for item in in_turns(range(count), 3):
        log.append(item)  # noqa: PERF401 - what the loop did comes in between
    task.cancel()
    assert log == expected


async def test_no_collection_pays_for_the_steps_of_others_that_put_new_objects_in_the_places_of_old_ones() -> None:
    """The collector counts objects made less those freed: it did not look once, and then at all 30,000 in one go."""
    served = [[number] for number in range(500 * MADE)]
    with collections() as looked:
        async for start in in_turns(range(0, len(served), MADE), 1):
            for place in range(start, start + MADE):
                served[place] = [place]
        some_step = [[number] for number in range(10 * YOUNG)]
    assert len(some_step) == 10 * YOUNG
    assert looked
    assert max(looked) < (MIDDLE + 2) * (YOUNG + MADE) + 500
