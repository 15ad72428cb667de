"""How long to wait before the next try. Pure: randomness is a function `uniform(low, high)`; times in seconds.

Every try that brought nothing new makes the next wait longer, also one that looked like a success: a server that ends each
watch at once, or answers each with "410 Gone", must not cause a hot loop.
"""

from __future__ import annotations

from phonehome.schedule import FIRST_BACKOFF, LEAST_BACKOFF, Uniform

MOST_BACKOFF = 30.0
MOST_RETRY_AFTER = 300.0  # of a Retry-After: a longer one is a mistake, or somebody else's


class Pace:
    def __init__(self, uniform: Uniform, most: float = MOST_BACKOFF) -> None:
        self._uniform = uniform
        self._most = most
        self.failures = 0

    def progressed(self) -> None:
        """Something new was learned."""
        self.failures = 0

    def next_wait(self, retry_after: float | None = None) -> float:
        """Call it before every try but the first."""
        self.failures += 1
        ceiling = min(self._most, FIRST_BACKOFF * 2 ** min(self.failures - 1, 16))
        return min(retry_after or 0.0, MOST_RETRY_AFTER) + max(LEAST_BACKOFF, self._uniform(0.0, ceiling))
