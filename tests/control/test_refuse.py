"""A registration whose server serves only while it passes its check, from the call to the table, and over a restart."""

from pathlib import Path

import pytest

from pylb.core.policy import UNSAID, Balance, Check, HealthMode, HealthOverride, HealthPolicy, Policy, Rules, WhenAllDown
from pylb.core.registration import Announcement, FrontendRequest
from pylb.core.table import DOWN
from tests.control.harness import NODE_A, NODE_B, Control, control, target
from tests.support.ports import free_ports

REFUSE = HealthOverride(Check(), when_all_down=WhenAllDown.REFUSE)


async def announce(c: Control, port: int, ip: str = NODE_A, instance: str = "pod-1", health: HealthOverride = REFUSE) -> str:
    wanted = Announcement((FrontendRequest(port, 30001, health=health),))
    return (await c.registry.calls.announce("db", instance, wanted, c.caller(ip))).note


def serving(c: Control, port: int) -> set[str]:
    frontend, _ = next((one, listen) for listen, one in c.registry.table.frontends.items() if listen.port == port)
    return {server.address.ip for server in frontend.servers if frontend.serves(server)}


async def test_it_is_down_from_its_first_table_on_until_its_check_has_passed(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        await announce(c, port)
        assert [server.rank for table in c.sink.tables for one in table.frontends.values() for server in one.servers] == [DOWN]
        await c.pass_time(6, probing=True)
        assert serving(c, port) == set()
        with target(30001):
            await announce(c, port)  # its beat has it asked at once
            for _ in range(3):
                await c.pass_time(2, probing=True)
            assert serving(c, port) == {NODE_A}
            assert c.kinds()[-1] == "server_up"


async def test_the_others_of_its_frontend_are_tried_as_ever(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        await announce(c, port)
        await announce(c, port, NODE_B, "pod-2", UNSAID)
        for _ in range(3):
            for ip in (NODE_A, NODE_B):
                c.registry.connect_ended(*c.server(port, ip), "refused")
        await c.pass_time(2)
        assert c.ranks(port) == {NODE_A: DOWN, NODE_B: DOWN}
        assert serving(c, port) == {NODE_B}


@pytest.mark.parametrize("up", [True, False])
async def test_a_restart_opens_no_closed_door_and_closes_no_open_one(tmp_path: Path, up: bool) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        with target(30001):
            await announce(c, port)
            await c.pass_time(4, probing=True)
        if not up:
            for _ in range(3):
                c.registry.connect_ended(*c.server(port), "refused")
            await c.pass_time(2)
        assert serving(c, port) == ({NODE_A} if up else set())
    async with control(tmp_path) as c:
        assert len(c.sink.tables) == 1  # as of the very first
        assert serving(c, port) == ({NODE_A} if up else set())


async def test_a_killed_pylb_remembers_what_was_so_some_seconds_ago(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        with target(30001):
            await announce(c, port)
            await c.pass_time(4, probing=True)
        saved = c.store.saves
        for _ in range(3):
            c.registry.connect_ended(*c.server(port), "refused")
        await c.pass_time(10)
        assert c.store.saves > saved


async def test_a_check_that_nobody_will_ask_is_said_in_the_answer(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path, rules=Rules(defaults=Policy(health=HealthPolicy(HealthMode.NONE)))) as c:
        assert "the mode of its frontend is none" in await announce(c, port)
        assert serving(c, port) == {NODE_A}
        assert await announce(c, port, health=UNSAID) == ""


async def test_a_weight_that_nobody_will_look_at_is_said_in_the_answer(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path, rules=Rules(defaults=Policy(balance=Balance.FIRST))) as c:
        wanted = FrontendRequest(port, 30001, weight=2)
        answer = await c.registry.calls.announce("db", "pod-1", Announcement((wanted,)), c.caller(NODE_A))
        assert f"weight of port {port} has no effect" in answer.note
