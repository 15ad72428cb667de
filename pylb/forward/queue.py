"""Those that wait for a server while all are full: first come, first served, also past a head that cannot use the place.

Whoever has tried the same servers stands in the same line: where its first finds no room, nobody behind it would. So a place
is offered once to each line, the one whose first came first before the others, and it does not matter how many wait.
"""

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterator
from heapq import heapify, heappop, heapreplace
from typing import Any, Generic, Protocol, TypeVar


class Waiting(Protocol):
    number: int  # in the order of the accepts
    tried: Any  # a list of the servers that failed it, or None; not changed while it waits


W = TypeVar("W", bound=Waiting)


class Queue(Generic[W]):
    """Of one frontend."""

    def __init__(self) -> None:
        self._waiting: dict[int, W] = {}  # by number
        self._lines: dict[frozenset[Hashable], list[int]] = {}  # numbers, sorted, by the servers that were tried

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, one: W) -> bool:
        return one.number in self._waiting

    def __iter__(self) -> Iterator[W]:
        return map(self._waiting.__getitem__, sorted(self._waiting))

    def first(self) -> W | None:
        return self._waiting[min(line[0] for line in self._lines.values())] if self._waiting else None

    def add(self, one: W) -> int:
        """Returns how many are before it: not all, if it tried a server first, or its PROXY header was late."""
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
        """Each that is to look for room now. If it is still in its place when the next one is asked for, there was none."""
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
                return  # what has no room for one that has tried nothing has room for nobody
            else:
                heappop(heads)


def _line(one: Waiting) -> frozenset[Hashable]:
    return frozenset(one.tried or ())
