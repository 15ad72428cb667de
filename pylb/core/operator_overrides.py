"""What the operator set for servers (`pylb ctl`): it takes precedence over weights, and survives re-registrations and restarts.

An override for a node's IP stays with that IP, whatever registers there, until it ends. An override for a frontend's server
belongs to the frontend and the address, and ends when nobody has a server there any more: its registration moved or left.
"""

from collections.abc import Container, Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from heapq import nsmallest
from itertools import chain
from types import MappingProxyType

from pylb.core.address import Address, Listen
from pylb.core.claims import Claims
from pylb.core.errors import Code, Refused
from pylb.core.policy import AdminState
from pylb.core.static_rules import StaticRules
from pylb.core.table import OUT, Frontend, Server, Table


@dataclass(frozen=True, slots=True)
class Override:
    state: AdminState = AdminState.READY
    weight: int | None = None  # None: as registered or configured
    until: float | None = None  # unix time; None: until it is removed
    exempt: bool = False  # a server that serves although its node is out of service


ServerKey = tuple[Listen, Address]  # a frontend's server: where the frontend listens, and the server's address
OverrideTarget = ServerKey | str  # or a node's IP
Overrides = Mapping[OverrideTarget, Override]
NONE: Overrides = MappingProxyType({})
_AS_IT_IS = Override()
STEP = 25  # servers that one step of `checked` or `affected` looks for: 1 ms
FRONTENDS = 50  # at which one step of `affected` or `find` looks: with ten servers each, less than 1 ms
LISTED = 8  # names in the hint of a refusal


def with_overrides(server: Server, listen: Listen, overrides: Overrides) -> Server:
    """The server as the table shows it."""
    words = [overrides.get((listen, server.address)), overrides.get(server.address.ip)]  # the narrower one first
    own = words[0]
    for word in words[:1] if own is not None and own.exempt else words:
        if word is not None and word.state is not AdminState.READY:
            return replace(server, weight=0, rank=OUT, admin=word.state)
    weights = [word.weight for word in words if word is not None and word.weight is not None]
    return replace(server, weight=weights[0]) if weights else server


def changed(
    overrides: Overrides, targets: Iterable[OverrideTarget], until: float | None = None, **said: AdminState | int | bool | None
) -> Overrides:
    """With these settings changed; an override that sets nothing any more is removed."""
    found = dict(overrides)
    for one in targets:
        after = replace(found.get(one, _AS_IT_IS), until=until, **said)  # type: ignore[arg-type]
        if replace(after, until=None) == _AS_IT_IS:
            found.pop(one, None)
        else:
            found[one] = after
    return MappingProxyType(found)


def still_valid(
    overrides: Overrides, claims: Claims, static_rules: StaticRules, touched: Container[Listen] | None = None
) -> Overrides:
    """Overrides for nodes, and for servers that still exist; the same mapping if none ends.

    `touched`: the only frontends whose servers may have left; None: all.
    """
    gone = [one for one in _of_servers(overrides, touched) if not _is_there(one, claims, static_rules)]
    return without(overrides, gone) if gone else overrides


def checked(
    overrides: Overrides, claims: Claims, static_rules: StaticRules, touched: Container[Listen] | None = None
) -> Generator[None, None, Overrides]:
    """Like `still_valid`, in steps."""
    looked_for, gone = _of_servers(overrides, touched), list[ServerKey]()
    for start in range(0, len(looked_for), STEP):
        if start:
            yield
        gone += [one for one in looked_for[start : start + STEP] if not _is_there(one, claims, static_rules)]
    return without(overrides, gone) if gone else overrides


def _of_servers(overrides: Overrides, touched: Container[Listen] | None) -> list[ServerKey]:
    return [one for one in overrides if not isinstance(one, str) and (touched is None or one[0] in touched)]


def ended(overrides: Overrides, now: float) -> tuple[OverrideTarget, ...]:
    """The targets of overrides that have run out. `now`: unix time."""
    return tuple(target for target, one in overrides.items() if one.until is not None and one.until <= now)


def without(overrides: Overrides, targets: Iterable[OverrideTarget]) -> Overrides:
    gone = set(targets)
    return MappingProxyType({one: override for one, override in overrides.items() if one not in gone})


def _is_there(key: ServerKey, claims: Claims, static_rules: StaticRules) -> bool:
    """A server from the config stays, even while its host name resolves to another address."""
    listen, address = key
    if listen in static_rules.frontends:
        return True
    held = (claims.registrations[holder] for holder in claims.holders.get(listen, ()))
    return any(
        address in one.addresses(one.wanted[one.places.index(listen)]) or any(address == old.address for old in one.displaced)
        for one in held
    )


def affected(
    table: Table, targets: Iterable[OverrideTarget]
) -> Generator[None, None, dict[OverrideTarget, list[tuple[Frontend, Server]]]]:
    """The servers that each of these overrides affects now, found in steps."""
    found: dict[OverrideTarget, list[tuple[Frontend, Server]]] = {target: [] for target in targets}
    if any(isinstance(target, str) for target in found):  # one look at all servers, however many nodes it is about
        for number, one in enumerate(table.frontends.in_any_order(), 1):
            for other in one.servers:
                if (of_node := found.get(other.address.ip)) is not None:
                    of_node.append((one, other))
            if number % FRONTENDS == 0:
                yield
    for number, (target, there) in enumerate(found.items(), 1):
        if isinstance(target, str):
            there[:] = _by_port(there)
        elif (frontend := table.frontends.get(target[0])) is not None:
            there += [(frontend, other) for other in frontend.servers if other.address == target[1]]
        if number % STEP == 0:
            yield
    return found


def find(table: Table, target: str) -> Generator[None, None, list[tuple[Frontend, Server]]]:
    """The servers that `FRONTEND/SERVER` or a node's IP names; a frontend by name or port, a server by label or ip:port.

    They are found in steps. Raises Refused NOT_FOUND.
    """
    found: list[tuple[Frontend, Server]] = []
    for number, one in enumerate(table.frontends.in_any_order(), 1):
        if "/" not in target:
            found += [(one, other) for other in one.servers if target == other.address.ip]
        elif rests := _behind(target, one.name, one.listen):
            found += [(one, other) for other in one.servers if _is_one(rests, other.name, other.address)]
        if number % FRONTENDS == 0:
            yield
    if not found:
        raise Refused(Code.NOT_FOUND, f"no server is {target[:300]!r}", (yield from _those_there_are(table)))
    return _by_port(found)


def _those_there_are(table: Table) -> Generator[None, None, str]:
    """The hint of a refusal: the first names there are, and how many more."""
    first, count = list[str](), 0
    for number, one in enumerate(table.frontends.in_any_order(), 1):
        first = nsmallest(LISTED, chain(first, (f"{one.name}/{other.name}" for other in one.servers)))
        count += len(one.servers)
        if number % FRONTENDS == 0:
            yield
    if not first:
        return "the table has no servers"
    return f"there are {', '.join(first)}" + (f" and {count - LISTED} more" if count > LISTED else "")


def _by_port(found: Iterable[tuple[Frontend, Server]]) -> list[tuple[Frontend, Server]]:
    """In an order that a reader can follow: a table's frontends have none."""
    return sorted(found, key=lambda one: (one[0].listen.port, one[0].name, one[1].name))


def is_server(target: str, frontend: str, listen: Listen, server: str, address: Address) -> bool:
    """Is `target`, FRONTEND/SERVER, this server? A port may have a slash of its own: `443/udp/pod-1`."""
    return _is_one(_behind(target, frontend, listen), server, address)


def _behind(target: str, frontend: str, listen: Listen) -> list[str]:
    """What `target` says behind each name of the frontend that it begins with."""
    heads = (f"{name}/" for name in (frontend, listen.port_text, str(listen)))
    return [target[len(head) :] for head in heads if target.startswith(head)]


def _is_one(rests: list[str], server: str, address: Address) -> bool:
    return any(rest in (server, str(address), address.without_protocol) for rest in rests)
