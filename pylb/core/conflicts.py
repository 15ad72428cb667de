"""Conflicts about ports: who has to leave for a call, or why the call is refused; and the bounds on numbers.

A port that only registrations opened belongs to one (token, name); where it has routes, its default route does, and each
server name by itself. A static frontend can be joined by the registration of its name, or by any if the config allows it. A
legacy registration is one server per port and token; a native one of the same token replaces it for good.

A default route and another owner's names exclude each other unless the default route allows names: its clients would wait for
a hello that may never come, because in its protocol the server speaks first.
"""

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from pylb.core.address import TCP, Listen
from pylb.core.claims import Claims, width
from pylb.core.errors import Code, Refused
from pylb.core.registration import Key, Registration, State
from pylb.core.static_rules import StaticRules
from pylb.core.text import counted


@dataclass(frozen=True, slots=True)
class YieldPolicy:
    """What the holder of a port is asked when another registration wants it."""

    yields: Callable[[Registration], bool] = lambda _one: False  # is it dead for so long that it gives way?
    describe: Callable[[Registration], str] = lambda _one: ""  # since when it holds the port and until when, for a refusal


NEVER_YIELDS = YieldPolicy()


def native_of_token(claims: Claims, wanted: Registration) -> Registration | None:
    ports = claims.listens((TCP, wanted.key.legacy_port))
    keys = (key for port in ports for key in claims.holders.get(port, ()))
    found = next((key for key in keys if key.token == wanted.key.token and not key.is_legacy), None)
    return None if found is None else claims.registrations[found]


def conflicts(
    claims: Claims, static_rules: StaticRules, wanted: Registration, yield_policy: YieldPolicy, *, takeover: bool
) -> Mapping[Key, frozenset[Listen]]:
    """Who has to leave which ports for `wanted`. Raises Refused if a holder may stay.

    A fresh registration always stays, whatever `yield_policy` says: its call may have come since.
    """
    leaving: dict[Key, frozenset[Listen]] = {}
    for key, listen in _all_in_the_way(claims, static_rules, wanted):
        held = claims.registrations[key]
        if not (_makes_room(key, wanted.key) or takeover or _gives_way(held, yield_policy)):
            raise _owned(claims, listen, held, yield_policy)
        leaving[key] = leaving.get(key, frozenset()) | {listen}
    for key, place in _excluded(claims, static_rules, wanted):
        held = claims.registrations[key]
        # Not even by a takeover: that is about one port or name, and this may be all names of a port.
        if not _gives_way(held, yield_policy):
            raise _no_names(place, held, yield_policy)
        leaving[key] = leaving.get(key, frozenset()) | {place}
    return leaving


def _all_in_the_way(claims: Claims, static_rules: StaticRules, wanted: Registration) -> Iterator[tuple[Key, Listen]]:
    """The holders that cannot stay, each with what it has to leave."""
    for listen in wanted.places:
        for key in _in_the_way(claims, static_rules, wanted.key, listen):
            yield key, listen
        for other in _crossing(claims, listen):
            for key in claims.holders.get(other, ()):
                if key != wanted.key:
                    yield key, other


def _crossing(claims: Claims, listen: Listen) -> list[Listen]:
    """What is held and has some of the same ports, but not exactly these: a range beside a port or another range."""
    near = (other for port in listen.ports for other in claims.listens((listen.protocol, port)))
    crossing = [other for other in near if (listen.last or other.last) and other != listen.default and other.overlaps(listen)]
    return list(dict.fromkeys(place for other in crossing for place in (other, *claims.routes_of(other)))) if crossing else []


def _makes_room(held: Key, wanted: Key) -> bool:
    """The legacy registration of one token, and an earlier instance of the same owner that had another range: a rolling update
    may widen it."""
    return held.token == wanted.token and (held.is_legacy or (not wanted.is_legacy and held.name == wanted.name))


def _gives_way(held: Registration, yield_policy: YieldPolicy) -> bool:
    return held.state is not State.FRESH and yield_policy.yields(held)


def _owned(claims: Claims, listen: Listen, held: Registration, yield_policy: YieldPolicy) -> Refused:
    port = listen.port_text
    what, other, only = f"port {port}", "another port", ""
    if listen.server_name:
        what, other, only = f"the name {listen.server_name} on port {port}", "another name", f" --name {listen.server_name}"
    elif any(claims.routes_of(listen)):
        what, only = f"the default route of port {port}", " --default"  # without it, the others' names would go, too
    hint = f"use {other}, ask its owner, `pylb release {port}{only}`, or give the token `takeover: true`"
    return Refused(Code.PORT_OWNED, f"{what} is owned by {held.owner}{yield_policy.describe(held)}", hint, port=port)


def _no_names(place: Listen, held: Registration, yield_policy: YieldPolicy) -> Refused:
    """`place`: what `held` has and excludes the call."""
    since, port = yield_policy.describe(held), place.port_text
    if place.server_name:
        what = f"port {port} has routes, as {place.server_name} of {held.owner}{since}: its default route has to wait"
        hint = 'say `"names": "allowed"` if your clients are the ones to speak first, as in TLS'
    else:
        what = f"port {port} is owned by {held.owner}{since}, which allows no names beside it: its server may speak first"
        hint = 'use another port, or let its owner say `"names": "allowed"`'
    return Refused(Code.PORT_OWNED, what, hint, port=port)


def _excluded(claims: Claims, static_rules: StaticRules, wanted: Registration) -> Iterator[tuple[Key, Listen]]:
    """The other owners on its ports whose default route, or whose names, cannot be there beside it; and where."""
    any_routes = len(claims.routes) > 0
    for item, listen in zip(wanted.wanted, wanted.places, strict=True):
        if not (item.server_name or any_routes) or listen.default in static_rules.frontends:
            continue  # a static frontend says by itself whether it has routes, see StaticRules.place
        if item.server_name:
            for key in claims.holders.get(listen.default, ()):
                one = claims.registrations[key]
                if not (_share(key, wanted.key) or one.wanted[one.places.index(listen.default)].allows_names):
                    yield key, listen.default
        elif not item.allows_names:
            for place in claims.routes_of(listen):
                yield from ((key, place) for key in claims.holders[place] if not _share(key, wanted.key))


def _in_the_way(claims: Claims, static_rules: StaticRules, wanted: Key, listen: Listen) -> Iterator[Key]:
    """The holders that cannot share the listen with `wanted`."""
    holders = claims.holders.get(listen, ())
    if not static_rules.joined_by_any(listen) and holders and _share(holders[0], wanted):
        return  # all holders of such a frontend have one owner: if the first may share it, the others may
    for key in holders:
        if key != wanted and not (_share(key, wanted) or (static_rules.joined_by_any(listen) and _may_join(key, wanted))):
            yield key


def _share(held: Key, wanted: Key) -> bool:
    """Two instances of one owner. Of legacy registrations there is one for each port; a key holds one already."""
    return not held.is_legacy and not wanted.is_legacy and (held.token, held.name) == (wanted.token, wanted.name)


def _may_join(held: Key, wanted: Key) -> bool:
    """On a frontend that anybody may join: not two legacy ones, and a native one takes over the legacy one of its token."""
    return not held.is_legacy or not (wanted.is_legacy or held.token == wanted.token)


def check_bounds(
    claims: Claims,
    static_rules: StaticRules,
    before: Registration | None,
    after: Registration,
    evicted: Mapping[Key, AbstractSet[Listen]],
) -> None:
    """Check that what would grow stays within the operator's bounds. Raises Refused.

    Existing registrations stay, whatever the bounds are now.
    """
    bounds, had = static_rules.rules.bounds, before.places if before is not None else ()
    grows = after.members and before is not None and len(after.members) > len(before.members)
    for listen in after.places:
        if listen in had and not grows:
            continue
        static = static_rules.frontends.get(listen)
        servers = _registered_servers(claims, listen, after, evicted)
        if servers + (len(static.servers) if static else 0) > bounds.servers_per_frontend:
            servers_in_all = counted(bounds.servers_per_frontend, "server")
            detail = f"port {listen.port_text} may have {servers_in_all} (bounds.servers_per_frontend)"
            raise Refused(Code.TOO_MANY, detail, "release those that are gone, or raise the bound", retry_after=60)
    token, most = after.key.token, bounds.ports_per_token
    more = width(after.places) - width(had) - sum(width(places) for key, places in evicted.items() if key.token == token)
    if more > 0 and claims.ports_of_token.get(token, 0) + more > most:
        detail = f"the registrations of token {token!r} may hold {counted(most, 'port')} in all (bounds.ports_per_token)"
        raise Refused(Code.TOO_MANY, detail, "release those that are gone, or raise the bound", retry_after=60)


def _registered_servers(claims: Claims, listen: Listen, after: Registration, evicted: Mapping[Key, AbstractSet[Listen]]) -> int:
    """How many servers the frontend would have from registrations."""
    servers = len(after.ips)
    for key in claims.holders.get(listen, ()):
        if key != after.key and not (evicted and listen in evicted.get(key, ())):
            servers += 1 if key.instance or key.legacy_port else len(claims.registrations[key].ips)  # a set, which is rare
    return servers
