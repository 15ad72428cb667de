"""All leases, and the one question of the clock: whose silence counts."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import inf

from pylb.core.claims import Claims
from pylb.core.lease import Lease, Verdict, at_least_a_ttl, judge, legacy_beat, legacy_lease, native_lease
from pylb.core.registration import Key, Registration, State

STALL = 5.0  # seconds without a tick: we were stopped, and nobody could call
NOT_SEEN = -inf  # the last beat of a restored registration


@dataclass(frozen=True, slots=True)
class Due:
    """What the clock asks of the claims now."""

    verdict: Verdict[Key]
    gone: tuple[Key, ...] = ()  # said goodbye, and their lease is over
    overstayed: tuple[Key, ...] = ()  # stale for longer than `keep_stale`


class Tenure:
    """Leases are not part of the picture: a beat that changes nothing writes one number here and touches nothing else.

    They only run while phone-homes can reach us: from `webhook_is_up` on, and never for a time we did not run.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._leases: dict[Key, Lease] = {}
        self._goodbyes: set[Key] = set()  # who fell silent after saying so: no sign of a fault
        self._listening = False
        self._last_tick: float | None = None
        self.preserving = False

    def get(self, key: Key) -> Lease | None:
        return self._leases.get(key)

    def is_over(self, key: Key) -> bool:
        lease = self._leases.get(key)
        return lease is not None and lease.is_over(self._clock())

    def forget_released(self, claims: Claims) -> None:
        for key in [key for key in self._leases if key not in claims.registrations]:
            del self._leases[key]
            self._goodbyes.discard(key)

    def restore(self, one: Registration, learned: float | None, stale_for: float) -> None:
        now = self._clock()
        ttl = learned if one.key.is_legacy else one.ttl
        lease = native_lease(ttl, now)
        if one.state is State.STALE:
            lease = replace(lease, expires=now - stale_for)
        self._leases[one.key] = replace(lease, last_beat=NOT_SEEN)

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
        self._leases[one.key] = lease
        return lease

    def webhook_is_up(self, claims: Claims) -> None:
        """Phone-homes can call: each lease that has not ended gets at least a whole TTL from now."""
        self._listening = True
        self._grant(self._fresh(claims))

    def webhook_is_down(self) -> None:
        """Nobody can call us: nobody's lease ends."""
        self._listening = False

    def due(self, claims: Claims, keep_stale: float) -> Due:
        now = self._clock()
        self.forget_released(claims)  # also those that a takeover left without a port
        before, self._last_tick = self._last_tick, now
        if before is not None and now - before > STALL:
            self._grant(self._fresh(claims))
        if not self._listening:
            return Due(Verdict(preserving=self.preserving))
        held = claims.registrations
        draining = {key for key in self._leases if held[key].state is State.DRAINING}
        gone = tuple(key for key in draining if self._leases[key].is_over(now))
        self._goodbyes.update(gone)
        expected = draining | self._goodbyes
        stale = [key for key, one in held.items() if one.state is State.STALE]
        counted = {key: lease for key, lease in self._leases.items() if key not in expected}
        verdict = judge(counted, stale, now, preserving=self.preserving)
        self._grant(verdict.grace)
        overstayed = () if verdict.preserving else tuple(key for key in stale if self._stale_for(key, now) >= keep_stale)
        return Due(verdict, gone, overstayed)

    def _fresh(self, claims: Claims) -> list[Key]:
        held = claims.registrations
        return [key for key in self._leases if key in held and held[key].state is not State.STALE]

    def _grant(self, keys: Iterable[Key]) -> None:
        now = self._clock()
        for key in keys:
            self._leases[key] = at_least_a_ttl(self._leases[key], now)

    def _stale_for(self, key: Key, now: float) -> float:
        lease = self._leases.get(key)
        return 0.0 if lease is None or lease.expires == inf else max(0.0, now - lease.expires)

    def learned(self) -> dict[Key, float]:
        """Legacy registrations' TTLs, for the snapshot."""
        return {key: lease.ttl for key, lease in self._leases.items() if key.is_legacy and lease.ttl is not None}

    def stale_for(self) -> dict[Key, float]:
        """Seconds since each ended lease ended, for the snapshot."""
        now = self._clock()
        return {key: past for key in self._leases if (past := self._stale_for(key, now)) > 0}
