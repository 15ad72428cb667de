"""Sets in control: what a restart and an older pylb make of them, and who is dialled before the answer."""

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

from pylb.control.views import Outcome
from pylb.core.access import AccessList, AccessRule
from pylb.core.address import Ports, parse_network
from pylb.core.policy import JoinRule, Rules, StaticFrontend
from pylb.core.registration import SET, Announcement, FrontendRequest
from pylb.core.server_set import Terms
from tests.control.harness import NODE_A, NODE_B, NODE_C, Control, control, target, token
from tests.core.claiming import on
from tests.support.ports import free_ports

LOCAL = AccessList([AccessRule(True, parse_network("127.0.0.0/8"))])


async def put(c: Control, port: int, *ips: str, to: int = 30001, **more: Any) -> Outcome:
    members = tuple((f"node-{number}", ip, 1 + number) for number, ip in enumerate(ips))
    announcement = Announcement((FrontendRequest(port, to),), None, 900.0, members=members, **more)
    return await c.registry.calls.announce("web", SET, announcement, c.caller())


async def test_a_set_is_there_after_a_restart_as_it_was(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        await put(c, port, NODE_A, NODE_B, terms=Terms(LOCAL, 7200.0), sequence=1 << 60)
        before = list(c.registry.each_registration())
    payload = json.loads((tmp_path / "state.json").read_text())["payload"]
    assert payload["registrations"][0]["needs"] == ["servers on several machines"]
    async with control(tmp_path) as c:
        (one,) = c.registry.each_registration()
        assert (one.members, one.sequence, one.frontends) == (before[0].members, 1 << 60, before[0].frontends)
        (frontend,) = c.registry.table.frontends.values()
        assert (frontend.policy.access, frontend.policy.timeouts.idle) == (LOCAL, 7200.0)
        assert [(server.name, server.weight) for server in frontend.servers] == [("node-0", 1), ("node-1", 2)]
        again = await put(c, port, NODE_B, NODE_A, terms=Terms(LOCAL, 7200.0), sequence=(1 << 60) - 1)
        assert again.result == "superseded"


async def test_the_sequence_of_a_single_registration_is_there_after_a_restart_too(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    announcement = Announcement((FrontendRequest(port, 30001),), None, 900.0, sequence=7)
    async with control(tmp_path) as c:
        await c.registry.calls.announce("web", "pod-1", announcement, c.caller())
    async with control(tmp_path) as c:
        older = await c.registry.calls.announce("web", "pod-1", replace(announcement, ttl=60.0, sequence=6), c.caller())
        assert older.result == "superseded"


async def test_the_answer_about_a_range_does_not_count_servers_that_nobody_asks(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    wanted = FrontendRequest(port, 30001, last=port + 1, target_last=30002)
    async with control(tmp_path) as c:
        announcement = Announcement((wanted,), None, 900.0, members=(("node-0", NODE_A, None), ("node-1", NODE_B, None)))
        (one,) = (await c.registry.calls.announce("web", SET, announcement, c.caller())).frontends
        assert (one.port, one.last, one.servers) == (port, port + 1, (2, None))


async def test_calls_with_an_older_state_do_not_keep_the_newer_one_fresh(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        await put(c, port, NODE_A, sequence=5)
        await c.pass_time(600)
        assert (await put(c, port, NODE_B, sequence=4)).result == "superseded"
        await c.pass_time(400)
        assert (await put(c, port, NODE_B, sequence=4)).result == "moved"


async def test_a_plain_set_is_restored_without_terms(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        await put(c, port, NODE_A)
    async with control(tmp_path) as c:
        assert (await put(c, port, NODE_A)).result == "unchanged"


async def test_the_answer_waits_for_the_first_server_that_answers_and_says_how_many_do(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        with target(30001, NODE_B):
            outcome = await put(c, port, NODE_A, NODE_B, NODE_C)
        (one,) = outcome.frontends
        assert one.servers is not None
        assert one.servers[0] == 3
        assert c.ranks(port)[NODE_B] == 0, "proven before clients come"


async def test_a_machine_that_refuses_no_datagram_counts_as_answering(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    members = (("silent", NODE_A, None), ("refuses", NODE_B, None))
    with socket.socket(type=socket.SOCK_DGRAM) as silent:
        silent.bind((NODE_A, 30001))
        async with control(tmp_path, replace(token(), ports=Ports((), udp=((port, port),)))) as c:
            announcement = Announcement((FrontendRequest(port, 30001, protocol="udp"),), None, 900.0, members=members)
            caller = c.caller()
            await c.registry.calls.announce("web", SET, announcement, caller)
            await c.registry.probe()
            (one,) = (await c.registry.calls.announce("web", SET, announcement, caller)).frontends
            assert (one.protocol, one.servers) == ("udp", (2, 1))


async def test_a_repeated_set_is_a_beat_and_a_release_closes_its_port(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        await put(c, port, NODE_A, NODE_B)
        saves = c.store.saves
        assert (await put(c, port, NODE_A, NODE_B)).result == "unchanged"
        assert c.store.saves == saves
        assert (await c.delete(name="web", instance=SET)).result == "released"
        assert not c.registry.table.frontends
        text = next(event.text for event in c.heard if event.kind == "created")
        assert text == f"created t/web: {port} -> port 30001 of 2 machines"


async def test_terms_have_no_effect_on_the_operators_own_frontend_and_the_answer_says_so(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    rules = Rules(frontends=(StaticFrontend("web", on(port), joining=JoinRule.NAME),))
    async with control(tmp_path, rules=rules) as c:
        outcome = await put(c, port, NODE_A, terms=Terms(LOCAL))
        assert f"no effect on port {port}" in outcome.note
