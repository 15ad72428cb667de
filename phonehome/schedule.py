"""When to call next. Pure: the clock is an argument, randomness a function `uniform(low, high)`; times in seconds.

Jitter everywhere, because a node that comes back starts all its pods in the same second, and a pylb that was away must not
get the calls of all phone-homes at once.
"""

from __future__ import annotations

from collections.abc import Callable

Uniform = Callable[[float, float], float]

START_SPREAD = 2.0  # a booting node starts its pods at once; pylb grants a token 20 calls a second, so this has room for 40
FIRST_BACKOFF = 1.0  # the ceiling of the first retry; it doubles from there
LEAST_BACKOFF = 0.1  # full jitter may draw zero, and zero would be a hot loop
LEAST_LEASE = 3  # whatever the server grants, a heartbeat per second is fast enough
NO_LEASE = 60  # the value of a lease without an end, for the pace of retries


class Schedule:
    """The time of the next call to one load balancer."""

    def __init__(self, ttl: int | None, uniform: Uniform) -> None:
        self._ttl = ttl or NO_LEASE
        self._uniform = uniform
        self._granted = self._ttl
        self.failures = 0

    def first(self, now: float) -> float:
        """Time of the first call."""
        return now + self._uniform(0.0, START_SPREAD)

    def succeeded(self, now: float, granted: int | None = None) -> float:
        """Time of the next heartbeat: at most a third of the lease from now, so that two may be lost.

        `granted` is the lease from the server, if it is shorter than the requested one.
        """
        self.failures = 0
        self._granted = min(self._ttl, max(granted or self._ttl, LEAST_LEASE))
        third = self._granted / 3
        return now + self._uniform(0.8 * third, third)

    def failed(self, now: float, retry_after: float | None = None) -> float:
        """Time of the next attempt: full jitter under a ceiling that doubles up to a third of the lease.

        It is added to `retry_after`, because everybody got the same number. At most a third of the lease of that number counts:
        a longer wait would lose the lease.
        """
        self.failures += 1
        third = self._granted / 3
        ceiling = min(third, FIRST_BACKOFF * 2 ** min(self.failures - 1, 16))
        return now + min(retry_after or 0.0, third) + max(LEAST_BACKOFF, self._uniform(0.0, ceiling))
