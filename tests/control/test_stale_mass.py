"""What a mass of silent registrations costs, counted and not timed: no step of the loop is longer the more there are.

Two rounds a second look at all of them, and after an outage of the network clients need forwarding most.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

from pylb.control.leases import LeaseRecord
from pylb.control.steps import in_turns
from pylb.core.auth import Keyring
from pylb.core.operator_overrides import changed
from pylb.core.ownership import become
from pylb.core.policy import AdminState, Rules
from pylb.core.registration import Registration, State
from tests.control.test_size import SLACK, TOKENS, Full

FEW, MANY = 120, 300  # frontends with five registrations each
TTL = 3600.0
DAY = 86_400.0
A_WORD = 3  # calls for each server that the operator has set, at a call that does not touch it

Scene = tuple[str, Callable[[], Awaitable[object]]]


class Outage(Full):
    def passes(self, seconds: float) -> None:
        """As if the rounds had gone on meanwhile: a stall is something else."""
        self.now += seconds
        state = self.registry._state
        state.leases._last_tick = state.liveness._looked = self.now

    def beats(self, share: float) -> None:
        """So many call, always the same first ones."""
        state = self.registry._state
        ones = list(state.desired.claims.registrations.values())
        for one in ones[: round(share * len(ones))]:
            state.leases.beat(one, moved=False)

    async def all_stale(self, seconds: float) -> None:
        """All have been stale for so long, as after a restart."""
        state = self.registry._state
        claims = become(state.desired.claims, list(state.desired.claims.registrations), State.STALE).claims
        await state.publisher.publish(replace(state.desired, claims=claims), None, ["test"])
        state.leases.preserving = False
        for one in claims.registrations.values():
            state.leases.restore(one, LeaseRecord(stale_for=seconds))

    async def round(self) -> None:
        await self.registry._periodic._leases()

    async def frontends_shown(self) -> None:
        async for _ in in_turns(self.registry.each_frontend(), 20):
            pass

    def count(self, state: State) -> int:
        return sum(one.state is state for one in self.registry._state.desired.claims.registrations.values())

    async def story(self) -> AsyncIterator[Scene]:
        """What happens, one after the other, and what each scene has led to."""
        registry, state = self.registry, self.registry._state
        total = len(state.desired.claims.registrations)
        self.passes(TTL + 100)
        yield "all leases end at once", self.round
        assert registry.preserving
        yield "they are silent still", self.round
        assert self.count(State.FRESH) == total
        self.beats(0.55)
        yield "the mass lapse is over", self.round
        assert (registry.preserving, self.count(State.FRESH)) == (False, total)
        self.passes(TTL - 600)
        self.beats(0.6)
        self.passes(700)
        yield "two of five become stale", self.round
        assert self.count(State.STALE) == 0.4 * total
        self.passes(TTL - 800)
        self.beats(0.4)
        self.passes(150)
        yield "another one of five: the first ones are taken back", self.round
        assert (registry.preserving, self.count(State.STALE)) == (True, 0)
        await self.all_stale(TTL + 50)
        noted = registry.noted
        yield "all are stale, and late", self.round
        assert (registry.noted - noted, registry.events()[-1].kind) == (total, "still_silent")
        yield "all are stale", self.round
        assert state.checker._asked_on == set(state.checker.health_records.addresses)
        for known in state.checker.health_records.addresses.values():
            known.connected("timeout", self.now)
        yield "none answers", self.round
        assert len(state.liveness.dead()) == total
        yield "none answers still", self.round
        yield "all frontends are shown", self.frontends_shown
        yield "an address more", lambda: registry.rules.readdress(frozenset({"192.0.2.1"}))
        yield "a reload", lambda: registry.rules.reload(Rules(own_ips=frozenset({"192.0.2.1", "192.0.2.2"})), Keyring(TOKENS))
        await self.all_stale(6.5 * DAY)
        noted = registry.noted
        yield "all will be released within a day", self.round
        assert (registry.noted - noted, registry.events()[-1].kind) == (total, "closing")
        await self.all_stale(8 * DAY)
        yield "all are released", self.round
        assert (list(registry.each_registration()), list(registry.table.frontends)) == ([], [])


async def test_a_mass_of_silent_registrations_holds_the_loop_no_longer_the_more_there_are(tmp_path: Path) -> None:
    longest: dict[str, dict[int, int]] = {}
    for frontends in (FEW, MANY):
        full = Outage(tmp_path / str(frontends), frontends)
        await full.fill()
        try:
            async for what, work in full.story():
                longest.setdefault(what, {})[frontends] = await full.longest(work)
        finally:
            await full.registry.stop()
    assert {what: found for what, found in longest.items() if found[MANY] > SLACK * found[FEW] + 50} == {}


async def test_a_call_looks_only_briefly_at_what_the_operator_set_for_other_servers(tmp_path: Path) -> None:
    """Each call that changed something looked for all those servers: with 300 of them it took 14 ms instead of one."""
    costs = {}
    for words in (10, 190):
        full = Full(tmp_path / str(words), 40)
        await full.fill()
        try:
            publisher = full.registry._state.publisher
            servers = [(one.listen, server.address) for one in publisher.table.frontends.values() for server in one.servers]
            others = [place for place in servers if place[0].port != 1027]  # the frontend that is about to change
            overrides = changed({}, others[:words], state=AdminState.DRAIN)
            assert len(overrides) == words
            await publisher.publish(replace(publisher.desired, overrides=overrides), None, ["test"])
            await full.put("127.0.3.97", instance="pod-first")
            costs[words] = await full.cost(lambda: full.put("127.0.3.98", instance="pod-first"))  # noqa: B023 - run at once
            assert publisher.desired.overrides == overrides
        finally:
            await full.registry.stop()
    assert costs[190] - costs[10] <= 180 * A_WORD


async def test_who_calls_while_a_mass_is_looked_at_does_not_lapse(tmp_path: Path) -> None:
    """A round takes many steps: what it decides is of one moment, and whoever has called since stays in service."""
    full = Outage(tmp_path, FEW)
    await full.fill()
    try:
        state = full.registry._state
        full.passes(TTL - 600)
        full.beats(0.6)
        full.passes(700)
        late_caller = list(state.desired.claims.registrations.values())[-1]
        picture = state.leases._picture

        async def called_meanwhile(*given: object) -> object:
            found = await picture(*given)  # type: ignore[arg-type]
            state.beat(late_caller, moved=False)
            return found

        state.leases._picture = called_meanwhile  # type: ignore[method-assign,assignment]
        await full.round()
        assert state.desired.claims.registrations[late_caller.key].state is State.FRESH
        assert full.count(State.STALE) == 0.4 * FEW * 5 - 1
    finally:
        await full.registry.stop()


class Watched(Registration):
    """It counts those that are freed."""

    freed = 0
    __slots__ = ()

    def __del__(self) -> None:
        Watched.freed += 1


async def test_what_a_mass_release_replaces_is_freed_in_steps(tmp_path: Path) -> None:
    """With the last reference to the claims before all registrations were: 10,000 of them in one step of 16 ms."""
    full = Outage(tmp_path, MANY)
    await full.fill()
    state = full.registry._state
    freed = [0]

    async def watch() -> None:
        while True:
            freed.append(Watched.freed)
            await asyncio.sleep(0)

    try:
        ones = state.desired.claims.registrations.values()
        watched = {one.key: Watched(*(getattr(one, each.name) for each in fields(one))) for one in ones}
        del ones
        claims = state.desired.claims.edited(watched)
        await state.publisher.publish(replace(state.desired, claims=claims), None, ["test"])
        del watched, claims
        await full.all_stale(8 * DAY)
        Watched.freed = 0
        watching = asyncio.get_running_loop().create_task(watch())
        await full.round()
        await state.writer.hold()  # it is ready for the next batch
        state.writer.resume()
        freed.append(Watched.freed)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        assert freed[-1] == MANY * 5
        assert max(after - before for before, after in pairwise(freed)) < MANY * 5 / 4
    finally:
        await full.registry.stop()
