"""What control costs after an outage, with 10,000 silent registrations: the last rows of the first half of `bench scale`.

All leases end at once, as when the network is down; then some end and others go on; then all are stale, answer nothing, cause
their warnings and are released. The clock is moved on by hand, and nothing is dialled.
"""

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pylb.control.leases import LeaseRecord
from pylb.control.steps import in_turns
from pylb.core.ownership import become
from pylb.core.policy import Rules
from pylb.core.registration import State

if TYPE_CHECKING:
    from bench.scale import RegistryBenchmark

TTL = 3600.0  # seconds, of every registration
DAY = 86_400.0


@dataclass
class Clock:
    """The monotonic clock, moved on by so many seconds."""

    ahead: float = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


class Outage:
    def __init__(self, benchmark: "RegistryBenchmark", clock: Clock) -> None:
        self._benchmark = benchmark
        self._registry = benchmark.registry
        self._state = benchmark.registry._state  # noqa: SLF001 - time passes there without rounds
        self._clock = clock

    def passes(self, seconds: float) -> None:
        """As if the rounds had gone on meanwhile: a stall is something else."""
        self._clock.ahead += seconds
        self._state.leases._last_tick = self._state.liveness._looked = self._clock()  # noqa: SLF001

    def beats(self, share: float) -> None:
        """So many call, always the same first ones."""
        ones = list(self._state.desired.claims.registrations.values())
        for one in ones[: round(share * len(ones))]:
            self._state.leases.beat(one, moved=False)

    async def all_stale(self, seconds: float) -> None:
        """All have been stale for so long, as after a restart."""
        claims = self._state.desired.claims
        claims = become(claims, list(claims.registrations), State.STALE).claims
        await self._state.publisher.publish(replace(self._state.desired, claims=claims), None, ["bench"])
        self._state.leases.preserving = False
        for one in claims.registrations.values():
            self._state.leases.restore(one, LeaseRecord(stale_for=seconds))

    async def frontends(self) -> None:
        async for _ in in_turns(self._registry.each_frontend(), 20):
            pass

    async def released(self) -> None:
        """Also until what they were has been freed, which their callers do not wait for."""
        await self._registry.tick()
        await self._state.writer.hold()
        self._state.writer.resume()

    async def measured(self) -> None:
        measure, tick = self._benchmark.measure, self._registry.tick
        self.passes(TTL + 600)
        await measure("outage: all leases end at once", tick())
        await measure("outage: the next round", tick())
        self.beats(0.55)
        await measure("outage: it is over", tick())
        self.passes(TTL - 600)
        self.beats(0.6)
        self.passes(700)
        await measure("two of five become stale", tick())
        self.passes(TTL - 800)
        self.beats(0.4)
        self.passes(150)
        await measure("another one of five: the first are taken back", tick())
        await self.all_stale(TTL + 50)
        await measure("all are stale: the first round, with their warnings", tick())
        await measure("all are stale: the next round", tick())
        for known in self._state.checker.health_records.addresses.values():
            known.connected("timeout", self._clock())
        await measure("all are stale and dead: the first round", tick())
        await measure("all are stale and dead: the next round", tick())
        await measure("all are stale: every frontend's view", self.frontends())
        own = frozenset(f"192.0.2.{number}" for number in range(1, 7))
        await measure("all are stale: this machine has six other addresses", self._registry.rules.readdress(own))
        await measure("all are stale: a reload", self._registry.rules.reload(Rules(own_ips=own), self._benchmark.keyring))
        await self.all_stale(8 * DAY)
        await measure("all are stale for too long: they are released", self.released())
