"""What the operator may say: to release, import, drain and weigh; of a node it follows the address and ends, of a server it
ends with the registration's move."""

import sys
from pathlib import Path
from types import FrameType

import pytest

from pylb.api.explain import ports_of
from pylb.api.routes import rows
from pylb.cli.routes import table
from pylb.cli.tables import written
from pylb.control.new_registration import ImportedServer
from pylb.core.address import Address, parse_ports
from pylb.core.errors import Refused
from pylb.core.operator_overrides import changed
from pylb.core.policy import AdminState, Rules
from pylb.core.registration import Announcement, FrontendRequest
from tests.control.harness import NODE_A, NODE_B, Control, control, target, token
from tests.core.claiming import static
from tests.support.ports import free_ports, ports_in_a_row

DAY = 86_400.0


def states(c: Control) -> dict[str, str]:
    return {f"{view.server}@{view.address.ip}": view.state for view in c.registry.each_server()}


async def test_a_word_about_a_node_hits_what_comes_there_later_and_ends_after_a_day_over_restarts(tmp_path: Path) -> None:
    port, other = free_ports(2)
    with target(30001, NODE_A, NODE_B):
        async with control(tmp_path) as c:
            await c.put({port: 30001}, ttl=None)
            await c.registry.operator.set_admin(NODE_A, AdminState.DRAIN)
            await c.put({other: 30001}, name="mail", instance="pod-7", ttl=None)
            assert states(c) == {f"pod-1@{NODE_A}": "drain", f"pod-7@{NODE_A}": "drain"}
            ((who, word, hits),) = await c.registry.operator.words()
            assert (who, len(hits), word.until) == (NODE_A, 2, 1_700_001_000 + DAY)
            await c.delete(name="mail", instance="pod-7")
            await c.put({port: 30001}, NODE_B, ttl=None)
            assert states(c)[f"pod-1@{NODE_B}"] == "up"  # it follows the address, not the pod
        async with control(tmp_path) as c:
            assert len(await c.registry.operator.words()) == 1
            await c.put({other: 30001}, name="mail", instance="pod-8", ttl=None)
            assert states(c)[f"pod-8@{NODE_A}"] == "drain"
            c.clock.now += DAY
            await c.registry.tick()
            assert await c.registry.operator.words() == []
            assert states(c)[f"pod-8@{NODE_A}"] == "up"
            assert "admin_over" in c.kinds()


async def test_a_port_of_udp_is_listed_drained_explained_and_released_by_its_own_name(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    wanted = (FrontendRequest(port, 30001), FrontendRequest(port, 30002, protocol="udp"))
    async with control(tmp_path, token(any_port_except=frozenset())) as c:
        await c.registry.calls.announce("web", "pod-1", Announcement(wanted), c.caller())
        listed = await rows(c.registry)
        assert [(one["port"], one.get("protocol"), one["frontend"]) for one in listed] == [
            (port, None, f"web-{port}"),
            (port, "udp", f"web-{port}-udp"),
        ]
        assert [cells.split()[0] for cells in written([table(listed)]).splitlines() if f"web-{port}" in cells] == [
            str(port),
            f"{port}/udp",
        ]
        assert [one["address"] for one in await rows(c.registry, ("udp", port))] == [f"{NODE_A}:30002/udp"]
        assert await ports_of(c.registry, "web") == [("tcp", port), ("udp", port)]
        assert await ports_of(c.registry, f"{port}/udp") == [("udp", port)]
        await c.registry.operator.set_admin(f"{port}/udp/pod-1", AdminState.DRAIN)
        assert {view.listen.protocol: view.state for view in c.registry.each_server()} == {"tcp": "unproven", "udp": "drain"}
        with pytest.raises(Refused, match="nothing is registered as"):
            await c.registry.operator.release_any("1/udp")
        assert await c.registry.operator.release_any(f"{port}/udp") == [f"released t/web/pod-1, port {port}/udp"]
        assert [str(listen) for listen in c.registry.table.frontends] == [f"*:{port}"]
        assert c.registry.events()[-1].text == f"released on port {port}/udp; closed: {port}/udp"


async def test_a_range_is_one_row_kept_over_a_restart_and_released_by_any_of_its_ports(tmp_path: Path) -> None:
    first = ports_in_a_row(3)
    wanted = FrontendRequest(first, 30001, last=first + 1, target_last=30002)
    name, to = f"web-{first}-{first + 1}", f"{NODE_A}:30001-30002"
    async with control(tmp_path) as c:
        outcome = await c.registry.calls.announce("web", "pod-1", Announcement((wanted,)), c.caller())
        [place] = outcome.frontends
        assert (place.port, place.last, place.reachable) == (first, first + 1, "unknown")  # it is not dialled
        assert c.sink.ports == {first, first + 1}
        [row] = await rows(c.registry)
        assert (row["port"], row["last_port"], row["frontend"], row["address"]) == (first, first + 1, name, to)
        assert row["state"] == "up"
        assert f"{first}-{first + 1}" in written([table([row])])
        assert [one["address"] for one in await rows(c.registry, ("tcp", first + 1))] == [to]
        [(met, answer)] = (await c.registry.ask_now(next(iter(c.registry.table.frontends)))).values()
        assert (met, answer) == ("not asked", "not asked")
        assert (await c.registry.calls.announce("web", "pod-1", Announcement((wanted,)), c.caller())).result == "unchanged"
    async with control(tmp_path) as c:
        assert c.sink.ports == {first, first + 1}
        [row] = await rows(c.registry)
        assert (row["address"], row["state"]) == (to, "up")
        assert [one.number for one in c.registry.history(str(first + 1))]
        await c.registry.operator.set_admin(f"{name}/{to}", AdminState.DRAIN)
        await c.registry.operator.release_any(str(first + 1))
        assert not c.sink.ports
        assert c.registry.checks == 0


async def test_a_port_of_a_range_that_somebody_has_is_named_and_none_stays_open(tmp_path: Path) -> None:
    first = ports_in_a_row(3)
    with target(first + 1, "127.0.0.1"):
        async with control(tmp_path) as c:
            wanted = FrontendRequest(first, 30001, last=first + 2)
            with pytest.raises(Refused, match=f"port {first + 1} is in use"):
                await c.registry.calls.announce("web", "pod-1", Announcement((wanted,)), c.caller())
            assert (c.sink.ports, dict(c.registry.table.frontends)) == (set(), {})


async def test_a_word_about_a_server_ends_with_its_move_and_has_no_other_end(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with target(30001, NODE_A, NODE_B):
        async with control(tmp_path) as c:
            await c.put({port: 30001}, ttl=None)
            await c.put({port: 30001}, NODE_B, instance="pod-2", ttl=None)
            await c.registry.operator.set_admin(f"{port}/pod-1", AdminState.MAINT)
            c.clock.now += 3 * DAY
            await c.registry.tick()
            assert states(c) == {f"pod-1@{NODE_A}": "maint", f"pod-2@{NODE_B}": "up"}
            await c.put({port: 30001}, NODE_B, ttl=None)
            assert await c.registry.operator.words() == []
            await c.put({port: 30001}, NODE_A, ttl=None)
            assert states(c)[f"pod-1@{NODE_A}"] == "up"


async def test_ready_of_a_node_takes_back_what_was_said_of_its_servers_too(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with target(30001):
        async with control(tmp_path) as c:
            await c.put({port: 30001}, ttl=None)
            await c.registry.operator.set_admin(f"{port}/pod-1", AdminState.MAINT)
            await c.registry.operator.set_admin(NODE_A, AdminState.DRAIN, 60.0)
            await c.registry.operator.set_admin(NODE_A, AdminState.READY)
            assert await c.registry.operator.words() == []
            assert set(states(c).values()) <= {"up", "unproven"}


async def test_the_operator_releases_a_port_or_a_name(tmp_path: Path) -> None:
    one, two, three = free_ports(3)
    async with control(tmp_path) as c:
        await c.put({one: 30001, two: 30002})
        await c.put({one: 30001, two: 30002}, NODE_B, instance="pod-2")
        await c.legacy(three, 30003)
        assert await c.registry.operator.release_any(str(two)) == [
            f"released t/web/pod-1, port {two}",
            f"released t/web/pod-2, port {two}",
        ]
        assert c.sink.ports == {one, three}
        assert await c.registry.operator.release_any("web/pod-2") == ["released t/web/pod-2"]
        assert await c.registry.operator.release_any("web") == ["released t/web/pod-1"]
        assert await c.registry.operator.release_any("old") == ["released t/old (legacy)"]
        assert c.sink.ports == set()
        for nobody in ("web", "65536", "9" * 5000):
            with pytest.raises(Refused, match="not_found"):
                await c.registry.operator.release_any(nobody)


async def test_the_operator_releases_one_route_of_a_port_or_its_default_route(tmp_path: Path) -> None:
    """A port alone means all of its routes, which have several owners."""
    (port,) = free_ports(1)
    names = ("git.example.net", "*.example.net", "")
    async with control(tmp_path, token(server_names=("**.example.net",))) as c:
        for who, name in zip(("git", "apps", "web"), names, strict=True):
            wanted = FrontendRequest(port, 30001, server_name=name, allows_names=not name)
            await c.registry.calls.announce(who, "pod-1", Announcement((wanted,)), c.caller())
        release = c.registry.operator.release_any
        assert await release(str(port), "git.example.net") == [f"released t/git/pod-1, port {port} git.example.net"]
        assert c.registry.events()[-1].text == f"released on port {port} git.example.net; closed: {port} git.example.net"
        for what, name in ((str(port), "git.example.net"), ("web", ""), ("web", "git.example.net")):
            with pytest.raises(Refused):
                await release(what, name)
        assert await release(str(port), "") == [f"released t/web/pod-1, port {port} (default route)"]
        assert {str(listen) for listen in c.registry.table.frontends} == {f"*:{port}", f"*:{port} *.example.net"}
        assert await release(str(port)) == [f"released t/apps/pod-1, port {port}"]
        assert c.sink.ports == set()


async def test_who_releases_a_static_frontend_learns_where_it_is_written(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path, rules=Rules(frontends=(static("web", f"*:{port}", f"{NODE_A}:30001"),))) as c:
        for what in ("web", str(port)):
            with pytest.raises(Refused) as caught:
                await c.registry.operator.release_any(what)
            assert caught.value.hint == "it is a static frontend: remove it from the config, and `pylb reload`"


async def test_old_haproxy_servers_are_imported_as_legacy_registrations(tmp_path: Path) -> None:
    one, two = free_ports(2)
    tokens = (token("a", ports=parse_ports([one])), token("b", ports=parse_ports([one, two])))
    async with control(tmp_path, *tokens) as c:
        items = [ImportedServer(port, Address(NODE_A, 30443), "old") for port in (one, two, 22)]
        lines = await c.registry.operator.import_legacy(items, "")
        assert "several tokens may open" in lines[0]
        assert lines[1] == f"created {two} -> {NODE_A}:30443"
        assert "no token that may open port 22" in lines[2]
        assert (await c.registry.operator.import_legacy(items[:1], "a")) == [f"created {one} -> {NODE_A}:30443"]
        assert "cannot be" in (await c.registry.operator.import_legacy([ImportedServer(two, Address("169.254.1.1", 1))]))[0]
        assert (
            "may not aim at port 22" in (await c.registry.operator.import_legacy([ImportedServer(two, Address(NODE_A, 22))]))[0]
        )
        with target(30443, NODE_A):
            await c.pass_time(2, probing=True)
        assert c.ranks(one) == {NODE_A: 0}


def weights(c: Control, port: int) -> dict[str, int]:
    (frontend,) = [one for listen, one in c.registry.table.frontends.items() if listen.port == port]
    return {server.address.ip: server.weight for server in frontend.servers}


async def test_a_drained_node_stays_drained_when_its_pod_comes_back_and_after_a_restart(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        with target(30001, NODE_A, NODE_B):
            await c.put({port: 30001})
            await c.put({port: 30001}, NODE_B, instance="pod-2")
            (line,) = await c.registry.operator.set_admin(NODE_A, AdminState.DRAIN)
            assert line == f"drain: web-{port}/pod-1 ({NODE_A}:30001)"
            await c.delete()
            await c.put({port: 30001}, instance="pod-3")
        assert weights(c, port) == {NODE_A: 0, NODE_B: 1}
        assert [event.text for event in c.heard if event.kind == "admin"] == [line]
    async with control(tmp_path) as c:
        assert weights(c, port) == {NODE_A: 0, NODE_B: 1}
        assert {view.state for view in c.registry.each_server()} == {"drain", "up"}
        await c.registry.operator.set_admin(f"{port}/pod-3", AdminState.READY)
        await c.registry.operator.set_weight(f"{port}/pod-2", 9)
        assert weights(c, port) == {NODE_A: 1, NODE_B: 9}
        await c.registry.operator.set_weight(f"{port}/pod-2", None)
        assert weights(c, port) == {NODE_A: 1, NODE_B: 1}


async def test_a_word_of_the_operator_goes_with_its_frontend(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        with target(30001):
            await c.put({port: 30001})
            await c.registry.operator.set_weight(f"{port}/pod-1", 9)
            await c.delete()
            await c.put({port: 30001})
        assert weights(c, port) == {NODE_A: 1}


async def test_a_word_about_nobody_changes_nothing_and_one_that_says_nothing_new_is_not_written(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        with target(30001):
            await c.put({port: 30001})
        before = c.picture()
        with pytest.raises(Refused, match="no server is 'web/pod-9'"):
            await c.registry.operator.set_admin("web/pod-9", AdminState.MAINT)
        assert c.picture() == before
        saves = c.store.saves
        await c.registry.operator.set_admin(f"{port}/pod-1", AdminState.READY)
        assert c.store.saves == saves


async def test_a_word_about_a_port_on_many_addresses_copies_what_is_set_once(tmp_path: Path) -> None:
    """All settings were copied for each server that it named."""
    (port,) = free_ports(1)
    frontends = tuple(static(f"web-{number}", f"127.0.1.{number}:{port}", "192.0.2.7:30443") for number in range(1, 41))
    copies = 0

    def note(frame: FrameType, event: str, _what: object) -> None:
        nonlocal copies
        copies += event == "call" and frame.f_code is changed.__code__

    async with control(tmp_path, rules=Rules(frontends=frontends)) as c:
        sys.setprofile(note)
        try:
            lines = await c.registry.operator.set_admin(f"{port}/192.0.2.7:30443", AdminState.DRAIN)
        finally:
            sys.setprofile(None)
        assert len(lines) == len(c.registry._state.desired.overrides) == 40
        assert copies <= 2
