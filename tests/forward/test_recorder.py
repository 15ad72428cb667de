"""What the engine remembers of a session: who closed first, what was tried, what the kernel knew."""

from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

import pytest

from pylb.core.access import AccessList, AccessRule
from pylb.core.policy import Balance, Policy
from pylb.core.recorder import Attempt, Query, SessionTrace, parse_session_id
from pylb.core.session import SessionRecord
from pylb.core.table import DOWN
from pylb.forward.session import Session
from tests.support.drive import Drive, Witness, policy, server_at
from tests.support.netns import Namespace

Make = Callable[..., Drive]


@pytest.fixture
def drive(make_drive: Make) -> Drive:
    """One: how bytes are moved makes no difference here."""
    return make_drive(splice=True)


def closed_first(trace: SessionTrace) -> tuple[str, str]:
    return trace.closed_by, trace.closed_how


def live(drive: Drive) -> SessionTrace:
    """The only one."""
    [view] = drive.sessions()
    trace = drive.engine.trace(parse_session_id(view.id))
    assert trace is not None
    return trace


# ------------------------------------------------------------ who closed first


@pytest.mark.parametrize("who", ["client", "server"])
def test_the_first_fin_counts_and_when_it_came(drive: Drive, who: str) -> None:
    client, server = drive.session()
    drive.run_until(lambda: drive.sessions()[0].state == "relaying")
    first, last = (client, server) if who == "client" else (server, client)
    drive.clock.now += 2
    first.finish()
    drive.run_until(lambda: last.eof)
    assert (live(drive).closed_by, live(drive).state) == (who, f"{who} done")
    drive.clock.now += 3
    last.finish()
    trace = drive.trace()
    assert (closed_first(trace), trace.closed_ms, trace.record.code) == ((who, "FIN"), 2000, "--")
    assert trace.record.total_ms == 5000


@pytest.mark.parametrize(("who", "code"), [("client", "CD"), ("server", "SD")])
def test_a_reset_is_told_from_a_fin(drive: Drive, who: str, code: str) -> None:
    client, server = drive.session()
    drive.run_until(lambda: drive.sessions()[0].state == "relaying")
    (client if who == "client" else server).reset()
    trace = drive.trace()
    assert (closed_first(trace), trace.record.code) == ((who, "reset"), code)


def test_a_fin_comes_before_the_reset_that_follows_it(drive: Drive) -> None:
    client, server = drive.session()
    client.finish()
    drive.run_until(lambda: server.eof)
    server.reset()
    trace = drive.trace()
    assert (closed_first(trace), trace.record.code) == (("client", "FIN"), "SD")


def test_a_timeout_and_a_kill_are_pylbs_own(make_drive: Make) -> None:
    idle = make_drive(splice=False)
    idle.session(policy(idle=10))
    idle.run_until(lambda: idle.sessions()[0].state == "relaying")
    idle.run_until_confirmed()
    idle.pass_time(15, step=0.5)
    trace = idle.trace()
    assert (closed_first(trace), trace.record.code) == (("pylb", "timed out"), "cD")  # nobody ever spoke
    assert 10_000 <= trace.closed_ms <= 15_000
    killed = make_drive(splice=False)
    killed.session()
    killed.run_until(lambda: killed.sessions()[0].state == "relaying")
    [live] = killed.sessions()
    killed.engine.shutdown_session(parse_session_id(live.id))
    trace = killed.trace()
    assert (closed_first(trace), trace.record.code) == (("pylb", "killed"), "KD")


def test_a_half_closed_session_that_is_cut_was_left_by_its_client_first(drive: Drive) -> None:
    client, server = drive.session(policy(half_close=8))
    client.finish()
    drive.run_until(lambda: server.eof)
    drive.run_until_confirmed()
    drive.pass_time(12, step=0.5)
    trace = drive.trace()
    assert (closed_first(trace), trace.record.code) == (("client", "FIN"), "sD")


def test_a_client_that_leaves_while_pylb_connects_was_first(drive: Drive) -> None:
    client = drive.connect(drive.serve(server_at(drive.black_hole())))
    drive.run_until(drive.sessions)
    client.reset()
    trace = drive.trace()
    assert (closed_first(trace), trace.record.code, trace.dial_ms) == (("client", "reset"), "CC", -1)
    assert trace.server_tcp is not None
    assert trace.server_tcp.state == "SYN_SENT"


def test_a_fault_of_our_own_is_pylbs(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    client, _server = drive.session()
    drive.run_until(lambda: drive.sessions()[0].state == "relaying")

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(drive.engine._relay, "pump", broken)
    client.say(b"x")
    trace = drive.trace()
    assert (closed_first(trace), trace.record.code) == (("pylb", "killed"), "ID")


# ------------------------------------------------------------ what was tried


def test_attempts_are_kept_in_their_order_with_errno_and_duration(loopback: Namespace, drive: Drive) -> None:
    rejected, hole, backend = drive.backend(), drive.black_hole(), drive.backend()
    port = rejected.getsockname()[1]
    reject = f"tcp dport {port} reject with icmp type host-unreachable"
    loopback.nft(f"table ip wall {{ chain out {{ type filter hook output priority 0; {reject}; }}; }}")
    dead = server_at(drive.nobody(), "dead")
    servers = (
        dead,
        server_at(rejected, "walled", rank=1),
        server_at(hole, "hole", rank=2),
        server_at(backend, "alive", rank=3),
    )
    client = drive.connect(drive.serve(*servers, policy=policy(connect=2)))
    drive.run_until(lambda: len(drive.witness.connects) == 2)
    assert [attempt.server for attempt in live(drive).attempts] == ["dead", "walled"]
    assert live(drive).state == "dialing"
    drive.pass_time(2.5)
    server = drive.accept(backend)
    client.finish()
    server.finish()
    trace = drive.trace()
    assert [(one.server, one.result, one.error) for one in trace.attempts] == [
        ("dead", "refused", "ECONNREFUSED"),
        ("walled", "unreachable", "EHOSTUNREACH"),
        ("hole", "timeout", ""),
    ]
    assert trace.attempts[0].address == dead.address
    assert 2000 <= trace.attempts[2].ms <= 2200
    assert (trace.record.server, trace.dial_ms, trace.record.retries) == ("alive", 0, 3)


def test_a_wait_in_the_queue_is_a_step_of_its_own(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend, most=1))
    holder = drive.connect(listen)
    drive.accept(backend)
    waiting = drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)
    drive.clock.now += 3
    holder.reset()
    drive.accept(backend)
    waiting.reset()
    drive.run_until(lambda: len(drive.records) == 2)
    [[last, first]] = drive.engine.ended(Query())
    assert last.attempts == (Attempt("", None, "waited", "", 3000),)
    assert (last.record.queue_ms, first.attempts) == (3000, ())


def test_who_looks_for_room_in_vain_has_waited_once_and_for_all_of_the_time(drive: Drive) -> None:
    full = server_at(drive.backend(), most=1)
    listen = drive.serve(full)
    drive.connect(listen)
    drive.run_until(drive.sessions)
    waiting = drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)
    for _ in range(3):
        drive.clock.now += 1
        drive.serve(full, listen=listen)  # a new table: everybody who waits tries again
    waiting.reset()
    trace = drive.trace()
    assert (trace.attempts, trace.record.code) == ((Attempt("", None, "waited", "", 3000),), "CQ")
    assert trace.closed_by == "client"


def test_a_client_whom_no_server_takes_has_every_attempt(drive: Drive) -> None:
    client = drive.connect(drive.serve(*(server_at(drive.nobody(), name) for name in "abc")))
    drive.run_until(lambda: client.error)
    trace = drive.trace()
    assert sorted(one.server for one in trace.attempts) == ["a", "b", "c"]
    assert (closed_first(trace), trace.record.code) == (("pylb", "no server left"), "SC")
    assert trace.server_tcp is None


# ------------------------------------------------------------ the picture of that time


def test_candidates_are_those_of_the_table_that_was_in_force_at_the_pick(drive: Drive) -> None:
    backend = drive.backend()
    chosen, down = server_at(backend, "chosen"), server_at(drive.nobody(), "down", rank=DOWN)
    listen = drive.serve(chosen, down, policy=Policy(balance=Balance.FIRST))
    client = drive.connect(listen)
    server = drive.accept(backend)
    drive.serve(server_at(drive.nobody(), "new"), listen=listen, name="renamed")
    assert [one.name for one in live(drive).candidates] == ["chosen", "down"]
    client.finish()
    server.finish()
    number = parse_session_id(drive.trace().id)
    trace = drive.engine.trace(number)
    assert trace is not None
    assert (trace.candidates, trace.generation, trace.balance) == ((chosen, down), 1, "first")
    assert (trace.address, trace.record.server) == (chosen.address, "chosen")


def test_who_is_refused_at_the_door_is_remembered_apart_from_sessions(drive: Drive) -> None:
    access = AccessList((AccessRule(False, ip_network("127.0.0.0/8")),))
    client = drive.connect(drive.serve(server_at(drive.nobody()), policy=Policy(access=access)))
    drive.run_until(lambda: client.error)
    trace = drive.trace()
    assert (trace.record.code, closed_first(trace), trace.generation) == ("PR", ("pylb", "refused"), 1)
    assert (trace.client_tcp, trace.server_tcp) == (None, None)


# ------------------------------------------------------------ what the kernel knew


def test_the_kernels_word_on_both_connections_is_kept(drive: Drive) -> None:
    client, server = drive.session()
    client.say(b"q" * 1000)
    drive.run_until(lambda: len(server.got) == 1000)
    server.say(b"a" * 5000)
    drive.run_until(lambda: len(client.got) == 5000)
    drive.run_until_confirmed()
    drive.clock.now += 1
    client.finish()
    server.finish()
    trace = drive.trace()
    assert trace.client_tcp is not None
    assert trace.server_tcp is not None
    assert trace.client_tcp.bytes_received in (1000, 1001)  # with the FIN
    assert trace.client_tcp.bytes_acked == 5000  # on an accepted connection the SYN does not count
    assert trace.server_tcp.bytes_received in (5000, 5001)
    assert trace.client_tcp.total_retrans == trace.server_tcp.total_retrans == 0
    assert trace.client_tcp.rtt


def test_what_got_lost_on_the_way_is_counted(loopback: Namespace, drive: Drive) -> None:
    client, server = drive.session(policy(idle=3600))
    client.say(b"hello")
    drive.run_until(lambda: server.got)
    drive.run_until_confirmed()
    loopback.nft(
        f"table ip lost {{ chain input {{ type filter hook input priority 0; tcp dport {server.local.port} drop; }}; }}"
    )
    client.say(b"is anybody there?")

    def sent_again() -> bool:
        told = live(drive).server_tcp
        assert told is not None
        return bool(told.total_retrans and told.retransmits and told.unacked)

    drive.run_until(sent_again)
    client.reset()
    drive.pass_time(40, step=1)
    trace = drive.trace()
    assert trace.server_tcp is not None
    assert trace.server_tcp.total_retrans


def test_a_short_session_that_ended_well_is_spared_the_question(drive: Drive) -> None:
    client, server = drive.session()
    client.finish()
    server.finish()
    trace = drive.trace()
    assert (trace.record.code, trace.record.total_ms < 100) == ("--", True)
    assert (trace.client_tcp, trace.server_tcp) == (None, None)


# ------------------------------------------------------------ ids, and being off


def test_ids_are_the_same_in_life_in_the_record_and_afterwards(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend))
    client = drive.connect(listen)
    server = drive.accept(backend)
    other = drive.connect(listen)
    drive.accept(backend)
    one, two = drive.sessions()
    assert one.id != two.id
    client.finish()
    server.finish()
    record = drive.record()
    [[trace]] = drive.engine.ended(Query())
    assert (trace.id, trace.record.number) == (one.id, record.number)
    other.reset()
    assert drive.engine.trace(parse_session_id("0xffff")) is None


def test_a_worker_numbers_its_sessions_by_its_seat(make_drive: Make) -> None:
    drive = make_drive(splice=False, worker=3)
    client, _ = drive.session()
    assert [view.id for view in drive.sessions()] == ["0x3000000000001"]
    client.reset()
    assert drive.trace().id == "0x3000000000001"


def test_without_a_recorder_nothing_is_kept_and_live_ones_can_still_be_asked_about(make_drive: Make) -> None:
    drive = make_drive(splice=False, recorded=0)
    client, server = drive.session()
    assert live(drive).client_tcp is not None
    client.finish()
    drive.run_until(lambda: server.eof)
    server.finish()
    drive.record()
    assert not drive.engine.recording
    assert list(drive.engine.ended(Query())) == []
    assert drive.engine.trace(1) is None


def test_no_record_is_made_unless_the_observer_wants_it_or_somebody_asks(
    make_drive: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `log: none` every session paid for a record that nobody read."""

    class Uninterested(Witness):
        wants_records = False

    made: list[int] = []
    record = Session.record

    def noted(session: Session, *rest: Any) -> SessionRecord:
        made.append(session.number)
        return record(session, *rest)

    monkeypatch.setattr(Session, "record", noted)
    drive = make_drive(splice=False, observer=Uninterested())
    client, server = drive.session()
    client.finish()
    server.finish()
    drive.run_until(lambda: client.eof and not drive.engine.counters.open_sessions)
    assert not made
    [[trace]] = drive.engine.ended(Query())
    assert (trace.record.code, trace.state, made) == ("--", "closed", [1])
    drive.records.append(trace.record)  # one for each session, as the end of the test expects


def test_a_search_gives_way_after_every_few_sessions(make_drive: Make) -> None:
    drive = make_drive(splice=False, recorded=1000)
    listen = drive.serve()
    clients = [drive.connect(listen) for _ in range(150)]
    drive.run_until(lambda: all(client.error for client in clients))
    assert [len(step) for step in drive.engine.ended(Query(limit=140))] == [64, 64, 12]


def test_live_sessions_are_listed_in_steps_without_those_that_ended_between(make_drive: Make) -> None:
    drive = make_drive(splice=False)
    backend = drive.backend(backlog=200)
    listen = drive.serve(server_at(backend))
    clients = [drive.connect(listen) for _ in range(100)]
    drive.run_until(lambda: len(drive.sessions()) == 100)
    steps = drive.engine.live()
    seen = len(next(steps))
    for client in clients:
        client.reset()
    drive.run_until(lambda: len(drive.records) == 100)
    assert (seen, [len(step) for step in steps]) == (64, [0])
