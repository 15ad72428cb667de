"""A frontend with a range of ports: one set of servers and counters, a socket for each port."""

import errno
import socket
from collections.abc import Callable

import pytest

from pylb.core.access import AccessList, AccessRule
from pylb.core.address import Address, Listen, parse_network
from pylb.core.policy import Balance, Policy, SourceLimits
from pylb.core.table import Server
from tests.support.drive import Drive, Peer
from tests.support.ports import ports_in_a_row

WIDTH = 3


def serving(drive: Drive, *servers: Server, policy: Policy | None = None) -> Listen:
    first = ports_in_a_row(WIDTH)
    return drive.serve(*servers, listen=Listen("tcp", "127.0.0.1", first, first + WIDTH - 1), policy=policy)


def backends(drive: Drive, name: str = "a", ip: str = "127.0.0.1") -> tuple[Server, list[socket.socket]]:
    first = ports_in_a_row(WIDTH)
    socks = [drive.backend(ip, port=first + step) for step in range(WIDTH)]
    return Server(name, Address(ip, first, "tcp", first + WIDTH - 1)), socks


def on_port(listen: Listen, step: int) -> Listen:
    return Listen("tcp", listen.ip, listen.port + step)


def relays(drive: Drive, client: Peer, server: Peer) -> bool:
    client.say(b"ping")
    drive.run_until(lambda: server.got == b"ping")
    server.say(b"pong")
    drive.run_until(lambda: client.got == b"pong")
    return True


def test_each_port_goes_to_its_own_port_of_the_server_and_all_count_as_one_frontend(drive: Drive) -> None:
    server, socks = backends(drive)
    listen = serving(drive, server)
    for step, backend in enumerate(socks):
        assert relays(drive, drive.connect(on_port(listen, step)), drive.accept(backend))
    assert [one.sessions for one in drive.engine.counters.frontends.values()] == [WIDTH]
    assert {view.listen for view in drive.sessions()} == {listen}
    drive.engine.shutdown_sessions(listen, server.address)
    drive.pass_time(0.2)
    assert sorted(record.listen_port for record in drive.records) == list(listen.ports)  # the one that was called


def test_a_client_that_is_refused_is_recorded_with_the_port_that_it_called(drive: Drive) -> None:
    nobody = AccessList((AccessRule(allow=False, network=parse_network("127.0.0.0/8")),))
    listen = serving(drive, Server("a", Address("127.0.0.1", 9)), policy=Policy(access=nobody))
    for step in range(WIDTH):
        drive.connect(on_port(listen, step))
    drive.run_until(lambda: len(drive.records) == WIDTH)
    assert [(record.code, record.listen_port) for record in drive.records] == [("PR", port) for port in listen.ports]


def test_all_ports_may_go_to_one_port(drive: Drive) -> None:
    backend = drive.backend()
    listen = serving(drive, Server("a", Address(*backend.getsockname())))
    for step in range(WIDTH):
        client, upstream = drive.connect(on_port(listen, step)), drive.accept(backend)
        assert relays(drive, client, upstream)
        client.finish()
        upstream.finish()
    drive.run_until(lambda: len(drive.records) == WIDTH)
    assert [record.listen_port for record in drive.records] == list(listen.ports)


def test_with_source_all_ports_of_a_client_meet_one_server(drive: Drive) -> None:
    """FTP and RTP need that. The hash knows of a server only its IP: another range there would be no other server."""
    (one, first), (two, second) = backends(drive), backends(drive, "b", "127.0.0.2")
    listen = serving(drive, one, two, policy=Policy(balance=Balance.SOURCE))
    for _ in range(2):
        for step in range(WIDTH):
            drive.connect(on_port(listen, step))
    drive.run_until(lambda: len([view for view in drive.sessions() if view.server]) == 2 * WIDTH)
    assert len({view.server for view in drive.sessions()}) == 1
    assert [state.identity for state in drive.states(on_port(listen, 0))] == ["127.0.0.1", "127.0.0.2"]
    assert len(first) == len(second) == WIDTH


def test_a_port_that_somebody_has_closes_those_that_were_opened_and_is_named(drive: Drive) -> None:
    server, _ = backends(drive)
    first = ports_in_a_row(WIDTH)
    with socket.socket() as other:
        other.bind(("127.0.0.1", first + 1))
        other.listen(1)
        listen = Listen("tcp", "127.0.0.1", first, first + WIDTH - 1)
        failed = drive.serve_or_fail(server, listen=listen)
        assert (failed[listen].errno, f"port {first + 1}: " in str(failed[listen])) == (errno.EADDRINUSE, True)
        assert not drive.engine._ports.by_fd
    assert drive.publish() == {}  # the next table tries it again
    assert len(drive.engine._ports.by_fd) == WIDTH


def test_a_closed_range_refuses_on_every_port_and_opens_again(drive: Drive) -> None:
    server, socks = backends(drive)
    listen = serving(drive, server)
    client = drive.connect(on_port(listen, 2))
    upstream = drive.accept(socks[2])
    drive.remove(listen)
    for step in range(WIDTH):
        with pytest.raises(ConnectionRefusedError):
            drive.connect(on_port(listen, step))
    assert relays(drive, client, upstream)  # until timeouts.drain
    drive.serve(server, listen=listen)
    assert relays(drive, drive.connect(on_port(listen, 0)), drive.accept(socks[0]))


def test_what_was_opened_before_its_table_is_discarded_as_a_whole_or_served(drive: Drive) -> None:
    server, socks = backends(drive)
    first = ports_in_a_row(WIDTH)
    listen = Listen("tcp", "127.0.0.1", first, first + WIDTH - 1)
    for one in listen.each():
        drive.engine.open(one)
    drive.engine.discard(listen)
    assert not drive.engine._ports.by_fd
    for one in listen.each():
        drive.engine.open(one)
    client = drive.connect(on_port(listen, 1))  # it waits in the backlog
    drive.serve(server, listen=listen)
    drive.engine.discard(listen)  # a table has it
    assert relays(drive, client, drive.accept(socks[1]))


def test_a_limit_holds_for_the_range_and_frees_every_port(drive: Drive) -> None:
    server, socks = backends(drive)
    listen = serving(drive, server, policy=Policy(max_connections=1))
    client = drive.connect(on_port(listen, 0))
    upstream = drive.accept(socks[0])
    waiting = [drive.connect(on_port(listen, step)) for step in range(WIDTH)]
    drive.run_until_quiet()
    assert len(drive.sessions()) == 1
    client.reset()
    drive.run_until(lambda: upstream.error == "ECONNRESET")
    drive.run_until(lambda: any(view.server for view in drive.sessions()))
    assert len(drive.sessions()) == 1
    for peer in waiting:
        peer.reset()


def test_a_rate_is_of_the_range_and_not_of_each_port(drive: Drive) -> None:
    server, _ = backends(drive)
    listen = serving(drive, server, policy=Policy(limits=SourceLimits(rate=2)))
    for step in range(WIDTH):
        for _ in range(2):
            drive.connect(on_port(listen, step))
    drive.run_until_quiet()
    counters = drive.engine.counters.frontends[listen]
    assert counters.connections == 2
    drive.pass_time(1.0)
    drive.run_until_quiet()
    assert counters.connections == 4


def test_a_range_is_guaranteed_as_much_as_one_frontend(make_drive: Callable[..., Drive]) -> None:
    drive = make_drive(splice=False, max_connections=64)
    server, _ = backends(drive)
    listen = serving(drive, server)
    assert (drive.engine.counters.guaranteed, drive.engine._ports.shareable) == (16, 48)
    drive.remove(listen)
    assert not drive.engine._ports._serving
