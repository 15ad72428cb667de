"""Long work in steps, between which the loop has its turn: nothing here may hold it for more than a few milliseconds."""

import asyncio
import gc
from collections.abc import AsyncIterator, Generator, Iterable
from typing import TypeVar

T = TypeVar("T")


async def in_turns(items: Iterable[T], every: int) -> AsyncIterator[T]:
    """The items; the loop has its turn after `every` of them. The caller chooses so many as take a millisecond or two."""
    for number, item in enumerate(items, 1):
        yield item
        if number % every == 0:
            await turn()


async def stepwise(work: Generator[None, None, T]) -> T:
    """What comes out of `work`, which yields wherever the loop may have its turn."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        await turn()


async def turn() -> None:
    """The loop has its turn, after a step of long work."""
    collect_young()
    await asyncio.sleep(0)


def collect_young() -> None:
    """What the garbage collector would do if it counted objects that are there.

    It counts those that were made less those that were freed, whatever their age: so it never looks while work replaces old
    objects by new ones. A drain of a node with 1,000 servers left 35,000 young ones that way, and the next collection, in
    whoever's step, held the loop for 15 to 25 ms. To count them takes 8 ns for each, and here there are never many.
    """
    most, most_young, _ = gc.get_threshold()
    if gc.isenabled() and len(gc.get_objects(generation=0)) > most:
        gc.collect(1 if gc.get_count()[1] > most_young else 0)
