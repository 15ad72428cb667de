"""From the claims, the rules and what is known about the servers to the routing table.

A server (`ip:port`) may be offered by several: a static line, registrations, and registrations from which it was displaced. It
has the best rank that any of them gives it, and leaves with the last of them. Ranks, see `table.Server`:
fresh and proven 0 · fresh, has not answered yet 1 · backup 2 · stale or draining 3 · down 4 · taken out by the operator 5.
"""

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from pylb.core.address import Address, Listen
from pylb.core.claims import Claims, with_ports
from pylb.core.loops import loop_at
from pylb.core.operator_overrides import NONE, Overrides, with_overrides
from pylb.core.policy import AdminState, HealthMode, HealthPolicy, Policy, ProxyProtocol, StaticFrontend
from pylb.core.registration import FrontendRequest, Registration, State
from pylb.core.server_set import NO_TERMS
from pylb.core.static_rules import StaticRules
from pylb.core.table import BACKUP, DOWN, LAST_RESORT, PROVEN, UNPROVEN, Frontend, Server, Table


@dataclass(frozen=True, slots=True)
class ServerStates:
    """What is known about the servers: which have ever answered, which are down at which frontend or have passed its check
    there, and what the operator set."""

    proven: Container[Address] = frozenset()
    down: Container[tuple[Listen, Address]] = frozenset()
    passed: Container[tuple[Listen, Address]] = frozenset()  # that passed their check the last time it was decided
    overrides: Overrides = field(default_factory=lambda: NONE)  # what the operator set


def all_listens(claims: Claims, static_rules: StaticRules, base: Table) -> list[Listen]:
    """All that the next table may have, and all that `base` has."""
    return with_ports({**static_rules.frontends, **dict.fromkeys(claims.holders), **dict.fromkeys(base.frontends)})


def compose_table(base: Table, made: Mapping[Listen, Frontend | None]) -> Table:
    """`base` with these frontends, or `base` itself if they equal its own. None: nobody has that frontend."""
    edits = {listen: one for listen, one in made.items() if one != base.frontends.get(listen)}
    return base.edited(base.generation + 1, edits) if edits else base


def compose_frontend(
    claims: Claims, static_rules: StaticRules, server_states: ServerStates, listen: Listen, before: Frontend | None = None
) -> Frontend | None:
    """None: nobody has it, it is closed. A static frontend may be without servers, and so is the default route of a port where
    only routes are held: the port is what its clients are accepted on.

    Objects that equal those of `before` are reused, so that a comparison looks only at what differs.
    """
    static = static_rules.frontends.get(listen)
    held = [claims.registrations[key] for key in claims.holders.get(listen, ())]
    if static is not None:
        name = static.name
    elif held:
        name = static_rules.label(held[0].name, listen)
    elif claims.opens(listen):
        name = f"@{listen.port}"  # routes without a default route: whose name should the port have?
    else:
        return None
    known: _Known = {server.address: server for server in before.servers} if before is not None else {}
    found: dict[Address, Server] = {}
    for offer in _offers(claims, static_rules, held, server_states, listen, known=known):
        better = found.get(offer.address)
        if better is None or offer.rank < better.rank:
            found[offer.address] = offer
    policy = static_rules.policy(listen)
    if listen.default not in static_rules.frontends:
        policy = _with_terms(policy, held)
    refuses = policy.health.refuses
    servers = _trusted([_seen(server, server_states, listen, refuses=refuses) for server in found.values()], server_states)
    if before is None:
        return Frontend(name, listen, policy, tuple(_distinct(servers)))
    if policy is not before.policy and policy == before.policy:
        policy = before.policy
    same = ((known.get(server.address), server) for server in _distinct(servers))
    after = Frontend(name, listen, policy, tuple(old if old is new or old == new else new for old, new in same))
    return before if after == before else after


def _with_terms(policy: Policy, held: Iterable[Registration]) -> Policy:
    """The policy of a frontend that registrations opened. They have one owner, and an owner has one set."""
    for one in held:
        if one.terms is not NO_TERMS:
            return one.terms.over(policy)
    return policy


_Known = Mapping[tuple[str, int, str, int], Server]  # the servers of the table before, by address


def _offers(
    claims: Claims,
    static_rules: StaticRules,
    held: list[Registration],
    server_states: ServerStates,
    listen: Listen,
    *,
    known: _Known,
) -> Iterator[Server]:
    """One per holder of a server. Among equals the first one counts: static lines, then the newest registration.

    A target that has become pylb itself since it was accepted (because this machine got a new address) is left out: one
    session sent there would use up all connections.
    """
    static, policy = static_rules.frontends.get(listen), static_rules.policy(listen)
    if static is not None:
        yield from _configured(claims, static_rules, static)
    for one in reversed(held):
        item = one.wanted[one.places.index(listen)]
        send = policy.send_proxy if item.send_proxy is None else item.send_proxy
        health = item.health.over(policy.health)
        if item.target_last:
            health = _range_health(health, policy.health)
        for label, ip, own_weight in one.machines:
            if static_rules.is_here(ip) and loop_at(claims, static_rules, one, ip, listen) is not None:
                continue
            before = known.get((ip, item.target_port, item.protocol, item.target_last))
            address = item.at(ip) if before is None else before.address
            # A range is not dialled to be proven: which of its ports is in use at the moment, only the app knows.
            rank = PROVEN if address.last or address in server_states.proven else UNPROVEN
            if one.state is not State.FRESH:
                rank = LAST_RESORT
            elif item.backup:
                rank = BACKUP
            weight = own_weight or item.weight
            if before is not None and _is(before, item, label, rank, weight=weight, send=send, health=health):
                yield before  # as nearly always: making one takes as long as all of this
            else:
                yield Server(label, address, weight, rank, send, backup=item.backup, health=health)
    for one in held:
        for old in one.displaced:
            addresses = one.addresses(one.wanted[one.places.index(listen)])
            waits = not any(address in server_states.proven for address in addresses)
            if waits and old.listen == listen and not static_rules.comes_back(old.address, claims):
                send = policy.send_proxy if old.send_proxy is None else old.send_proxy
                yield Server(old.server, old.address, old.weight, PROVEN, send, health=old.health.over(policy.health))


def _configured(claims: Claims, static_rules: StaticRules, static: StaticFrontend) -> Iterator[Server]:
    """The servers that the config names."""
    policy = static.policy
    for line in static.servers:
        rank = BACKUP if line.backup else PROVEN
        address = cast("Address", line.address)  # StaticRules has no host names
        if static_rules.comes_back(address, claims):
            continue
        own = line.health.over(policy.health)
        yield Server(
            line.name or address.without_protocol,
            address,
            line.weight,
            rank,
            policy.send_proxy,
            line.max_connections,
            backup=line.backup,
            health=own if not address.last else _range_health(own, policy.health),
        )


def _range_health(own: HealthPolicy | None, configured: HealthPolicy) -> HealthPolicy | None:
    """The health policy of a server with a range: it is checked by a port of the check alone, else not at all."""
    if (own or configured).check.port:
        return own
    return replace(own or configured, wanted=HealthMode.NONE)


def _is(
    server: Server,
    item: FrontendRequest,
    label: str,
    rank: int,
    *,
    weight: int,
    send: ProxyProtocol,
    health: HealthPolicy | None,
) -> bool:
    """Is it what a registration offers at its address? Then the operator has set nothing for it."""
    return (
        server.rank == rank
        and server.name == label
        and server.weight == weight
        and server.send_proxy is send
        and server.backup is item.backup
        and (server.health is health or server.health == health)
        and server.admin is AdminState.READY
        and not server.max_connections
    )


def _seen(server: Server, server_states: ServerStates, listen: Listen, *, refuses: bool) -> Server:
    """The server with its rank, by what is known about its health and what the operator said.

    `refuses`: what the frontend's policy says about servers that are down (when_all_down); a server may have its own.
    """
    place = (listen, server.address)
    refuses = refuses if server.health is None else server.health.refuses
    if place in server_states.down or (refuses and place not in server_states.passed):
        server = replace(server, rank=DOWN)
    return with_overrides(server, listen, server_states.overrides) if server_states.overrides else server


def _trusted(servers: list[Server], server_states: ServerStates) -> list[Server]:
    """A fresh server that has not answered yet does not displace a proven one that is stale or draining."""
    ranks = {server.rank for server in servers}
    if UNPROVEN not in ranks or PROVEN in ranks:
        return servers
    return [
        replace(server, rank=PROVEN) if server.rank == LAST_RESORT and server.address in server_states.proven else server
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
