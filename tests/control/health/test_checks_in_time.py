"""How long it takes until pylb knows: servers that come back, standbys that become primaries, and what asking may cost."""

import asyncio
import random
from collections import Counter
from dataclasses import replace

import pytest

from pylb.control.health.schedule import AT_ONCE, PER_SECOND, ProbeSchedule
from pylb.core.address import Address, Listen
from pylb.core.persistent_map import PersistentMap
from pylb.core.policy import AdminState, Check, CheckKind, HealthMode, HealthPolicy, WhenAllDown
from tests.control.harness import Clock
from tests.control.health.test_checker import LISTEN, Checked, server

PRIMARY = Check(CheckKind.HTTP, path="/primary", status=(200, 200))
REPLICA = "wrong answer: HTTP status 503"
SWITCHING = HealthPolicy(check=PRIMARY, when_all_down=WhenAllDown.REFUSE)


async def seconds_until_up(checked: Checked, address: Address) -> float:
    began = checked.clock.now
    while (LISTEN, address) in checked.checker.health_records.down:
        await checked.pass_time(0.1)
        assert checked.clock.now < began + 100
    return checked.clock.now - began


async def test_a_standby_that_becomes_primary_is_used_within_two_intervals_whenever_that_is() -> None:
    for seed in range(30):
        checked = Checked(random.Random(seed).uniform)
        checked.says[server().address] = REPLICA
        checked.serve(SWITCHING, server())
        await checked.pass_time(100 + 0.1 * seed)
        del checked.says[server().address]
        assert await seconds_until_up(checked, server().address) <= 2 * SWITCHING.interval


@pytest.mark.parametrize("meanwhile", ["refused", "unreachable", "timeout", REPLICA])
@pytest.mark.parametrize("policy", [HealthPolicy(), HealthPolicy(HealthMode.ACTIVE), HealthPolicy(check=PRIMARY)])
async def test_a_server_that_was_away_for_40_seconds_is_back_within_two_intervals(policy: HealthPolicy, meanwhile: str) -> None:
    for seed in range(10):
        checked = Checked(random.Random(seed).uniform)
        checked.serve(policy, server())
        await checked.pass_time(10)
        checked.says[server().address] = meanwhile
        for _ in range(policy.fall):
            checked.checker.connect_ended(LISTEN, server().address, meanwhile)
        await checked.pass_time(40 + 0.1 * seed)
        assert (LISTEN, server().address) in checked.checker.health_records.down
        del checked.says[server().address]
        assert await seconds_until_up(checked, server().address) <= 2 * policy.interval


async def test_a_server_is_asked_once_an_interval_however_many_frontends_ask_the_same() -> None:
    checked = Checked(random.Random(1).uniform)
    checked.serve(HealthPolicy(check=PRIMARY), server(), listens=tuple(Listen("tcp", "*", port) for port in range(1, 51)))
    await checked.pass_time(100)
    assert 100 / 2 <= len(checked.checks()) <= 100 / (2 * 0.8) + 2


async def test_a_frontend_that_comes_later_asks_together_with_those_that_are_there() -> None:
    checked = Checked(random.Random(1).uniform)
    for count in range(1, 20):
        listens = tuple(Listen("tcp", "*", port) for port in range(1, count + 1))
        checked.serve(HealthPolicy(check=PRIMARY), server(), listens=listens)
        await checked.pass_time(0.7)
    assert len(checked.checks()) <= 19 * 0.7 / (2 * 0.8) + 2


async def test_a_frontend_that_asks_seldom_does_not_judge_faster_for_another_that_asks_often() -> None:
    checked, other = Checked(), Listen("tcp", "*", 444)
    often, seldom = HealthPolicy(check=PRIMARY), HealthPolicy(check=PRIMARY, interval=60.0)
    checked.serve(often, server())
    before = checked.checker.table.frontends[LISTEN]
    slow = replace(before, listen=other, policy=replace(before.policy, health=seldom))
    checked.checker.sync(checked.checker.table.edited(9, {other: slow}), None)
    await checked.pass_time(130)
    checked.says[server().address] = REPLICA
    await checked.pass_time(20)
    assert (LISTEN, server().address) in checked.checker.health_records.down
    assert (other, server().address) not in checked.checker.health_records.down
    await checked.pass_time(180)
    assert (other, server().address) in checked.checker.health_records.down


async def test_a_call_of_its_phone_home_asks_a_server_that_is_down_at_once_and_once_an_interval() -> None:
    policy = HealthPolicy(interval=60.0, max_interval=600.0, rise=1)
    checked, address = Checked(), server().address
    checked.serve(policy, server())
    await checked.pass_time(1)
    checked.checker.called([LISTEN], [address])
    await checked.pass_time(0.1)
    assert len(checked.asked) == 1  # it is up, and proven: nothing to ask
    checked.says[address] = "timeout"
    for _ in range(3):
        checked.checker.connect_ended(LISTEN, address, "timeout")
    await checked.pass_time(1000)
    asked = len(checked.asked)
    await checked.pass_time(60)
    assert len(checked.asked) == asked  # its next turn is minutes away
    for _ in range(5):
        checked.checker.called([LISTEN], [address])
        await checked.pass_time(0.1)
    assert len(checked.asked) == asked + 1
    await checked.pass_time(60)
    del checked.says[address]
    checked.checker.called([LISTEN], [address])
    await checked.pass_time(0.1)
    assert (LISTEN, address) not in checked.checker.health_records.down


async def test_a_call_dials_a_server_that_has_never_answered() -> None:
    checked, address = Checked(), server().address
    checked.checker.defaults = HealthPolicy(interval=60.0)
    checked.says[address] = "refused"
    checked.serve(HealthPolicy(), server())
    await checked.pass_time(61)
    asked = len(checked.asked)
    for _ in range(5):
        checked.checker.called([LISTEN], [address])
        await checked.pass_time(0.1)
    assert len(checked.asked) == asked
    await checked.pass_time(30)
    checked.clock.now += 30
    del checked.says[address]
    checked.checker.called([LISTEN], [address])
    await checked.pass_time(0.1)
    assert address in checked.checker.health_records.proven


# ---------------------------------------------------------------- the budget


async def test_five_thousand_servers_are_asked_a_thousand_times_a_second_each_in_its_turn() -> None:
    checked = Checked(random.Random(1).uniform)
    checked.serve(HealthPolicy(HealthMode.ACTIVE, PRIMARY, interval=1.0), *(server(number) for number in range(5000)))
    await checked.pass_time(10)  # the proofs
    checked.asked.clear()
    await checked.pass_time(20)
    assert 0.95 * 20 * PER_SECOND <= len(checked.asked) <= 20 * PER_SECOND + AT_ONCE
    times = Counter(question.server for question in checked.asked)
    assert len(times) == 5000
    assert max(times.values()) - min(times.values()) <= 2
    assert 2.0 < checked.checker.schedule.lag < 8.0


async def test_black_holes_wait_for_those_who_answer_and_are_asked_all_the_same() -> None:
    checked = Checked(random.Random(1).uniform)
    holes, living = [server(number) for number in range(3000)], [server(number) for number in range(3000, 3800)]
    checked.says.update(dict.fromkeys((one.address for one in holes), "timeout"))
    checked.serve(HealthPolicy(HealthMode.ACTIVE, PRIMARY, interval=1.0), *holes, *living)
    await checked.pass_time(40)
    checked.asked.clear()
    await checked.pass_time(20)
    times = Counter(question.server for question in checked.asked)
    assert min(times[one.address] for one in living) >= 20 - 1
    assert sum(times[one.address] for one in holes) >= 20 * PER_SECOND / 10 * 0.9
    assert len(checked.asked) <= 20 * PER_SECOND + AT_ONCE


def test_so_many_black_holes_are_asked_at_once_and_no_more() -> None:
    clock, busy = Clock(), set[int]()
    schedule = ProbeSchedule[int](clock, lambda _: clock.now, busy)
    schedule.most_silent = 2
    for who in range(5):
        schedule.plan(who, silent=True)
    schedule.plan(9, silent=False)
    for _ in range(3):
        taken = schedule.take()
        assert taken is not None
        schedule.spend()
        schedule.silent_running += taken[1]
    assert schedule.silent_running == 2
    assert schedule.take() is None  # 9 was one of the three
    schedule.silent_running -= 1
    assert schedule.is_due()


# ---------------------------------------------------------------- when all are down


async def test_a_server_that_must_pass_first_is_down_until_its_first_answer() -> None:
    checked, place = Checked(), (LISTEN, server().address)
    checked.says[server().address] = REPLICA
    checked.serve(SWITCHING, server())
    assert (place in checked.checker.health_records.down, place in checked.checker.health_records.passed) == (True, False)
    await checked.pass_time(0.1)
    assert place in checked.checker.health_records.down
    assert [kind for kind, _ in checked.news] == []  # it was never up
    del checked.says[server().address]
    await checked.pass_time(2 * SWITCHING.interval)
    assert (place in checked.checker.health_records.down, place in checked.checker.health_records.passed) == (False, True)
    assert [kind for kind, _ in checked.news] == ["server_proven", "server_up"]
    assert checked.news[-1][1] == "web-443: server 192.0.2.1:30443 has passed its check"


async def test_what_a_snapshot_remembers_opens_no_closed_door_and_closes_no_open_one() -> None:
    up, down, gone = ((LISTEN, server(number).address) for number in (1, 2, 3))
    checked = Checked()
    checked.checker.health_records.restore(
        [up[1], gone[1]], PersistentMap({down: True, gone: True}), PersistentMap({up: True, gone: True})
    )
    checked.serve(SWITCHING, server(1), server(2))
    assert dict(checked.checker.health_records.proven) == {up[1]: True}
    assert dict(checked.checker.health_records.down) == {down: True}
    assert dict(checked.checker.health_records.passed) == {up: True}
    assert checked.news == []
    checked.says[server(1).address] = REPLICA
    await checked.pass_time(SWITCHING.interval * (SWITCHING.fall + 1))
    assert dict(checked.checker.health_records.down) == {up: True}
    assert dict(checked.checker.health_records.passed) == {down: True}


async def test_a_reload_to_refuse_keeps_those_in_that_have_passed_their_check() -> None:
    checked, place = Checked(), (LISTEN, server().address)
    checked.serve(HealthPolicy(check=PRIMARY), server())
    await checked.pass_time(5)
    checked.serve(SWITCHING, server())
    assert place in checked.checker.health_records.passed
    assert place not in checked.checker.health_records.down


async def test_without_checks_nothing_is_asked_and_nobody_is_down() -> None:
    checked, place = Checked(), (LISTEN, server().address)
    checked.says[server().address] = REPLICA
    checked.serve(HealthPolicy(check=PRIMARY), server())
    await checked.pass_time(10)
    assert place in checked.checker.health_records.down
    checked.serve(HealthPolicy(HealthMode.NONE, PRIMARY), server())
    assert place not in checked.checker.health_records.down
    checked.asked.clear()
    await checked.pass_time(30)
    assert checked.checks() == []


async def test_a_reload_to_active_asks_also_those_that_were_up_all_along() -> None:
    checked = Checked()
    checked.serve(HealthPolicy(), server())
    checked.checker.connect_ended(LISTEN, server().address, "refused")
    checked.checker.connect_ended(LISTEN, server().address, None)
    checked.serve(HealthPolicy(check=PRIMARY), server())
    await checked.pass_time(2.1)
    assert [question.check for question in checked.checks()] == [PRIMARY]


async def test_a_reload_to_a_shorter_interval_does_not_wait_for_the_end_of_the_longer_one() -> None:
    checked = Checked()
    checked.serve(HealthPolicy(check=PRIMARY, interval=3600.0), server())
    await checked.pass_time(1)
    checked.serve(HealthPolicy(check=PRIMARY, interval=1.0), server())
    await checked.pass_time(5)
    assert len(checked.checks()) >= 4


async def test_after_maintenance_a_server_must_pass_again() -> None:
    checked, place = Checked(), (LISTEN, server().address)
    checked.serve(SWITCHING, server())
    await checked.pass_time(5)
    assert place in checked.checker.health_records.passed
    checked.serve(SWITCHING, server(admin=AdminState.MAINT, weight=0))
    checked.says[server().address] = REPLICA
    checked.serve(SWITCHING, server())
    await checked.pass_time(5)
    assert place not in checked.checker.health_records.passed
    assert place in checked.checker.health_records.down


async def test_a_client_that_reaches_a_replica_does_not_make_it_primary() -> None:
    checked, place = Checked(), (LISTEN, server().address)
    checked.serve(SWITCHING, server())
    await checked.pass_time(5)
    checked.says[server().address] = REPLICA
    for _ in range(100):
        checked.checker.connect_ended(*place, None)
        await checked.pass_time(0.1)
    assert place in checked.checker.health_records.down
    assert place not in checked.checker.health_records.passed


async def test_probing_survives_a_frontend_that_leaves_while_its_server_is_asked() -> None:
    checked = Checked()
    checked.serve(SWITCHING, server())
    answer = asyncio.get_running_loop().create_future()
    checked.checker._ask = lambda _question: answer
    probing = asyncio.get_running_loop().create_task(checked.checker.probe())
    await asyncio.sleep(0)
    checked.serve(SWITCHING)
    answer.set_result("yes")
    await probing
    assert not checked.checker.health_records.passed
    assert not checked.checker.health_records.groups
