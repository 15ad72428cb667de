"""A bounded memory that is shared fairly: no owner can push out the items of another, however many it adds."""

from collections import deque
from dataclasses import dataclass, field
from math import inf
from typing import Generic, TypeVar

T = TypeVar("T")


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
        self._dropped = -1
        self.dropped: T | None = None  # the newest item that was dropped: everything after it is there

    def add(self, owner: str, item: T, weight: float = 1.0) -> None:
        """Costs O(owners) once it is full."""
        self._items[self._next] = item
        share = self._shares.setdefault(owner, _Share())
        share.numbers.append((self._next, weight))
        share.weight += weight
        self._weight += weight
        self._next += 1
        while len(self._items) > self._size or (self._weight > self._most and len(self._items) > 1):
            self._drop()

    def _drop(self) -> None:
        newest = self._next - 1
        candidates = (
            (share.numbers[0][0] != newest, share.weight, -share.numbers[0][0], owner) for owner, share in self._shares.items()
        )
        owner = max(candidates)[-1]
        share = self._shares[owner]
        number, weight = share.numbers.popleft()
        gone = self._items.pop(number)
        if number > self._dropped:
            self._dropped, self.dropped = number, gone
        share.weight -= weight
        self._weight -= weight
        if not share.numbers:
            del self._shares[owner]

    def items(self) -> list[T]:
        """The items, oldest first."""
        return list(self._items.values())
