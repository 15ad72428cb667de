"""A bounded memory that is shared fairly: no owner can push out the items of another, however many it adds."""

from collections import deque
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from math import inf
from typing import Generic, TypeVar

T = TypeVar("T")
FEW = 64  # outdated entries of the heap that are tolerated


@dataclass(slots=True)
class _Share:
    weight: float = 0.0
    numbers: deque[tuple[int, float]] = field(default_factory=deque)  # with the weight of each, oldest first


class FairBuffer(Generic[T]):
    """The last items, each with an owner, up to a total weight.

    When it is full, the owner with the most weight loses its oldest item; the new item always stays.
    """

    def __init__(self, size: int, most: float = inf) -> None:
        self._size = size
        self._most = most
        self._weight = 0.0
        self._next = 0
        self._items: dict[int, T] = {}
        self._shares: dict[str, _Share] = {}
        self._heaviest: list[tuple[float, int, str]] = []  # a heap: minus the weight, the oldest item; one valid entry each
        self._dropped = -1
        self.dropped: T | None = None  # the newest item that was dropped: everything after it is there

    def add(self, owner: str, item: T, weight: float = 1.0) -> None:
        self._items[self._next] = item
        share = self._shares.setdefault(owner, _Share())
        share.numbers.append((self._next, weight))
        share.weight += weight
        self._weight += weight
        self._next += 1
        self._rank(owner, share)
        while len(self._items) > self._size or (self._weight > self._most and len(self._items) > 1):
            self._drop()

    def _rank(self, owner: str, share: _Share) -> None:
        """The share has changed: so has its place among all."""
        heappush(self._heaviest, (-share.weight, share.numbers[0][0], owner))
        if len(self._heaviest) > 2 * len(self._shares) + FEW:
            self._heaviest = [(-one.weight, one.numbers[0][0], name) for name, one in self._shares.items()]
            heapify(self._heaviest)

    def _heaviest_share(self) -> tuple[str, _Share]:
        """The heaviest share, of equals the one with the oldest item. Never one with only the newest item: another exists."""
        spared = None
        while True:
            entry = heappop(self._heaviest)
            weight, oldest, owner = entry
            share = self._shares.get(owner)
            if share is None or (-share.weight, share.numbers[0][0]) != (weight, oldest):
                continue  # it has changed since
            if oldest != self._next - 1:
                break
            spared = entry
        if spared is not None:
            heappush(self._heaviest, spared)
        return owner, share

    def _drop(self) -> None:
        owner, share = self._heaviest_share()
        number, weight = share.numbers.popleft()
        gone = self._items.pop(number)
        if number > self._dropped:
            self._dropped, self.dropped = number, gone
        share.weight -= weight
        self._weight -= weight
        if share.numbers:
            self._rank(owner, share)
        else:
            del self._shares[owner]

    def items(self) -> list[T]:
        """The items, oldest first."""
        return list(self._items.values())
