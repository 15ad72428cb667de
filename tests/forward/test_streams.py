"""Bytes through an engine, fault cases 1 to 14: what each receiver got is what was sent, and ends are told as they were."""

import errno
import random
import socket
from functools import partial
from hashlib import sha256

import pytest

from pylb.core.session import State
from tests.support.drive import Drive, Peer, policy, server_at
from tests.support.kernel import PASS, sickness

MIB = 1 << 20


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def test_a_word_travels_both_ways_and_the_books_say_so(drive: Drive) -> None:
    client, server = drive.session()
    client.say(b"ping")
    drive.run_until(lambda: server.got == b"ping")
    server.say(b"pong!")
    drive.run_until(lambda: client.got == b"pong!")
    client.finish()
    drive.run_until(lambda: server.eof)
    server.finish()
    record = drive.record()
    assert client.eof
    assert (record.bytes_in, record.bytes_out, record.code) == (4, 5, "--")
    assert (record.frontend, record.server, record.client) == ("web", "a", "127.0.0.1")
    assert record.client_port == client.local.port
    assert (record.retries, record.redispatched, record.active, record.frontend_active) == (0, False, 1, 1)


def test_a_server_that_speaks_first_is_heard_by_a_silent_client(drive: Drive) -> None:
    client, server = drive.session()
    server.say(b"220 mail.example.net ESMTP\r\n")
    drive.run_until(lambda: client.got.endswith(b"\n"))


def test_a_late_reply_still_flows_after_the_client_stopped_sending(drive: Drive) -> None:
    client, server = drive.session()
    client.say(b"all of it?")
    client.finish()
    drive.run_until(lambda: server.eof)
    answer = noise(8 * MIB)
    server.say(answer)
    server.finish()
    drive.run_until(lambda: client.eof)
    assert client.got == answer
    assert drive.record().code == "--"


def test_an_upload_still_flows_after_the_server_stopped_sending(drive: Drive) -> None:
    client, server = drive.session()
    server.finish()
    drive.run_until(lambda: client.eof)
    upload = noise(8 * MIB)
    client.say(upload)
    client.finish()
    drive.run_until(lambda: server.eof)
    assert server.got == upload
    assert drive.record().code == "--"


def test_the_fin_stays_behind_the_last_byte_when_the_destination_is_full(drive: Drive) -> None:
    client, server = drive.session(rcvbuf=4096)
    client.reading = False
    answer = noise(6 * MIB)
    server.say(answer)
    server.finish()
    drive.run_until_quiet()  # stuck: the pipe or the buffer, and the client's kernel, are full
    assert not client.eof
    client.reading = True
    drive.run_until(lambda: client.eof)
    assert client.got == answer


def test_the_last_data_and_fin_of_a_half_closed_session_arrive_in_one_event(drive: Drive) -> None:
    client, server = drive.session()
    client.finish()
    drive.run_until(lambda: server.eof)
    server.sock.send(b"last words")
    server.sock.shutdown(socket.SHUT_WR)  # both before the engine's next turn: IN|RDHUP|HUP at once
    drive.run_until(lambda: client.eof)
    assert client.got == b"last words"
    assert not client.error
    assert drive.record().code == "--"


def test_an_answer_with_its_fin_takes_one_read() -> None:
    """A second one, only to get the 0, would meet the error that waits for it here."""
    with sickness() as sick:
        drive = Drive(splice=False)
        try:
            client, server = drive.session()
            server.sock.send(b"all of it")
            server.sock.shutdown(socket.SHUT_WR)  # both before the engine's next turn
            sick.armed["recv"] = [errno.ECONNRESET, PASS]
            drive.run_until(lambda: client.eof)
            assert (client.got, client.error) == (b"all of it", "")
            sick.armed.clear()
            client.finish()
            assert drive.record().code == "--"
        finally:
            drive.finish()


@pytest.mark.parametrize("behind", [b"", b"def"], ids=["the urgent byte", "more"])
def test_a_fin_right_behind_urgent_data_is_not_taken_for_the_end_of_it(drive: Drive, behind: bytes) -> None:
    """The read stops at the urgent byte, although the event said RDHUP."""
    client, server = drive.session()
    server.sock.send(b"abc")
    server.sock.send(b"!", socket.MSG_OOB)
    server.sock.send(behind)
    server.sock.shutdown(socket.SHUT_WR)  # all before the engine's next turn
    drive.run_until(lambda: client.eof)
    assert client.got == b"abc!" + behind


def test_a_server_reset_comes_after_every_byte_before_it_and_as_a_reset(drive: Drive) -> None:
    client, server = drive.session()
    answer = noise(MIB)
    client.reading = False
    server.say(answer)
    drive.run_until(lambda: not server.unsaid)
    drive.run_until_quiet()
    server.reset()
    client.reading = True
    drive.run_until(lambda: client.error or client.eof)
    assert client.error == "ECONNRESET"
    assert answer.startswith(client.got)
    record = drive.record()
    assert record.code == "SD"
    assert len(client.got) <= record.bytes_out


def test_what_the_engine_had_read_before_the_reset_is_all_delivered(drive: Drive) -> None:
    client, server = drive.session()
    answer = noise(MIB)
    server.say(answer)
    drive.run_until(lambda: len(client.got) == MIB)
    server.say(b"the rest")
    server.step()
    server.reset()  # data and reset before the engine's next turn
    drive.run_until(lambda: client.error or client.eof)
    assert client.error == "ECONNRESET"
    assert client.got == answer + b"the rest"
    assert drive.record().code == "SD"


def test_a_client_reset_comes_after_every_byte_before_it_and_as_a_reset(drive: Drive) -> None:
    client, server = drive.session()
    client.say(noise(100_000))
    drive.run_until(lambda: len(server.got) == 100_000)
    client.say(b"the rest")
    client.step()
    client.reset()
    drive.run_until(lambda: server.error or server.eof)
    assert server.error == "ECONNRESET"
    assert server.got == noise(100_000) + b"the rest"
    assert drive.record().code == "CD"


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_reset_while_the_other_side_does_not_read_is_told_after_the_flush_timeout(drive: Drive, who: str) -> None:
    client, server = drive.session(policy(flush=3), rcvbuf=4096)
    dying, slow = (client, server) if who == "client" else (server, client)
    slow.reading = False
    dying.say(noise(8 * MIB))
    drive.run_until_quiet()
    dying.reset()  # the engine is paused on this side and must see it all the same
    drive.run_until_quiet()
    assert [session.state for session in drive.engine._life.sessions] == [State.RESETTING]
    drive.pass_time(2.5)
    assert not drive.records
    drive.pass_time(1)
    assert drive.record().code == ("CD" if who == "client" else "SD")
    slow.reading = True
    drive.run_until(lambda: slow.error or slow.eof)
    assert slow.error == "ECONNRESET"


def test_a_reset_is_passed_on_once_a_slow_reader_has_read_what_came_before(drive: Drive) -> None:
    client, server = drive.session(policy(flush=3), rcvbuf=4096)
    client.reading = False
    server.say(noise(8 * MIB))
    drive.run_until_quiet()
    reached_the_engine = server
    server.reset()
    drive.run_until_quiet()
    client.reading = True
    drive.run_until(lambda: client.error or client.eof)
    assert client.error == "ECONNRESET"
    assert noise(8 * MIB).startswith(client.got)
    assert reached_the_engine.closed
    assert drive.record().bytes_out == len(client.got)


def test_one_byte_segments_arrive_intact(drive: Drive) -> None:
    client, server = drive.session()
    text = noise(20_000)
    server.reading = False
    for at in range(len(text)):
        client.sock.send(text[at : at + 1])
        if at % 50 == 0:
            drive.turn()
            server.read(64)
    server.reading = True
    drive.run_until(lambda: len(server.got) == len(text))
    assert server.got == text


def test_one_byte_segments_in_the_middle_of_bulk_arrive_intact(drive: Drive) -> None:
    client, server = drive.session()
    server.reading = False
    client.say(noise(4 * MIB))
    drive.run_until_quiet()
    drive.run_until(lambda: (server.step(), server.read(MIB), not client.unsaid)[2])
    for at in range(200):
        client.sock.send(bytes([at]))
        drive.turn()
    client.finish()
    server.reading = True
    drive.run_until(lambda: server.eof)
    assert server.got == noise(4 * MIB) + bytes(range(200))


def test_both_sides_write_before_either_reads_and_nobody_waits_for_ever(drive: Drive) -> None:
    client, server = drive.session()
    client.reading = server.reading = False
    client.say(noise(8 * MIB, 1))
    server.say(noise(8 * MIB, 2))
    drive.run_until_quiet()
    assert buffered(drive) <= 2 * 64 * 1024 + 2 * 1024 * 1024  # user space, and pipes by what the kernel lets in
    client.finish()
    server.finish()
    client.reading = True
    drive.run_until(lambda: client.eof)
    server.reading = True
    drive.run_until(lambda: server.eof)
    assert client.got == noise(8 * MIB, 2)
    assert server.got == noise(8 * MIB, 1)
    assert drive.record().code == "--"


def test_a_reader_with_a_zero_window_stops_the_sender_and_then_gets_everything(drive: Drive) -> None:
    client, server = drive.session(policy(idle=60))
    client.reading = False
    server.say(noise(16 * MIB))
    drive.run_until_quiet()
    assert server.unsaid, "the sender was not stopped"
    drive.run_until_answered()
    drive.pass_time(50, step=1)
    assert not drive.records
    client.reading = True
    server.finish()
    drive.run_until(lambda: client.eof)
    assert client.got == noise(16 * MIB)


def test_what_waits_in_memory_leaves_in_pieces_where_the_kernel_takes_only_pieces(drive: Drive) -> None:
    client, server = drive.session(rcvbuf=4096)
    for half in drive.engine._life.halves.values():
        half.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)  # less than a third of a chunk
    client.say(noise(300_000, 1))
    server.say(noise(300_000, 2))
    client.finish()
    server.finish()
    drive.run_until(lambda: client.eof and server.eof)
    assert client.got == noise(300_000, 2)
    assert server.got == noise(300_000, 1)


def test_random_message_sizes_across_the_splice_switch_keep_their_hash(drive: Drive) -> None:
    client, server = drive.session()
    sizes = random.Random(12)
    digests = []
    for seed, (sender, receiver) in enumerate([(client, server), (server, client)]):
        pieces = [noise(int(2 ** sizes.uniform(0, 21)), seed * 1000 + at) for at in range(60)]
        for piece in pieces:
            sender.say(piece)
            drive.turn()
        digests.append((receiver, sha256(b"".join(pieces)).digest()))
    client.finish()
    server.finish()
    drive.run_until(lambda: client.eof and server.eof)
    for receiver, digest in digests:
        assert sha256(receiver.got).digest() == digest


def test_a_client_that_sends_and_closes_before_the_server_answers_is_delivered(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend))
    client = drive.connect(listen)
    client.sock.send(b"fire and forget")
    client.close()
    server = drive.accept(backend)
    drive.run_until(lambda: server.eof)
    assert server.got == b"fire and forget"
    server.finish()
    assert drive.record().bytes_in == 15


@pytest.mark.parametrize("bulk", [0, 4 * MIB], ids=["small", "bulk"])
def test_urgent_data_travels_in_the_stream(drive: Drive, bulk: int) -> None:
    client, server = drive.session()
    client.say(noise(bulk))
    drive.run_until(lambda: len(server.got) == bulk)
    client.sock.send(b"abc")
    client.sock.send(b"!", socket.MSG_OOB)
    client.sock.send(b"def")
    drive.run_until(lambda: len(server.got) == bulk + 7, limit=3)
    assert server.got[bulk:] == b"abc!def"


def test_a_fin_right_behind_urgent_data_in_bulk_loses_nothing(drive: Drive) -> None:
    client, server = drive.session()
    client.say(noise(4 * MIB))
    drive.run_until(lambda: len(server.got) > MIB)
    server.reading = False
    drive.run_until_quiet()
    drive.run_until(lambda: (server.read(MIB), not client.unsaid)[1])
    client.sock.setblocking(True)
    client.sock.send(b"!", socket.MSG_OOB)
    client.sock.send(noise(30_000, 2))
    client.sock.shutdown(socket.SHUT_WR)
    client.sock.setblocking(False)
    server.reading = True
    drive.run_until(lambda: server.eof)
    assert server.got == noise(4 * MIB) + b"!" + noise(30_000, 2)


def test_two_hundred_small_rounds_leave_nothing_waiting(drive: Drive) -> None:
    client, server = drive.session()
    for _ in range(200):
        for sender, receiver in ((client, server), (server, client)):
            receiver.got.clear()
            sender.say(b"x" * 64)
            drive.run_until(partial(got, receiver, 64))


def got(peer: Peer, count: int) -> bool:
    return len(peer.got) >= count


def buffered(drive: Drive) -> int:
    """Bytes in user space and in pipes."""
    halves = drive.engine._life.halves.values()
    return sum(len(half.pending or b"") + (half.pipe.count if half.pipe else 0) for half in halves)
