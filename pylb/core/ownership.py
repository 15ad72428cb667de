"""Who holds what: the immutable picture of all registrations, and its transitions.

Each transition takes a picture and returns another with what changed, or raises `Refused`; the picture that came in is
never touched, so a refused call changes nothing by construction. A frontend (a `Listen`) is held by the *set* of the
registrations on it: it closes when the last one leaves, and so does a server, see compose.py.

Rules of ownership (design: control, identity): a port that only registrations opened belongs to one (token, name). A static
frontend is joined by the registration of its name, or by any if it says so. A legacy registration is one server per
port and token; a native one of the same token takes its place for good.
"""

from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pylb.core.address import Address, Listen, is_loopback
from pylb.core.errors import Code, Refused
from pylb.core.persistent import Frozen
from pylb.core.registration import Displaced, Key, Registration, State
from pylb.core.static_frontends import Layout

K = TypeVar("K")
STEP = 25  # registrations that one step of `adopting` or `readmitting` judges anew: 1 to 2 ms

Owner = tuple[str, str, bool]  # token, name, whether it is legacy


@dataclass(frozen=True, slots=True)
class Claims:
    """`registrations` is all of it. What follows is worked out from it, and kept up with each edit, see `_picture`: so a
    call costs what it touches, however many there are.

    `holders` of a listen are in the order of their registration; a listen without holders is not in it.
    """

    registrations: Frozen[Key, Registration] = field(default_factory=Frozen)
    holders: Frozen[Listen, tuple[Key, ...]] = field(default_factory=Frozen)
    ports: Frozen[int, tuple[Listen, ...]] = field(default_factory=Frozen)  # of `holders`, by their number
    sent_to: Frozen[Address, int] = field(default_factory=Frozen)  # how many aim there; all of loopback as LOOPBACK
    owners: Frozen[Owner, int] = field(default_factory=Frozen)  # how many each has
    of_token: Frozen[str, int] = field(default_factory=Frozen)  # how many each has
    ports_of_token: Frozen[str, int] = field(default_factory=Frozen)  # and their frontends, one by one
    not_fresh: Frozen[Key, State] = field(default_factory=Frozen)
    waiting: Frozen[Key, bool] = field(default_factory=Frozen)  # those with displaced servers

    def on_port(self, port: int) -> tuple[Registration, ...]:
        """All that hold a frontend on the port number."""
        keys = {key: None for listen in self.ports.get(port, ()) for key in self.holders[listen]}
        return tuple(self.registrations[key] for key in keys)


LOOPBACK = "loopback"  # 127.0.0.0/8 is one machine


@dataclass(frozen=True, slots=True)
class Change:
    """What a transition did. `claims` is the very picture that came in when nothing changed."""

    claims: Claims
    result: str  # created, unchanged, moved, updated, superseded, released
    touched: frozenset[Listen] = frozenset()  # whose servers may differ now
    opened: tuple[Listen, ...] = ()  # no registration held it before
    new_name: bool = False  # the first registration of its token and name
    removed: tuple[Key, ...] = ()  # registrations that are no longer there
    evicted: Mapping[Key, AbstractSet[Listen]] = field(default_factory=dict)  # who had to leave which ports for the caller
    note: str = ""
    registered: Registration | None = None  # whom a call was about, as it is now


Proven = Container[Address]


@dataclass(frozen=True, slots=True)
class Contest:
    """What the holder of a port is asked when somebody else wants it."""

    yields: Callable[[Registration], bool] = lambda _one: False  # is it dead for so long that it gives way?
    words: Callable[[Registration], str] = lambda _one: ""  # since when it holds the port and until when, for a refusal


CONTEST = Contest()


def announce(
    claims: Claims, layout: Layout, wanted: Registration, *, takeover: bool, proven: Proven, contest: Contest = CONTEST
) -> Change:
    """A native call, or a legacy add (with a legacy key): `wanted` has no places yet. Raises Refused."""
    admitted = admit(claims, layout, wanted, takeover=takeover, contest=contest)
    if isinstance(admitted, Change):
        return admitted
    before, after, evicted = admitted
    if displaced := _displaced(claims, before, after, evicted, proven):
        after = replace(after, displaced=displaced)
    if before == after and not evicted:
        return Change(claims, "unchanged", registered=before)
    edits = {**_without_ports(claims, evicted), after.key: after}
    return Change(
        _picture(claims, edits),
        _result(before, after),
        frozenset(after.places) | frozenset(before.places if before else ()),
        tuple(listen for listen in after.places if listen not in claims.holders),
        before is None and _owner(after) not in claims.owners,
        _removed(edits),
        evicted,
        registered=after,
    )


Admitted = tuple[Registration | None, Registration, Mapping[Key, frozenset[Listen]]]  # before, after, who leaves which ports


def admit(
    claims: Claims, layout: Layout, wanted: Registration, *, takeover: bool, contest: Contest = CONTEST
) -> Admitted | Change:
    """What `announce` would refuse, without the picture that it would make. A Change: there is nothing to register.

    Raises Refused.
    """
    before = claims.registrations.get(wanted.key)
    if wanted.key.is_legacy and (owner := _native_of_token(claims, wanted)):
        note = f"port {wanted.key.legacy_port} is held by {owner.owner}"
        return Change(claims, "superseded", note=note, registered=before)
    if before is None and wanted.state is State.DRAINING:
        return Change(claims, "unchanged", note="nothing is registered under this name: a goodbye opens nothing")
    places = tuple(layout.place(item.port, wanted) for item in wanted.wanted)
    after = replace(wanted, places=places, displaced=(), since=before.since if before else wanted.since)
    evicted = _conflicts(claims, layout, after, contest, takeover=takeover)
    _no_loop(claims, layout, after)
    _opens_no_loop(claims, layout, after)
    _check_bounds(claims, layout, before, after, evicted)
    return before, after, evicted


def release(claims: Claims, keys: Iterable[Key], port: int | None = None) -> Change:
    """The registrations leave, or only their frontends on `port`. Releasing what is not there is no change."""
    gone = {key: claims.registrations[key] for key in keys if key in claims.registrations}
    ports = {key: frozenset(listen for listen in one.places if port in (None, listen.port)) for key, one in gone.items()}
    touched = frozenset().union(*ports.values())
    if not touched:
        return Change(claims, "released", note="nothing was registered")
    edits = _without_ports(claims, ports)
    return Change(_picture(claims, edits), "released", touched, removed=_removed(edits))


def pass_on(claims: Claims, keys: Mapping[Key, Key]) -> Change:
    """Registrations become another token's, with all that they have. Nothing of what is served differs but who holds it."""
    given = {old: new for old, new in keys.items() if old in claims.registrations and new not in claims.registrations}
    if not given:
        return Change(claims, "unchanged")
    ones = {old: claims.registrations[old] for old in given}
    edits: dict[Key, Registration | None] = dict.fromkeys(given)
    edits |= {new: replace(ones[old], key=new) for old, new in given.items()}
    touched = frozenset(place for one in ones.values() for place in one.places)
    return Change(_picture(claims, edits), "updated", touched)


def become(claims: Claims, keys: Iterable[Key], state: State) -> Change:
    """Leases ended (STALE), or were taken back (FRESH). Those that said goodbye lose that word with their lease."""
    changed = [claims.registrations[key] for key in keys if key in claims.registrations]
    changed = [one for one in changed if one.state is not state]
    if not changed:
        return Change(claims, "unchanged")
    touched = frozenset(listen for one in changed for listen in one.places)
    return Change(_picture(claims, {one.key: replace(one, state=state) for one in changed}), "updated", touched)


def settle(claims: Claims, proven: Proven) -> Change:
    """New servers have answered: the proven ones that they displaced leave."""
    edits: dict[Key, Registration | None] = {}
    touched: set[Listen] = set()
    for key in claims.waiting:
        one = claims.registrations[key]
        if (kept := _still_needed(one, one.displaced, proven)) != one.displaced:
            edits[key] = replace(one, displaced=kept)
            touched.update(one.places)
    if not touched:
        return Change(claims, "unchanged")
    return Change(_picture(claims, edits), "updated", frozenset(touched))


def give_up(claims: Claims, keys: Iterable[Key]) -> Change:
    """The displaced servers of these have been the fallback for long enough: they leave, whoever has answered."""
    waiting = [claims.registrations[key] for key in keys if key in claims.waiting]
    if not waiting:
        return Change(claims, "unchanged")
    edits = {one.key: replace(one, displaced=()) for one in waiting}
    return Change(_picture(claims, edits), "updated", frozenset(place for one in waiting for place in one.places))


def adopting(claims: Claims, layout: Layout, looped: Container[Key] = ()) -> Generator[None, None, Change]:
    """All registrations under new rules, in steps: ports that became static adopt theirs. Raises Refused, naming the owner.

    `looped`: those that aim at pylb itself already and are out of service; others must not begin to.
    It says nothing of what is `opened`: the ports of a reload are those of its layout.
    """
    fresh, refusals = yield from readmitting(claims.registrations.values(), layout)
    yield
    for key, why in loops(fresh, layout).items():
        if key not in looped:
            refusals.append(Refused(Code.TARGET_REFUSED, f"{fresh.registrations[key].owner}: {why}"))
    if refusals:
        first = refusals[0]
        hint = f"rename the static frontend, let it say `registrations: any`, or release it first ({len(refusals)} in all)"
        raise Refused(first.code, f"{first.detail}; the registered port cannot be adopted", hint)
    return Change(fresh, "updated", frozenset(fresh.holders) | frozenset(claims.holders))


def readmitting(registrations: Iterable[Registration], layout: Layout) -> Generator[None, None, tuple[Claims, list[Refused]]]:
    """A picture made from nothing, in steps: after a restart, or under new rules. What no longer fits is left out."""
    everyone = tuple(registrations)
    yield  # ten thousand take 5 ms to be put in order
    claims, refusals = Claims(), list[Refused]()
    for start in range(0, len(everyone), STEP):
        for one in everyone[start : start + STEP]:
            kept = []
            for item in one.wanted:
                try:
                    kept.append((item, _readmitted(claims, layout, replace(one, wanted=(item,)))))
                except Refused as refused:
                    refusals.append(Refused(refused.code, f"{one.owner}: {refused.detail}", refused.hint))
            if kept:
                listens = {item.port: listen for item, listen in kept}
                places = tuple(listens.values())
                if len(kept) < len(one.wanted) or places != one.places:  # else the very same: nothing to make, or to free
                    wanted, displaced = tuple(item for item, _ in kept), _moved_along(one, listens)
                    one = replace(one, wanted=wanted, places=places, displaced=displaced)  # noqa: PLW2901
                claims = _picture(claims, {one.key: one})
        yield
    return claims, refusals


def _readmitted(claims: Claims, layout: Layout, one: Registration) -> Listen:
    """The place of its only frontend. Raises Refused."""
    listen = layout.place(one.wanted[0].port, one)
    for key in _conflicts(claims, layout, replace(one, places=(listen,)), CONTEST, takeover=False):
        raise Refused(Code.PORT_OWNED, f"port {listen.port} is owned by {claims.registrations[key].owner}")
    return listen


# ---------------------------------------------------------------- whose port is it


def _native_of_token(claims: Claims, wanted: Registration) -> Registration | None:
    keys = (key for listen in claims.ports.get(wanted.key.legacy_port, ()) for key in claims.holders[listen])
    found = next((key for key in keys if key.token == wanted.key.token and not key.is_legacy), None)
    return None if found is None else claims.registrations[found]


def _owner(one: Registration) -> Owner:
    """The legacy calls of a token are one owner, whatever name they give."""
    return one.key.token, one.key.name, one.key.is_legacy


def _conflicts(
    claims: Claims, layout: Layout, wanted: Registration, contest: Contest, *, takeover: bool
) -> Mapping[Key, frozenset[Listen]]:
    """Who has to leave which ports for `wanted`. Raises Refused if somebody may stay.

    Whoever is fresh stays, whatever the contest says of it: its call may have come since.
    """
    leaving: dict[Key, frozenset[Listen]] = {}
    for listen in wanted.places:
        for key in _in_the_way(claims, layout, wanted.key, listen):
            held = claims.registrations[key]
            of_own_token = key.is_legacy and key.token == wanted.key.token
            if not (of_own_token or takeover or (held.state is not State.FRESH and contest.yields(held))):
                hint = f"use another port, ask its owner, `pylb release {listen.port}`, or give the token `takeover: true`"
                raise Refused(Code.PORT_OWNED, f"port {listen.port} is owned by {held.owner}{contest.words(held)}", hint)
            leaving[key] = leaving.get(key, frozenset()) | {listen}
    return leaving


def _in_the_way(claims: Claims, layout: Layout, wanted: Key, listen: Listen) -> Iterator[Key]:
    """The holders that `wanted` cannot share the listen with."""
    holders = claims.holders.get(listen, ())
    if not layout.joined_by_any(listen) and holders and _share(holders[0], wanted):
        return  # all holders of such a frontend have one owner: if the first may share it, the others may
    for key in holders:
        if key != wanted and not (_share(key, wanted) or (layout.joined_by_any(listen) and _may_join(key, wanted))):
            yield key


def _share(held: Key, wanted: Key) -> bool:
    """Two instances of one owner. Of legacy registrations there is one for each port; a key holds one already."""
    return not held.is_legacy and not wanted.is_legacy and (held.token, held.name) == (wanted.token, wanted.name)


def _may_join(held: Key, wanted: Key) -> bool:
    """On a frontend that anybody may join: not two legacy ones, and a native one takes over the legacy one of its token."""
    return not held.is_legacy or not (wanted.is_legacy or held.token == wanted.token)


def _no_loop(claims: Claims, layout: Layout, one: Registration) -> None:
    """It may not make pylb dial a port of ours. Raises Refused."""
    if (found := loop(claims, layout, one)) is not None:
        raise Refused(Code.TARGET_REFUSED, found, "aim at the node, not at the load balancer")


def loop(claims: Claims, layout: Layout, one: Registration, at: Listen | None = None) -> str | None:
    """Why a registration (or its server `at` one of its listens) would make pylb talk to itself, or None.

    Its own ports count, whether they are open or not.
    """
    if not layout.is_here(one.ip):
        return None
    for item, place in zip(one.wanted, one.places, strict=True):
        for name, port in item.dialled(layout.policy(place).health.check) if at in (None, place) else ():
            if port in layout.own_ports or port in claims.ports or any(port == other.port for other in one.places):
                sent = f"port {item.port} would be sent in a loop" if name == "target_port" else "no server would be asked"
                return f"{Address(one.ip, port)} ({name}) is pylb itself: {sent}"
    return None


def loops(claims: Claims, layout: Layout) -> dict[Key, str]:
    """Registrations that aim at pylb itself, and why: an address of theirs has become ours since they called, or a static
    frontend has come. compose.py leaves their servers out."""
    ports = layout.own_ports.union(listens[0].port for listens in claims.ports.in_any_order())
    here = (LOOPBACK, *layout.own_ips)
    aimed = any(Address(ip, port) in claims.sent_to for port in ports for ip in here)
    if not aimed and ports.isdisjoint(layout.check_ports):
        return {}  # as nearly always: no look at each of them
    found = ((key, loop(claims, layout, one)) for key, one in claims.registrations.items())
    return {key: why for key, why in found if why is not None}


def _opens_no_loop(claims: Claims, layout: Layout, wanted: Registration) -> None:
    """Nor may it open a port that another of ours is aimed at. Raises Refused."""
    opened = {listen.port for listen in wanted.places if listen not in claims.holders and listen not in layout.statics}
    if circle := opened & layout.aimed_here:
        detail = f"port {min(circle)} of this machine is where a static frontend is sent: a loop"
        raise Refused(Code.TARGET_REFUSED, detail, "use another port")
    here = (LOOPBACK, *layout.own_ips)
    if not any(Address(ip, port) in claims.sent_to for port in opened for ip in here):
        return
    for one in claims.registrations.values():  # somebody is: who?
        aims = any(port in opened for item in one.wanted for _, port in item.dialled())
        if aims and one.key != wanted.key and layout.is_here(one.ip):
            detail = f"a port of {wanted.owner} is where {one.owner} is sent, on this machine: a loop"
            raise Refused(Code.TARGET_REFUSED, detail, "use another port")


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
        Displaced(place, one.label, one.address(item), item.send_proxy, item.weight, item.health)
        for one, places in left
        for item, place in zip(one.wanted, one.places, strict=True)
        if place in places and one.address(item) in proven
    ]
    return _still_needed(after, tuple(dict.fromkeys(found)), proven)


def _still_needed(one: Registration, displaced: tuple[Displaced, ...], proven: Proven) -> tuple[Displaced, ...]:
    """Only an address that changed is worth a fallback: behind another target port is another application."""
    now = {place: one.address(item) for place, item in zip(one.places, one.wanted, strict=True)}
    return tuple(
        old
        for old in displaced
        if old.listen in now
        and now[old.listen] not in proven
        and old.address != now[old.listen]
        and old.address.port == now[old.listen].port
    )


def _moved_along(one: Registration, places: Mapping[int, Listen]) -> tuple[Displaced, ...]:
    """The displaced servers on where their port listens now; those of a port that was left out are gone."""
    return tuple(replace(old, listen=places[old.listen.port]) for old in one.displaced if old.listen.port in places)


# ---------------------------------------------------------------- how many there may be


def _check_bounds(
    claims: Claims,
    layout: Layout,
    before: Registration | None,
    after: Registration,
    evicted: Mapping[Key, AbstractSet[Listen]],
) -> None:
    """What would grow is within the operator's bounds. Raises Refused.

    What is there already stays, whatever the bounds are now.
    """
    bounds, had = layout.rules.bounds, before.places if before is not None else ()
    for listen in after.places:
        if listen in had:
            continue
        static = layout.statics.get(listen)
        servers = 1 + sum(listen not in evicted.get(key, ()) for key in claims.holders.get(listen, ()))
        if servers + (len(static.servers) if static else 0) > bounds.servers_per_frontend:
            detail = f"port {listen.port} may have {bounds.servers_per_frontend} servers (bounds.servers_per_frontend)"
            raise Refused(Code.TOO_MANY, detail, "release those that are gone, or raise the bound", retry_after=60)
    token, most = after.key.token, bounds.ports_per_token
    more = len(after.places) - len(had) - sum(len(places) for key, places in evicted.items() if key.token == token)
    if more > 0 and claims.ports_of_token.get(token, 0) + more > most:
        detail = f"the registrations of token {token!r} may hold {most} ports in all (bounds.ports_per_token)"
        raise Refused(Code.TOO_MANY, detail, "release those that are gone, or raise the bound", retry_after=60)


# ---------------------------------------------------------------- making the next picture


def _result(before: Registration | None, after: Registration) -> str:
    if before is None:
        return "created"
    if (before.ip, before.wanted) != (after.ip, after.wanted):
        return "moved"
    drains = State.DRAINING in (before.state, after.state) and before.state is not after.state
    return "updated" if drains or before.ttl != after.ttl else "unchanged"  # a stale one that calls again is a beat


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


def _picture(claims: Claims, edits: Mapping[Key, Registration | None]) -> Claims:
    """The next picture, each part of it by what differs. None: that registration leaves."""
    pairs = [(key, claims.registrations.get(key), after) for key, after in edits.items()]
    # A call that moves a server, or a lease that ends, is all that most edits are: no port and no owner differs by those.
    come_or_gone = [pair for pair in pairs if pair[1] is None or pair[2] is None]
    placed = [pair for pair in pairs if pair[1] is None or pair[2] is None or pair[1].places != pair[2].places]
    holders = _holders(claims.holders, placed)
    return Claims(
        claims.registrations.edited(edits),
        claims.holders.edited(holders),
        claims.ports.edited(_ports(claims, holders)),
        _counted(claims.sent_to, pairs, _targets),
        _counted(claims.owners, come_or_gone, lambda one: (_owner(one),)),
        _counted(claims.of_token, come_or_gone, lambda one: (one.key.token,)),
        _counted(claims.ports_of_token, placed, lambda one: (one.key.token,) * len(one.places)),
        claims.not_fresh.edited(
            {key: None if after is None or after.state is State.FRESH else after.state for key, _, after in pairs}
        ),
        claims.waiting.edited({key: True if after is not None and after.displaced else None for key, _, after in pairs}),
    )


Pair = tuple[Key, Registration | None, Registration | None]  # before, after


def _holders(known: Frozen[Listen, tuple[Key, ...]], pairs: Iterable[Pair]) -> dict[Listen, tuple[Key, ...] | None]:
    found: dict[Listen, tuple[Key, ...]] = {}
    for key, before, after in pairs:
        old, new = before.places if before else (), after.places if after else ()
        for listen in old:
            if listen not in new:
                now = found[listen] if listen in found else known[listen]
                found[listen] = tuple(other for other in now if other != key)
        for listen in new:
            if listen not in old:
                found[listen] = (*(found[listen] if listen in found else known.get(listen, ())), key)
    return {listen: keys or None for listen, keys in found.items()}


def _ports(claims: Claims, holders: Mapping[Listen, tuple[Key, ...] | None]) -> dict[int, tuple[Listen, ...] | None]:
    found: dict[int, tuple[Listen, ...]] = {}
    for listen, keys in holders.items():
        if (keys is None) is (listen in claims.holders):
            now = found[listen.port] if listen.port in found else claims.ports.get(listen.port, ())
            found[listen.port] = tuple(one for one in now if one != listen) if keys is None else (*now, listen)
    return {port: listens or None for port, listens in found.items()}


def _counted(known: Frozen[K, int], pairs: Iterable[Pair], what: Callable[[Registration], Iterable[K]]) -> Frozen[K, int]:
    found: dict[K, int] = {}
    for _, before, after in pairs:
        for one, by in ((before, -1), (after, 1)):
            for item in what(one) if one is not None else ():
                found[item] = found.get(item, known.get(item, 0)) + by
    return known.edited({item: count or None for item, count in found.items() if count != known.get(item, 0)})


def _targets(one: Registration) -> Iterator[Address]:
    ip = LOOPBACK if is_loopback(one.ip) else one.ip
    return (Address(ip, port) for item in one.wanted for _, port in item.dialled())
