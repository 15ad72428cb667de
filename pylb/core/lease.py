"""Leases: how long a registration counts as fresh, on the monotonic clock, and when silence is nobody's own fault.

A lease that ends closes nothing: its registration becomes stale, a last resort (compose.py), and is released only after
`keep_stale`. When most phone-homes fall silent together the fault is more likely ours or the network's: none is demoted.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from math import inf
from typing import Generic, TypeVar

K = TypeVar("K")

LEGACY_TTL = 1800.0  # seconds: the least a learned lease lasts
LEGACY_GAPS = 3  # a learned lease lasts that many gaps
SIMILAR = 0.25  # two gaps are similar if they differ by at most this share of the larger one, …
SIMILAR_SECONDS = 5.0  # … or by so little that it is only the call's own time
MASS = 3  # fewer silent leases than this are never a mass lapse


@dataclass(frozen=True, slots=True)
class Lease:
    """`expires` is monotonic seconds; inf for a lease that has no end (ttl None)."""

    ttl: float | None
    last_beat: float
    expires: float
    previous_gap: float | None = None  # legacy only: what is learned from

    def is_over(self, now: float) -> bool:
        return self.expires <= now


def native_lease(ttl: float | None, now: float) -> Lease:
    return Lease(ttl, now, inf if ttl is None else now + ttl)


def legacy_lease(now: float, ttl: float | None = None) -> Lease:
    """The first call of a legacy client: it may have been its only one. `ttl`: what an earlier pylb had learned."""
    return native_lease(ttl, now)


def legacy_beat(lease: Lease, now: float) -> Lease:
    """The same call again. The lease starts with the second of two similar gaps, and keeps what it learned after odd ones."""
    gap = now - lease.last_beat
    ttl = lease.ttl
    if lease.previous_gap is not None and _similar(gap, lease.previous_gap):
        ttl = max(LEGACY_TTL, LEGACY_GAPS * max(gap, lease.previous_gap))
    return replace(native_lease(ttl, now), previous_gap=gap)


def _similar(one: float, other: float) -> bool:
    return abs(one - other) <= max(SIMILAR_SECONDS, SIMILAR * max(one, other))


def at_least_a_ttl(lease: Lease, now: float) -> Lease:
    """For when pylb could not be called: nobody's lease may end before it had a whole TTL to call."""
    return lease if lease.ttl is None else replace(lease, expires=max(lease.expires, now + lease.ttl))


@dataclass(frozen=True, slots=True)
class Verdict(Generic[K]):
    """What `judge` found. `grace`: get a whole TTL again, because a mass lapse is over."""

    lapsed: tuple[K, ...] = ()
    revived: tuple[K, ...] = ()
    grace: tuple[K, ...] = ()
    preserving: bool = False


def judge(silent: Collection[K], recent: Collection[K], fresh: int, *, preserving: bool) -> Verdict[K]:
    """Which to demote now, given whether the last verdict was a mass lapse.

    `fresh` leases can end and are not stale; `silent` are those of them that are over. `recent` are stale already, for less
    than their own TTL. More than half of all, and at least three, silent within one TTL of each is a mass lapse: nobody is
    demoted, and who was demoted within that TTL (the first of the many) is taken back. It lasts until half of them call again.
    """
    count = len(silent) + len(recent)
    if count >= MASS and 2 * count > fresh + len(recent):
        return Verdict(revived=tuple(recent), preserving=True)
    if preserving:
        return Verdict(grace=tuple(silent))
    return Verdict(lapsed=tuple(silent))


def lapsed_within_its_ttl(lease: Lease, now: float) -> bool:
    return lease.ttl is not None and now - lease.expires < lease.ttl
