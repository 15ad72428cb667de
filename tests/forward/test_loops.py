"""A connection that comes back to where it was dialled from takes one session, not all of them."""

from ipaddress import ip_network

import pytest

from pylb.core.access import Networks
from pylb.core.address import Address, Listen
from pylb.core.policy import Policy, ProxyAccept, ProxyProtocol
from pylb.core.proxy_protocol import MOST_HOPS, PATH_ID, goes_in_circles, header, parse
from pylb.core.table import Server
from tests.support.drive import Drive, free_port, server_at


def test_one_client_of_a_frontend_that_points_at_itself_takes_one_session(drive: Drive) -> None:
    port = free_port()
    listen = drive.serve(Server("self", Address("127.0.0.1", port)), listen=Listen("tcp", "127.0.0.1", port))
    client = drive.connect(listen)
    drive.run_until(lambda: client.error)
    counters = drive.engine.counters.frontends[listen]
    assert (counters.sessions_total, counters.denied) == (1, {"loop": 1})
    assert not drive.engine._life.dialer._from_us


def test_a_circle_over_several_frontends_ends_where_it_began(drive: Drive) -> None:
    ports = [free_port() for _ in range(3)]
    for place, port in enumerate(ports):
        onward = Server("next", Address("127.0.0.1", ports[(place + 1) % 3]))
        drive.serve(onward, listen=Listen("tcp", "127.0.0.1", port), name=f"f{place}")
    client = drive.connect(Listen("tcp", "127.0.0.1", ports[0]))
    drive.run_until(lambda: client.error)
    drive.run_until(lambda: not drive.engine.counters.open_sessions)
    assert sum(one.sessions_total for one in drive.engine.counters.frontends.values()) == 1


def test_who_dials_elsewhere_costs_no_entry(drive: Drive) -> None:
    client, server = drive.session()
    assert not drive.engine._life.dialer._from_us
    client.say(b"x")
    drive.run_until(lambda: server.got)


def test_a_server_on_a_port_number_of_ours_is_no_loop_by_itself(drive: Drive) -> None:
    port = free_port()
    backend = drive.backend("127.0.0.2", port=port)
    listen = drive.serve(server_at(backend), listen=Listen("tcp", "127.0.0.1", port))
    clients = [drive.connect(listen) for _ in range(3)]
    servers = [drive.accept(backend) for _ in clients]
    assert len(drive.engine._life.dialer._from_us) == 3
    for client in clients:
        client.say(b"x")
    drive.run_until(lambda: all(server.got for server in servers))
    for client in clients:
        client.reset()
    drive.run_until(lambda: not drive.engine.counters.open_sessions)
    assert not drive.engine._life.dialer._from_us


def test_two_that_point_at_each_other_find_it_out_by_their_proxy_headers() -> None:
    """Each is another process, with an id of its own."""
    drives = [Drive(splice=False), Drive(splice=False)]
    ports = [free_port(), free_port()]
    trusted = ProxyAccept(Networks([ip_network("127.0.0.2/32")]))
    sources = Policy(accept_proxy=trusted, source_addresses=("127.0.0.2",))
    for drive, port, other in zip(drives, ports, reversed(ports), strict=True):
        server = Server("other", Address("127.0.0.1", other), send_proxy=ProxyProtocol.V2)
        drive.serve(server, listen=Listen("tcp", "127.0.0.1", port), policy=sources)
    client = drives[0].connect(Listen("tcp", "127.0.0.1", ports[0]))

    def over() -> bool:
        for _ in range(3):
            drives[1].turn()
            drives[1].engine.tick(drives[1].clock.now)
        return bool(client.error)

    drives[0].run_until(over)
    total = sum(one.sessions_total for drive in drives for one in drive.engine.counters.frontends.values())
    assert total <= 5
    denied = [one.denied["loop"] for drive in drives for one in drive.engine.counters.frontends.values()]
    assert sum(denied) == 1
    drives[0].run_until(lambda: over() and not any(drive.engine.counters.open_sessions for drive in drives))
    for drive in drives:
        drive.finish()


@pytest.mark.parametrize("hops", [0, 1, 5])
def test_the_path_travels_in_a_header(hops: int) -> None:
    path = b"".join(bytes([hop]) * PATH_ID for hop in range(hops))
    ends = Address("192.0.2.1", 1), Address("192.0.2.2", 2)
    whole = header(ProxyProtocol.V2, *ends, path=path)
    found = parse(whole)
    assert found is not None
    assert (found.path, found.size) == (path, len(whole))
    assert header(ProxyProtocol.V1, *ends, path=path) == header(ProxyProtocol.V1, *ends)
    assert not goes_in_circles(path, b"z" * PATH_ID)
    assert goes_in_circles(path + b"z" * PATH_ID, b"z" * PATH_ID)
    assert goes_in_circles(bytes((MOST_HOPS + 1) * PATH_ID), b"z" * PATH_ID)
