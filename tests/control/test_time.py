"""What time does: leases, mass lapses, servers that go out and come back."""

import asyncio
from pathlib import Path

from pylb.control.views import STATIC
from pylb.core.policy import HealthMode, HealthPolicy, LeaseBounds, Policy, Rules
from tests.control.harness import NODE_A, NODE_B, NODE_C, Control, control, target, until
from tests.core.claiming import static
from tests.support.ports import free_ports


def states(c: Control) -> dict[str, str]:
    return {f"{view.name}/{view.instance}": view.state for view in c.registry.each_registration()}


async def test_a_silent_registration_becomes_the_last_resort_and_its_port_stays_open(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        with target(30001, NODE_A, NODE_B):
            await c.put({port: 30001})
            await c.pass_time(40)
            await c.put({port: 30001}, NODE_B, instance="pod-2")
            await c.pass_time(30)
            assert c.ranks(port) == {NODE_A: 3, NODE_B: 0}
            assert c.kinds().count("stale") == 1
            await c.pass_time(40)
            assert c.ranks(port) == {NODE_A: 3, NODE_B: 3}
            assert c.sink.ports == {port}
            assert (await c.put({port: 30001})).result == "unchanged"
            assert c.ranks(port) == {NODE_A: 0, NODE_B: 3}


async def test_a_stale_registration_is_released_after_keep_stale(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path, rules=Rules(leases=LeaseBounds(keep_stale=86_400))) as c:
        await c.put({port: 30001})
        await c.pass_time(60 + 86_390)
        assert c.sink.ports == {port}
        await c.pass_time(20)
        assert c.sink.ports == set()
        assert c.registry.registrations_total["released"] == 1


async def test_a_registration_without_ttl_never_becomes_stale(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        await c.put({port: 30001}, ttl=None)
        await c.legacy(free_ports(1)[0], 30001)
        await c.pass_time(100_000)
        assert set(states(c).values()) == {"fresh"}


async def test_a_goodbye_keeps_the_port_open_until_somebody_else_comes(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        with target(30001, NODE_A, NODE_B):
            await c.put({port: 30001})
            assert (await c.put({port: 30001}, draining=True)).result == "updated"
            assert c.ranks(port) == {NODE_A: 3}
            await c.pass_time(180)
            assert states(c) == {"web/pod-1": "stale"}
            await c.put({port: 30001}, NODE_B, instance="pod-2")
            assert c.ranks(port) == {NODE_A: 3, NODE_B: 0}


async def test_when_most_fall_silent_together_nobody_is_demoted_and_an_alarm_says_so(tmp_path: Path) -> None:
    ports = free_ports(4)
    async with control(tmp_path) as c:
        for index, port in enumerate(ports):  # their beats are spread over a third of the TTL, so the first one lapses alone
            await c.put({port: 30001}, name=f"n{index}")
            await c.pass_time(5)
        await c.pass_time(3600)
        assert set(states(c).values()) == {"fresh"}
        assert c.registry.preserving
        alarms = [event.kind for event in c.heard if event.alarm]
        assert alarms == ["mass_lapse"]
        for index, port in enumerate(ports[:2]):
            await c.put({port: 30001}, name=f"n{index}")
        await c.pass_time(50)
        assert set(states(c).values()) == {"fresh"}
        assert "mass_lapse_over" in c.kinds()
        for index, port in enumerate(ports[:2]):
            await c.put({port: 30001}, name=f"n{index}")
        await c.pass_time(20)
        assert sorted(states(c).values()) == ["fresh", "fresh", "stale", "stale"]


async def test_who_said_goodbye_before_falling_silent_is_no_part_of_a_mass_lapse(tmp_path: Path) -> None:
    ports = free_ports(4)
    async with control(tmp_path) as c:
        for index, port in enumerate(ports):
            await c.put({port: 30001}, name=f"n{index}")
        for index, port in enumerate(ports[:3]):
            await c.put({port: 30001}, name=f"n{index}", draining=True)
        await c.pass_time(50)
        await c.put({ports[3]: 30001}, name="n3")
        await c.pass_time(30)
        assert sorted(states(c).values()) == ["fresh", "stale", "stale", "stale"]
        await c.pass_time(60)
        assert sorted(states(c).values()) == ["stale"] * 4
        assert "mass_lapse" not in c.kinds()
        await c.put({ports[0]: 30001}, name="n0")
        assert sorted(states(c).values()) == ["fresh", "stale", "stale", "stale"]


async def test_no_lease_ends_while_nobody_can_call(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        await c.put({port: 30001})
    restarted = Control(tmp_path, Rules())
    await restarted.registry.start()
    await restarted.pass_time(7200)
    assert states(restarted) == {"web/pod-1": "fresh"}
    await restarted.registry.webhook_is_up()
    await restarted.pass_time(58)
    assert states(restarted) == {"web/pod-1": "fresh"}
    restarted.registry.webhook_is_down()
    await restarted.pass_time(100)
    assert states(restarted) == {"web/pod-1": "fresh"}
    await restarted.registry.webhook_is_up()
    await restarted.pass_time(62)
    assert states(restarted) == {"web/pod-1": "stale"}
    await restarted.registry.stop()
    restarted.sink.close()


async def test_a_time_in_which_pylb_itself_was_stopped_is_nobodys_silence(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        await c.put({port: 30001})
        await c.pass_time(2)
        c.clock.now += 3600
        await c.registry.tick()
        assert states(c) == {"web/pod-1": "fresh"}
        await c.pass_time(58)
        assert states(c) == {"web/pod-1": "fresh"}
        await c.pass_time(4)
        assert states(c) == {"web/pod-1": "stale"}


async def test_failed_connects_take_a_server_out_and_probes_bring_it_back(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        with target(30001, NODE_A, NODE_B):
            await c.put({port: 30001})
            await c.put({port: 30001}, NODE_B, instance="pod-2")
        for _ in range(3):
            assert c.ranks(port) == {NODE_A: 0, NODE_B: 0}
            c.registry.connect_ended(*c.server(port), "refused")
        tables = len(c.sink.tables)
        await asyncio.sleep(0)  # the swap is not made inside the engine's own call
        assert len(c.sink.tables) == tables + 1
        assert c.ranks(port) == {NODE_A: 4, NODE_B: 0}
        down = next(view for view in c.registry.each_server() if view.address.ip == NODE_A)
        assert (down.state, down.reason, down.tried) == ("down", "refused", True)
        await c.pass_time(10, probing=True)
        assert c.ranks(port)[NODE_A] == 4
        with target(30001, NODE_A):
            await c.pass_time(40, probing=True)
        assert c.ranks(port) == {NODE_A: 0, NODE_B: 0}
        assert c.kinds().count("server_down") == c.kinds().count("server_up") == 1


async def test_what_the_engine_says_of_a_server_that_has_left_is_ignored(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        with target(30001, NODE_A, NODE_B):
            await c.put({port: 30001})
            old = c.server(port)
            await c.put({port: 30001}, NODE_B)
        for _ in range(9):
            c.registry.connect_ended(*old, "timeout")
        await asyncio.sleep(0)
        assert c.ranks(port) == {NODE_B: 0}
        await c.delete()
        c.registry.connect_ended(*old, None)


async def test_a_server_that_moved_away_and_back_starts_anew(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        with target(30001, NODE_A, NODE_B):
            await c.put({port: 30001})
            for _ in range(3):
                c.registry.connect_ended(*c.server(port), "refused")
            await c.put({port: 30001}, NODE_B)
            await c.put({port: 30001}, NODE_A)
        assert c.ranks(port) == {NODE_A: 0}


async def test_in_active_mode_a_silent_death_is_found_without_a_client(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    active = Policy(health=HealthPolicy(HealthMode.ACTIVE, interval=2.0))
    async with control(tmp_path, rules=Rules(defaults=active)) as c:
        with target(30001):
            await c.put({port: 30001})
            await c.pass_time(20, probing=True)
            assert c.ranks(port) == {NODE_A: 0}
        await c.pass_time(8, probing=True)
        assert c.ranks(port) == {NODE_A: 4}


async def test_static_servers_are_dialled_once_and_shown(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    rules = Rules(frontends=(static("web", f"*:{port}", f"{NODE_A}:30001", f"{NODE_C}:30001"),))
    async with control(tmp_path, rules=rules) as c:
        assert {view.reachable for view in c.registry.each_server()} == {"unknown"}
        with target(30001):
            await c.pass_time(2, probing=True)
        found = {view.address.ip: (view.reachable, view.rank, view.held_by) for view in c.registry.each_server()}
        assert found == {NODE_A: ("yes", 0, (STATIC,)), NODE_C: ("refused", 0, (STATIC,))}


async def test_run_does_all_of_it_until_it_is_cancelled_and_survives_a_bug(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        running = asyncio.get_running_loop().create_task(c.registry.run())
        with target(30001, NODE_A):
            await c.put({port: 30001})
        await c.put({port: 30001}, NODE_B)
        with target(30001, NODE_B):
            c.clock.now += 2.5
            await until(lambda: c.ranks(port) == {NODE_B: 0})
        c.registry._state.leases._goodbyes = None  # type: ignore[assignment]  # a bug in the making
        await until(lambda: "task_failed" in c.kinds())
        assert not running.done()
        c.registry._state.leases._leases = {}
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert running.cancelled()


async def test_run_ends_when_the_writer_does(tmp_path: Path) -> None:
    async with control(tmp_path) as c:
        running = asyncio.get_running_loop().create_task(c.registry.run())
        await asyncio.sleep(0)
        await c.registry.stop()
        await running
        assert not c.registry.ready
