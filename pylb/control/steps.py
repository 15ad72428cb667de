"""Long work in steps, between which the loop has its turn: nothing here may hold it for more than a few milliseconds."""

import asyncio
from collections.abc import AsyncIterator, Generator, Iterable
from typing import TypeVar

T = TypeVar("T")


async def in_turns(items: Iterable[T], every: int) -> AsyncIterator[T]:
    """The items; the loop has its turn after `every` of them. The caller chooses so many as take a millisecond or two."""
    for number, item in enumerate(items, 1):
        yield item
        if number % every == 0:
            await asyncio.sleep(0)


async def stepwise(work: Generator[None, None, T]) -> T:
    """What comes out of `work`, which yields wherever the loop may have its turn."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        await asyncio.sleep(0)
