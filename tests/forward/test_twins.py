"""A port of two sockets, one for each family, as a socket unit may have it: both are served, both are closed."""

import socket
from contextlib import ExitStack
from socket import SocketType

import pytest

from pylb.core.address import Listen
from pylb.forward.listener import BATCH
from pylb.forward.sockets import inheritable
from tests.support.drive import Drive, server_at
from tests.support.ports import free_port

Twins = tuple[int, SocketType, SocketType]  # the port, the socket for IPv4, the one for IPv6


def listening(family: socket.AddressFamily, ip: str, port: int) -> SocketType:
    made = socket.create_server((ip, port), family=family)
    sock = SocketType(fileno=made.detach())
    sock.setblocking(False)
    inheritable(sock)
    return sock


@pytest.fixture
def twins(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> Twins:
    port = free_port()
    four, six = listening(socket.AF_INET, "0.0.0.0", port), listening(socket.AF_INET6, "::", port)
    monkeypatch.setattr(drive.engine._ports, "_opener", lambda _listen, **_more: four)
    monkeypatch.setattr(drive.engine._ports, "_twin", lambda _listen: six)
    return port, four, six


def test_clients_of_both_families_are_served_and_both_sockets_are_closed(drive: Drive, twins: Twins) -> None:
    port, four, six = twins
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


def test_many_of_one_family_lock_nobody_of_the_other_out(drive: Drive, twins: Twins) -> None:
    """As long as somebody waited at the first socket, nobody was accepted from the other one."""
    port, _, _ = twins
    listen = drive.serve(server_at(drive.backend()), listen=Listen("tcp", "*", port))
    with ExitStack() as clients:
        for ip in ("127.0.0.1",) * (2 * BATCH) + ("::1",):
            clients.enter_context(socket.create_connection((ip, port)))
        ports = drive.engine._ports
        assert ports.accept(ports.by_listen[listen])
        assert [one.client for one in drive.sessions()].count("::1") == 1
