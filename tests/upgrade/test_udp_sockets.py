"""upgrade/sockets.py: the listening sockets of UDP, passed on by systemd or by the previous pylb."""

import os
import socket

import pytest

from pylb.core.address import ANY, UDP, Listen
from pylb.forward.datagram_sockets import SOL_UDP, UDP_GRO, open_datagram_listener
from pylb.host.systemd import SystemdService
from pylb.upgrade.sockets import ListeningSockets
from tests.support.ports import free_port


def passed_on(sock: socket.SocketType) -> tuple[ListeningSockets, int]:
    listeners, fd = ListeningSockets(SystemdService({})), os.dup(sock.fileno())
    listeners.inherit([fd])
    return listeners, fd


@pytest.mark.parametrize("ip", [ANY, "127.0.0.1", "::1"])
def test_a_bound_socket_is_taken_for_its_port_with_all_its_options(ip: str) -> None:
    first = open_datagram_listener(Listen(UDP, ip, 0))
    listen = Listen(UDP, ip, first.getsockname()[1])
    first.setsockopt(SOL_UDP, UDP_GRO, 0)  # as systemd makes it
    listeners, fd = passed_on(first)
    sock = listeners.open(listen)
    try:
        assert sock.fileno() == fd
        assert sock.getsockopt(SOL_UDP, UDP_GRO) == 1
        assert not sock.getblocking()
        assert listeners.all() == [fd]
        listeners.closed(listen)
        with socket.socket(first.family, socket.SOCK_DGRAM) as client:  # no shutdown: a copy still gets datagrams
            client.sendto(b"ping", ("::1" if first.family == socket.AF_INET6 else "127.0.0.1", listen.port))
        assert first.recv(10) == b"ping"
    finally:
        sock.close()
        first.close()


def test_a_port_of_tcp_is_not_opened_with_a_socket_of_udp() -> None:
    port = free_port()  # of TCP, too
    first = open_datagram_listener(Listen(UDP, "127.0.0.1", port))
    listeners, fd = passed_on(first)
    sock = listeners.open(Listen("tcp", "127.0.0.1", port))
    try:
        assert sock.fileno() != fd
        assert sock.type == socket.SOCK_STREAM
        listeners.close_unclaimed()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"ping", ("127.0.0.1", port))
        assert first.recv(10) == b"ping"
    finally:
        sock.close()
        first.close()


def test_sockets_that_are_connected_or_bound_to_nothing_are_closed() -> None:
    """Those of flows, for a version that does not know them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flow, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unbound:
        flow.connect(("127.0.0.1", 9))
        for sock in (flow, unbound):
            listeners, fd = passed_on(sock)
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)
            assert listeners.all() == []
