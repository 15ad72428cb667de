"""When a socket towards a server is armed, so that it cannot end with a FIN that nobody meant."""

import socket
import struct

import pytest

from pylb.forward import sockets
from pylb.forward.relay import READ
from pylb.forward.session import Half
from tests.support.drive import Drive

ARMED = struct.pack("ii", 1, 0)


@pytest.fixture
def no_tick(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive.engine, "tick", lambda _now: False)


def upstream(drive: Drive) -> Half:
    [half] = [half for half in drive.engine._life.halves.values() if not half.is_client]
    return half


def armed(half: Half) -> bool:
    return half.sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == ARMED


@pytest.mark.usefixtures("no_tick")
def test_a_clients_reset_within_the_first_tick_reaches_the_server_as_a_reset(drive: Drive) -> None:
    """Without arming first, half of an upload ended with a FIN and looked whole."""
    client, server = drive.session()
    client.say(b"half of an upload")
    drive.run_until(lambda: server.got)
    assert not armed(upstream(drive))
    client.reset()
    drive.run_until(lambda: server.eof or server.error)
    assert (server.error, server.eof) == ("ECONNRESET", False)


@pytest.mark.usefixtures("no_tick")
def test_the_first_full_read_of_an_upload_arms_and_a_small_one_does_not(drive: Drive) -> None:
    client, server = drive.session()
    client.say(b"small")
    drive.run_until(lambda: server.got)
    assert not armed(upstream(drive))
    client.say(bytes(4 * READ))
    drive.run_until(lambda: len(server.got) > 4 * READ)
    assert armed(upstream(drive))


def test_the_next_tick_arms_what_was_dialled(drive: Drive) -> None:
    drive.session()
    drive.engine.tick(drive.clock.now)
    assert armed(upstream(drive))
    assert not drive.engine._life.sessions.fresh


@pytest.mark.parametrize("ticked", [False, True])
def test_an_orderly_end_is_a_fin_to_both_and_clears_only_what_is_armed(
    drive: Drive, monkeypatch: pytest.MonkeyPatch, ticked: bool
) -> None:
    if not ticked:
        monkeypatch.setattr(drive.engine, "tick", lambda _now: False)
    client, server = drive.session()
    if ticked:
        drive.engine.tick(drive.clock.now)
    cleared = []
    disarm = sockets.disarm
    monkeypatch.setattr(sockets, "disarm", lambda sock: (disarm(sock), cleared.append(sock.fileno())))
    fds = {half.is_client: half.fd for half in drive.engine._life.halves.values()}
    client.finish()
    server.finish()
    drive.run_until(lambda: client.eof and server.eof and not drive.engine.counters.open_sessions)
    assert client.error == server.error == ""
    assert sorted(cleared) == sorted(fds.values() if ticked else [fds[True]])
