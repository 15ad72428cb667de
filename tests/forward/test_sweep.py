"""What a tick visits: each session as often as its own timeouts want it, in steps, and nothing is lost after a stall."""

from collections import Counter
from collections.abc import Callable

import pytest

from pylb.core.address import Address, Listen
from pylb.forward.run_queue import BUDGET, END, VISIT
from pylb.forward.session import Session
from tests.support.drive import Drive, Peer, policy, server_at

Make = Callable[..., Drive]


class Visits:
    """How often the sweep came to each frontend's sessions."""

    def __init__(self, drive: Drive, patch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[str] = Counter()
        self.numbers: Counter[int] = Counter()  # of the sessions
        visit = drive.engine._timers._visit

        def counted(session: Session) -> None:
            self.counts[session.frontend.frontend.name] += 1
            self.numbers[session.number] += 1
            visit(session)

        patch.setattr(drive.engine._timers, "_visit", counted)


def sessions(drive: Drive, listen: Listen, count: int) -> list[Peer]:
    clients = [drive.connect(listen) for _ in range(count)]
    wanted = drive.engine.counters.open_sessions + count
    drive.run_until(lambda: drive.engine.counters.open_sessions == wanted)
    drive.run_until_quiet()
    return clients


def end(drive: Drive, clients: list[Peer]) -> None:
    for client in clients:
        client.reset()
    drive.run_until(lambda: not drive.engine.counters.open_sessions)


@pytest.fixture
def drive(make_drive: Make) -> Drive:
    return make_drive(splice=False)


def test_a_short_timeout_has_only_its_own_sessions_visited_more_often(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = drive.backend(backlog=256)
    patient = drive.serve(server_at(backend), name="patient")
    hasty = drive.serve(server_at(backend), name="hasty", policy=policy(half_close=0.8))
    clients = [*sessions(drive, patient, 50), *sessions(drive, hasty, 5)]
    visits = Visits(drive, monkeypatch)
    drive.pass_time(10)
    assert 98 <= visits.counts["patient"] <= 102  # once in five seconds
    assert 245 <= visits.counts["hasty"] <= 255  # a quarter of 0.8 s
    end(drive, clients)


def test_a_short_drain_costs_nothing_before_its_frontend_is_removed(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = drive.backend(backlog=256)
    listen = drive.serve(server_at(backend), name="web", policy=policy(drain=1.2))
    other = drive.serve(server_at(backend), name="other")
    clients = sessions(drive, other, 20)
    sessions(drive, listen, 20)
    visits = Visits(drive, monkeypatch)
    drive.pass_time(5)
    assert 18 <= visits.counts["web"] <= 22
    drive.remove(listen)
    visits.counts.clear()
    drive.pass_time(1.1)
    assert not drive.records
    drive.pass_time(0.4)  # a quarter of the timeout late at most
    assert [record.code for record in drive.records] == ["KD"] * 20
    assert visits.counts["other"] <= 40 * 1.5 / 5  # as before: of all, once in five seconds
    end(drive, clients)


def test_a_shorter_timeout_in_a_new_table_is_kept_from_its_time_on(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend), policy=policy(idle=3600))
    sessions(drive, listen, 3)
    drive.run_until_confirmed()
    drive.pass_time(1)
    drive.serve(server_at(backend), listen=listen, policy=policy(idle=2))
    drive.pass_time(1.5)
    assert [record.code for record in drive.records] == ["cD"] * 3


def test_after_a_stall_no_tick_makes_up_for_all_of_it_and_nothing_is_lost(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 600
    listen = drive.serve(server_at(drive.backend(backlog=1024)))
    clients = sessions(drive, listen, count)
    visits = Visits(drive, monkeypatch)
    drive.clock.now += 60
    again = drive.engine.tick(drive.clock.now)
    assert 0 < visits.counts["web"] <= BUDGET // VISIT
    turns = 0
    while again:
        before = visits.counts["web"]
        again = drive.engine.on_ready()
        assert visits.counts["web"] - before <= BUDGET // VISIT
        turns += 1
    assert turns > 1
    assert sorted(visits.numbers.values()) == [1] * count
    end(drive, clients)


def test_sessions_that_are_due_at_once_end_in_steps_all_of_them(drive: Drive) -> None:
    count = 100
    listen = drive.serve(server_at(drive.backend(backlog=256)), policy=policy(idle=30))
    sessions(drive, listen, count)
    drive.run_until_confirmed()
    drive.clock.now += 31
    again = drive.engine.tick(drive.clock.now)
    assert 0 < len(drive.records) <= BUDGET // END
    while again:
        before = len(drive.records)
        again = drive.engine.on_ready()
        assert len(drive.records) - before <= BUDGET // END
    assert [record.code for record in drive.records] == ["cD"] * count


def test_a_drain_that_is_over_resets_in_steps_and_dials_for_nobody(drive: Drive) -> None:
    backend = drive.backend(backlog=256)
    address = Address(*backend.getsockname())
    listen = drive.serve(server_at(address, most=50))
    sessions(drive, listen, 100)
    assert drive.engine.counters.frontends[listen].queued == 50
    server = drive.engine.counters.frontends[listen].servers["a"]
    drive.engine.drain(drive.clock.now + 1)
    drive.clock.now += 1
    again = drive.engine.tick(drive.clock.now)
    assert 0 < len(drive.records) <= BUDGET // END
    while again:
        again = drive.engine.on_ready()
    assert len(drive.records) == 100
    assert server.attempts == 50


def test_a_tick_looks_at_no_dial_before_its_time(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    hole = drive.black_hole()
    slow = drive.serve(server_at(hole), name="slow", policy=policy(connect=60))
    quick = drive.serve(server_at(hole), name="quick", policy=policy(connect=2))
    clients = [drive.connect(listen) for listen in (slow, quick) for _ in range(20)]
    drive.run_until(lambda: len(drive.engine._life.deadlines) == 40)
    looked: list[str] = []
    expire = drive.engine._timers._expire

    def counted(session: Session) -> None:
        looked.append(session.frontend.frontend.name)
        expire(session)

    monkeypatch.setattr(drive.engine._timers, "_expire", counted)
    drive.pass_time(1.9)
    assert not looked
    drive.pass_time(0.2)
    assert looked == ["quick"] * 20
    assert [record.code for record in drive.records] == ["sC"] * 20
    end(drive, clients)
