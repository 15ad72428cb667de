"""Long work in steps, between which the loop runs: nothing here may hold it for more than a few milliseconds."""

import asyncio
import gc
from collections.abc import AsyncIterator, Generator, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def in_turns(items: Iterable[T], every: int) -> AsyncIterator[T]:
    """The items; the loop runs after `every` of them. The caller chooses a number that takes a millisecond or two."""
    return _InTurns(iter(items), every)


class _InTurns(AsyncIterator[T]):
    """Not an async generator, because a caller that stops early would have to close it, or the event loop would start a task
    to do so."""

    def __init__(self, items: Iterator[T], every: int) -> None:
        self._items = items
        self._every = every
        self._since = 0  # items since the loop ran

    async def __anext__(self) -> T:
        if self._since == self._every:
            self._since = 0
            await let_loop_run()
        self._since += 1
        for item in self._items:
            return item
        raise StopAsyncIteration


async def stepwise(work: Generator[None, None, T]) -> T:
    """The result of `work`, which yields wherever the loop may run."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        await let_loop_run()


async def freed_in_steps(parts: list[T], every: int) -> None:
    """Free the parts of something large, `every` of them in a step. Nobody else refers to it."""
    while parts:
        del parts[-every:]
        await let_loop_run()


async def let_loop_run() -> None:
    """Let the loop run, after a step of long work."""
    collect_young()
    await asyncio.sleep(0)


def collect_young() -> None:
    """Collect young objects, which the garbage collector would do if it counted the objects that exist.

    It counts objects made minus objects freed, whatever their age, so it never runs while work replaces old objects by new
    ones. Draining a node with 1,000 servers left 35,000 young objects in this way, and the next collection, in some unrelated
    step, held the loop for 15 to 25 ms. Counting costs 8 ns per object, and here there are never many.
    """
    most, most_young, _ = gc.get_threshold()
    if gc.isenabled() and len(gc.get_objects(generation=0)) > most:
        gc.collect(1 if gc.get_count()[1] > most_young else 0)
