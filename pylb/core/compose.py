"""From the claims, the rules and what is known about the servers to the routing table.

A server (`ip:port`) may be offered by several: a static line, registrations, and registrations from which it was displaced. It
has the best rank that any of them gives it, and leaves with the last of them. Ranks, see `table.Server`:
fresh and proven 0 · fresh, has not answered yet 1 · backup 2 · stale or draining 3 · down 4 · taken out by the operator 5.
"""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from pylb.core.address import Address, Listen
from pylb.core.claims import Claims
from pylb.core.loops import loop
from pylb.core.operator_overrides import NONE, Overrides, applied
from pylb.core.policy import HealthPolicy, ProxyProtocol
from pylb.core.registration import Registration, State
from pylb.core.static_frontends import Layout
from pylb.core.table import BACKUP, DOWN, LAST_RESORT, PROVEN, UNPROVEN, Frontend, Server, Table


@dataclass(frozen=True, slots=True)
class Sight:
    """What is known about the servers: which have ever answered, which are down at which frontend or have passed its check
    there, and what the operator set."""

    proven: Container[Address] = frozenset()
    down: Container[tuple[Listen, Address]] = frozenset()
    passed: Container[tuple[Listen, Address]] = frozenset()  # that passed their check the last time it was decided
    overrides: Overrides = field(default_factory=lambda: NONE)  # what the operator set


def every_listen(claims: Claims, layout: Layout, base: Table) -> list[Listen]:
    """All that the next table may have, and all that `base` has."""
    return list({**layout.statics, **dict.fromkeys(claims.holders), **dict.fromkeys(base.frontends)})


def composed(base: Table, made: Mapping[Listen, Frontend | None]) -> Table:
    """`base` with these frontends, or `base` itself if they equal its own. None: nobody has that frontend."""
    edits = {listen: one for listen, one in made.items() if one != base.frontends.get(listen)}
    return base.edited(base.generation + 1, edits) if edits else base


def frontend(claims: Claims, layout: Layout, sight: Sight, listen: Listen, before: Frontend | None = None) -> Frontend | None:
    """None: nobody has it, it is closed. A static frontend may be without servers.

    Objects that equal those of `before` are reused, so that a comparison looks only at what differs.
    """
    static = layout.statics.get(listen)
    held = [claims.registrations[key] for key in claims.holders.get(listen, ())]
    if static is None and not held:
        return None
    name = static.name if static else layout.label(held[0].name, listen.port)
    found: dict[Address, Server] = {}
    for offer in _offers(claims, layout, held, sight, listen):
        known = found.get(offer.address)
        if known is None or offer.rank < known.rank:
            found[offer.address] = offer
    policy = layout.policy(listen)
    servers = _trusted([_seen(server, sight, listen, policy.health) for server in found.values()], sight)
    return _unchanged(before, Frontend(name, listen, policy, tuple(_distinct(servers))))


def _unchanged(before: Frontend | None, after: Frontend) -> Frontend:
    """`after`, with objects of `before` wherever they are equal."""
    if before is None:
        return after
    known = {server: server for server in before.servers}
    policy = before.policy if before.policy == after.policy else after.policy
    after = Frontend(after.name, after.listen, policy, tuple(known.get(server, server) for server in after.servers))
    return before if after == before else after


def _offers(claims: Claims, layout: Layout, held: list[Registration], sight: Sight, listen: Listen) -> Iterator[Server]:
    """One per holder of a server. Among equals the first one counts: static lines, then the newest registration.

    A target that has become pylb itself since it was accepted (because this machine got a new address) is left out: one
    session sent there would use up all connections.
    """
    static, policy = layout.statics.get(listen), layout.policy(listen)
    for line in static.servers if static else ():
        rank = BACKUP if line.backup else PROVEN
        address = cast("Address", line.address)  # a layout has no host names
        if layout.comes_back(address, claims.holders):
            continue
        yield Server(
            line.name or str(address),
            address,
            line.weight,
            rank,
            policy.send_proxy,
            line.max_connections,
            backup=line.backup,
            health=line.health.over(policy.health),
        )
    held = [one for one in held if not layout.is_here(one.ip) or loop(claims, layout, one, listen) is None]
    for one in reversed(held):
        item = one.wanted[one.places.index(listen)]
        address = one.address(item)
        rank = UNPROVEN if address not in sight.proven else PROVEN
        if one.state is not State.FRESH:
            rank = LAST_RESORT
        elif item.backup:
            rank = BACKUP
        send = _send(item.send_proxy, policy.send_proxy)
        health = item.health.over(policy.health)
        yield Server(one.label, address, item.weight, rank, send, backup=item.backup, health=health)
    for one in held:
        for old in one.displaced:
            waits = one.address(one.wanted[one.places.index(listen)]) not in sight.proven
            if waits and old.listen == listen and not layout.comes_back(old.address, claims.holders):
                send = _send(old.send_proxy, policy.send_proxy)
                yield Server(old.server, old.address, old.weight, PROVEN, send, health=old.health.over(policy.health))


def _send(wanted: ProxyProtocol | None, default: ProxyProtocol) -> ProxyProtocol:
    return default if wanted is None else wanted


def _seen(server: Server, sight: Sight, listen: Listen, health: HealthPolicy) -> Server:
    place = (listen, server.address)
    if place in sight.down or ((server.health or health).refuses and place not in sight.passed):
        server = replace(server, rank=DOWN)
    return applied(server, listen, sight.overrides)


def _trusted(servers: list[Server], sight: Sight) -> list[Server]:
    """A fresh server that has not answered yet does not displace a proven one that is stale or draining."""
    ranks = {server.rank for server in servers}
    if UNPROVEN not in ranks or PROVEN in ranks:
        return servers
    return [
        replace(server, rank=PROVEN) if server.rank == LAST_RESORT and server.address in sight.proven else server
        for server in servers
    ]


def _distinct(servers: list[Server]) -> Iterator[Server]:
    """Make labels unique inside a frontend: from the second server with a label on, the address is part of the label."""
    seen: set[str] = set()
    for server in servers:
        if server.name in seen:  # "@" cannot occur in an instance, so the longer label is unique
            yield replace(server, name=f"{server.name}@{server.address}")
        else:
            seen.add(server.name)
            yield server
