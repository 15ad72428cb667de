"""Servers that are full: clients wait in the queue, with what they said, until a place is free or their time is up."""

import pytest

from pylb.core.policy import Policy
from tests.forward.test_pools import end
from tests.support.drive import Drive, policy, server_at


def test_clients_wait_in_order_while_all_servers_are_full(drive: Drive) -> None:
    one, two = drive.backend(), drive.backend()
    listen = drive.serve(server_at(one, "one", most=1), server_at(two, "two", most=1))
    first, second = drive.connect(listen), drive.connect(listen)
    at_one, at_two = drive.accept(one), drive.accept(two)
    waiting = [drive.connect(listen) for _ in range(3)]
    for number, client in enumerate(waiting):
        client.say(b"%d" % number)
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 3)
    drive.clock.now += 1.25
    end(drive, first, at_one)
    served = drive.accept(one)
    drive.run_until(lambda: served.got == b"0")
    assert drive.engine.counters.frontends[listen].queued == 2
    end(drive, second, at_two)
    other = drive.accept(two)
    drive.run_until(lambda: other.got == b"1")
    end(drive, waiting[0], served)
    assert (drive.records[2].queue_ms, drive.records[2].connect_ms, drive.records[2].code) == (1250, 0, "--")


def test_a_backup_is_no_place_to_go_while_the_others_are_only_full(drive: Drive) -> None:
    one, backup = drive.backend(), drive.backend()
    listen = drive.serve(server_at(one, "one", most=1), server_at(backup, "backup", rank=2))
    drive.connect(listen)
    drive.accept(one)
    drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)


def test_who_waits_too_long_is_reset(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend, most=1), policy=policy(queue=2.0))
    drive.connect(listen)
    drive.accept(backend)
    waiting = drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)
    drive.pass_time(1.9)
    assert not drive.records
    drive.pass_time(0.2)
    drive.run_until(lambda: waiting.error)
    record = drive.record()
    assert (record.code, record.queue_ms // 100, record.connect_ms, record.server) == ("sQ", 20, -1, "")


def test_a_queue_has_its_length(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend, most=1), policy=Policy(max_queue=1))
    drive.connect(listen)
    drive.accept(backend)
    drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)
    third = drive.connect(listen)
    drive.run_until(lambda: third.error)
    assert drive.record().code == "PQ"
    assert drive.engine.counters.frontends[listen].denied == {"queue": 1}


def test_a_client_that_leaves_the_queue_makes_room_in_it(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend, most=1), policy=Policy(max_queue=1))
    drive.connect(listen)
    drive.accept(backend)
    for _ in range(2):
        waiting = drive.connect(listen)
        drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)
        waiting.reset()
        drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 0)
    assert [record.code for record in drive.records] == ["CQ", "CQ"]


def test_what_a_waiting_client_said_and_its_fin_are_delivered(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend, most=1))
    first = drive.connect(listen)
    at = drive.accept(backend)
    waiting = drive.connect(listen)
    waiting.say(b"x" * 100_000)
    waiting.finish()
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)
    drive.run_until_quiet()
    end(drive, first, at)
    server = drive.accept(backend)
    drive.run_until(lambda: server.eof)
    assert len(server.got) == 100_000


@pytest.mark.parametrize("relief", ["a server more", "a higher limit", "no limit"])
def test_a_new_table_serves_the_queue(drive: Drive, relief: str) -> None:
    one, two = drive.backend(), drive.backend()
    listen = drive.serve(server_at(one, "one", most=1))
    drive.connect(listen)
    drive.accept(one)
    drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)
    if relief == "a server more":
        drive.serve(server_at(one, "one", most=1), server_at(two, "two"), listen=listen)
        drive.accept(two)
    else:
        drive.serve(server_at(one, "one", most=2 if relief == "a higher limit" else 0), listen=listen)
        drive.accept(one)


def test_who_was_refused_and_waits_is_served_by_the_only_server_of_a_new_table(drive: Drive) -> None:
    """Found by the state machine: what was tried before is not the one server there is now."""
    refusing, one, two = server_at(drive.nobody(), "refuses"), drive.backend(), drive.backend()
    listen = drive.serve(refusing, server_at(one, "one", rank=1, most=1))
    drive.connect(listen)
    drive.accept(one)
    waiting = drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)
    drive.serve(server_at(two, "two"), listen=listen)
    drive.accept(two)
    assert not waiting.error


def test_who_was_refused_by_a_server_that_has_left_is_counted_all_the_same(drive: Drive) -> None:
    """Found by the state machine: the label was gone, and the session with it."""
    refusing, backend = server_at(drive.nobody(), "refuses"), drive.backend()
    listen = drive.serve(refusing, server_at(backend, "one", rank=1, most=1))
    drive.connect(listen)
    drive.accept(backend)
    waiting = drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)
    drive.serve(listen=listen)
    drive.run_until(lambda: waiting.error)
    assert drive.record().code == "SC"
    assert drive.engine.counters.frontends[listen].servers[""].closed == {"SC": 1}


def test_who_waits_for_a_server_that_is_gone_is_reset(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend, most=1))
    drive.connect(listen)
    drive.accept(backend)
    waiting = drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)
    drive.serve(listen=listen)
    drive.run_until(lambda: waiting.error)
    assert drive.record().code == "SC"


def test_a_server_that_refuses_gives_its_place_to_the_next_in_the_queue(drive: Drive) -> None:
    """Its slot was taken while it was dialled."""
    hole, backend = drive.black_hole(), drive.backend()
    listen = drive.serve(server_at(hole, "hole", most=1), policy=policy(connect=1.0))
    clients = [drive.connect(listen) for _ in range(2)]
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)
    drive.serve(server_at(hole, "hole", most=1), server_at(backend, "b", rank=1), policy=policy(connect=1.0), listen=listen)
    drive.pass_time(1.1)
    drive.accept(backend)  # the first one's retry
    drive.pass_time(1.1)
    drive.accept(backend)
    assert not any(client.error for client in clients)


def test_a_removed_frontends_queue_is_served_as_its_sessions_are(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend, most=1))
    first = drive.connect(listen)
    at = drive.accept(backend)
    drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)
    drive.remove(listen)
    end(drive, first, at)
    drive.accept(backend)
