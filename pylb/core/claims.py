"""Who holds what: all registrations as one immutable value, with the indexes that follow from it.

A frontend (a `Listen`) is held by the *set* of the registrations on it: it closes when the last one leaves, and so does a
server, see compose.py.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from pylb.core.address import TCP, Address, Listen, PortKey, is_loopback
from pylb.core.persistent_map import Bucket, PersistentMap
from pylb.core.registration import Key, Registration, State

K = TypeVar("K")

Owner = tuple[str, str, bool]  # token, name, whether it is legacy
LOOPBACK = "loopback"  # 127.0.0.0/8 is one machine
_NO_ROUTES: PersistentMap[Listen, bool] = PersistentMap()


@dataclass(frozen=True, slots=True)
class Claims:
    """`registrations` is the content. The other fields are indexes of it, updated with each edit (see `edited`), so that a
    call costs what it touches, however many registrations there are.

    `holders` of a listen are in the order of their registration; a listen without holders is not in it.
    """

    registrations: PersistentMap[Key, Registration] = field(default_factory=PersistentMap)
    holders: PersistentMap[Listen, tuple[Key, ...]] = field(default_factory=PersistentMap)
    # The default routes of the keys of `holders`, by port number: of all protocols
    ports: PersistentMap[int, tuple[Listen, ...]] = field(default_factory=PersistentMap)
    # The other keys of `holders`, by the default route beside them
    routes: PersistentMap[Listen, PersistentMap[Listen, bool]] = field(default_factory=PersistentMap)
    # How many aim there; all of loopback counts as LOOPBACK
    sent_to: PersistentMap[Address, int] = field(default_factory=PersistentMap)
    owners: PersistentMap[Owner, int] = field(default_factory=PersistentMap)  # how many registrations each has
    of_token: PersistentMap[str, int] = field(default_factory=PersistentMap)  # how many registrations each has
    ports_of_token: PersistentMap[str, int] = field(default_factory=PersistentMap)  # and how many frontends in all of them
    not_fresh: PersistentMap[Key, State] = field(default_factory=PersistentMap)
    waiting: PersistentMap[Key, bool] = field(default_factory=PersistentMap)  # those with displaced servers

    def listens(self, port: PortKey) -> Iterator[Listen]:
        """The default routes of that port: those with a holder, and those with a route that has one."""
        protocol, number = port
        return (listen for listen in self.ports.get(number, ()) if listen.protocol == protocol)

    def routes_of(self, port: Listen) -> Iterable[Listen]:
        """What is held on the port beside its default route."""
        return self.routes.get(port, ())

    def on_port(self, number: int, protocol: str = TCP, server_name: str | None = None) -> tuple[Registration, ...]:
        """All registrations with a frontend on that port, or a route of it. `server_name`: only those of this route."""
        places = (place for listen in self.listens((protocol, number)) for place in (listen, *self.routes_of(listen)))
        wanted = (place for place in places if server_name in (None, place.server_name))
        keys = {key: None for place in wanted for key in self.holders.get(place, ())}
        return tuple(self.registrations[key] for key in keys)

    @property
    def buckets(self) -> list[Bucket[Any, Any]]:
        """What all its mappings consist of, for a caller that frees it piece by piece."""
        return [bucket for one in fields(self) for bucket in getattr(self, one.name).buckets]

    def opens(self, port: Listen) -> bool:
        """Does any registration hold the port's default route, or one of its routes?"""
        return port in self.holders or port in self.routes

    def edited(self, edits: Mapping[Key, Registration | None]) -> "Claims":
        """The next claims; each index is updated by what differs. None: that registration leaves."""
        pairs = [(key, self.registrations.get(key), after) for key, after in edits.items()]
        # A call that moves a server, or a lease that ends, is all that most edits are: no port and no owner differs by those.
        come_or_gone = [pair for pair in pairs if pair[1] is None or pair[2] is None]
        placed = [pair for pair in pairs if pair[1] is None or pair[2] is None or pair[1].places != pair[2].places]
        holders = _holders(self.holders, placed) if placed else {}
        routes = _routes(self, holders)
        return Claims(
            self.registrations.edited(edits),
            self.holders.edited(holders) if holders else self.holders,
            self.ports.edited(_ports(self, holders, routes)) if holders else self.ports,
            self.routes.edited(routes) if routes else self.routes,
            _counted(self.sent_to, pairs, _targets),
            _counted(self.owners, come_or_gone, lambda one: (owner_of(one),)),
            _counted(self.of_token, come_or_gone, lambda one: (one.key.token,)),
            _counted(self.ports_of_token, placed, lambda one: (one.key.token,) * width(one.places)),
            self.not_fresh.edited(
                {key: None if after is None or after.state is State.FRESH else after.state for key, _, after in pairs}
            ),
            self.waiting.edited({key: True if after is not None and after.displaced else None for key, _, after in pairs}),
        )


def width(places: Iterable[Listen]) -> int:
    """How many ports they are."""
    ports = 0
    for listen in places:
        ports += listen.last - listen.port + 1 if listen.last else 1
    return ports


def owner_of(one: Registration) -> Owner:
    """All legacy registrations of a token have one owner, whatever name their calls give."""
    return one.key.token, one.key.name, one.key.is_legacy


Pair = tuple[Key, Registration | None, Registration | None]  # before, after


def _holders(known: PersistentMap[Listen, tuple[Key, ...]], pairs: Iterable[Pair]) -> dict[Listen, tuple[Key, ...] | None]:
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


_Holders = Mapping[Listen, tuple[Key, ...] | None]  # of what has other holders than before
_Routes = dict[Listen, PersistentMap[Listen, bool] | None]


def _routes(claims: Claims, holders: _Holders) -> _Routes:
    edits: dict[Listen, dict[Listen, bool | None]] = {}
    for listen, keys in holders.items():
        if listen.server_name:
            edits.setdefault(listen.default, {})[listen] = True if keys else None
    if not edits:
        return {}
    return {port: claims.routes.get(port, _NO_ROUTES).edited(found) or None for port, found in edits.items()}


def _ports(claims: Claims, holders: _Holders, routes: _Routes) -> dict[int, tuple[Listen, ...] | None]:
    found: dict[int, tuple[Listen, ...]] = {}
    for listen in with_ports(holders) if routes else holders:
        if listen.server_name:
            continue
        holds = holders[listen] if listen in holders else claims.holders.get(listen)
        opens = bool(holds or (routes[listen] if listen in routes else claims.routes.get(listen)))
        if opens is not claims.opens(listen):
            for port in listen.ports:
                now = found[port] if port in found else claims.ports.get(port, ())
                found[port] = (*now, listen) if opens else tuple(one for one in now if one != listen)
    return {port: listens or None for port, listens in found.items()}


def with_ports(listens: Iterable[Listen]) -> list[Listen]:
    """With the default route of each port, which comes and goes with the first and last route. Each once."""
    found: dict[Listen, None] = {}
    for listen in listens:
        if listen.server_name:
            found[listen.default] = None
        found[listen] = None
    return list(found)


def _counted(
    known: PersistentMap[K, int], pairs: Collection[Pair], what: Callable[[Registration], Iterable[K]]
) -> PersistentMap[K, int]:
    if not pairs:
        return known
    found: dict[K, int] = {}
    for _, before, after in pairs:
        for one, by in ((before, -1), (after, 1)):
            for item in what(one) if one is not None else ():
                found[item] = found.get(item, known.get(item, 0)) + by
    return known.edited({item: count or None for item, count in found.items() if count != known.get(item, 0)})


def _targets(one: Registration) -> Iterator[Address]:
    return (
        Address(LOOPBACK if is_loopback(ip) else ip, port, protocol)
        for ip in one.ips
        for item in one.wanted
        for _, (protocol, port) in item.targets()
    )
