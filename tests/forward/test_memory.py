"""Bytes that wait for blocked destinations: bounded per session and over the whole process, and none is lost for it."""

import socket
import struct
from collections.abc import Callable

import pytest

from pylb.forward.relay import PROVEN, READ
from pylb.forward.sockets import UNSENT
from tests.support.drive import Drive, Peer

Make = Callable[..., Drive]
MIB = 1 << 20
SO_MEMINFO = 55  # linux/socket.h; nine 32-bit numbers, the sixth what waits to be sent (SK_MEMINFO_WMEM_QUEUED)
STREAM = bytes(range(251)) * (8 * MIB // 251)


def stalled(drive: Drive, count: int) -> list[tuple[Peer, Peer]]:
    """Sessions whose servers send `STREAM` to clients that do not read."""
    pairs = [drive.session(rcvbuf=8192) for _ in range(count)]
    for client, server in pairs:
        client.reading = False
        server.say(STREAM)
    drive.run_until_quiet()
    return pairs


@pytest.mark.parametrize("splice", [True, False])
def test_over_the_limit_bytes_stay_in_the_kernel_and_all_arrive_later(make_drive: Make, splice: bool) -> None:
    drive = make_drive(splice=splice, max_buffered=1)
    pairs = stalled(drive, 8)
    held = [half.held for half in drive.engine._life.halves.values() if half.held]
    assert len(held) == 1, "only the first found the process below its limit"
    assert drive.engine.counters.buffered == sum(held)
    for client, server in pairs:
        client.reading = True
        server.finish()
    drive.run_until(lambda: all(client.eof for client, _ in pairs))
    assert all(client.got == STREAM for client, _ in pairs)


def test_a_reader_that_stalls_holds_half_of_what_the_kernel_would_keep_for_it(make_drive: Make) -> None:
    """Measured without the bound: 3.6 to 4.1 MB each."""
    drive = make_drive(splice=True)
    client, server = drive.session()
    client.reading = False
    server.say(bytes(16 * MIB))
    drive.run_until_quiet()
    [half] = [half for half in drive.engine._life.halves.values() if half.is_client]
    queued = struct.unpack("9I", half.sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))[5]
    assert UNSENT // 4 < queued < UNSENT * 3 // 2
    server.give_up()
    client.reset()


def test_a_reader_that_has_read_more_than_kernels_hold_may_have_all_that_the_kernel_takes(make_drive: Make) -> None:
    """The bound costs bulk a tenth of its CPU."""
    drive = make_drive(splice=True)
    client, server = drive.session()
    server.say(bytes(PROVEN + 8 * MIB))
    drive.run_until(lambda: len(client.got) == PROVEN + 8 * MIB)
    [half] = [half for half in drive.engine._life.halves.values() if half.is_client]
    assert half.sock.getsockopt(socket.IPPROTO_TCP, 25) == 0  # TCP_NOTSENT_LOWAT: as the system says
    server.finish()
    client.finish()
    drive.run_until(lambda: client.eof and server.eof)


def test_below_the_limit_again_reading_ahead_starts_anew(make_drive: Make) -> None:
    drive = make_drive(splice=False, max_buffered=1)
    [(client, _server)] = stalled(drive, 1)
    client.reading = True
    drive.run_until(lambda: client.got == STREAM)
    assert drive.engine.counters.buffered == 0
    stalled(drive, 1)
    assert 0 < drive.engine.counters.buffered <= READ


def test_what_waited_is_off_the_books_when_its_session_is_reset(make_drive: Make) -> None:
    drive = make_drive(splice=True, max_buffered=MIB)
    pairs = stalled(drive, 4)
    assert drive.engine.counters.buffered > 0
    for client, _ in pairs:
        client.reset()
    drive.run_until(lambda: len(drive.records) == 4)
    assert drive.engine.counters.buffered == 0


def test_an_urgent_byte_travels_while_nothing_is_read_ahead(make_drive: Make) -> None:
    drive = make_drive(splice=False, max_buffered=1)
    stalled(drive, 1)
    client, server = drive.session()
    server.sock.send(b"abc")
    server.sock.send(b"!", 1)  # MSG_OOB
    server.sock.send(b"def")
    drive.run_until(lambda: client.got == b"abc!def")
