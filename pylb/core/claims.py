"""Who holds what: the immutable picture of all registrations, and its transitions.

Each transition takes a picture and returns another with what changed, or raises `Refused`; the picture that came in is
never touched, so a refused call changes nothing by construction. A frontend (a `Listen`) is held by the *set* of the
registrations on it: it closes when the last one leaves, and so does a server, see compose.py.

Rules of ownership (design: control, identity): a port that only registrations opened belongs to one (token, name). A static
frontend is joined by the registration of its name, or by any if it says so. A legacy registration is one server per
port and token; a native one of the same token takes its place for good.
"""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from pylb.core.address import Address, Listen, is_loopback
from pylb.core.errors import Code, Refused
from pylb.core.layout import Layout
from pylb.core.registration import Displaced, Key, Registration, State


@dataclass(frozen=True, slots=True)
class Claims:
    """`holders` are in the order of their registration; a listen without holders is not in it."""

    registrations: Mapping[Key, Registration] = field(default_factory=lambda: MappingProxyType({}))
    holders: Mapping[Listen, tuple[Key, ...]] = field(default_factory=lambda: MappingProxyType({}))

    def on_port(self, port: int) -> tuple[Registration, ...]:
        """All that hold a frontend on the port number."""
        keys = {key: None for listen, held in self.holders.items() if listen.port == port for key in held}
        return tuple(self.registrations[key] for key in keys)


@dataclass(frozen=True, slots=True)
class Change:
    """What a transition did. `claims` is the very picture that came in when nothing changed."""

    claims: Claims
    result: str  # created, unchanged, moved, updated, superseded, released
    touched: frozenset[Listen] = frozenset()  # whose servers may differ now
    opened: tuple[Listen, ...] = ()  # no registration held it before
    new_name: bool = False  # the first registration of its token and name
    note: str = ""


Proven = AbstractSet[Address]


def announce(claims: Claims, layout: Layout, wanted: Registration, *, takeover: bool, proven: Proven) -> Change:
    """A native call, or a legacy add (with a legacy key): `wanted` has no places yet. Raises Refused."""
    before = claims.registrations.get(wanted.key)
    if wanted.key.is_legacy and (owner := _native_of_token(claims, wanted)):
        return Change(claims, "superseded", note=f"port {wanted.key.legacy_port} is held by {owner.owner}")
    if before is None and wanted.state is State.DRAINING:
        return Change(claims, "unchanged", note="nothing is registered under this name: a goodbye opens nothing")
    after = replace(wanted, places=tuple(layout.place(item.port, wanted) for item in wanted.wanted))
    evicted = _conflicts(claims, layout, after, takeover=takeover)
    _no_loop(after, layout, layout.own_ports | {listen.port for listen in (*claims.holders, *after.places)})
    _opens_no_loop(claims, layout, after)
    after = replace(after, displaced=_displaced(claims, before, after, evicted, proven))
    if before == after and not evicted:
        return Change(claims, "unchanged")
    edited = _without_ports(claims, evicted)
    edited[after.key] = after
    touched = frozenset(after.places) | frozenset(before.places if before else ())
    return Change(
        _picture(claims, edited, touched),
        _result(before, after),
        touched,
        tuple(listen for listen in after.places if listen not in claims.holders),
        before is None and not any(_same_owner(other, after) for other in claims.registrations.values()),
    )


def release(claims: Claims, keys: Iterable[Key], port: int | None = None) -> Change:
    """The registrations leave, or only their frontends on `port`. Releasing what is not there is no change."""
    gone = {key: claims.registrations[key] for key in keys if key in claims.registrations}
    ports = {key: frozenset(listen for listen in one.places if port in (None, listen.port)) for key, one in gone.items()}
    touched = frozenset().union(*ports.values())
    if not touched:
        return Change(claims, "released", note="nothing was registered")
    return Change(_picture(claims, _without_ports(claims, ports), touched), "released", touched)


def become(claims: Claims, keys: Iterable[Key], state: State) -> Change:
    """Leases ended (STALE), or were taken back (FRESH). Those that said goodbye lose that word with their lease."""
    changed = [claims.registrations[key] for key in keys if key in claims.registrations]
    changed = [one for one in changed if one.state is not state]
    if not changed:
        return Change(claims, "unchanged")
    edited = dict(claims.registrations)
    edited.update((one.key, replace(one, state=state)) for one in changed)
    touched = frozenset(listen for one in changed for listen in one.places)
    return Change(replace(claims, registrations=MappingProxyType(edited)), "updated", touched)


def settle(claims: Claims, proven: Proven) -> Change:
    """New servers have answered: the proven ones that they displaced leave."""
    edited = dict(claims.registrations)
    touched: set[Listen] = set()
    for one in claims.registrations.values():
        if one.displaced and (kept := _still_needed(one, one.displaced, proven)) != one.displaced:
            edited[one.key] = replace(one, displaced=kept)
            touched.update(one.places)
    if not touched:
        return Change(claims, "unchanged")
    return Change(replace(claims, registrations=MappingProxyType(edited)), "updated", frozenset(touched))


def adopt(claims: Claims, layout: Layout) -> Change:
    """All registrations under new rules: ports that became static adopt theirs. Raises Refused, naming the owner."""
    fresh, refusals = readmit(claims.registrations.values(), layout)
    if refusals:
        first = refusals[0]
        hint = f"rename the static frontend, set `registrations: any`, or release it first ({len(refusals)} in all)"
        raise Refused(first.code, f"{first.detail}; the registered port cannot be adopted", hint)
    return Change(fresh, "updated", frozenset(fresh.holders) | frozenset(claims.holders))


def readmit(registrations: Iterable[Registration], layout: Layout) -> tuple[Claims, list[Refused]]:
    """A picture made from nothing, in order: after a restart, or under new rules. What no longer fits is left out."""
    everyone = tuple(registrations)
    ports = layout.own_ports | {item.port for one in everyone for item in one.wanted}
    admitted: dict[Key, Registration] = {}
    holders: dict[Listen, tuple[Key, ...]] = {}
    claims, refusals = Claims(admitted, holders), []  # a view of what is admitted so far
    for one in everyone:
        kept = []
        for item in one.wanted:
            try:
                kept.append((item, _readmitted(claims, layout, replace(one, wanted=(item,)), ports)))
            except Refused as refused:
                refusals.append(Refused(refused.code, f"{one.owner}: {refused.detail}", refused.hint))
        if kept:
            listens = {item.port: listen for item, listen in kept}
            admitted[one.key] = replace(
                one,
                wanted=tuple(item for item, _ in kept),
                places=tuple(listens.values()),
                displaced=_moved_along(one, listens),
            )
            holders.update((listen, (*holders.get(listen, ()), one.key)) for listen in listens.values())
    return Claims(MappingProxyType(admitted), MappingProxyType(holders)), refusals


def _readmitted(claims: Claims, layout: Layout, one: Registration, ports: AbstractSet[int]) -> Listen:
    """The place of its only frontend. Raises Refused."""
    listen = layout.place(one.wanted[0].port, one)
    for key in _conflicts(claims, layout, replace(one, places=(listen,)), takeover=False):
        raise Refused(Code.PORT_OWNED, f"port {listen.port} is owned by {claims.registrations[key].owner}")
    _no_loop(one, layout, ports)
    return listen


# ---------------------------------------------------------------- whose port is it


def _native_of_token(claims: Claims, wanted: Registration) -> Registration | None:
    on_port = claims.on_port(wanted.key.legacy_port)
    return next((one for one in on_port if one.key.token == wanted.key.token and not one.key.is_legacy), None)


def _same_owner(one: Registration, other: Registration) -> bool:
    """The same (token, name); the legacy calls of a token are one owner, whatever name they give."""
    same_kind = one.key.is_legacy == other.key.is_legacy
    return same_kind and one.key.token == other.key.token and one.key.name == other.key.name


def _conflicts(claims: Claims, layout: Layout, wanted: Registration, *, takeover: bool) -> Mapping[Key, frozenset[Listen]]:
    """Who has to leave which ports for `wanted`. Raises Refused if somebody may stay."""
    leaving: dict[Key, frozenset[Listen]] = {}
    for listen in wanted.places:
        for key in claims.holders.get(listen, ()):
            held = claims.registrations[key]
            if key == wanted.key or _may_share(held, wanted, layout, listen):
                continue
            of_own_token = held.key.is_legacy and held.key.token == wanted.key.token
            if not (of_own_token or takeover):
                hint = "use another port, ask its owner, or give the token `takeover: true`"
                raise Refused(Code.PORT_OWNED, f"port {listen.port} is owned by {held.owner}", hint)
            leaving[key] = leaving.get(key, frozenset()) | {listen}
    return leaving


def _may_share(held: Registration, wanted: Registration, layout: Layout, listen: Listen) -> bool:
    if held.key.is_legacy and wanted.key.is_legacy:
        return False  # one legacy server per port; a key holds one already
    if held.key.is_legacy and held.key.token == wanted.key.token:
        return False  # a native registration takes over the legacy one of its token
    return _same_owner(held, wanted) or layout.joined_by_any(listen)


def _no_loop(one: Registration, layout: Layout, ports: AbstractSet[int]) -> None:
    """It may not aim at a port of ours; `ports` are all that pylb listens on. Raises Refused."""
    for item in one.wanted if _on_this_machine(one.ip, layout) else ():
        if item.target_port in ports:
            detail = f"{one.address(item)} is pylb itself: port {item.port} would be sent in a loop"
            raise Refused(Code.TARGET_REFUSED, detail, "aim at the node, not at the load balancer")


def _opens_no_loop(claims: Claims, layout: Layout, wanted: Registration) -> None:
    """Nor may it open a port that another of ours is aimed at. Raises Refused."""
    opened = {listen.port for listen in wanted.places if listen not in claims.holders}
    for one in claims.registrations.values() if opened else ():
        aims = any(item.target_port in opened for item in one.wanted)  # first: it is cheaper than a look at the address
        if aims and one.key != wanted.key and _on_this_machine(one.ip, layout):
            detail = f"a port of {wanted.owner} is where {one.owner} is sent, on this machine: a loop"
            raise Refused(Code.TARGET_REFUSED, detail, "use another port")


def _on_this_machine(ip: str, layout: Layout) -> bool:
    return ip in layout.own_ips or is_loopback(ip)


# ---------------------------------------------------------------- proven before trusted


def _displaced(
    claims: Claims,
    before: Registration | None,
    after: Registration,
    evicted: Mapping[Key, frozenset[Listen]],
    proven: Proven,
) -> tuple[Displaced, ...]:
    """The proven servers that `after` replaces on its ports, and those that it had replaced already."""
    left = [(before, frozenset(before.places))] if before else []
    left += [(claims.registrations[key], places) for key, places in evicted.items()]
    found = [old for one, _ in left for old in one.displaced]
    found += [
        Displaced(place, one.label, one.address(item), item.send_proxy, item.weight, item.check)
        for one, places in left
        for item, place in zip(one.wanted, one.places, strict=True)
        if place in places and one.address(item) in proven
    ]
    return _still_needed(after, tuple(dict.fromkeys(found)), proven)


def _still_needed(one: Registration, displaced: tuple[Displaced, ...], proven: Proven) -> tuple[Displaced, ...]:
    now = {place: one.address(item) for place, item in zip(one.places, one.wanted, strict=True)}
    return tuple(
        old for old in displaced if old.listen in now and now[old.listen] not in proven and old.address != now[old.listen]
    )


def _moved_along(one: Registration, places: Mapping[int, Listen]) -> tuple[Displaced, ...]:
    """The displaced servers on where their port listens now; those of a port that was left out are gone."""
    return tuple(replace(old, listen=places[old.listen.port]) for old in one.displaced if old.listen.port in places)


# ---------------------------------------------------------------- making the next picture


def _result(before: Registration | None, after: Registration) -> str:
    if before is None:
        return "created"
    if (before.ip, before.wanted) != (after.ip, after.wanted):
        return "moved"
    drains = State.DRAINING in (before.state, after.state) and before.state is not after.state
    return "updated" if drains or before.ttl != after.ttl else "unchanged"  # a stale one that calls again is a beat


def _without_ports(claims: Claims, leaving: Mapping[Key, AbstractSet[Listen]]) -> dict[Key, Registration]:
    edited = dict(claims.registrations)
    for key, places in leaving.items():
        one = edited[key]
        kept = [(item, place) for item, place in zip(one.wanted, one.places, strict=True) if place not in places]
        if not kept:
            del edited[key]
            continue
        stays = tuple(place for _, place in kept)
        still = tuple(old for old in one.displaced if old.listen in stays)
        edited[key] = replace(one, wanted=tuple(item for item, _ in kept), places=stays, displaced=still)
    return edited


def _picture(claims: Claims, edited: Mapping[Key, Registration], touched: AbstractSet[Listen]) -> Claims:
    """The next picture. Only the holders of `touched` are worked out again."""
    changed = [key for key, one in edited.items() if claims.registrations.get(key) is not one]
    holders = dict(claims.holders)
    for listen in touched:
        candidates = dict.fromkeys((*holders.pop(listen, ()), *changed))
        keys = tuple(key for key in candidates if key in edited and listen in edited[key].places)
        if keys:
            holders[listen] = keys
    return Claims(MappingProxyType(dict(edited)), MappingProxyType(holders))
