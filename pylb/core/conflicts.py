"""Conflicts about ports: who has to leave for a call, or why the call is refused; and the bounds on numbers.

A port that only registrations opened belongs to one (token, name). A static frontend can be joined by the registration of its
name, or by any if the config allows it. A legacy registration is one server per port and token; a native one of the same
token replaces it for good.
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
    keys = (key for listen in claims.listens((TCP, wanted.key.legacy_port)) for key in claims.holders[listen])
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
        if not (_gives_way(key, wanted.key) or takeover or (held.state is not State.FRESH and yield_policy.yields(held))):
            port = listen.port_text
            hint = f"use another port, ask its owner, `pylb release {port}`, or give the token `takeover: true`"
            detail = f"port {port} is owned by {held.owner}{yield_policy.describe(held)}"
            raise Refused(Code.PORT_OWNED, detail, hint, port=port)
        leaving[key] = leaving.get(key, frozenset()) | {listen}
    return leaving


def _all_in_the_way(claims: Claims, static_rules: StaticRules, wanted: Registration) -> Iterator[tuple[Key, Listen]]:
    """The holders that cannot stay, each with what it has to leave."""
    for listen in wanted.places:
        for key in _in_the_way(claims, static_rules, wanted.key, listen):
            yield key, listen
        for other in _crossing(claims, listen):
            for key in claims.holders[other]:
                if key != wanted.key:
                    yield key, other


def _crossing(claims: Claims, listen: Listen) -> list[Listen]:
    """What is held and has some of the same ports, but not exactly these: a range beside a port or another range."""
    near = (other for port in listen.ports for other in claims.listens((listen.protocol, port)))
    crossing = (other for other in near if (listen.last or other.last) and other != listen and other.overlaps(listen))
    return list(dict.fromkeys(crossing))


def _gives_way(held: Key, wanted: Key) -> bool:
    """The legacy registration of one token, and an earlier instance of the same owner that had another range: a rolling update
    may widen it."""
    return held.token == wanted.token and (held.is_legacy or (not wanted.is_legacy and held.name == wanted.name))


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
