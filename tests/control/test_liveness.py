"""What becomes of those who no longer call: fallbacks, warnings, and goodbyes that count for nothing."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from pylb.control import registrar
from pylb.control.health_sentence import Condition, condition
from pylb.core.errors import Refused
from pylb.core.policy import LeaseBounds, Rules
from pylb.core.registration import Key
from tests.control.harness import NODE_A, NODE_B, NODE_C, Control, control, target, until
from tests.support.ports import free_ports

HOUR, DAY = 3600.0, 86_400.0


async def test_an_old_address_stands_in_for_ten_minutes_at_most_over_restarts_too(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with target(30001):
        async with control(tmp_path) as c:
            await c.put({port: 30001}, ttl=None)
            await c.put({port: 30001}, NODE_B, ttl=None)
            await c.pass_time(400, probing=True)
            assert c.ranks(port) == {NODE_A: 0, NODE_B: 1}
        async with control(tmp_path) as c:
            await c.pass_time(190, probing=True)
            assert c.ranks(port) == {NODE_A: 0, NODE_B: 1}
            await c.pass_time(20, probing=True)
            assert set(c.ranks(port)) == {NODE_B}
            assert [event.alarm for event in c.heard if event.kind == "fallback_over"] == [True]


async def test_the_server_behind_another_target_port_gets_nobody_any_more(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        with target(30001):
            await c.put({port: 30001})
            await c.put({port: 30002})
            (frontend,) = c.registry.table.frontends.values()
            assert [server.address.port for server in frontend.servers] == [30002]


async def test_a_silent_port_is_an_alarm_after_an_hour_with_its_closing_time_and_again_a_day_before(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path, rules=Rules(leases=LeaseBounds(keep_stale=2 * DAY))) as c:
        await c.put({port: 30001})
        await c.pass_time(60 + HOUR - 10)
        assert "still_silent" not in c.kinds()
        await c.pass_time(20)
        (late,) = [event for event in c.heard if event.kind == "still_silent"]
        assert late.alarm
        (end,) = map(c.registry.closes_at, c.registry.table.frontends)
        assert end is not None
        assert end == pytest.approx(1_700_001_000 + 60 + 2 * DAY, abs=3)
        assert f"port {port}, which closes at 2023-11-16 22:31:" in late.text
        await c.pass_time(DAY - HOUR - 30)
        assert "closing" not in c.kinds()
        await c.pass_time(30)
        (last,) = [event for event in c.heard if event.kind == "closing"]
        assert last.alarm
        assert "closes at 2023-11-16 22:31:" in last.text
        (one,) = c.registry.each_frontend()
        assert "closes at 2023-11-16 22:31:" in condition(one, {}, 0.0)[1]


async def test_never_closes_nothing_and_is_an_alarm_all_the_same(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path, rules=Rules(leases=LeaseBounds(keep_stale=float("inf")))) as c:
        await c.put({port: 30001})
        await c.pass_time(60 + HOUR + 10)
        assert c.kinds().count("still_silent") == 1
        assert [c.registry.closes_at(listen) for listen in c.registry.table.frontends] == [None]


async def test_who_said_goodbye_is_missed_by_nobody_and_goes_when_it_is_dead_and_others_serve(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        with target(30001, NODE_A, NODE_B):
            await c.put({port: 30001}, instance="old")
            await c.put({port: 30001}, NODE_B, instance="new", ttl=None)
            await c.put({port: 30001}, instance="old", draining=True)
        with target(30001, NODE_B):
            await c.pass_time(30, probing=True)
            (one,) = c.registry.each_frontend()
            assert condition(one, {}, 0.0)[0] is Condition.HEALTHY
            assert [view.goodbye for view in c.registry.each_registration() if view.instance == "old"] == [True]
            await c.pass_time(60, probing=True)
            assert [view.instance for view in c.registry.each_registration()] == ["new"]
            assert c.sink.ports == {port}


async def test_who_calls_while_it_is_found_superfluous_or_silent_is_neither(tmp_path: Path) -> None:
    """Its call waited for its turn, and what was found of it before was carried out after: 200, and released."""
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        await c.put({port: 30001}, instance="old")
        await c.put({port: 30001}, instance="old", draining=True)
        await c.pass_time(70)
        await c.put({port: 30001}, NODE_B, instance="new", ttl=None)
        await _tick_behind(c, c.put({port: 30001}, instance="old"), "old")
        assert {view.instance: view.state for view in c.registry.each_registration()} == {"old": "fresh", "new": "fresh"}
        await c.pass_time(59)
        c.clock.now += 2
        await _tick_behind(c, c.put({port: 30002}, instance="old"), "old")
        assert {view.instance: view.state for view in c.registry.each_registration()} == {"old": "fresh", "new": "fresh"}
        assert c.kinds().count("stale") == 1


async def _tick_behind(c: Control, call: Coroutine[Any, Any, object], instance: str) -> None:
    """A round of the clock that begins when `call` waits for its turn already."""
    writer = c.registry._state.writer
    await writer.hold()
    calling = asyncio.get_running_loop().create_task(call)
    await until(lambda: writer.is_busy_with(Key("t", "web", instance)))
    ticking = asyncio.get_running_loop().create_task(c.registry.tick())
    await until(lambda: ticking.done() or len(writer._queue) > 1)
    writer.resume()
    await asyncio.gather(calling, ticking)


async def test_a_goodbye_whose_server_answers_stays_as_the_last_resort(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        with target(30001, NODE_A, NODE_B):
            await c.put({port: 30001}, instance="old")
            await c.put({port: 30001}, NODE_B, instance="new", ttl=None)
            await c.put({port: 30001}, instance="old", draining=True)
            await c.pass_time(600, probing=True)
            assert c.ranks(port) == {NODE_A: 3, NODE_B: 0}


async def test_dead_goodbyes_count_toward_no_bound_and_the_oldest_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registrar, "MOST_REGISTRATIONS", 3)
    ports = free_ports(5)
    async with control(tmp_path) as c:
        for number in range(2):
            await c.put({ports[number]: 30001}, name=f"app-{number}")
            await c.put({ports[number]: 30001}, name=f"app-{number}", draining=True)
        await c.put({ports[2]: 30001}, NODE_C, name="app-2", ttl=None)
        with pytest.raises(Refused):  # they may still come back
            await c.put({ports[3]: 30001}, name="app-3", ttl=None)
        await c.pass_time(120, probing=True)
        await c.put({ports[3]: 30001}, name="app-3", ttl=None)
        assert names(c) == ["app-1", "app-2", "app-3"]
        (left,) = [event.text for event in c.heard if event.kind == "released"]
        assert left == f"released on port {ports[0]} to make room for t/app-3/pod-1; closed: {ports[0]}"
        await c.put({ports[4]: 30001}, name="app-4", ttl=None)
        assert names(c) == ["app-2", "app-3", "app-4"]
        with pytest.raises(Refused):
            await c.put({ports[0]: 30001}, name="app-5", ttl=None)
        assert c.sink.ports == {ports[2], ports[3], ports[4]}


def names(c: Control) -> list[str]:
    """In the order in which they came."""
    return [one.name for one in c.registry._desired.claims.registrations.values()]


async def test_reachable_is_the_last_answer_and_when_it_was(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        with target(30001):
            outcome = await c.put({port: 30001})
            assert outcome.frontends[0].reachable == "yes"
        await c.pass_time(10)
        listen, server = c.server(port)
        c.registry.connect_ended(listen, server, "refused")
        assert (await c.put({port: 30001})).frontends[0].reachable == "refused"
        (view,) = c.registry.each_server()
        assert (view.reachable, view.asked_at) == ("refused", c.clock.now)
        c.registry.connect_ended(listen, server, None)
        assert (await c.put({port: 30001})).frontends[0].reachable == "yes"


async def test_a_server_that_refused_is_asked_again_before_another_registration_of_it_is_answered(tmp_path: Path) -> None:
    """A phone-home that started seconds after its app had said "not reachable" for each of its ports, although they served."""
    port, other = free_ports(2)
    async with control(tmp_path) as c:
        assert (await c.put({port: 30001})).frontends[0].reachable == "refused"
        with target(30001):
            assert (await c.put({other: 30001}, name="later")).frontends[0].reachable == "yes"
