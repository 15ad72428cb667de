"""pylb restarts: what was answered is there again and serves before anybody calls, whatever became of the snapshot."""

import asyncio
from pathlib import Path

import pytest

from pylb.control.persistence import NUMBERS_AHEAD
from pylb.control.storage.store import StateLocked, Store
from pylb.core.policy import Check, CheckKind, HealthOverride, LeaseBounds, Rules, WhenAllDown
from pylb.core.registration import Announcement, FrontendRequest
from tests.control.harness import NODE_A, NODE_B, NODE_C, Control, control, target, token
from tests.core.claiming import static
from tests.support.ports import free_ports


async def test_everything_answered_is_there_after_a_restart_and_serves_before_anybody_calls(tmp_path: Path) -> None:
    ports = free_ports(5)
    with target(30001, NODE_A):
        crashed = Control(tmp_path, Rules())
        await crashed.registry.start()
        await crashed.put({ports[0]: 30001, ports[1]: 30002})
        await crashed.put({ports[0]: 30001, ports[1]: 30002}, NODE_B)
        await crashed.put({ports[0]: 30001, ports[1]: 30002}, NODE_C, instance="pod-2", ttl=None)
        await crashed.legacy(ports[2], 30003)
        await crashed.put({ports[3]: 30004}, name="gone")
        await crashed.delete(name="gone")
    held = [(view.token, view.name, view.instance, view.address) for view in crashed.registry.each_registration()]
    ranks = crashed.ranks(ports[0])
    generation = crashed.registry.table.generation
    # a crash: no final snapshot, only the kernel closing the lock and the ports
    crashed.registry._writing.cancel()  # type: ignore[union-attr]
    crashed.store.close()
    crashed.sink.close()
    async with control(tmp_path) as c:
        assert c.sink.ports == set(ports[:3])
        assert [(v.token, v.name, v.instance, v.address) for v in c.registry.each_registration()] == held
        assert c.ranks(ports[0]) == ranks == {NODE_A: 0, NODE_B: 1, NODE_C: 1}
        assert c.registry.table.generation > generation
        assert {view.instance: view.ttl for view in c.registry.each_registration()} == {"pod-1": 60.0, "pod-2": None, "": None}
        assert [view.last_seen_ago for view in c.registry.each_registration()] == [None, None, None]


async def test_a_stale_one_is_still_stale_after_a_restart_and_its_time_goes_on(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path, rules=Rules(leases=LeaseBounds(keep_stale=86_400))) as c:
        await c.put({port: 30001})
        await c.pass_time(3660)
        assert next(iter(c.registry.each_registration())).state == "stale"
    async with control(tmp_path, rules=Rules(leases=LeaseBounds(keep_stale=86_400))) as c:
        (view,) = c.registry.each_registration()
        assert view.state == "stale"
        assert view.expires_in == pytest.approx(-3600, abs=5)
        await c.pass_time(82_000)
        assert c.sink.ports == {port}
        await c.pass_time(1_000)
        assert c.sink.ports == set()


async def test_what_was_learned_of_a_legacy_client_outlives_a_restart(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        for _ in range(3):
            await c.legacy(port, 30001)
            await c.pass_time(900)
        assert next(iter(c.registry.each_registration())).ttl == pytest.approx(2700, abs=10)
    async with control(tmp_path) as c:
        assert next(iter(c.registry.each_registration())).ttl == pytest.approx(2700, abs=10)
        await c.legacy(port, 30001)
        assert next(iter(c.registry.each_registration())).expires_in == pytest.approx(2700, abs=10)


async def test_a_port_taken_meanwhile_is_kept_shown_and_opened_as_soon_as_it_is_free(tmp_path: Path) -> None:
    port, other = free_ports(2)
    async with control(tmp_path) as c:
        await c.put({port: 30001})
        await c.put({other: 30002}, name="other")
    with target(port, "0.0.0.0"):
        async with control(tmp_path) as c:
            assert c.sink.ports == {other}
            ((listen, reason),) = c.registry.unbound().items()
            assert (listen.port, reason) == (port, "Address already in use")
            assert "is not open" in (await c.put({port: 30001})).note
            assert "unbound" in c.kinds()
    async with control(tmp_path) as c:
        assert c.registry.unbound() == {}
    with target(port, "0.0.0.0"):
        crowded = control(tmp_path)
        c = await crowded.__aenter__()
    await c.pass_time(6)
    assert c.sink.ports == {port, other}
    assert c.registry.unbound() == {}
    assert "bound" in c.kinds()
    await crowded.__aexit__(None, None, None)


async def test_a_damaged_snapshot_is_loud_and_costs_only_itself(tmp_path: Path) -> None:
    port, other = free_ports(2)
    async with control(tmp_path) as c:
        await c.put({port: 30001})
        await c.put({other: 30002}, name="other")
    c.store.path.write_bytes(b"garbage")
    async with control(tmp_path) as c:
        assert c.sink.ports  # the generation before
        assert any(event.alarm and "state.json.bad-1" in event.text for event in c.registry.events())
        await c.registry.tick()
        assert c.store.path.exists()


async def test_what_the_config_no_longer_allows_is_left_out_of_a_restart_loudly(tmp_path: Path) -> None:
    port, other = free_ports(2)
    async with control(tmp_path) as c:
        await c.put({port: 30001, other: 30002})
    async with control(tmp_path, rules=Rules(frontends=(static("https", f"*:{port}"),))) as c:
        assert c.sink.ports == {port, other}
        assert [view.frontends[0].port for view in c.registry.each_registration()] == [other]
        assert "not_restored" in c.kinds()


async def test_one_bad_entry_of_a_snapshot_does_not_cost_the_others(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    wanted = {"port": port, "target_port": 1}
    good = {"token": "t", "name": "web", "instance": "p", "address": NODE_A, "frontends": [wanted]}
    displaced = {"listen": f"*:{port}", "address": "127.0.0.9:1", "server": "p"}
    unusable = ("half \ud800", "two\nlines", "\x1b[31m", "")
    bad = [
        None,
        {},
        good | {"address": "x"},
        good | {"frontends": [{"port": 0, "target_port": 1}]},
        good | {"state": "confused"},
        good | {"ttl": "soon"},
        *(good | {key: text} for key in ("token", "name", "instance") for text in unusable),
        *(good | {"frontends": [wanted | {"weight": weight}]} for weight in (0, 257, 10**30, 1.5, "1")),
        good | {"displaced": [displaced | {"server": "two\nlines"}]},
        good | {"displaced": [displaced | {"weight": 10**30}]},
    ]
    store = Store(tmp_path)
    store.open()
    payload = {"registrations": [*bad, good], "proven": ["x", f"{NODE_A}:1"], "generation": "x"}
    await store.save(lambda: payload)
    store.close()
    async with control(tmp_path) as c:
        assert c.ranks(port) == {NODE_A: 0}
        assert sum("left out" in event.text for event in c.registry.events()) == len(bad) + 1


async def test_two_pylbs_do_not_share_a_state_directory(tmp_path: Path) -> None:
    async with control(tmp_path):
        second = Control(tmp_path, Rules(), token())
        with pytest.raises(StateLocked):
            await second.registry.start()
        await second.registry.stop()


async def test_a_registrations_own_check_outlives_a_restart(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    check = Check(CheckKind.HTTP, path="/up")
    said = Announcement((FrontendRequest(port, 30001, health=HealthOverride(check, when_all_down=WhenAllDown.REFUSE)),))
    async with control(tmp_path) as c:
        with target(30001):
            await c.registry.calls.announce("web", "pod-1", said, c.caller())
    async with control(tmp_path) as c:
        health = c.server(port)[1].health
        assert health is not None
        assert (health.check, health.when_all_down) == (check, WhenAllDown.REFUSE)


async def test_no_number_of_a_generation_is_used_twice_even_after_a_crash(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    crashed = Control(tmp_path, Rules())
    await crashed.registry.start()
    with target(30001, NODE_A):
        await crashed.put({port: 30001})
    listen, server = crashed.server(port)
    first = crashed.registry.table.generation
    while crashed.registry.table.generation < first + 2 * NUMBERS_AHEAD:  # of health: nobody waits for a snapshot of them
        for failure in ("refused", "refused", "refused", None, None, None):
            crashed.registry.connect_ended(listen, server, failure)
            await asyncio.sleep(0)
        if crashed.registry.table.generation % (NUMBERS_AHEAD // 4) < 3:
            crashed.clock.now += 1
            await crashed.registry.tick()
    last = crashed.registry.table.generation
    crashed.registry._writing.cancel()  # type: ignore[union-attr]
    crashed.store.close()
    crashed.sink.close()
    async with control(tmp_path) as c:
        assert c.registry.table.generation > last
        stopped = c.registry.table.generation
    async with control(tmp_path) as c:
        assert stopped < c.registry.table.generation <= stopped + 2  # an orderly stop leaves no gap
