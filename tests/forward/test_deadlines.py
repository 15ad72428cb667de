"""Idle, half-close, flush, drain and shutdown, with a clock moved by hand."""

import math

import pytest

from tests.support.drive import Drive, Peer, policy, readable, server_at
from tests.support.netns import Namespace

MIB = 1 << 20


def test_an_idle_session_without_a_timeout_lives_on(drive: Drive) -> None:
    client, server = drive.session(policy(idle=math.inf))
    client.say(b"hi")
    drive.run_until(lambda: server.got)
    drive.run_until_confirmed()
    drive.pass_time(400 * 86400, step=86400)
    assert not drive.records
    client.say(b"still here")
    drive.run_until(lambda: server.got == b"histill here")


def test_an_idle_session_ends_at_its_timeout_and_not_before(drive: Drive) -> None:
    client, server = drive.session(policy(idle=60))
    client.say(b"hi")
    drive.run_until(lambda: server.got)
    drive.run_until_confirmed()
    drive.pass_time(50, step=1)
    server.say(b"still here")
    drive.run_until(lambda: client.got)
    drive.run_until_confirmed()
    drive.pass_time(59, step=1)
    assert not drive.records
    drive.pass_time(10, step=1)
    assert drive.record().code == "cD"  # the server spoke last: it was the client's turn
    drive.run_until(lambda: client.error and server.error)
    assert client.error == server.error == "ECONNRESET"


def test_a_half_closed_session_ends_when_the_other_side_stays_silent(drive: Drive) -> None:
    client, server = drive.session(policy(half_close=20))
    client.finish()
    drive.run_until(lambda: server.eof)
    drive.run_until_confirmed()
    drive.pass_time(19, step=0.5)
    assert not drive.records
    drive.pass_time(10, step=0.5)
    assert drive.record().code == "sD"


def test_the_mirror_of_a_half_closed_session_blames_the_client(drive: Drive) -> None:
    client, server = drive.session(policy(half_close=20))
    server.finish()
    drive.run_until(lambda: client.eof)
    drive.run_until_confirmed()
    drive.pass_time(30, step=0.5)
    assert drive.record().code == "cD"


def test_a_half_closed_session_that_moves_is_not_cut(drive: Drive) -> None:
    client, server = drive.session(policy(half_close=20))
    client.finish()
    drive.run_until(lambda: server.eof)
    for _ in range(5):
        drive.pass_time(15, step=1)
        server.say(b"more")
        drive.run_until(lambda: client.got == b"more")
        client.got.clear()
    assert not drive.records


def test_once_both_sides_are_done_the_kernel_delivers_the_rest(drive: Drive) -> None:
    client, server = drive.session(rcvbuf=4096)
    client.reading = False
    server.say(bytes(512 * 1024))
    server.finish()
    drive.run_until_quiet()
    client.finish()
    assert drive.record().code == "--"
    assert drive.engine.counters.open_sessions == 0
    client.reading = True
    drive.run_until(lambda: client.eof)
    assert len(client.got) == 512 * 1024


def test_a_download_to_a_slow_reader_is_not_cut_while_the_reader_moves(drive: Drive) -> None:
    """The kernel reports room only when a third of its buffer is free: far slower than a modem. Its queue tells earlier."""
    client, server = drive.session(policy(flush=3, half_close=6, idle=6), rcvbuf=4096)
    client.finish()
    client.reading = False
    drive.run_until(lambda: server.eof)
    answer = bytes(range(256)) * (16 * 1024)
    server.say(answer)
    server.finish()
    drive.run_until_quiet()
    for _ in range(60):
        for _ in range(3):
            drive.run_until(lambda: readable_peer(client), limit=5)
            client.read(2048)
        drive.pass_time(1, step=0.5)
        assert not drive.records or drive.records[0].code == "--", "cut while it moved"
    client.reading = True
    drive.run_until(lambda: client.eof)
    assert client.got == answer


def test_a_reader_of_what_only_the_kernel_holds_is_not_cut_either(drive: Drive) -> None:
    client, server = drive.session(policy(half_close=6), rcvbuf=4096)
    client.reading = False
    server.say(bytes(512 * 1024))  # all of it fits into the kernel's buffer for the client
    server.finish()
    drive.run_until_quiet()
    for _ in range(30):
        drive.run_until(lambda: readable_peer(client), limit=5)
        client.read(2048)
        drive.pass_time(1, step=0.5)
        assert not drive.records, "cut while it moved"
    client.reading = True
    drive.run_until(lambda: client.eof)
    assert len(client.got) == 512 * 1024


def test_a_reader_that_stops_altogether_is_cut_on_time_although_the_kernel_holds_bytes(drive: Drive) -> None:
    client, server = drive.session(policy(half_close=20), rcvbuf=4096)
    client.reading = False
    server.say(bytes(512 * 1024))
    server.finish()
    drive.run_until_quiet()
    drive.pass_time(19, step=0.5)
    assert not drive.records
    drive.pass_time(8, step=0.5)
    assert drive.record().code == "cD"


def test_drain_still_takes_who_waits_in_the_backlog(drive: Drive) -> None:
    backend = drive.backend()
    waiting = drive.connect(drive.serve(server_at(backend)))
    drive.engine.drain(drive.clock.now + 5)
    server = drive.accept(backend)
    server.say(b"hello")
    drive.run_until(lambda: waiting.got == b"hello")


def test_drain_refuses_new_clients_and_resets_the_rest_at_its_deadline(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend))
    clients = [drive.connect(listen), drive.connect(listen)]
    servers = [drive.accept(backend), drive.accept(backend)]
    drive.engine.drain(drive.clock.now + 5)
    with pytest.raises(ConnectionRefusedError):
        drive.connect(listen)
    clients[0].say(b"going on")
    drive.run_until(lambda: servers[0].got or servers[1].got)
    drive.run_until_quiet()
    assert drive.engine.counters.open_sessions == 2
    drive.pass_time(4)
    assert not drive.records
    drive.pass_time(1.5)
    assert [record.code for record in drive.records] == ["KD", "KD"]
    drive.run_until(lambda: all(client.error for client in clients))


def test_close_resets_what_lives_and_leaves_nothing(drive: Drive) -> None:
    client, server = drive.session()
    server.reading = False
    client.say(bytes(8 * MIB))
    drive.run_until_quiet()
    drive.close_engine()
    server.reading = True
    drive.close_engine()
    assert client.error == server.error == "ECONNRESET"
    assert drive.records[0].code == "KD"


def test_a_removed_frontend_refuses_new_clients_and_gives_live_ones_their_drain(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend), policy=policy(drain=10))
    client = drive.connect(listen)
    server = drive.accept(backend)
    drive.remove(listen)
    with pytest.raises(ConnectionRefusedError):
        drive.connect(listen)
    client.say(b"not done yet")
    drive.run_until(lambda: server.got == b"not done yet")
    assert listen not in drive.engine.counters.frontends
    drive.pass_time(9, step=0.5)
    assert not drive.records
    drive.pass_time(6, step=0.5)
    assert drive.record().code == "KD"


def readable_peer(peer: Peer) -> bool:
    return readable(peer.sock)


# ------------------------------------------------------------ peers that are gone


def drop_from(loopback: Namespace, port: int) -> None:
    """Nothing that is sent from `port` arrives any more, acknowledgements included."""
    loopback.nft(f"table ip lost {{ chain input {{ type filter hook input priority 0; tcp sport {port} drop; }}; }}")


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_peer_that_acknowledges_nothing_is_given_up(loopback: Namespace, drive: Drive, who: str) -> None:
    client, server = drive.session(policy(idle=3600))
    client.say(b"hello")
    drive.run_until(lambda: server.got)
    drive.run_until_confirmed()
    lost, speaker, code = (client, server, "cD") if who == "client" else (server, client, "sD")
    drop_from(loopback, lost.local.port)
    speaker.say(b"are you there?")
    drive.run_until(lambda: lost.got.endswith(b"there?"))  # it arrives; its acknowledgement does not
    drive.pass_time(29, step=1)
    assert not drive.records
    drive.pass_time(12, step=1)
    assert drive.record().code == code
    drive.run_until(lambda: speaker.error == "ECONNRESET")


def test_a_peer_that_reads_nothing_is_alive_and_keeps_its_session(drive: Drive) -> None:
    client, server = drive.session(policy(idle=3600), rcvbuf=8192)
    client.reading = False
    server.say(bytes(8 * MIB))
    drive.run_until_quiet()
    drive.run_until_answered()
    drive.pass_time(600, step=1)
    assert not drive.records
    client.reading = True
    drive.run_until(lambda: len(client.got) == 8 * MIB)


def test_a_peer_that_comes_back_in_time_keeps_its_session(loopback: Namespace, drive: Drive) -> None:
    client, server = drive.session(policy(idle=3600))
    drop_from(loopback, client.local.port)
    server.say(b"are you there?")
    drive.run_until(lambda: client.got)
    drive.pass_time(29, step=1)
    loopback.nft("delete table ip lost")
    drive.run_until_confirmed()  # by the kernel's retransmission, a few hundred milliseconds later
    drive.pass_time(60, step=1)
    assert not drive.records
