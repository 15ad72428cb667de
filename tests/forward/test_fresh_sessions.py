"""What a session gets only if it lasts until a tick: a place in a sweep, the deadline of its dial."""

from pylb.core.session import State
from tests.support.drive import Drive, policy, server_at


def test_a_connection_that_is_over_before_the_tick_is_never_swept_and_has_no_deadline(drive: Drive) -> None:
    life, tick = drive.engine._life, drive.engine.tick
    drive.engine.tick = lambda _now: False  # type: ignore[method-assign]
    client, server = drive.session()
    [session] = life.sessions
    assert list(life.sessions.fresh) == [session]
    assert (session.sweep_group, len(life.deadlines)) == (None, 0)
    client.finish()
    server.finish()
    drive.run_until(lambda: not drive.engine.counters.open_sessions)
    assert not life.sessions.fresh
    drive.engine.tick = tick  # type: ignore[method-assign]


def test_the_tick_takes_over_what_has_lasted_and_each_session_is_in_one_place(drive: Drive) -> None:
    life = drive.engine._life
    drive.session()
    quick = drive.serve(server_at(drive.backend()), name="quick", policy=policy(idle=2, half_close=2))
    drive.connect(quick)
    drive.run_until(lambda: [session.state for session in life.sessions] == [State.RELAYING] * 2)
    drive.engine.tick(drive.clock.now)
    first, second = sorted(life.sessions, key=lambda session: session.number)
    assert not life.sessions.fresh
    assert [first, second] == [
        *life.sessions.whole.sessions,
        *(one for group in life.sessions.short.values() for one in group.sessions),
    ]
    assert len(life.sessions) == 2
    assert first in life.sessions
    assert second in life.sessions


def test_a_dial_gets_its_deadline_from_the_tick_and_a_second_dial_one_of_its_own(drive: Drive) -> None:
    hole = drive.black_hole()
    web = drive.serve(server_at(hole, "a"), server_at(hole, "b"), policy=policy(connect=2))
    drive.connect(web)
    life = drive.engine._life
    drive.run_until(lambda: len(life.sessions) == 1)
    [session] = life.sessions
    begun = drive.clock.now
    drive.pass_time(1.5)
    assert (session.deadline, len(life.deadlines)) == (begun + 2, 1)
    drive.pass_time(0.6)
    assert session.tried is not None
    assert len(session.tried) == 1
    drive.pass_time(0.1)
    assert session.dialed > begun + 1.9
    assert (session.deadline, len(life.deadlines), list(life.sessions.fresh)) == (session.dialed + 2, 1, [])
