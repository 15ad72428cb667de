"""Datagrams through a real engine: boundaries, order, trains, local addresses, full buffers."""

import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from pylb.core.address import Listen
from pylb.core.policy import Policy, ProxyProtocol
from pylb.core.proxy_protocol import parse
from pylb.core.table import Server
from pylb.forward import datagram_sockets
from tests.support.datagrams import DatagramDrive
from tests.support.ports import free_port


@pytest.fixture
def drive(_back_to_the_base_line: None) -> Iterator[DatagramDrive]:
    driven = DatagramDrive()
    yield driven
    driven.finish()


@pytest.mark.parametrize("data", [b"", b"x", b"x" * 1472, b"x" * 65507], ids=len)
def test_one_datagram_in_is_one_out_whatever_its_size(drive: DatagramDrive, data: bytes) -> None:
    server = drive.server()
    listen = drive.serve_udp(server)
    client = drive.client(listen)
    for _ in range(3):
        drive.exchange(client, server, data)
    assert drive.balances(listen)


def test_ipv6_carries_its_twenty_bytes_more(drive: DatagramDrive) -> None:
    server = drive.server("::1")
    listen = drive.serve_udp(server, listen=Listen("udp", "::1", free_port()))
    drive.exchange(drive.client(listen), server, b"x" * 65527)


def test_datagrams_of_a_flow_stay_in_their_order(drive: DatagramDrive) -> None:
    server = drive.server()
    listen = drive.serve_udp(server)
    clients = [drive.client(listen) for _ in range(4)]
    for number in range(50):
        for which, client in enumerate(clients):
            client.send(b"%d %d" % (which, number))
    drive.settle()
    got = server.got()
    for which in range(4):
        mine = [data for data, _ in got if data.startswith(b"%d " % which)]
        assert mine == [b"%d %d" % (which, number) for number in range(50)]
    assert len({source for _, source in got}) == 4


def test_a_train_arrives_as_its_datagrams_the_last_of_them_shorter(drive: DatagramDrive) -> None:
    server = drive.server()
    listen = drive.serve_udp(server)
    client = drive.client(listen)
    data = bytes(range(256)) * 20
    client.send(data, size=1200)
    drive.settle()
    got = server.got()
    assert [len(one) for one, _ in got] == [1200] * 4 + [320]
    assert b"".join(one for one, _ in got) == data
    server.send(data, got[0][1], size=700)
    drive.settle()
    assert [len(one) for one in client.texts()] == [700] * 7 + [220]
    [flow] = drive.flows()
    assert (flow.datagrams_in, flow.datagrams_out) == (5, 8)
    assert drive.balances(listen)


def test_where_trains_cannot_be_cut_their_datagrams_go_one_by_one_from_then_on(
    drive: DatagramDrive, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = drive.server()
    listen = drive.serve_udp(server)
    client = drive.client(listen)
    # A size that the kernel refuses, as it refuses all where a route cannot segment.
    monkeypatch.setattr("pylb.forward.datagrams.segments", lambda _size: (17, 103, b"\1\0"))
    for _ in range(2):
        client.send(b"ab" * 1000, size=500)
        drive.settle()
        assert [len(one) for one in server.texts()] == [500] * 4
        assert drive.flows()[0].single
    assert not drive.dropped(listen)
    assert drive.balances(listen)


def test_a_client_that_calls_two_of_our_addresses_gets_each_answer_from_the_one_it_called(drive: DatagramDrive) -> None:
    server = drive.server()
    listen = drive.serve_udp(server, listen=Listen("udp", "*", free_port()))
    client = drive.server()  # one unconnected socket
    for ip in ("127.0.0.1", "127.0.0.2"):
        client.send(ip.encode(), (ip, listen.port))
    drive.settle()
    server.answer()
    drive.settle()
    assert sorted(client.got()) == [(ip.encode(), (ip, listen.port)) for ip in ("127.0.0.1", "127.0.0.2")]
    assert len(drive.flows()) == 2


def test_a_dual_stack_port_answers_ipv6_clients_from_the_address_they_called(drive: DatagramDrive) -> None:
    server = drive.server()
    listen = drive.serve_udp(server, listen=Listen("udp", "*", free_port()))
    drive.exchange(drive.client(listen, "::1"), server)
    drive.exchange(drive.client(listen, "127.0.0.1"), server)


def test_a_stranger_reaches_no_client(drive: DatagramDrive) -> None:
    server, stranger = drive.server(), drive.server()
    listen = drive.serve_udp(server)
    client = drive.client(listen)
    drive.exchange(client, server)
    [flow] = drive.flows()
    assert flow.sock is not None
    stranger.send(b"evil", flow.sock.getsockname())
    drive.settle()
    assert client.texts() == []


def test_a_full_buffer_drops_and_counts(drive: DatagramDrive, monkeypatch: pytest.MonkeyPatch) -> None:
    server = drive.server()
    listen = drive.serve_udp(server)
    client = drive.client(listen)
    drive.exchange(client, server)
    [flow] = drive.flows()
    real = flow.sock

    class Full:
        def send(self, _data: memoryview) -> int:
            raise BlockingIOError(errno.EAGAIN, "full")

        def sendmsg(self, _data: Any, _items: Any) -> int:
            raise OSError(errno.ENOBUFS, "full")

    flow.sock = Full()  # type: ignore[assignment]
    client.send(b"lost")
    client.send(b"x" * 3000, size=1000)
    drive.settle()
    flow.sock = real
    assert drive.dropped(listen) == {"buffer_full": 4}
    drive.exchange(client, server)
    assert drive.balances(listen)


def test_what_the_kernel_drops_is_counted(drive: DatagramDrive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagram_sockets, "LISTENER_BUFFER", 4096)
    server = drive.server()
    listen = drive.serve_udp(server)
    client = drive.client(listen)
    for _ in range(50):
        client.send(b"x" * 1000)
    drive.settle()
    assert len(server.texts()) < 50
    assert drive.balances(listen)
    assert drive.dropped(listen)["kernel"] > 0


def test_a_proxy_header_stands_in_front_of_the_first_datagram_in_the_same_datagram(drive: DatagramDrive) -> None:
    server = drive.server()
    listen = drive.serve_udp(Server("a", server.address, send_proxy=ProxyProtocol.V2))
    client = drive.client(listen)
    client.send(b"a" * 2500, size=1000)
    client.send(b"next")
    drive.settle()
    first, *rest = server.texts()
    found = parse(first)
    assert found is not None
    assert first[found.size :] == b"a" * 1000
    assert first[13] == 0x12  # IPv4, DGRAM
    assert rest == [b"a" * 1000, b"a" * 500, b"next"]


def test_each_datagram_may_have_its_proxy_header(drive: DatagramDrive) -> None:
    server = drive.server()
    proxied = Server("a", server.address, send_proxy=ProxyProtocol.V2)
    listen = drive.serve_udp(proxied, policy=Policy(send_proxy_each=True))
    client = drive.client(listen)
    client.send(b"a" * 25, size=10)
    client.send(b"next")
    drive.settle()
    assert [one[28:] for one in server.texts()] == [b"a" * 10, b"a" * 10, b"a" * 5, b"next"]


def test_a_frontend_of_tcp_on_the_same_port_is_another_one(drive: DatagramDrive) -> None:
    server = drive.server()
    listen = drive.serve_udp(server)
    drive.serve(listen=Listen("tcp", listen.ip, listen.port), name="other")
    drive.exchange(drive.client(listen), server)


def test_a_port_that_somebody_has_is_an_error(drive: DatagramDrive) -> None:
    taken = drive.server()
    failed = drive.serve_or_fail(listen=Listen("udp", "127.0.0.1", taken.address.port))
    assert [error.errno for error in failed.values()] == [errno.EADDRINUSE]


def test_ancillary_data_that_does_not_fit_drops_the_datagram(drive: DatagramDrive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pylb.forward.datagrams.ANCILLARY", 8)
    server = drive.server()
    listen = drive.serve_udp(server, listen=Listen("udp", "*", free_port()))
    drive.client(listen).send(b"x")
    drive.settle()
    assert server.texts() == []
    assert drive.dropped(listen) == {"truncated": 1}
    assert drive.balances(listen)


def test_the_options_of_both_kinds_of_socket(drive: DatagramDrive) -> None:
    server = drive.server()
    listen = drive.serve_udp(server)
    drive.exchange(drive.client(listen), server)
    port, [flow] = drive.engine._flows.ports.by_listen[listen], drive.flows()
    assert flow.sock is not None
    assert port.sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0
    assert port.sock.getsockopt(17, 104) == flow.sock.getsockopt(17, 104) == 1
    assert port.sock.getsockopt(socket.IPPROTO_IP, 11) == 0
    assert flow.sock.getsockopt(socket.IPPROTO_IP, 11) == 1
