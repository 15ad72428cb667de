"""Writes to the event log when registrations, tokens or loops appear, disappear or change."""

from collections.abc import Callable, Collection, Generator, Iterable, Mapping

from pylb.control.desired_state import DesiredState
from pylb.control.event_log import EventLog, FrequentMoves
from pylb.control.liveness import Liveness
from pylb.control.views import title
from pylb.core.address import Listen, port_text
from pylb.core.auth import Keyring
from pylb.core.claims import Claims
from pylb.core.loops import looping
from pylb.core.ownership import Change
from pylb.core.registration import FrontendRequest, Key, Registration, State
from pylb.core.text import counted, span

STEP = 500  # ports or registrations that one step of a text looks at: 1 ms


class EventTexts:
    def __init__(self, event_log: EventLog, liveness: Liveness, clock: Callable[[], float]) -> None:
        self._event_log = event_log
        self._liveness = liveness
        self._clock = clock
        self._wanderers = FrequentMoves(clock)
        self._looped: Mapping[Key, str] = {}  # those that aim at pylb itself, and why

    def registered(self, before: Registration | None, one: Registration, change: Change) -> None:
        if not change.touched:
            return
        routes = ", ".join(f"{item.route_text} -> {_targets(one, item)}" for item in one.wanted)
        kind = "draining" if one.state is State.DRAINING else {"unchanged": "fresh_again"}.get(change.result, change.result)
        fields: dict[str, str | int] = {"token": one.key.token, "name": one.name, "instance": one.key.instance}
        self._event_log.note(kind, f"{kind} {title(one)}: {routes}", fields)
        if before is not None and before.ip != one.ip and self._wanderers.moved(one.key):
            text = f"unstable source address: {title(one)} keeps moving, now from {before.ip} to {one.ip}"
            self._event_log.note("unstable_source", text, fields, alarm=True)

    def evicted(self, wanted: Registration, known: Mapping[Key, Registration], change: Change) -> None:
        """`known`: those that have to leave for it, as they were."""
        for key, places in change.evicted.items():
            held = known[key]
            ports = ", ".join(listen.route_text for listen in sorted(places))
            fields = {"token": key.token, "name": held.name, "instance": key.instance, "by": title(wanted)}
            if key.token == wanted.key.token and key.is_legacy:
                text = f"port {ports}: {title(wanted)} takes the place of {title(held)}"
                self._event_log.note("taken_over", text, fields)
                continue
            began = self._liveness.since(key)
            kind, why = "taken_over", "its token may (takeover: true)"
            if held.state is not State.FRESH and began is not None and self._liveness.is_abandoned(held):
                silent = span(round(self._clock() - began))
                kind, why = "yielded", f"{title(held)} has neither called nor answered for {silent} (leases.yield_after)"
            text = f"port {ports} goes from {title(held)} to {title(wanted)}: {why}"
            self._event_log.note(kind, text, fields, alarm=True)

    def released(
        self, desired: DesiredState, places: Collection[Listen], keys: Iterable[Key], why: str = ""
    ) -> Generator[None, None, None]:
        """`desired`: after their release."""
        listens, open_still = sorted(places), set[Listen]()
        for start in range(0, len(listens), STEP):
            if start:
                yield
            open_still.update(filter(desired.has, listens[start : start + STEP]))
        ports = ", ".join(listen.route_text for listen in listens)
        closed = ", ".join(listen.route_text for listen in listens if listen not in open_still)
        text = f"released on port {ports}{why}; " + (f"closed: {closed}" if closed else "none closed")
        self._event_log.note("released", text, whose(keys))

    def tokens(self, before: Keyring, after: Keyring, moved: Mapping[Key, Key], claims: Claims) -> None:
        """Tokens that were added, removed or renamed, and those whose registrations belong to another now."""
        old, new = ({one.name: one for one in ring.tokens} for ring in (before, after))
        gone, come = old.keys() - new.keys(), new.keys() - old.keys()
        for name in sorted(gone):
            same = next((other for other in come if set(new[other].secrets) & set(old[name].secrets)), None)
            count = claims.of_token.get(name, 0)
            rest = f"; {counted(count, 'registration')} of it will be stale (`pylb release` frees their ports)" if count else ""
            text = f"token {name!r} is removed: its calls are refused{rest}"
            if same is not None:
                text = f"token {name!r} is called {same!r} now{rest}; `replaces: [{name}]` would pass them on"
            self._event_log.note("token_renamed" if same else "token_removed", text, {"token": name}, alarm=bool(count))
        for name in sorted(come):
            self._event_log.note("token_added", f"token {name!r} is in force", {"token": name})
        for name in sorted(old.keys() & new.keys()):
            if set(old[name].secrets) != set(new[name].secrets):
                text = f"token {name!r} has {counted(len(new[name].secrets), 'secret')} now, and not the same as before"
                self._event_log.note("token_rotated", text, {"token": name})
        for key, given in moved.items():
            text = f"{key_title(key)} is a registration of token {given.token!r} now, which replaces {key.token!r}"
            self._event_log.note("passed_on", text, {"token": given.token, "name": given.name, "instance": given.instance})

    def loops(self, desired: DesiredState) -> Generator[None, None, None]:
        """Call after anything that may have started or ended a loop of registrations that are not calling just now."""
        claims = desired.claims
        found = yield from looping(claims, desired.static_rules)
        before, self._looped = self._looped, found
        for key in self._looped.keys() - before.keys():
            one = claims.registrations[key]
            text = f"out of service: {title(one)}: {self._looped[key]}"
            self._event_log.note("loop", text, {"token": key.token, "name": one.name, "instance": key.instance}, alarm=True)
        for key in before.keys() - self._looped.keys():
            if (back := claims.registrations.get(key)) is not None:
                text = f"in service again: {title(back)}: it no longer aims at pylb itself"
                self._event_log.note("loop_over", text, {"token": key.token, "name": back.name, "instance": key.instance})


def _targets(one: Registration, item: FrontendRequest) -> str:
    addresses = one.addresses(item)
    if not one.members:
        return str(addresses[0])
    target = port_text(item.target_port, item.protocol, item.target_last)
    return f"port {target} of {counted(len(addresses), 'machine')}"


def whose(keys: Iterable[Key]) -> dict[str, str]:
    """The `token` of an event, if all of it concerns one: it counts against that token's share of the event log."""
    tokens = {key.token for key in keys}
    return {"token": tokens.pop()} if len(tokens) == 1 else {}


def key_title(key: Key) -> str:
    """The title of a registration, which may be gone; see views.title."""
    return f"{key.token}/{key.name or key.legacy_port}" + (f"/{key.instance}" if key.instance else "")
