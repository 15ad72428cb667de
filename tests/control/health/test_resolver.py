"""Servers that are host names: all their addresses, the last good answer, and nobody who waits."""

import asyncio
from pathlib import Path

import pytest

from pylb.control.health.resolver import AT_ONCE, Resolver
from pylb.control.health_sentence import Condition, condition
from pylb.control.views import STATIC
from pylb.core.address import HostPort, Listen
from pylb.core.auth import Keyring
from pylb.core.policy import Family, Rules, StaticFrontend, StaticServer
from pylb.host.machine import resolve
from tests.control.harness import NODE_A, NODE_C, Clock, Control, control, target
from tests.support.ports import free_ports

NODES = HostPort("nodes.example.net", 30443)
ONE, TWO, THREE = "198.51.100.7", "198.51.100.8", "2001:db8::9"


def rules(port: int, *servers: HostPort, interval: float = 30.0) -> Rules:
    lines = tuple(StaticServer(server, weight=2, backup=True) for server in servers)
    return Rules((StaticFrontend("web", Listen("tcp", "*", port), lines),), resolve_interval=interval)


def servers(c: Control) -> dict[str, str]:
    return {view.server: str(view.address) for view in c.registry.each_server()}


async def test_all_addresses_of_a_name_are_servers_as_its_line_says(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path, rules=rules(port, NODES)) as c:
        assert servers(c) == {}
        c.dns["nodes.example.net"] = [TWO, ONE, THREE, ONE]
        await c.registry.resolve()
        assert servers(c) == {
            f"{NODES}@{ONE}": f"{ONE}:30443",
            f"{NODES}@{TWO}": f"{TWO}:30443",
            f"{NODES}@{THREE}": f"[{THREE}]:30443",
        }
        assert {(view.weight, view.rank, view.held_by) for view in c.registry.each_server()} == {(2, 2, (STATIC,))}
        assert [event.text for event in c.heard if event.kind == "resolved"] == [f"nodes.example.net is {ONE}, {TWO}, {THREE}"]


@pytest.mark.parametrize(
    ("family", "expected"), [(Family.IPV4, {ONE, TWO}), (Family.IPV6, {THREE}), (Family.ANY, {ONE, TWO, THREE})]
)
async def test_a_line_may_want_the_addresses_of_one_family_alone(tmp_path: Path, family: Family, expected: set[str]) -> None:
    (port,) = free_ports(1)
    lines = (StaticServer(NODES, resolve=family),)
    async with control(tmp_path, rules=Rules((StaticFrontend("web", Listen("tcp", "*", port), lines),))) as c:
        c.dns["nodes.example.net"] = [ONE, TWO, THREE]
        await c.registry.resolve()
        assert {view.address.ip for view in c.registry.each_server()} == expected


async def test_an_address_that_never_answered_is_no_trouble_while_another_of_its_name_does(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    lines = (StaticServer(HostPort("nodes.example.net", 30443)),)
    async with control(tmp_path, rules=Rules((StaticFrontend("web", Listen("tcp", "*", port), lines),))) as c:

        def word() -> Condition:
            [one] = c.registry.each_frontend()
            return condition(one, {}, 0.0)[0]

        c.dns["nodes.example.net"] = [NODE_A, NODE_C]
        await c.registry.resolve()
        await c.pass_time(4, probing=True)
        assert word() is Condition.DOWN
        with target(30443, NODE_A):
            await c.pass_time(4, probing=True)
            assert {view.address.ip: view.not_missed for view in c.registry.each_server()} == {NODE_A: False, NODE_C: True}
            assert word() is Condition.HEALTHY
            with target(30443, NODE_C):
                await c.pass_time(4, probing=True)
            for _ in range(3):
                c.registry.connect_ended(*c.server(port, NODE_C), "refused")
            await c.pass_time(2)
            assert word() is Condition.DEGRADED  # it has answered once: now it is missed


async def test_a_new_name_has_its_addresses_in_the_first_table_that_has_it(tmp_path: Path) -> None:
    port, other = free_ports(2)
    made = Control(tmp_path, rules(port, NODES))
    made.dns["nodes.example.net"] = [ONE]
    made.dns["late.example.net"] = [TWO]
    await made.registry.start()
    try:
        assert [list(one.servers) != [] for one in made.sink.tables[0].frontends.values()] == [True]
        await made.registry.rules.reload(rules(other, HostPort("late.example.net", 30443)), made.keyring)
        assert set(servers(made).values()) == {f"{TWO}:30443"}
        assert all(one.servers for table in made.sink.tables for one in table.frontends.values())
    finally:
        await made.registry.stop()
        made.sink.close()


async def test_names_that_do_not_answer_delay_a_start_only_so_long_and_no_other_names(tmp_path: Path) -> None:
    asked: list[str] = []

    async def resolve(host: str) -> list[str]:
        asked.append(host)
        if host.startswith("silent"):
            await asyncio.sleep(3600)  # the loop holds it; of an Event that nobody has, a collection would free the task
        return [ONE]

    resolver = Resolver(resolve, lambda: 0.0, lambda _low, _high: 1.0, lambda *_: None)
    await resolver.first_look([*(f"silent-{number}" for number in range(AT_ONCE - 1)), "fast-1", "fast-2"], 0.05)
    assert set(resolver.answers) == {"fast-1", "fast-2"}
    assert len(asked) == AT_ONCE + 1


async def test_an_address_that_goes_leaves_and_the_others_keep_their_labels(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path, rules=rules(port, NODES)) as c:
        c.dns["nodes.example.net"] = [ONE, TWO]
        await c.registry.resolve()
        before = servers(c)
        c.dns["nodes.example.net"] = [TWO, THREE]
        await c.registry.resolve()
        assert servers(c) == before  # not asked again yet
        c.clock.now += 30
        await c.registry.resolve()
        assert servers(c).items() & before.items() == {(f"{NODES}@{TWO}", f"{TWO}:30443")}
        assert c.heard[-1].text == f"nodes.example.net is {TWO}, {THREE}, no longer {ONE}"
        tables = len(c.sink.tables)
        c.clock.now += 30
        await c.registry.resolve()
        assert len(c.sink.tables) == tables


@pytest.mark.parametrize("failure", [[], TimeoutError(), OSError("no DNS"), ["fe80::1%eth0"]])
async def test_a_failure_takes_no_server_away_and_is_told_once(tmp_path: Path, failure: list[str] | Exception) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path, rules=rules(port, NODES)) as c:
        c.dns["nodes.example.net"] = [ONE]
        await c.registry.resolve()
        c.dns["nodes.example.net"] = failure
        for _ in range(20):
            c.clock.now += 300
            await c.registry.resolve()
        assert servers(c) == {f"{NODES}@{ONE}": f"{ONE}:30443"}
        (told,) = [event for event in c.heard if event.kind == "unresolved"]
        assert told.alarm
        assert f"its last addresses count on: {ONE}" in told.text
        c.dns["nodes.example.net"] = [TWO]
        c.clock.now += 300
        await c.registry.resolve()
        assert servers(c) == {f"{NODES}@{TWO}": f"{TWO}:30443"}


async def test_a_start_without_dns_serves_what_was_known(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path, rules=rules(port, NODES)) as c:
        c.dns["nodes.example.net"] = [ONE]
        await c.registry.resolve()
    async with control(tmp_path, rules=rules(port, NODES)) as c:
        assert servers(c) == {f"{NODES}@{ONE}": f"{ONE}:30443"}


async def test_a_reload_keeps_what_is_known_and_forgets_what_nobody_needs(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    other = HostPort("other.example.net", 1)
    async with control(tmp_path, rules=rules(port, NODES)) as c:
        c.dns = {"nodes.example.net": [ONE], "other.example.net": [TWO]}
        await c.registry.resolve()
        await c.registry.rules.reload(rules(port, NODES, other), Keyring(()))
        assert servers(c) == {f"{NODES}@{ONE}": f"{ONE}:30443", f"{other}@{TWO}": f"{TWO}:1"}
        await c.registry.resolve()
        assert set(servers(c)) == {f"{NODES}@{ONE}", f"{other}@{TWO}"}
        await c.registry.rules.reload(rules(port, other), Keyring(()))
        assert set(servers(c)) == {f"{other}@{TWO}"}
        assert set(c.registry._state.resolver.answers) == {"other.example.net"}


async def test_what_no_server_may_be_is_left_out(tmp_path: Path) -> None:
    """A name that points to pylb itself, or to where nobody may be sent."""
    (port,) = free_ports(1)
    looped = HostPort("lb.example.net", port)
    async with control(tmp_path, rules=rules(port, looped)) as c:
        c.dns["lb.example.net"] = ["127.0.0.1", "169.254.169.254", "0.0.0.0", ONE]
        await c.registry.resolve()
        assert servers(c) == {f"{looped}@{ONE}": f"{ONE}:{port}"}


async def test_a_name_whose_answer_does_not_come_holds_up_no_other() -> None:
    clock, never = Clock(), asyncio.Event()

    async def slow(host: str) -> list[str]:
        if host == "slow":
            await never.wait()
        return [ONE]

    resolver = Resolver(slow, clock, lambda _low, _high: 1.0, lambda _kind, _text, _alarm: None)
    resolver.follow(["slow", "fast"], 30.0)
    first = asyncio.get_running_loop().create_task(resolver.ask())
    await asyncio.sleep(0)
    clock.now += 30
    for _ in range(3):
        await asyncio.sleep(0)
    assert resolver.answers == {"fast": (ONE,)}
    assert await resolver.ask() == set()  # fast says the same, and slow is being asked
    resolver.follow(["fast"], 30.0)
    never.set()
    assert await first == {"fast"}
    assert resolver.answers == {"fast": (ONE,)}


async def test_of_a_thousand_names_some_are_asked_for_at_a_time() -> None:
    asking = most = 0

    async def answer(_host: str) -> list[str]:
        nonlocal asking, most
        asking += 1
        most = max(most, asking)
        await asyncio.sleep(0)
        asking -= 1
        return [ONE]

    resolver = Resolver(answer, Clock(), lambda _low, _high: 1.0, lambda _kind, _text, _alarm: None)
    resolver.follow([f"{number}.example.net" for number in range(1000)], 30.0)
    rounds = 0
    while resolver.is_due():
        await resolver.ask()
        rounds += 1
    assert (len(resolver.answers), most, rounds) == (1000, AT_ONCE, 1000 // AT_ONCE)


async def test_the_systems_own_resolver_knows_localhost() -> None:
    resolver = Resolver(resolve, Clock(), lambda _low, _high: 1.0, lambda _kind, _text, _alarm: None)
    resolver.follow(["localhost"], 30.0)
    assert await resolver.ask() == {"localhost"}
    assert "127.0.0.1" in resolver.answers["localhost"]
