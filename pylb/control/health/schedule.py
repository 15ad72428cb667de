"""When to ask which server, within a budget: so many questions a second, of which silent servers get only a part.

Each server is asked when it is due, the one that waits longest first. If the budget is too small, all intervals stretch by
the same factor; silent servers get what the others leave, and at least a tenth.
"""

from collections.abc import Callable, Collection
from heapq import heappop, heappush
from math import inf
from typing import Generic, TypeVar

PER_SECOND = 1000.0  # questions: half a core's work
AT_ONCE = 200.0  # after a quiet period
FOR_SILENT = 10  # one question in so many is for silent servers, however busy it is

W = TypeVar("W")


class ProbeSchedule(Generic[W]):
    """`asked_at` says when a server is due; heap entries that differ from it are outdated and skipped."""

    def __init__(self, clock: Callable[[], float], asked_at: Callable[[W], float], busy: Collection[W]) -> None:
        self._clock = clock
        self._asked_at = asked_at
        self._busy = busy  # being asked: planned again after that
        self._heaps: tuple[list[tuple[float, int, W]], list[tuple[float, int, W]]] = ([], [])  # those that answer, silent ones
        self._planned = 0
        self._left = AT_ONCE
        self._filled_at = clock()
        self.asked = 0  # questions since the start
        self.silent_running = 0
        self.most_silent = 128  # at once: each occupies a place until its timeout

    def plan(self, who: W, *, silent: bool) -> None:
        at = self._asked_at(who)
        if at < inf:
            self._planned += 1  # a tie-breaker: servers have no order
            heappush(self._heaps[silent], (at, self._planned, who))

    def is_due(self) -> bool:
        return self._next_heap() is not None

    def take(self) -> tuple[W, bool] | None:
        """The next one that is due, and whether it is a silent one. None: none is due, or the budget is used up."""
        silent = self._next_heap()
        if silent is None:
            return None
        return heappop(self._heaps[silent])[2], silent

    def spend(self) -> None:
        """One question was asked, for however many servers."""
        self._left -= 1
        self.asked += 1

    @property
    def lag(self) -> float:
        """For how many seconds the longest waiting server has been due."""
        heads = [heap[0][0] for silent, heap in enumerate(self._heaps) if self._is_due(bool(silent))]
        return self._clock() - min(heads, default=self._clock())

    def _next_heap(self) -> bool | None:
        """False: the heap of those that answer; True: of the silent ones."""
        now = self._clock()
        self._left = min(AT_ONCE, self._left + (now - self._filled_at) * PER_SECOND)
        self._filled_at = now
        if self._left < 1:
            return None
        answering = self._is_due(silent=False)
        silent = self.silent_running < self.most_silent and self._is_due(silent=True)
        if answering and not (silent and self.asked % FOR_SILENT == 0):
            return False
        return True if silent else None

    def _is_due(self, silent: bool) -> bool:
        heap, now = self._heaps[silent], self._clock()
        while heap and heap[0][0] <= now:
            at, _, who = heap[0]
            if self._asked_at(who) == at and who not in self._busy:
                return True
            heappop(heap)  # asked since, gone, or being asked
        return False
