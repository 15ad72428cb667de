"""All leases, and which registrations have been silent for too long."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from math import inf
from typing import NamedTuple

from pylb.control.steps import in_turns
from pylb.core.claims import Claims
from pylb.core.lease import (
    LapseVerdict,
    Lease,
    at_least_a_ttl,
    judge,
    lapsed_within_its_ttl,
    legacy_beat,
    legacy_lease,
    native_lease,
)
from pylb.core.persistent_map import PersistentMap
from pylb.core.registration import Key, Registration, State

STALL = 5.0  # seconds without a tick: pylb was stopped, and nobody could call
LATE = 3600.0  # seconds: stale for so long is more than a restart; somebody should look
CLOSING = 86400.0  # seconds before a port closes because its owner is silent: a second warning
FALLBACK = 600.0  # seconds for which the server at an old address replaces one that has never answered
FEW = 64  # outdated entries of the heap that are tolerated
GRANTS = 250  # leases between two turns of the loop: 1 ms
LOOKS = 500  # leases that are looked at between two turns of the loop: 0.5 ms
NOT_SEEN = -inf  # the last beat of a restored registration


@dataclass(frozen=True, slots=True)
class Due:
    """The registrations for which something is due now."""

    verdict: LapseVerdict[Key]
    gone: tuple[Key, ...] = ()  # said goodbye, and the lease is over
    overstayed: tuple[Key, ...] = ()  # stale for longer than `keep_stale`
    late: tuple[Key, ...] = ()  # stale for LATE now
    closing: tuple[Key, ...] = ()  # less than CLOSING before their release
    fallen_back: tuple[Key, ...] = ()  # their displaced servers have been the fallback for FALLBACK
    elsewhere: tuple[Key, ...] = ()  # over here, and another balancer hears them


@dataclass(frozen=True, slots=True)
class _Picture:
    """All leases as they were at one moment, for `judge`."""

    gone: tuple[Key, ...]
    silent: tuple[Key, ...]
    recent: tuple[Key, ...]
    stale: Mapping[Key, float]  # for how long each has been
    fresh: int
    elsewhere: tuple[Key, ...]


class LeaseRecord(NamedTuple):
    """The part of a lease that outlives a restart: durations in seconds, because the clock does not."""

    learned: float | None = None  # a legacy registration's TTL
    stale_for: float = 0.0
    displaced_for: float = 0.0  # how long others have replaced its servers
    goodbye: bool = False  # it is stale because it said goodbye


class Leases:
    """Leases are not part of the claims: a heartbeat that changes nothing writes one number here and touches nothing else.

    They only run while phone-homes can reach us: from `webhook_is_up` on, and never for a time in which pylb did not run.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._leases: dict[Key, Lease] = {}
        self._can_end = 0  # number of leases that can end
        self._schedule: list[tuple[float, Key]] = []  # a heap: the earliest time at which each may be over
        self._planned: dict[Key, float] = {}  # its entry in the heap: one valid entry each
        self._over: dict[Key, None] = {}
        self._goodbyes: set[Key] = set()  # fell silent after a goodbye: no sign of a fault
        self.listening = False
        self._late: dict[Key, bool] = {}  # those reported as stale, and whether their closing was reported too
        self._displaced_since: dict[Key, float] = {}
        self._last_tick: float | None = None
        self.learned: PersistentMap[Key, float] = PersistentMap()  # legacy registrations' TTLs, for the snapshot
        self.preserving = False
        self.is_fresh_elsewhere: Callable[[Key], bool] = lambda _key: False  # does another balancer hear it?

    def get(self, key: Key) -> Lease | None:
        return self._leases.get(key)

    def is_over(self, key: Key) -> bool:
        lease = self._leases.get(key)
        return lease is not None and lease.is_over(self._clock())

    def forget(self, keys: Iterable[Key]) -> None:
        """Forget these registrations: they were released."""
        for key in keys:
            self._set(key, None)
            self._planned.pop(key, None)
            self._goodbyes.discard(key)
            self._late.pop(key, None)
            self._displaced_since.pop(key, None)

    def pass_on(self, keys: Mapping[Key, Key]) -> None:
        """Give leases the new keys of their registrations."""
        for old, new in keys.items():
            lease, said, late, since = (
                self._leases.get(old),
                old in self._goodbyes,
                self._late.get(old),
                self._displaced_since.get(old),
            )
            self.forget([old])
            if lease is not None:
                self._set(new, lease)
            if said:
                self._goodbyes.add(new)
            if late is not None:
                self._late[new] = late
            if since is not None:
                self._displaced_since[new] = since

    def _set(self, key: Key, lease: Lease | None) -> None:
        before = self._leases.pop(key, None) if lease is None else self._leases.get(key)
        if lease is not None:
            self._leases[key] = lease
        self._can_end += (lease is not None and lease.ttl is not None) - (before is not None and before.ttl is not None)
        self._over.pop(key, None)
        learned = lease.ttl if lease is not None and key.is_legacy else None
        if learned != self.learned.get(key):
            self.learned = self.learned.edited({key: learned})
        if lease is not None and lease.expires < self._planned.get(key, inf):  # a beat only moves it on: `_ending` looks again
            self._plan(key, lease.expires)

    def _plan(self, key: Key, at: float) -> None:
        self._planned[key] = at
        heappush(self._schedule, (at, key))
        if len(self._schedule) > 2 * len(self._planned) + FEW:  # mostly entries of released ones, some for a day ahead
            self._schedule = [(moment, one) for one, moment in self._planned.items()]
            heapify(self._schedule)

    def _ending(self, now: float) -> Iterator[Key]:
        """Note those whose leases are over, one by one. Each is checked when it may be over, not at each tick."""
        while self._schedule and self._schedule[0][0] <= now:
            at, key = heappop(self._schedule)
            if self._planned.get(key) == at:
                del self._planned[key]
                lease = self._leases.get(key)
                if lease is not None and lease.is_over(now):
                    self._over[key] = None
                elif lease is not None and lease.expires < inf:
                    self._plan(key, lease.expires)
            yield key

    def restore(self, one: Registration, known: LeaseRecord) -> None:
        now = self._clock()
        if known.goodbye and one.state is State.STALE:
            self._goodbyes.add(one.key)
        if one.displaced:
            self._displaced_since[one.key] = now - known.displaced_for
        ttl = known.learned if one.key.is_legacy else one.ttl
        lease = native_lease(ttl, now)
        if one.state is State.STALE:
            lease = replace(lease, expires=now - known.stale_for)
        self._set(one.key, replace(lease, last_beat=NOT_SEEN))

    def beat(self, one: Registration, *, moved: bool) -> Lease:
        """The registration has called. A legacy one that moved is learned anew: it may be another client."""
        now, known = self._clock(), self._leases.get(one.key)
        self._goodbyes.discard(one.key)
        if not one.key.is_legacy:
            lease = native_lease(one.ttl, now)
        elif known is None or moved:
            lease = legacy_lease(now)
        elif known.last_beat == NOT_SEEN:
            lease = legacy_lease(now, known.ttl)
        else:
            lease = legacy_beat(known, now)
        self._set(one.key, lease)
        return lease

    async def webhook_is_up(self, claims: Claims) -> None:
        """From now on phone-homes can call. Leases run again, and none ends before its phone-home had a whole TTL to call."""
        await self._grant_all(claims)
        self.listening = True

    def webhook_is_down(self) -> None:
        """Phone-homes cannot call, so no lease ends from now on."""
        self.listening = False

    async def due(self, claims: Claims, keep_stale: float) -> Due:
        """In steps, since ten thousand leases may end at once. All is judged as it was at the first step; only a registration
        that has called since is not silent."""
        now = self._clock()
        before, self._last_tick = self._last_tick, now
        if before is not None and now - before > STALL:
            await self._grant_all(claims)
        picture = await self._picture(claims, now) if self.listening else None
        if picture is None or not self.listening:
            return Due(LapseVerdict(preserving=self.preserving), fallen_back=await self._fallen_back(claims, now))
        verdict = judge(picture.silent, picture.recent, picture.fresh, preserving=self.preserving)
        await self._grant(verdict.grace)
        if verdict.preserving:
            fallen_back = await self._fallen_back(claims, now)
            return Due(verdict, picture.gone, fallen_back=fallen_back, elsewhere=picture.elsewhere)
        overstayed = tuple([key async for key, age in in_turns(picture.stale.items(), LOOKS) if age >= keep_stale])
        late, closing = await self._warnings(picture.stale, keep_stale)
        return Due(verdict, picture.gone, overstayed, late, closing, await self._fallen_back(claims, now), picture.elsewhere)

    async def _picture(self, claims: Claims, now: float) -> _Picture:
        leases, goodbyes, fresh = self._leases.copy(), self._goodbyes.copy(), self._can_end
        async for _ in in_turns(self._ending(now), GRANTS):
            pass
        draining, stale, recent = set[Key](), dict[Key, float](), list[Key]()
        async for key, state in in_turns(claims.not_fresh.items(), LOOKS):
            lease = leases.get(key)
            fresh -= lease is not None and lease.ttl is not None
            if state is State.DRAINING:
                draining.add(key)
                continue
            stale[key] = _stale_for(lease, now)
            if lease is not None and key not in goodbyes and lapsed_within_its_ttl(lease, now):
                recent.append(key)
        async for key in in_turns(goodbyes, LOOKS):
            if key not in draining and key not in stale and (lease := leases.get(key)) is not None:
                fresh -= lease.ttl is not None
        gone, silent, elsewhere = list[Key](), list[Key](), list[Key]()
        async for key in in_turns(tuple(self._over), LOOKS):
            if self.is_fresh_elsewhere(key):  # the address has moved: that they are silent here means nothing
                elsewhere.append(key)
                fresh -= key not in draining and key not in stale and key not in goodbyes
            elif key in draining:
                gone.append(key)
                if key in self._over:  # else it has called a moment ago
                    self._goodbyes.add(key)
            elif key not in stale and key not in goodbyes:
                silent.append(key)
        return _Picture(tuple(gone), tuple(silent), tuple(recent), stale, fresh, tuple(elsewhere))

    async def _warnings(self, stale: Mapping[Key, float], keep_stale: float) -> tuple[tuple[Key, ...], tuple[Key, ...]]:
        """The registrations to report now as late, and those as about to close. An announced pause causes no warning.

        `stale`: all that are, and for how long.
        """
        async for key in in_turns(tuple(self._late), LOOKS):
            if key not in stale or key in self._goodbyes:
                self._late.pop(key, None)
        late, closing = list[Key](), list[Key]()
        async for key, age in in_turns(stale.items(), LOOKS):
            if age >= LATE and key not in self._late and key not in self._goodbyes:
                self._late[key] = False
                late.append(key)
        async for key, reported in in_turns(tuple(self._late.items()), LOOKS):
            if not reported and key in self._late and key in stale and keep_stale - stale[key] <= CLOSING:
                self._late[key] = True
                closing.append(key)
        return tuple(late), tuple(closing)

    async def _fallen_back(self, claims: Claims, now: float) -> tuple[Key, ...]:
        async for key in in_turns(tuple(self._displaced_since), LOOKS):
            if key not in claims.waiting:
                self._displaced_since.pop(key, None)
        waiting = in_turns(claims.waiting, LOOKS)
        return tuple([key async for key in waiting if now - self._displaced_since.setdefault(key, now) >= FALLBACK])

    async def _grant_all(self, claims: Claims) -> None:
        """Give all leases a whole TTL, except those that are over for good."""
        await self._grant(key for key in tuple(self._leases) if claims.not_fresh.get(key) is not State.STALE)

    async def _grant(self, keys: Iterable[Key]) -> None:
        """Do so in steps, because ten thousand take 30 ms. Leases released meanwhile are skipped."""
        async for key in in_turns(keys, GRANTS):
            if (lease := self._leases.get(key)) is not None:
                self._set(key, at_least_a_ttl(lease, self._clock()))

    def said_goodbye(self, key: Key) -> bool:
        """Whether it announced a pause and its lease has ended since."""
        return key in self._goodbyes

    def closes_at(self, key: Key, keep_stale: float) -> float | None:
        """When a stale registration is released because it is silent, on the clock; None: never, or not known yet."""
        lease = self._leases.get(key)
        if lease is None or inf in (lease.expires, keep_stale) or not lease.is_over(self._clock()):
            return None
        return lease.expires + keep_stale

    def records(self, claims: Claims) -> Iterator[tuple[Key, LeaseRecord]]:
        """For the snapshot: those with more to remember than their registration and `learned`, one by one.

        Safe in another thread: what changes meanwhile is only looked up, key by key, or copied in one call.
        """
        now, displaced_since = self._clock(), self._displaced_since.copy()
        stale = (key for bucket in claims.not_fresh.buckets for key, (_, state) in bucket.items() if state is State.STALE)
        others = (key for key in displaced_since if claims.not_fresh.get(key) is not State.STALE)
        for keys, are_stale in ((stale, True), (others, False)):
            for key in keys:
                stale_for = _stale_for(self._leases.get(key), now) if are_stale else 0.0
                displaced_for = now - displaced_since.get(key, now)
                yield key, LeaseRecord(self.learned.get(key), stale_for, displaced_for, key in self._goodbyes)


def _stale_for(lease: Lease | None, now: float) -> float:
    return 0.0 if lease is None or lease.expires == inf else max(0.0, now - lease.expires)
