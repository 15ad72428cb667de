"""How a registration comes and goes: it is checked without effect, its targets are dialled, it is decided and answered.

Before its turn a call is checked once without effect, and its new targets are dialled, so a black hole delays only the call
that names it. In its turn it is decided again, on top of everything that came before it.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TypeVar

from pylb.control.desired_state import DesiredState, with_claims, without
from pylb.control.liveness import addresses
from pylb.control.new_registration import same_call
from pylb.control.replaced_tokens import inherited, inheriting
from pylb.control.sharing import Sharing
from pylb.control.state import ControlState
from pylb.control.views import FrontendOutcome, Outcome, title
from pylb.core.address import UDP, Address
from pylb.core.auth import Caller
from pylb.core.claims import Claims
from pylb.core.errors import Code, Refused
from pylb.core.health import PASSED, YES
from pylb.core.loops import loop
from pylb.core.ownership import Admitted, Change, admit, announce, release
from pylb.core.policy import UNSAID, Balance, HealthMode, Policy
from pylb.core.registration import FrontendRequest, Key, Registration, State
from pylb.core.server_set import NO_TERMS
from pylb.core.static_rules import StaticRules

MOST_REGISTRATIONS = 2000  # per token
FORGOTTEN = 200  # leases that one step forgets: 1 ms
FIRST_DIALS = 64  # servers of a set that are dialled before it is in force
T = TypeVar("T")


class Registrar:
    def __init__(self, state: ControlState, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._state = state
        self._checker, self._health_records = state.checker, state.checker.health_records
        self._liveness, self._leases = state.liveness, state.leases
        self._writer, self._publisher, self._event_texts = state.writer, state.publisher, state.event_texts
        self._clock = clock
        self._wall = wall

    async def enter(self, wanted: Registration, caller: Caller) -> Outcome:
        """Enter a native or legacy registration that its token may make. Raises Refused."""
        wanted = inheriting(self._state.desired, wanted)
        before = self._state.desired.claims.registrations.get(wanted.key)
        sharing = self._state.sharing
        if before is not None and self._repeats(before, wanted) and (sharing is None or sharing.repeats(before)):
            self._state.beat(before, moved=False)  # nothing to write, to swap or to wait for
            self._ask_at_once(before)
            self._state.totals["unchanged"] += 1
            return self.outcome("unchanged", before, durable=self._writer.durable)
        takeover = caller.token.takeover
        targets = wanted.asked
        await self._ask_once_more(wanted)
        with self._health_records.considering(targets):
            new = self._unknown_of_set(wanted) if wanted.members else list(filter(self._health_records.may_have_come, targets))
            admitted: Admitted | Change | None = None
            if new or sharing is not None:  # then a call that will be refused must not dial them, nor claim anything
                judge = partial(admit, takeover=takeover, yield_policy=self._liveness.yield_policy)
                admitted, _ = self._judged(self._state.desired, wanted, caller, judge)
                if new and not isinstance(admitted, Change):
                    await (self._checker.dial_until_one(new) if wanted.members else self._checker.dial(new))
            if sharing is None or admitted is None or isinstance(admitted, Change):
                change, durable = await self.submit(wanted, caller, takeover=takeover)
            else:
                change, durable = await self._claimed(sharing, wanted, caller, evicts=bool(admitted[2]))
        return self.outcome(change.result, change.registered, durable=durable, note=change.note)

    async def _claimed(self, sharing: Sharing, wanted: Registration, caller: Caller, *, evicts: bool) -> tuple[Change, bool]:
        """Decide it once no other balancer can give its ports away. Raises Refused."""
        takeover = caller.token.takeover
        await sharing.claim(wanted, takeover=takeover or evicts)
        try:
            answer = self.submit(wanted, caller, takeover=takeover)
        except BaseException:
            sharing.claimed(wanted.key)
            raise
        answer.add_done_callback(lambda _: sharing.claimed(wanted.key))  # also if the caller has left
        return await answer

    def _unknown_of_set(self, wanted: Registration) -> list[Address]:
        """Those to dial first, at most a few. A frontend with a server that has answered needs no other yet: the rest is asked
        when it is in the table."""
        proven, share = self._health_records.proven, max(1, FIRST_DIALS // len(wanted.wanted))
        found = (wanted.addresses(item) for item in wanted.wanted if not item.target_last)
        open_ones = (some for some in found if not any(address in proven for address in some))
        return [address for some in open_ones for address in islice(filter(self._health_records.may_have_come, some), share)]

    def is_beat(self, wanted: Registration) -> bool:
        """Whether the call repeats what is registered, and no other call about it is under way."""
        wanted = inheriting(self._state.desired, wanted)
        before = self._state.desired.claims.registrations.get(wanted.key)
        return before is not None and not before.hearer and self._repeats(before, wanted)

    def _repeats(self, before: Registration, wanted: Registration) -> bool:
        return same_call(before, wanted) and not self._writer.is_busy_with(wanted.key)

    async def _ask_once_more(self, wanted: Registration) -> None:
        """Before a call may take a port from an owner that seems to be gone: a last check whether that is true."""
        claims = self._state.desired.claims
        if not self._liveness.any_dead:
            return
        ports = ((port, item.protocol) for item in wanted.wanted for port in item.ports)
        there = {one.key: one for port, protocol in ports for one in claims.on_port(port, protocol)}
        gone = [one for key, one in there.items() if key != wanted.key and self._liveness.is_abandoned(one)]
        if gone:
            await self._checker.dial(address for one in gone for address in addresses(one))
            self._liveness.look_again(gone)

    def submit(self, wanted: Registration, caller: Caller | None, *, takeover: bool) -> asyncio.Future[tuple[Change, bool]]:
        """Submit a call; the caller awaits the result. Raises Refused."""
        before = self._state.desired.claims.registrations.get(wanted.key)
        known: dict[Key, Registration] = {}  # those that have to leave for it

        def step(desired: DesiredState) -> tuple[DesiredState, Change]:
            after, change = self.announce(desired, wanted, caller, takeover=takeover)
            known.update({key: desired.claims.registrations[key] for key in {*change.evicted, *change.removed}})
            return after, change

        def done(change: Change) -> Generator[None, None, None]:
            self._state.totals[change.result] += 1
            self._leases.forget(change.removed)  # those that a takeover left without a port
            self._event_texts.evicted(wanted, known, change)
            for key in change.removed:
                self._liveness.called(key)
            if room := [key for key in change.removed if key not in change.evicted]:
                places = {place for key in room for place in known[key].places}
                yield from self._event_texts.released(self._state.desired, places, room, f" to make room for {title(wanted)}")
            one = change.registered
            if one is not None and (change.result != "superseded" or one.key.is_legacy):  # an older state is not a sign of life
                self._state.beat(one, moved=change.result == "moved")
                self._ask_at_once(one)
                self._event_texts.registered(before, one, change)

        by = "import" if caller is None else called_by(caller)
        return self._writer.submit(step, [wanted.key], done, by=by)

    async def leave(self, key: Key, caller: Caller) -> Outcome:
        """Release one registration; idempotent. Raises Refused."""
        key = inherited(self._state.desired, key)

        def left(change: Change) -> Generator[None, None, None]:
            if self._state.sharing is not None:  # also if nothing is there: another balancer may just have been called
                self._state.sharing.released([key])
            return self.left(change)

        change, durable = await self._writer.perform(
            lambda desired: with_claims(without(desired, [key]), release(desired.claims, [key])),
            [key],
            left,
            by=called_by(caller),
        )
        return self.outcome(change.result, None, durable=durable, note=change.note)

    def left(self, change: Change) -> Generator[None, None, None]:
        """The `done` of every release."""
        self._state.totals[change.result] += 1
        for start in range(0, len(change.removed), FORGOTTEN):
            if start:
                yield
            self._leases.forget(change.removed[start : start + FORGOTTEN])
        if change.touched:
            yield from self._event_texts.released(self._state.desired, change.touched, change.removed)

    def announce(
        self, desired: DesiredState, wanted: Registration, caller: Caller | None, *, takeover: bool
    ) -> tuple[DesiredState, Change]:
        """The step of every call that registers. Raises Refused."""
        if wanted.key not in desired.claims.registrations:
            wanted = replace(wanted, since=self._wall())
        judge = partial(
            announce, takeover=takeover, proven=self._health_records.proven, yield_policy=self._liveness.yield_policy
        )
        change, gone = self._judged(desired, wanted, caller, judge)
        if gone:
            touched = change.touched.union(*(desired.claims.registrations[key].places for key in gone))
            change = replace(change, touched=touched, removed=(*change.removed, *gone))
        if wanted.key in change.claims.registrations:
            desired = without(desired, [wanted.key])
        return with_claims(desired, change)

    def _judged(
        self,
        desired: DesiredState,
        wanted: Registration,
        caller: Caller | None,
        judge: Callable[[Claims, StaticRules, Registration], T],
    ) -> tuple[T, list[Key]]:
        """The result of `judge`, and the registrations that are released for it. Raises Refused."""
        if caller is not None and not desired.keyring.has(caller.token):  # removed by a reload while it was dialled
            raise Refused(Code.UNAUTHORIZED, f"token {caller.token.name!r} is no longer valid as it was", "call again")
        claims = desired.claims
        gone: list[Key] = []
        while True:
            try:
                _room_for_one_more(claims, wanted.key)
                return judge(claims, desired.static_rules, wanted), gone
            except Refused as refused:
                # Those that said goodbye and are dead do not count: they make room, the oldest first.
                one = self._gone(claims, wanted.key.token) if refused.code is Code.TOO_MANY else None
                if one is None:
                    raise
                gone.append(one)
                claims = release(claims, [one]).claims

    def _ask_at_once(self, one: Registration) -> None:
        self._checker.called(one.places, one.asked)

    def _gone(self, claims: Claims, token: str) -> Key | None:
        """The oldest registration of the token that said goodbye, whose lease is over, and whose servers do not answer."""
        found = (key for key in self._liveness.dead() if key.token == token and self._leases.said_goodbye(key))
        return next((key for key in found if claims.not_fresh.get(key) is State.STALE), None)

    def outcome(self, result: str, one: Registration | None, *, durable: bool, note: str = "") -> Outcome:
        """The answer to a call, as things are now. `one` None: nothing is registered."""
        generation = self._publisher.table.generation
        if one is None:
            return Outcome(result, generation, durable, note=note)
        lease = self._leases.get(one.key)
        notes = [note] if note else []
        if (why := loop(self._state.desired.claims, self._state.desired.static_rules, one)) is not None:
            notes.append(f"out of service: {why}")
        for item, place in zip(one.wanted, one.places, strict=True):
            notes += _without_effect(item, self._state.desired.static_rules.policy(place))
            if one.terms != NO_TERMS and place in self._state.desired.static_rules.frontends:
                notes.append(
                    f"access and idle_timeout have no effect on port {item.port_text}: its frontend is in pylb's config"
                )
        unbound = self._publisher.unbound
        closed = (f"port {place.port_text} is not open: {unbound[place]}" for place in one.places if place in unbound)
        notes += dict.fromkeys(closed)  # once for all routes of a port
        ttl = lease.ttl if lease else one.ttl
        left = lease.expires - self._clock() if lease and lease.ttl is not None else None
        return Outcome(result, generation, durable, ttl, left, self._targets(one), "; ".join(notes))

    def _targets(self, one: Registration) -> tuple[FrontendOutcome, ...]:
        found = []
        for item in one.wanted:
            place = (item.protocol, item.last, item.server_name)
            addresses, answering = one.addresses(item), None
            if one.members:
                reachable, hint = "", ""
                if not item.target_last:
                    met = Counter(self._health_records.reachable(address)[:2] for address in addresses)
                    well = PASSED if item.protocol == UDP else {YES}  # a machine that is well may say nothing to a datagram
                    answering = sum(count for (word, _), count in met.items() if word in well)
                    reachable, hint = met.most_common(1)[0][0]
                servers = (len(addresses), answering)
                hint = "" if answering else hint
                found.append(FrontendOutcome(item.port, "", item.target_port, reachable, hint, *place, servers))
                continue
            reachable, hint, _ = self._health_records.reachable(addresses[0])
            found.append(FrontendOutcome(item.port, one.ip, item.target_port, reachable, hint, *place))
        return tuple(found)


def _without_effect(item: FrontendRequest, policy: Policy) -> Iterator[str]:
    """A note for the caller: which of its settings have no effect because the frontend has its own."""
    if item.health != UNSAID and policy.health.mode is HealthMode.NONE:
        yield f"health of port {item.route_text} has no effect: the mode of its frontend is none, so there are no checks"
    if item.weight > 1 and policy.balance is Balance.FIRST:
        yield f"weight of port {item.route_text} has no effect: with the balance of its frontend, first, there are no shares"


def _room_for_one_more(claims: Claims, key: Key) -> None:
    """Check the limits of the token, so that a stolen one cannot fill memory and disk with instances. Raises Refused."""
    most = MOST_REGISTRATIONS
    if key not in claims.registrations and claims.of_token.get(key.token, 0) >= most:
        hint = f"`pylb release NAME` those that are gone, or use another token ({key.token!r} has them all)"
        raise Refused(Code.TOO_MANY, f"a token may hold {most} registrations", hint, retry_after=60)


def called_by(caller: Caller) -> str:
    return f"token {caller.token.name!r} from {caller.ip}" + (" (legacy)" if caller.at == "legacy" else "")
