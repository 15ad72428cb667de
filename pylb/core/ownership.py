"""Changes of ownership: one function for each thing that may happen to registrations.

Each takes claims (claims.py) and returns new ones with what changed, or raises `Refused`. The claims passed in are never
modified, so a refused call cannot have changed anything.
"""

from collections.abc import Callable, Container, Generator, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from itertools import chain

from pylb.core.address import TCP, Address, Listen
from pylb.core.claims import Claims, owner_of
from pylb.core.conflicts import NEVER_YIELDS, YieldPolicy, check_bounds, conflicts, native_of_token
from pylb.core.errors import Code, Refused
from pylb.core.loops import check_no_loop, check_opens_no_loop, looping
from pylb.core.registration import SEQUENCE, DisplacedServer, Key, Registration, State
from pylb.core.static_rules import StaticRules

STEP = 25  # registrations that one step of `adopting` or `readmitting` judges anew: 1 to 2 ms
PART = 100  # registrations that one step of `in_parts` changes: 2 ms


@dataclass(frozen=True, slots=True)
class Change:
    """The result of a transition. If nothing changed, `claims` is the same object that was passed in."""

    claims: Claims
    result: str  # created, unchanged, moved, updated, superseded, released
    touched: frozenset[Listen] = frozenset()  # whose servers may differ now
    opened: tuple[Listen, ...] = ()  # no registration held it before
    new_name: bool = False  # the first registration of its token and name
    removed: tuple[Key, ...] = ()  # registrations that are no longer there
    evicted: Mapping[Key, AbstractSet[Listen]] = field(default_factory=dict)  # who had to leave which ports for the caller
    note: str = ""
    registered: Registration | None = None  # the one that a call was about, as it is now


Proven = Container[Address]


def announce(
    claims: Claims,
    static_rules: StaticRules,
    wanted: Registration,
    *,
    takeover: bool,
    proven: Proven,
    yield_policy: YieldPolicy = NEVER_YIELDS,
) -> Change:
    """A native call, or a legacy add (with a legacy key): `wanted` has no places yet. Raises Refused."""
    admitted = admit(claims, static_rules, wanted, takeover=takeover, yield_policy=yield_policy)
    if isinstance(admitted, Change):
        return admitted
    before, after, evicted = admitted
    if displaced := _displaced(claims, before, after, evicted, proven):
        after = replace(after, displaced=displaced)
    if before == after and not evicted:
        return Change(claims, "unchanged", registered=before)
    if before is not None and before.sequence != after.sequence and not evicted and _only_newer(before, after):
        return Change(claims.edited({after.key: after}), "unchanged", registered=after)
    edits = {**_without_ports(claims, evicted), after.key: after}
    return Change(
        claims.edited(edits),
        _result(before, after),
        frozenset(after.places).union(before.places if before else (), *evicted.values()),
        tuple(listen for listen in after.places if listen not in claims.holders),
        before is None and owner_of(after) not in claims.owners,
        _removed(edits),
        evicted,
        registered=after,
    )


Admitted = tuple[Registration | None, Registration, Mapping[Key, frozenset[Listen]]]  # before, after, who leaves which ports


def admit(
    claims: Claims, static_rules: StaticRules, wanted: Registration, *, takeover: bool, yield_policy: YieldPolicy = NEVER_YIELDS
) -> Admitted | Change:
    """Refuse what `announce` would refuse, without making the new claims. A Change: there is nothing to register.

    Raises Refused.
    """
    before = claims.registrations.get(wanted.key)
    if wanted.key.is_legacy and (owner := native_of_token(claims, wanted)):
        note = f"port {wanted.key.legacy_port} is held by {owner.owner}"
        return Change(claims, "superseded", note=note, registered=before)
    if before is None and wanted.state is State.DRAINING:
        return Change(claims, "unchanged", note="nothing is registered under this name: a goodbye opens nothing")
    if before is not None and wanted.sequence is not None and _is_older(wanted.sequence, before):
        note = f"a newer state of it is registered: {SEQUENCE} {before.sequence}, and this is {wanted.sequence}"
        return Change(claims, "superseded", note=note, registered=before)
    places = tuple(static_rules.place(item, wanted) for item in wanted.wanted)
    after = replace(wanted, places=places, displaced=(), since=before.since if before else wanted.since)
    evicted = conflicts(claims, static_rules, after, yield_policy, takeover=takeover)
    check_no_loop(claims, static_rules, after)
    check_opens_no_loop(claims, static_rules, after)
    check_bounds(claims, static_rules, before, after, evicted)
    return before, after, evicted


def _is_older(sequence: int, before: Registration) -> bool:
    """A caller that was cut off may come back with what it knew then. Once the newer lease is over, nobody else speaks."""
    return before.sequence is not None and before.state is State.FRESH and sequence < before.sequence


def _only_newer(before: Registration, after: Registration) -> bool:
    """Whether nothing but its sequence differs, and so nothing that is served."""
    return replace(before, sequence=after.sequence) == after


def release(
    claims: Claims, keys: Iterable[Key], port: int | None = None, protocol: str = TCP, server_name: str | None = None
) -> Change:
    """Remove registrations, or only their frontends on `port` of `protocol`; a range leaves as a whole. `server_name`: of the
    port only this route ("": the default one). Releasing what does not exist changes nothing."""
    gone = {key: claims.registrations[key] for key in keys if key in claims.registrations}
    ports = {
        key: frozenset(
            listen
            for listen in one.places
            if port is None or (listen.has((protocol, port)) and server_name in (None, listen.server_name))
        )
        for key, one in gone.items()
    }
    touched = frozenset().union(*ports.values())
    if not touched:
        return Change(claims, "released", note="nothing was registered")
    edits = _without_ports(claims, ports)
    return Change(claims.edited(edits), "released", touched, removed=_removed(edits))


def pass_on(claims: Claims, keys: Mapping[Key, Key]) -> Change:
    """Give registrations to another token, with everything they have. What is served stays the same."""
    given = {old: new for old, new in keys.items() if old in claims.registrations and new not in claims.registrations}
    if not given:
        return Change(claims, "unchanged")
    ones = {old: claims.registrations[old] for old in given}
    edits: dict[Key, Registration | None] = dict.fromkeys(given)
    edits |= {new: replace(ones[old], key=new) for old, new in given.items()}
    touched = frozenset(place for one in ones.values() for place in one.places)
    return Change(claims.edited(edits), "updated", touched)


def become(claims: Claims, keys: Iterable[Key], state: State) -> Change:
    """Mark registrations STALE, because their leases ended, or FRESH again. An announced pause ends with the lease."""
    changed = [claims.registrations[key] for key in keys if key in claims.registrations]
    changed = [one for one in changed if one.state is not state]
    if not changed:
        return Change(claims, "unchanged")
    touched = frozenset(listen for one in changed for listen in one.places)
    return Change(claims.edited({one.key: replace(one, state=state) for one in changed}), "updated", touched)


def settle(claims: Claims, keys: Iterable[Key], proven: Proven) -> Change:
    """Remove displaced servers whose successors have answered, of those among these registrations that wait for it."""
    edits: dict[Key, Registration | None] = {}
    touched: set[Listen] = set()
    for one in (claims.registrations[key] for key in keys if key in claims.waiting):
        if (kept := _still_needed(one, one.displaced, proven)) != one.displaced:
            edits[one.key] = replace(one, displaced=kept)
            touched.update(one.places)
    if not touched:
        return Change(claims, "unchanged")
    return Change(claims.edited(edits), "updated", frozenset(touched))


def give_up(claims: Claims, keys: Iterable[Key]) -> Change:
    """Remove the displaced servers of these registrations: they were the fallback for long enough."""
    waiting = [claims.registrations[key] for key in keys if key in claims.waiting]
    if not waiting:
        return Change(claims, "unchanged")
    edits = {one.key: replace(one, displaced=()) for one in waiting}
    return Change(claims.edited(edits), "updated", frozenset(place for one in waiting for place in one.places))


def in_parts(
    claims: Claims, keys: Sequence[Key], change: Callable[[Claims, Sequence[Key]], Change]
) -> Generator[None, None, Change]:
    """What `become`, `release`, `settle` or `give_up` does with many registrations, in steps, as one change."""
    whole = change(claims, keys[:PART])
    touched, removed = set(whole.touched), list(whole.removed)
    for start in range(PART, len(keys), PART):
        yield
        part = change(whole.claims, keys[start : start + PART])
        touched |= part.touched
        removed += part.removed
        if part.claims is not whole.claims:
            whole = part
    return replace(whole, touched=frozenset(touched), removed=tuple(removed))


def adopting(claims: Claims, static_rules: StaticRules, looped: Container[Key] = ()) -> Generator[None, None, Change]:
    """All registrations under new rules, made in steps. A port that became static adopts its registrations.

    Raises Refused, naming the owner.

    `looped`: those that aim at pylb itself already and are out of service; others must not begin to.
    It says nothing of what is `opened`: the ports of a reload are those of its static frontends.
    """
    fresh, refusals = yield from readmitting(claims.registrations.values(), static_rules)
    yield
    for key, why in (yield from looping(fresh, static_rules)).items():
        if key not in looped:
            refusals.append(Refused(Code.TARGET_REFUSED, f"{fresh.registrations[key].owner}: {why}"))
    if refusals:
        first = refusals[0]
        hint = f"rename the static frontend, let it say `registrations: any`, or release it first ({len(refusals)} in all)"
        raise Refused(first.code, f"{first.detail}; the registered port cannot be adopted", hint)
    return Change(fresh, "updated", frozenset(chain(*fresh.holders.buckets, *claims.holders.buckets)))


def readmitting(
    registrations: Iterable[Registration], static_rules: StaticRules
) -> Generator[None, None, tuple[Claims, list[Refused]]]:
    """Claims made from the registrations, in steps, after a restart or under new rules. What no longer fits is left out."""
    everyone = tuple(registrations)
    yield  # ten thousand take a millisecond to be put in order
    claims, refusals = Claims(), list[Refused]()
    for start in range(0, len(everyone), STEP):
        for one in everyone[start : start + STEP]:
            kept = []
            for item in one.wanted:
                try:
                    kept.append((item, _readmitted(claims, static_rules, replace(one, wanted=(item,)))))
                except Refused as refused:
                    refusals.append(Refused(refused.code, f"{one.owner}: {refused.detail}", refused.hint))
            if kept:
                places = tuple(listen for _, listen in kept)
                if len(kept) < len(one.wanted) or places != one.places:  # else the very same: nothing to make, or to free
                    wanted, displaced = tuple(item for item, _ in kept), _moved_along(one, places)
                    one = replace(one, wanted=wanted, places=places, displaced=displaced)  # noqa: PLW2901
                claims = claims.edited({one.key: one})
        yield
    return claims, refusals


def _readmitted(claims: Claims, static_rules: StaticRules, one: Registration) -> Listen:
    """The place of its only frontend. Raises Refused."""
    listen = static_rules.place(one.wanted[0], one)
    for key in conflicts(claims, static_rules, replace(one, places=(listen,)), NEVER_YIELDS, takeover=False):
        raise Refused(Code.PORT_OWNED, f"port {listen.route_text} is owned by {claims.registrations[key].owner}")
    return listen


def _result(before: Registration | None, after: Registration) -> str:
    if before is None:
        return "created"
    if (before.ip, before.members, before.wanted) != (after.ip, after.members, after.wanted):
        return "moved"
    drains = State.DRAINING in (before.state, after.state) and before.state is not after.state
    changed = drains or (before.ttl, before.terms) != (after.ttl, after.terms)
    return "updated" if changed else "unchanged"  # a stale one that calls again is a beat


def _without_ports(claims: Claims, leaving: Mapping[Key, AbstractSet[Listen]]) -> dict[Key, Registration | None]:
    edits: dict[Key, Registration | None] = {}
    for key, places in leaving.items():
        one = claims.registrations[key]
        kept = [(item, place) for item, place in zip(one.wanted, one.places, strict=True) if place not in places]
        if not kept:
            edits[key] = None
            continue
        stays = tuple(place for _, place in kept)
        still = tuple(old for old in one.displaced if old.listen in stays)
        edits[key] = replace(one, wanted=tuple(item for item, _ in kept), places=stays, displaced=still)
    return edits


def _removed(edits: Mapping[Key, Registration | None]) -> tuple[Key, ...]:
    return tuple(key for key, one in edits.items() if one is None)


# ---------------------------------------------------------------- proven before trusted


def _displaced(
    claims: Claims,
    before: Registration | None,
    after: Registration,
    evicted: Mapping[Key, frozenset[Listen]],
    proven: Proven,
) -> tuple[DisplacedServer, ...]:
    """The proven servers that `after` replaces on its ports, and those that it had replaced already."""
    left = [(before, frozenset(before.places))] if before else []
    left += [(claims.registrations[key], places) for key, places in evicted.items()]
    found = [old for one, _ in left for old in one.displaced]
    found += [
        DisplacedServer(place, label, address, item.send_proxy, weight or item.weight, item.health)
        for one, places in left
        for item, place in zip(one.wanted, one.places, strict=True)
        if place in places
        for label, ip, weight in one.machines
        if (address := item.at(ip)) in proven
    ]
    return _still_needed(after, tuple(dict.fromkeys(found)), proven)


def _still_needed(one: Registration, displaced: tuple[DisplacedServer, ...], proven: Proven) -> tuple[DisplacedServer, ...]:
    """Whether a displaced server is kept: only if its address changed, since another target port is another application, and
    only until one of those that replace it is proven."""
    if not displaced:
        return ()
    now = {place: one.addresses(item) for place, item in zip(one.places, one.wanted, strict=True)}
    waiting = {place for place, addresses in now.items() if not any(address in proven for address in addresses)}
    return tuple(
        old
        for old in displaced
        if old.listen in waiting and old.address not in now[old.listen] and _same_port(old.address, now[old.listen][0])
    )


def _same_port(one: Address, other: Address) -> bool:
    """Or the same range of ports."""
    return one._replace(ip=other.ip) == other


def _moved_along(one: Registration, places: Iterable[Listen]) -> tuple[DisplacedServer, ...]:
    """The displaced servers, moved to where their port listens now, without those of ports and names that are gone."""
    now = {(place.port_key, place.server_name): place for place in places}
    moved = ((old, now.get((old.listen.port_key, old.listen.server_name))) for old in one.displaced)
    return tuple(replace(old, listen=listen) for old, listen in moved if listen is not None)
