"""Token buckets by key, a bounded number of them."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

MOST_KEYS = 4096


class TokenBuckets:
    """Each key may act `burst` times at once and `rate` times a second in the long run.

    A key says who acts and what it does, so nobody is refused because of another's calls.
    Beyond the bound, the key unused for longest is forgotten; the worst effect is that it has a full bucket again.
    """

    def __init__(self, burst: float, rate: float, clock: Callable[[], float], most_keys: int = MOST_KEYS) -> None:
        self._burst = burst
        self._rate = rate
        self._clock = clock
        self._most_keys = most_keys
        self._left: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()  # key -> (tokens left, at)

    def take(self, key: Hashable) -> float:
        """0 if allowed, else the seconds until the next call is."""
        left, wait = self._look(key)
        self._left[key] = (left - 1 if wait == 0 else left, self._clock())
        self._left.move_to_end(key)
        if len(self._left) > self._most_keys:
            self._left.popitem(last=False)
        return wait

    def wait(self, key: Hashable) -> float:
        """Like `take`, but takes nothing."""
        return self._look(key)[1]

    def _look(self, key: Hashable) -> tuple[float, float]:
        now = self._clock()
        left, at = self._left.get(key, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._rate)
        return left, 0.0 if left >= 1 else (1 - left) / self._rate
