"""A port of two sockets, one for each family, as a socket unit may have it: both are served, both are closed."""

import socket
from socket import SocketType

import pytest

from pylb.core.address import Listen
from pylb.forward.sockets import inheritable
from tests.support.drive import Drive, server_at
from tests.support.ports import free_port


def listening(family: socket.AddressFamily, ip: str, port: int) -> SocketType:
    made = socket.create_server((ip, port), family=family)
    sock = SocketType(fileno=made.detach())
    sock.setblocking(False)
    inheritable(sock)
    return sock


def test_clients_of_both_families_are_served_and_both_sockets_are_closed(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    four, six = listening(socket.AF_INET, "0.0.0.0", port), listening(socket.AF_INET6, "::", port)
    monkeypatch.setattr(drive.engine._ports, "_opener", lambda _listen, **_more: four)
    monkeypatch.setattr(drive.engine._ports, "_twin", lambda _listen: six)
    backend = drive.backend()
    listen = drive.serve(server_at(backend), listen=Listen("tcp", "*", port))
    for ip in ("127.0.0.1", "::1", "::1", "127.0.0.1"):
        client = drive.connect(Listen("tcp", ip, port))
        server = drive.accept(backend)
        client.say(b"ping")
        drive.run_until(lambda server=server: server.got == b"ping")
        client.finish()
        server.finish()
    drive.remove(listen)
    assert (four.fileno(), six.fileno()) == (-1, -1)
    assert not drive.engine._ports.by_fd
