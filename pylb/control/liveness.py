"""Registrations whose owner seems gone: since when they have neither called nor answered, and whether they give way.

A registration gives way only after it was draining or stale *and* none of its servers accepted a connection, for
`leases.yield_after` without a break: an app that restarts is away for seconds, and a rival that keeps trying would win such a
gap. The time starts again with any sign of life, or when pylb could not know: a call, an answer, a client's successful
connect, a lack of descriptors here, a stall here, a webhook that is down, most phone-homes silent together.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from pylb.control.desired_state import DesiredState
from pylb.control.health.checker import Checker
from pylb.control.leases import STALL, Leases
from pylb.control.steps import in_turns
from pylb.core.address import Address, Listen
from pylb.core.claims import Claims
from pylb.core.conflicts import YieldPolicy
from pylb.core.health import OURS, PASSED
from pylb.core.policy import LeaseBounds
from pylb.core.registration import Key, Registration, State
from pylb.core.text import ago

JUST_NOW = 10.0  # seconds: nothing may have answered so recently; a call for the port asks once more
LOOKS = 200  # registrations between two turns of the loop: 1 ms


class Liveness:
    """Watches the registrations that have stopped calling, and says which of them may be replaced or released."""

    def __init__(self, checker: Checker, leases: Leases, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._checker = checker
        self._health_records = checker.health_records
        self._leases = leases
        self._clock = clock
        self._wall = wall
        self.leases = LeaseBounds()
        self.yield_policy = YieldPolicy(self._yields, self._words)
        self._since: dict[Key, float] = {}
        self._looked: float | None = None

    async def look(self, claims: Claims) -> None:
        """Once a tick: find those that became silent and dead, or no longer are. Their servers are still asked, in parallel."""
        now, before = self._clock(), self._looked
        self._looked = now
        silent = chain.from_iterable(claims.not_fresh.buckets)
        await self._checker.ask_on(address for key in silent for address in addresses(claims.registrations[key]))
        if not self._leases.listening or self._leases.preserving or (before is not None and now - before > STALL):
            self._since.clear()  # no sign of life could have reached us
        async for key in in_turns(tuple(self._since), LOOKS):
            if key not in claims.not_fresh:
                self.called(key)
        async for key in in_turns(claims.not_fresh, LOOKS):
            self._look_at(claims.registrations[key])

    def look_again(self, ones: Iterable[Registration]) -> None:
        """Decide again about these registrations, whose servers have just been asked."""
        for one in ones:
            self._look_at(one)

    def called(self, key: Key) -> None:
        """Forget its silence: it has called, or was released."""
        self._since.pop(key, None)

    def since(self, key: Key) -> float | None:
        """When it became silent and dead, on the clock; None: it is not."""
        return self._since.get(key)

    @property
    def any_dead(self) -> bool:
        return bool(self._since)

    def dead(self) -> list[Key]:
        """All that are silent and dead, the longest first."""
        return list(self._since)

    def _look_at(self, one: Registration) -> None:
        began = self._since.get(one.key)
        if not self._is_dead(one):
            self._since.pop(one.key, None)
        elif began is None or any(self._accepted_at(address) > began for address in addresses(one)):
            self._since[one.key] = self._clock()

    def _is_dead(self, one: Registration) -> bool:
        """Whether none of its servers answers, as far as they were asked. Servers in maintenance are not asked."""
        found = [self._health_records.answer(address) for address in addresses(one)]
        return not any(answer is None or answer.found in PASSED or answer.found in OURS for answer in found) and not any(
            self._health_records.in_maintenance(place, address)
            for place, item in zip(one.places, one.wanted, strict=True)
            for address in one.addresses(item)
        )

    def _accepted_at(self, address: Address) -> float:
        answer = self._health_records.answer(address)
        return 0.0 if answer is None else answer.accepted_at

    def is_abandoned(self, one: Registration) -> bool:
        """Whether it was silent and dead long enough to give way, unless its servers answer one more question."""
        began = self._since.get(one.key)
        return one.state is not State.FRESH and began is not None and self._clock() - began >= self.leases.yield_after

    def is_superfluous(self, key: Key, claims: Claims) -> bool:
        """Whether it announced a pause, its lease is over, it does not answer, and others serve its ports."""
        one = claims.registrations.get(key)
        if one is None or not self._leases.said_goodbye(key) or one.state is not State.STALE:
            return False
        return all(any(other not in claims.not_fresh for other in claims.holders[place]) for place in one.places)

    @staticmethod
    def silent_ports(one: Registration, desired: DesiredState) -> tuple[Listen, ...]:
        """The ports that only this registration holds: neither the config nor a registration that calls has them."""
        claims, statics = desired.claims, desired.static_rules.frontends
        return tuple(
            place
            for place in one.places
            if place not in statics and all(claims.not_fresh.get(key) is State.STALE for key in claims.holders[place])
        )

    def port_closes_at(self, listen: Listen, desired: DesiredState) -> float | None:
        """When a port that only has stale registrations closes, as unix time; None: not as far as is known."""
        claims, keep = desired.claims, desired.static_rules.rules.leases.keep_stale
        keys = claims.holders.get(listen, ())
        if not keys or listen in desired.static_rules.frontends or self._leases.preserving:
            return None
        if any(claims.not_fresh.get(key) is not State.STALE for key in keys):
            return None
        ends = [self._leases.closes_at(key, keep) for key in keys]
        if None in ends:
            return None
        return self._wall() + max(end for end in ends if end is not None) - self._clock()

    def _yields(self, one: Registration) -> bool:
        found = [self._health_records.answer(address) for address in addresses(one)]
        asked = all(answer is not None and self._clock() - answer.at <= JUST_NOW for answer in found)
        return asked and self._is_dead(one) and self.is_abandoned(one)

    def _words(self, one: Registration) -> str:
        """Since when it owns the port, how it is, and until when."""
        parts = [f"since {moment(one.since)}"] if one.since else []
        lease, began = self._leases.get(one.key), self._since.get(one.key)
        if one.state is State.FRESH:
            if lease is not None and lease.last_beat >= 0:
                parts.append(f"it last called {ago(self._clock() - lease.last_beat)}")
            return f" ({'; '.join(parts)})" if parts else ""
        if one.state is State.DRAINING:
            parts.append("it said goodbye")
        elif lease is not None:
            parts.append(f"silent since {self._at(lease.expires)}")
        if began is not None:
            parts.append(f"it has not answered since {self._at(began)}")
            parts.append(f"gives way from {self._at(began + self.leases.yield_after)} on, if nothing of it comes back")
        else:
            ends = self._leases.closes_at(one.key, self.leases.keep_stale)
            parts.append("its server answers, or has not been asked yet")
            if ends is not None:
                parts.append(f"it is released at {self._at(ends)}")
        return f" ({'; '.join(parts)})"

    def _at(self, when: float) -> str:
        return moment(self._wall() + when - self._clock())


def addresses(one: Registration) -> Iterator[Address]:
    """The addresses of its servers, and of those that stand in for them until they have answered."""
    yield from one.asked
    yield from (old.address for old in one.displaced)


def moment(at: float) -> str:
    """A unix time as text for people."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
