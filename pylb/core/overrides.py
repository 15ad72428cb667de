"""What the operator said of servers (`pylb ctl`): it overrules weights, and outlives re-registrations and restarts.

An override belongs to a frontend and an address, not to a registration: a pod that comes back to a drained node stays
drained. It goes with its frontend.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from pylb.core.address import Address, Listen
from pylb.core.claims import Claims
from pylb.core.errors import Code, Refused
from pylb.core.layout import Layout
from pylb.core.policy import AdminState
from pylb.core.table import OUT, Frontend, Server, Table


@dataclass(frozen=True, slots=True)
class Override:
    state: AdminState = AdminState.READY
    weight: int | None = None  # None: as registered or configured


Place = tuple[Listen, Address]
Overrides = Mapping[Place, Override]
NONE: Overrides = MappingProxyType({})
_AS_IT_IS = Override()


def applied(server: Server, listen: Listen, overrides: Overrides) -> Server:
    """The server as the table shows it."""
    override = overrides.get((listen, server.address))
    if override is None:
        return server
    if override.state is not AdminState.READY:
        return replace(server, weight=0, rank=OUT, admin=override.state)
    return server if override.weight is None else replace(server, weight=override.weight)


def changed(overrides: Overrides, places: Iterable[Place], **said: AdminState | int | None) -> Overrides:
    """With a new word about these servers; what says nothing any more is left out."""
    found = dict(overrides)
    for place in places:
        after = replace(found.get(place, _AS_IT_IS), **said)  # type: ignore[arg-type]
        if after == _AS_IT_IS:
            found.pop(place, None)
        else:
            found[place] = after
    return MappingProxyType(found)


def kept(overrides: Overrides, claims: Claims, layout: Layout) -> Overrides:
    """Those whose frontends are still there; the very mapping that came in when all are."""
    gone = [place for place in overrides if place[0] not in claims.holders and place[0] not in layout.statics]
    if not gone:
        return overrides
    return MappingProxyType({place: override for place, override in overrides.items() if place not in gone})


def find(table: Table, target: str) -> list[tuple[Frontend, Server]]:
    """The servers that `FRONTEND/SERVER` or a node's IP names; a frontend by name or port, a server by label or ip:port.

    Raises Refused NOT_FOUND.
    """
    name, slash, server = target.partition("/")
    if slash:
        meant = [one for one in table.frontends.values() if names(name, one.name, one.listen)]
        found = [(one, other) for one in meant for other in one.servers if server in (other.name, str(other.address))]
    else:
        found = [(one, other) for one in table.frontends.values() for other in one.servers if target == other.address.ip]
    if not found:
        there = sorted(f"{one.name}/{other.name}" for one in table.frontends.values() for other in one.servers)
        hint = f"there are {', '.join(there[:8])}" + (f" and {len(there) - 8} more" if len(there) > 8 else "")
        raise Refused(Code.NOT_FOUND, f"no server is {target[:300]!r}", hint if there else "the table has no servers")
    return found


def names(text: str, name: str, listen: Listen) -> bool:
    """Is this frontend meant?"""
    return text in (name, str(listen.port), str(listen))
