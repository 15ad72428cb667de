"""Short words for the tests of claims and tables."""

from collections.abc import Callable, Container, Generator, Iterable
from dataclasses import replace
from typing import TypeVar

import pytest

from pylb.core.address import Address, Listen, parse_address, parse_listen
from pylb.core.claims import Claims
from pylb.core.compose import Sight, composed, every_listen, frontend
from pylb.core.errors import Refused
from pylb.core.ownership import Change, adopting, announce, readmitting
from pylb.core.policy import Joining, ProxyProtocol, Rules, StaticFrontend, StaticServer
from pylb.core.registration import Key, Registration, State, Wanted, legacy_key
from pylb.core.static_frontends import Layout
from pylb.core.table import Table

A, B, C = "203.0.113.1", "203.0.113.2", "203.0.113.3"
FREE = Layout(Rules())


def native(
    name: str = "web",
    instance: str = "pod-1",
    ip: str = A,
    ports: dict[int, int] | None = None,
    *,
    token: str = "t",
    state: State = State.FRESH,
    ttl: float | None = 60.0,
    backup: bool = False,
    send_proxy: ProxyProtocol | None = None,
) -> Registration:
    wanted = tuple(Wanted(port, target, send_proxy, backup=backup) for port, target in (ports or {443: 30443}).items())
    return Registration(Key(token, name, instance), name, ip, wanted, ttl, state)


def legacy(port: int = 443, ip: str = A, *, token: str = "t", name: str = "legacy") -> Registration:
    return Registration(legacy_key(token, port), name, ip, (Wanted(port, 30000 + port),), None)


def enter(
    claims: Claims,
    one: Registration,
    layout: Layout = FREE,
    *,
    takeover: bool = False,
    proven: frozenset[Address] = frozenset(),
) -> Change:
    return announce(claims, layout, one, takeover=takeover, proven=proven)


def having(*ones: Registration, layout: Layout = FREE, proven: frozenset[Address] = frozenset()) -> Claims:
    claims = Claims()
    for one in ones:
        claims = enter(claims, one, layout, proven=proven).claims
    return claims


def refused(call: Callable[[], Change]) -> Refused:
    """What it raises."""
    with pytest.raises(Refused) as caught:
        call()
    return caught.value


T = TypeVar("T")


def finished(steps: Generator[None, None, T]) -> T:
    """What comes out of it."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def adopt(claims: Claims, layout: Layout, looped: Container[Key] = ()) -> Change:
    return finished(adopting(claims, layout, looped))


def readmit(registrations: Iterable[Registration], layout: Layout) -> tuple[Claims, list[Refused]]:
    return finished(readmitting(registrations, layout))


def compose(
    claims: Claims, layout: Layout, sight: Sight, base: Table | None = None, touched: Iterable[Listen] | None = None
) -> Table:
    """The table after `base`. `touched` None: all frontends are worked out."""
    old = base or Table()
    listens = every_listen(claims, layout, old) if touched is None else touched
    return composed(old, {listen: frontend(claims, layout, sight, listen, old.frontends.get(listen)) for listen in listens})


def at(text: str) -> Address:
    return parse_address(text)


def on(port: int, ip: str = "*") -> Listen:
    return Listen("tcp", ip, port)


def static(name: str, listen: str, *servers: str, joining: Joining = Joining.NAME) -> StaticFrontend:
    lines = tuple(StaticServer(parse_address(text)) for text in servers)
    return StaticFrontend(name, parse_listen(listen), lines, joining=joining)


def layout(*frontends: StaticFrontend, **changes: object) -> Layout:
    return Layout(replace(Rules(frontends=frontends), **changes))  # type: ignore[arg-type]
