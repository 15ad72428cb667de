"""Leases: how long a registration counts as fresh, on the monotonic clock, and when silence is not a client's own fault.

The end of a lease closes nothing: its registration becomes stale, a last resort, and is released only after `keep_stale`.
If most phone-homes fall silent together, the fault is more likely ours or the network's: then none is demoted.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from math import inf
from typing import Generic, TypeVar

K = TypeVar("K")

LEGACY_TTL = 1800.0  # seconds: the least a learned lease lasts
LEGACY_GAPS = 3  # a learned lease lasts that many gaps between calls
SIMILAR = 0.25  # two gaps are similar if they differ by at most this share of the larger one, …
SIMILAR_SECONDS = 5.0  # … or by so little that the duration of the call explains it
MASS = 3  # fewer silent leases than this are never a mass lapse


@dataclass(frozen=True, slots=True)
class Lease:
    """`expires` is monotonic seconds; inf for a lease that has no end (ttl None)."""

    ttl: float | None
    last_beat: float
    expires: float
    previous_gap: float | None = None  # legacy only: the last gap between calls, to learn from

    def is_over(self, now: float) -> bool:
        return self.expires <= now


def native_lease(ttl: float | None, now: float) -> Lease:
    return Lease(ttl, now, inf if ttl is None else now + ttl)


def legacy_lease(now: float, ttl: float | None = None) -> Lease:
    """The lease after a legacy client's first call, which may be its only one. `ttl`: the TTL that an earlier pylb learned."""
    return native_lease(ttl, now)


def legacy_beat(lease: Lease, now: float) -> Lease:
    """The lease after one more call. It starts with the second of two similar gaps; odd gaps do not change what it learned."""
    gap = now - lease.last_beat
    ttl = lease.ttl
    if lease.previous_gap is not None and _similar(gap, lease.previous_gap):
        ttl = max(LEGACY_TTL, LEGACY_GAPS * max(gap, lease.previous_gap))
    return replace(native_lease(ttl, now), previous_gap=gap)


def _similar(one: float, other: float) -> bool:
    return abs(one - other) <= max(SIMILAR_SECONDS, SIMILAR * max(one, other))


def at_least_a_ttl(lease: Lease, now: float) -> Lease:
    """For when pylb could not be called: no lease may end before its client had a whole TTL to call."""
    return lease if lease.ttl is None else replace(lease, expires=max(lease.expires, now + lease.ttl))


@dataclass(frozen=True, slots=True)
class LapseVerdict(Generic[K]):
    """The result of `judge`. `grace`: those that get a whole TTL again, because a mass lapse is over."""

    lapsed: tuple[K, ...] = ()
    revived: tuple[K, ...] = ()
    grace: tuple[K, ...] = ()
    preserving: bool = False


def judge(silent: Collection[K], recent: Collection[K], fresh: int, *, preserving: bool) -> LapseVerdict[K]:
    """Which leases to demote now. `preserving`: the last verdict was a mass lapse.

    `fresh` counts the leases that can end and are not stale; `silent` are those of them that are over. `recent` are stale
    already, for less than their own TTL. If more than half of all, and at least three, fall silent within their TTL, it is a
    mass lapse: nobody is demoted, and those demoted within that TTL (the first of the many) are taken back. It lasts until
    half of them call again.
    """
    count = len(silent) + len(recent)
    if count >= MASS and 2 * count > fresh + len(recent):
        return LapseVerdict(revived=tuple(recent), preserving=True)
    if preserving:
        return LapseVerdict(grace=tuple(silent))
    return LapseVerdict(lapsed=tuple(silent))


def lapsed_within_its_ttl(lease: Lease, now: float) -> bool:
    return lease.ttl is not None and now - lease.expires < lease.ttl
