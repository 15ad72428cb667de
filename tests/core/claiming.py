"""Short words for the tests of claims and tables."""

import itertools
from collections.abc import Callable, Container, Generator, Iterable
from dataclasses import replace
from typing import TypeVar

import pytest

from pylb.core.address import Address, Listen, parse_address, written_listen
from pylb.core.claims import Claims
from pylb.core.compose import ServerStates, all_listens, compose_frontend, compose_table, with_ports
from pylb.core.errors import Refused
from pylb.core.ownership import Change, adopting, announce, readmitting
from pylb.core.policy import JoinRule, ProxyProtocol, Rules, StaticFrontend, StaticServer
from pylb.core.registration import FrontendRequest, Key, Registration, State, legacy_key
from pylb.core.static_rules import StaticRules
from pylb.core.table import Table

A, B, C = "203.0.113.1", "203.0.113.2", "203.0.113.3"
FREE = StaticRules(Rules())


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
    wanted = tuple(FrontendRequest(port, target, send_proxy, backup=backup) for port, target in (ports or {443: 30443}).items())
    return Registration(Key(token, name, instance), name, ip, wanted, ttl, state)


def routed(*places: str, ip: str = A, token: str = "t", name: str = "web", instance: str = "pod-1") -> Registration:
    """Of places like "443" (a default route), "443+" (one that allows names) and "443 git.example.net"."""
    wanted = []
    for place in places:
        port, _, server_name = place.partition(" ")
        allows = port.endswith("+")
        wanted.append(FrontendRequest(int(port.rstrip("+")), 30443, server_name=server_name, allows_names=allows))
    return Registration(Key(token, name, instance), name, ip, tuple(wanted))


def legacy(port: int = 443, ip: str = A, *, token: str = "t", name: str = "legacy") -> Registration:
    return Registration(legacy_key(token, port), name, ip, (FrontendRequest(port, 30000 + port),), None)


def enter(
    claims: Claims,
    one: Registration,
    static_rules: StaticRules = FREE,
    *,
    takeover: bool = False,
    proven: frozenset[Address] = frozenset(),
) -> Change:
    return announce(claims, static_rules, one, takeover=takeover, proven=proven)


def having(*ones: Registration, static_rules: StaticRules = FREE, proven: frozenset[Address] = frozenset()) -> Claims:
    claims = Claims()
    for one in ones:
        claims = enter(claims, one, static_rules, proven=proven).claims
    return claims


def refused(call: Callable[[], Change]) -> Refused:
    """What it raises."""
    with pytest.raises(Refused) as caught:
        call()
    return caught.value


T = TypeVar("T")


def finished(steps: Generator[None, None, T]) -> T:
    """What comes out of it."""
    return counted_steps(steps)[0]


def counted_steps(steps: Generator[None, None, T]) -> tuple[T, int]:
    """What comes out of it, and in how many steps."""
    for count in itertools.count(1):
        try:
            next(steps)
        except StopIteration as end:
            return end.value, count
    raise AssertionError


def adopt(claims: Claims, static_rules: StaticRules, looped: Container[Key] = ()) -> Change:
    return finished(adopting(claims, static_rules, looped))


def readmit(registrations: Iterable[Registration], static_rules: StaticRules) -> tuple[Claims, list[Refused]]:
    return finished(readmitting(registrations, static_rules))


def compose(
    claims: Claims,
    static_rules: StaticRules,
    server_states: ServerStates,
    base: Table | None = None,
    touched: Iterable[Listen] | None = None,
) -> Table:
    """The table after `base`. `touched` None: all frontends are worked out."""
    old = base or Table()
    listens = all_listens(claims, static_rules, old) if touched is None else with_ports(touched)
    return compose_table(
        old,
        {
            listen: compose_frontend(claims, static_rules, server_states, listen, old.frontends.get(listen))
            for listen in listens
        },
    )


def at(text: str) -> Address:
    return parse_address(text)


def on(port: int, ip: str = "*", server_name: str = "") -> Listen:
    return Listen("tcp", ip, port, server_name=server_name)


def static(
    name: str, listen: str, *servers: str, joining: JoinRule = JoinRule.NAME, allows_names: bool = False
) -> StaticFrontend:
    lines = tuple(StaticServer(parse_address(text)) for text in servers)
    return StaticFrontend(name, written_listen(listen), lines, joining=joining, allows_names=allows_names)


def static_rules(*frontends: StaticFrontend, **changes: object) -> StaticRules:
    return StaticRules(replace(Rules(frontends=frontends), **changes))  # type: ignore[arg-type]
