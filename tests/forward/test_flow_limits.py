"""Limits of flows: the process's, a frontend's, a server's and a source's; and floods with forged senders."""

from collections.abc import Callable

import pytest

from pylb.core.access import AccessList, AccessRule
from pylb.core.address import Address, Listen, parse_network
from pylb.core.policy import Policy, SourceLimits
from pylb.core.table import Server
from pylb.forward.listener import connection_limit
from pylb.forward.shared_limits import FrontendUse
from tests.support.datagrams import DatagramDrive, codes, settled
from tests.support.ports import free_port, ports_in_a_row


@pytest.fixture
def drive(make_udp: Callable[..., DatagramDrive]) -> DatagramDrive:
    return make_udp()


def test_at_a_limit_the_oldest_unsettled_flow_makes_room_and_settled_ones_never(drive: DatagramDrive) -> None:
    server = drive.server()
    listen = drive.serve_udp(server, policy=Policy(max_connections=3))
    first = settled(drive, listen, server)
    spoofed = [drive.client(listen, source=f"127.8.0.{number + 1}") for number in range(20)]
    for client in spoofed:
        client.send(b"x")
    drive.settle()
    assert len(drive.flows()) == 3
    assert codes(drive) == ["RD"] * 18
    server.got()
    drive.exchange(first, server)
    for client in spoofed[-2:]:
        drive.exchange(client, server)
        drive.exchange(client, server)
    drive.client(listen).send(b"too many")
    drive.settle()
    assert drive.dropped(listen) == {"limit": 1}
    assert drive.counters(listen).denied == {"max_connections": 1}
    assert drive.balances(listen)


def test_the_process_has_a_limit_of_its_own_for_flows_and_tcp_keeps_the_rest(make_udp: Callable[..., DatagramDrive]) -> None:
    drive = make_udp(nofile=1000, max_connections=10_000)
    drive.serve(listen=Listen("tcp", "127.0.0.1", free_port()), name="tcp")
    without = drive.engine.counters.max_connections
    server = drive.server()
    listen = drive.serve_udp(server)
    assert drive.engine._flows.most == 250
    assert drive.engine.counters.max_connections == connection_limit(1000, 2 + 250) < without
    drive.engine._flows.most = 2
    for _ in range(4):
        drive.client(listen).send(b"x")
    drive.settle()
    assert len(drive.flows()) == 2
    drive.remove(listen)
    assert drive.engine.counters.max_connections == without


def test_a_server_s_own_limit_gives_the_place_of_an_unsettled_flow_too(drive: DatagramDrive) -> None:
    server = drive.server()
    listen = drive.serve_udp(Server("a", server.address, max_connections=1))
    drive.client(listen).send(b"1")
    drive.client(listen).send(b"2")
    drive.settle()
    assert server.texts() == [b"1", b"2"]
    assert codes(drive) == ["RD"]


def test_the_rate_limits_new_flows_and_not_datagrams(drive: DatagramDrive) -> None:
    server = drive.server()
    listen = drive.serve_udp(server, policy=Policy(limits=SourceLimits(rate=2)))
    clients = [drive.client(listen) for _ in range(3)]
    for client in clients:
        client.send(b"x")
        client.send(b"y")
    drive.settle()
    assert len(server.got()) == 4
    assert drive.dropped(listen) == {"limit": 2}
    drive.pass_time(1)
    drive.exchange(clients[2], server)


def test_a_denied_datagram_is_counted_each_time_and_logged_once_a_minute(drive: DatagramDrive) -> None:
    server = drive.server()
    access = AccessList((AccessRule(allow=False, network=parse_network("127.0.0.0/8")),))
    listen = drive.serve_udp(server, policy=Policy(access=access))
    client = drive.client(listen)
    for _ in range(5):
        client.send(b"x")
    drive.settle()
    assert drive.dropped(listen) == {"access": 5}
    assert drive.counters(listen).denied == {"access": 5}
    assert codes(drive) == ["PR"]
    drive.pass_time(61)
    client.send(b"x")
    drive.settle()
    assert codes(drive) == ["PR"] * 2


def test_a_source_has_as_many_flows_as_it_may(drive: DatagramDrive) -> None:
    server = drive.server()
    listen = drive.serve_udp(server, policy=Policy(limits=SourceLimits(per_source=1)))
    drive.client(listen).send(b"x")
    drive.client(listen).send(b"x")
    drive.client(listen, source="127.0.0.9").send(b"x")
    drive.settle()
    assert drive.dropped(listen) == {"limit": 1}
    drive.pass_time(45)
    drive.client(listen).send(b"x")
    drive.settle()
    assert drive.dropped(listen) == {"limit": 1}


@pytest.mark.parametrize("ip", ["127.0.0.1", "*"])
def test_a_flow_that_comes_back_to_us_is_refused(drive: DatagramDrive, ip: str) -> None:
    listen = Listen("udp", ip, free_port())
    drive.serve_udp(Server("a", Address("127.0.0.1", listen.port, "udp")), listen=listen)
    drive.client(listen).send(b"x")
    drive.settle()
    assert drive.counters(listen).denied == {"loop": 1}
    assert len(drive.flows()) == 1


def test_a_flow_that_comes_back_by_a_port_of_a_range_is_refused_too(drive: DatagramDrive) -> None:
    first = ports_in_a_row(5)
    listen = Listen("udp", "127.0.0.1", first + 4)
    target = Address("127.0.0.1", first + 3, "udp", first + 5)
    drive.serve_udp(Server("a", target), listen=Listen("udp", "127.0.0.1", first, first + 2))
    drive.serve_udp(drive.server(), listen=listen)
    drive.client(Listen("udp", "127.0.0.1", first + 1)).send(b"x")
    drive.settle()
    assert drive.counters(listen).denied == {"loop": 1}


def test_what_other_processes_have_counts_against_a_frontend_and_its_servers(drive: DatagramDrive) -> None:
    server = drive.server()
    listen = drive.serve_udp(Server("a", server.address, max_connections=4), policy=Policy(max_connections=3))
    shared = drive.engine.other_processes
    shared.follow([listen])
    client = settled(drive, listen, server)
    [use] = shared.uses()
    assert (use.sessions, list(use.servers.values())) == (1, [1])
    [identity] = use.servers
    shared.take_report(2, (FrontendUse(listen, 2, 0, {identity: 2}, {}),), drive.clock.now)
    drive.client(listen).send(b"too many")
    drive.settle()
    assert drive.counters(listen).denied == {"max_connections": 1}
    shared.take_report(2, (FrontendUse(listen, 1, 0, {identity: 3}, {}),), drive.clock.now)
    drive.client(listen).send(b"the server is full")
    drive.settle()
    assert drive.dropped(listen) == {"limit": 1, "no_server": 1}
    shared.forget(2)
    drive.exchange(client, server)
    drive.exchange(drive.client(listen), server)


def test_a_flood_of_forged_senders_takes_a_bounded_number_of_flows_sockets_and_log_lines(
    make_udp: Callable[..., DatagramDrive],
) -> None:
    drive = make_udp(nofile=400, max_connections=100)
    server = drive.server(rcvbuf=1 << 20)
    access = AccessList((AccessRule(allow=False, network=parse_network("127.9.0.0/16")),))
    listen = drive.serve_udp(server, policy=Policy(access=access))
    friend = settled(drive, listen, server)
    for number in range(300):
        drive.client(listen, source=f"127.8.{number // 250}.{number % 250 + 1}").send(b"x")
        drive.client(listen, source="127.9.0.1").send(b"x")
        if number % 20 == 0:
            drive.settle()
    drive.settle()
    flows = drive.engine._flows
    assert flows.most == 100 == len(flows.flows)
    assert sum(flow.sock is not None for flow in flows.flows) == 100
    assert sum(len(port.flows) for port in flows.ports.by_listen.values()) == 100
    assert len(drive.engine._udp_by_fd) == 101
    assert sorted(codes(drive)) == ["PR", *["RD"] * 201]
    # 99 more of the first ones make room, and then 50 of which a line was written in this minute: they are only counted.
    for number in range(149):
        drive.client(listen, source=f"127.8.0.{number + 1}").send(b"x")
        if number % 20 == 0:
            drive.settle()
    drive.settle()
    assert (len(flows.flows), len(codes(drive))) == (100, 202 + 99)
    counters = drive.engine.counters.frontends[listen]
    assert counters.forgotten + sum(server.closed["RD"] for server in counters.servers.values()) == 201 + 149
    server.got()
    drive.exchange(friend, server)
    assert drive.balances(listen)
