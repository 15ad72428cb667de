"""What other balancers hear becomes part of the table: through the one writer, and by the rules of every call."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from pylb.control.desired_state import Decision, DesiredState, with_claims
from pylb.control.event_texts import whose
from pylb.control.leases import LeaseRecord
from pylb.control.liveness import addresses
from pylb.control.sharing import Merged, Picture
from pylb.control.state import ControlState
from pylb.control.steps import in_turns
from pylb.control.views import title
from pylb.core.address import Listen, is_loopback
from pylb.core.claims import Claims
from pylb.core.errors import Refused, break_cycles
from pylb.core.ownership import Change, announce, become, release
from pylb.core.registration import Key, Registration, State

BATCH = 500  # registrations of one change: calls wait for it
STEP = 10  # decided in one step: 1 ms
NAMED = 5  # in the text of an event


class MergedRegistrations:
    def __init__(self, state: ControlState) -> None:
        self._state = state

    async def apply(self, keys: Iterable[Key], picture: Picture) -> dict[Key, Refused]:
        """Put them in force. Returns those that cannot be served here, and why."""
        refused, rest = dict[Key, Refused](), iter(keys)
        while batch := list(islice(rest, BATCH)):
            held = self._state.desired.claims.registrations
            differing = [key async for key in in_turns(batch, STEP) if not picture.agrees(key, held.get(key))]
            if differing:
                refused |= await self._apply(differing, picture)
        return refused

    async def _apply(self, keys: Sequence[Key], picture: Picture) -> dict[Key, Refused]:
        refused, before = dict[Key, Refused](), dict[Key, Registration | None]()
        evicted = list[tuple[Registration, Registration]]()  # who had to leave a port, and for whom

        def step(desired: DesiredState) -> Generator[None, None, Decision]:
            refused.clear()  # it may run twice
            evicted.clear()
            claims, touched, removed = desired.claims, set[Listen](), list[Key]()
            for number, key in enumerate(keys, 1):
                there = before[key] = claims.registrations.get(key)
                if picture.agrees(key, there):
                    continue
                try:
                    change = self._decided(desired, claims, picture.of(key), key)
                except Refused as error:
                    break_cycles(error)
                    refused[key] = error
                    gone = [key] if there is not None and there.hearer else []
                    change = release(claims, gone)
                evicted.extend([(claims.registrations[one], change.claims.registrations[key]) for one in change.evicted])
                claims = change.claims
                touched |= change.touched
                removed += change.removed
                if number % STEP == 0:
                    yield
            return with_claims(desired, Change(claims, "updated", frozenset(touched), removed=tuple(removed)))

        def done(change: Change) -> Generator[None, None, None]:
            self._evicted(evicted, change.removed)
            yield from self._in_force(before)

        try:
            await self._state.writer.perform(step, (), done, by="cluster")
        except Refused:
            return {}  # pylb is stopping
        return refused

    def _decided(self, desired: DesiredState, claims: Claims, merged: Merged | None, key: Key) -> Change:
        """Raises Refused."""
        if merged is None:
            return release(claims, [key])
        wanted, there = merged.one, claims.registrations.get(key)
        state = wanted.state
        if there is None:  # a goodbye opens nothing, so one that is new here comes as if it had not been said
            wanted = replace(wanted, state=State.FRESH, since=self._state.wall())
        proven = self._state.checker.health_records.proven
        takeover = merged.has_claim and not _is_local(claims, wanted)
        change = announce(claims, desired.static_rules, wanted, takeover=takeover, proven=proven)
        if change.registered is not None and change.registered.state is not state:
            later = become(change.claims, [key], state)
            change = replace(change, claims=later.claims, touched=change.touched | later.touched)
        return change

    def _evicted(self, pairs: Iterable[tuple[Registration, Registration]], removed: Iterable[Key]) -> None:
        self._state.leases.forget(removed)
        for held, wanted in pairs:
            ports = ", ".join(sorted({place.port_text for place in held.places} & {place.port_text for place in wanted.places}))
            text = f"port {ports} goes from {title(held)} to {title(wanted)}, which has its claim among the balancers"
            fields = {"token": held.key.token, "name": held.name, "instance": held.key.instance, "by": title(wanted)}
            self._state.event_log.note("taken_over", text, fields, alarm=True)

    def _in_force(self, before: Mapping[Key, Registration | None]) -> Generator[None, None, None]:
        control = self._state
        come, gone = list[Registration](), list[Registration]()
        for number, (key, was) in enumerate(before.items(), 1):
            now = control.desired.claims.registrations.get(key)
            if now is None or now.hearer:
                control.leases.forget([key])
                control.liveness.called(key)
            elif control.leases.get(key) is None:  # this balancer's own again: its phone-home has a whole lease to call
                control.leases.restore(now, LeaseRecord())
            if now is not None and now is not was:
                control.checker.called(now.places, addresses(now))
            if now is not None and now.hearer and (was is None or not was.hearer or was.ips != now.ips):
                come.append(now)
            elif now is None and was is not None:
                gone.append(was)
            if number % STEP == 0:
                yield
        self._note("shared", "heard by another balancer, and served here", come)
        self._note("shared_gone", "no balancer has it any more, or this one may not serve it", gone)

    def _note(self, kind: str, text: str, ones: Sequence[Registration]) -> None:
        if not ones:
            return
        named = ", ".join(map(_described, ones[:NAMED]))
        more = f", and {len(ones) - NAMED} more" if len(ones) > NAMED else ""
        self._state.event_log.note(kind, f"{text}: {named}{more}", {"count": len(ones), **whose(one.key for one in ones)})


def _is_local(claims: Claims, wanted: Registration) -> bool:
    """Whether a registration of this machine's loopback holds one of its ports: it is not shared, so no claim is against it."""
    ports = ((port, item.protocol) for item in wanted.wanted for port in item.ports)
    return any(is_loopback(ip) for port, protocol in ports for one in claims.on_port(port, protocol) for ip in one.ips)


def _described(one: Registration) -> str:
    ports = ", ".join(item.port_text for item in one.wanted)
    return f"{title(one)} on port {ports}" + (f", heard by {one.hearer}" if one.hearer else "")
