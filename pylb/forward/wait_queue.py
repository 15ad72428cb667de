"""Sessions that wait for a server while all are full: first come, first served, but nobody waits behind one that cannot go.

Sessions that have tried the same servers stand in the same line: if the first of a line finds no room, nobody behind it would.
So a free place is offered once to each line, oldest head first, and it does not matter how many sessions wait.
"""

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterator
from heapq import heapify, heappop, heapreplace
from typing import Any, Generic, Protocol, TypeVar


class Waiter(Protocol):
    number: int  # in the order of the accepts
    tried: Any  # the servers that failed for it, or None; not changed while it waits


W = TypeVar("W", bound=Waiter)


class WaitQueue(Generic[W]):
    """The waiting sessions of one frontend."""

    def __init__(self) -> None:
        self._waiting: dict[int, W] = {}  # by number
        self._lines: dict[frozenset[Hashable], list[int]] = {}  # sorted numbers, by the set of servers that were tried

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, one: W) -> bool:
        return one.number in self._waiting

    def __iter__(self) -> Iterator[W]:
        return map(self._waiting.__getitem__, sorted(self._waiting))

    def first(self) -> W | None:
        return self._waiting[min(line[0] for line in self._lines.values())] if self._waiting else None

    def add(self, one: W) -> int:
        """Returns how many are before it. That may not be all: it may have tried a server first, or its header was late."""
        insort(self._lines.setdefault(_line(one), []), one.number)
        self._waiting[one.number] = one
        return sum(bisect_left(line, one.number) for line in self._lines.values())

    def remove(self, one: W) -> None:
        del self._waiting[one.number]
        line = self._lines[_line(one)]
        del line[bisect_left(line, one.number)]
        if not line:
            del self._lines[_line(one)]

    def offers(self) -> Iterator[W]:
        """Each session that should look for room now. If it is still queued when the next one is taken, it found none."""
        heads = [(line[0], key) for key, line in self._lines.items()]
        heapify(heads)
        while heads:
            number, key = heads[0]
            if number in self._waiting:
                yield self._waiting[number]
            line = self._lines.get(key, [])
            if line and line[0] != number:
                heapreplace(heads, (line[0], key))
            elif line and not key:
                return  # no room for a session that has tried no server means no room for any
            else:
                heappop(heads)


def _line(one: Waiter) -> frozenset[Hashable]:
    return frozenset(one.tried or ())
