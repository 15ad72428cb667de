"""A connection that comes back to where it was dialled from takes one session, not all of them."""

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network
from mmap import mmap
from typing import Any

import pytest

from pylb.core.access import Networks
from pylb.core.address import Address, Listen
from pylb.core.policy import Policy, ProxyAccept, ProxyProtocol, SourceLimits, Timeouts
from pylb.core.proxy_protocol import MOST_HOPS, PATH_ID, goes_in_circles, header, parse
from pylb.core.table import Server
from pylb.forward.dial import MANY_RESETS, PUT_OFF, SUSPICION
from pylb.forward.own_dials import SIZE, OwnDials
from tests.support.drive import Drive, Peer, server_at
from tests.support.ports import free_port

pytestmark = pytest.mark.usefixtures("strangers")
FEW = 60
SHARED = SourceLimits(source_share=50)
UNSHARED = Policy(limits=SourceLimits(source_share=100))


def remembered(drive: Drive) -> list[int]:
    """Local ports of dials that might come back."""
    owners = bytes(drive.engine._life.dialer.own_dials.owners)
    return [port for port, owner in enumerate(owners) if owner]


def test_one_client_of_a_frontend_that_points_at_itself_takes_one_session(drive: Drive) -> None:
    port = free_port()
    listen = drive.serve(Server("self", Address("127.0.0.1", port)), listen=Listen("tcp", "127.0.0.1", port))
    client = drive.connect(listen)
    drive.run_until(lambda: client.error)
    counters = drive.engine.counters.frontends[listen]
    assert (counters.sessions_total, counters.denied) == (1, {"loop": 1})
    assert not remembered(drive)


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
    assert not remembered(drive)
    client.say(b"x")
    drive.run_until(lambda: server.got)


def test_a_server_on_a_port_number_of_ours_is_no_loop_by_itself(drive: Drive) -> None:
    port = free_port()
    backend = drive.backend("127.0.0.2", port=port)
    listen = drive.serve(server_at(backend), listen=Listen("tcp", "127.0.0.1", port))
    clients = [drive.connect(listen) for _ in range(3)]
    servers = [drive.accept(backend) for _ in clients]
    assert len(remembered(drive)) == 3
    for client in clients:
        client.say(b"x")
    drive.run_until(lambda: all(server.got for server in servers))
    for client in clients:
        client.reset()
    drive.run_until(lambda: not drive.engine.counters.open_sessions)
    assert not remembered(drive)


class Pair:
    """Two that send to each other, each another machine: neither knows where the other dials from."""

    def __init__(self, make_drive: Callable[..., Drive], policy: Policy, **arguments: Any) -> None:
        self.drives = [make_drive(splice=False, **arguments) for _ in range(2)]
        self.listens = [Listen("tcp", "127.0.0.1", free_port()) for _ in self.drives]
        for drive, listen, other in zip(self.drives, self.listens, reversed(self.listens), strict=True):
            drive.serve(Server("other", Address("127.0.0.1", other.port)), listen=listen, policy=policy)
        self.most = 0  # sessions that one of them had

    @property
    def sessions(self) -> list[int]:
        return [drive.engine.counters.open_sessions for drive in self.drives]

    def connect(self) -> Peer:
        return self.drives[0].connect(self.listens[0])

    def run_until(self, done: Callable[[], object], *, ticks: bool = False) -> None:
        """Both have their turns; no tick comes between, except with `ticks`: one each millisecond of theirs."""

        def step() -> bool:
            self.drives[1].turn()
            for drive in self.drives if ticks else ():
                drive.clock.now += 0.001
                drive.engine.tick(drive.clock.now)
            self.most = max(self.most, *self.sessions)
            return bool(done())

        self.drives[0].run_until(step)

    def pass_time(self, seconds: float) -> None:
        for drive in self.drives:
            drive.clock.now += seconds
        for _ in range(200):
            for drive in self.drives:
                drive.engine.tick(drive.clock.now)
                drive.turn()


def test_two_that_send_to_each_other_are_reset_at_three_quarters_though_no_tick_came(make_drive: Callable[..., Drive]) -> None:
    """The refusal travels back along the chain, to the client too, and nothing is left."""
    pair = Pair(make_drive, Policy(limits=SHARED), max_connections=FEW)
    client = pair.connect()
    pair.run_until(lambda: client.error)
    pair.run_until(lambda: not any(pair.sessions))
    assert pair.most <= FEW * 3 // 4
    denied = [one.denied["source_share"] for drive in pair.drives for one in drive.engine.counters.frontends.values()]
    assert sum(denied) == 1


@pytest.mark.parametrize("limit", ["all", "frontend"])
def test_a_chain_that_fills_a_limit_is_gone_when_its_client_resets(make_drive: Callable[..., Drive], limit: str) -> None:
    """Its end waits in a backlog, and grows into the places that become free; the reset is faster."""
    policy = UNSHARED if limit == "all" else Policy(max_connections=FEW // 2, limits=SHARED)
    pair = Pair(make_drive, policy, max_connections=FEW)
    client = pair.connect()
    full = FEW if limit == "all" else FEW // 2
    pair.run_until(lambda: pair.sessions == [full, full])
    client.reset()
    pair.run_until(lambda: not any(pair.sessions))
    for _ in range(100):
        pair.drives[0].turn()
        pair.drives[1].turn()
    assert not any(pair.sessions)


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n"])
@pytest.mark.parametrize("fin", [False, True])
def test_a_client_that_resets_at_once_leaves_nothing_that_goes_around(
    make_drive: Callable[..., Drive], said: bytes, fin: bool
) -> None:
    pair = Pair(make_drive, Policy())
    for length in (1, 2, 3, 10, 50):
        client = pair.connect()
        client.say(said)
        if fin:
            client.finish()
        pair.run_until(lambda length=length: sum(pair.sessions) >= length)
        client.reset()
        pair.run_until(lambda: not any(pair.sessions), ticks=True)  # after many resets a dial waits for a tick


@pytest.mark.parametrize("hops", [0, 1, 2, 3, 5, 20])
@pytest.mark.parametrize("turns", [1, 2, 5])
def test_a_client_that_resets_makes_a_bounded_number_of_connections_however_many_turns_come_in_a_row(
    make_drive: Callable[..., Drive], turns: int, hops: int
) -> None:
    """As on a busy machine: each process does all it can, then it is the other one's turn."""
    pair = Pair(make_drive, Policy())

    def slices(count: int) -> None:
        for _ in range(count):
            for drive in pair.drives:
                for _ in range(turns):
                    drive.engine.on_ready()

    client = pair.connect()
    slices(hops)
    client.reset()
    slices(500)
    assert not any(pair.sessions)
    made = sum(one.connections for drive in pair.drives for one in drive.engine.counters.frontends.values())
    assert made <= 2 * (hops * (1 + turns) + MANY_RESETS + 2)


def test_one_that_has_reset_many_times_is_served_a_little_later_and_not_for_long(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend))
    for _ in range(MANY_RESETS + 1):
        client = drive.connect(listen)
        drive.accept(backend)
        client.reset()
        drive.run_until(lambda: not drive.engine.counters.open_sessions)
    later = drive.connect(listen)
    later.say(b"and speaks first")
    drive.run_until_quiet()
    [server] = drive.states(listen)
    before = server.counters.attempts
    assert drive.engine.counters.open_sessions == 1
    drive.pass_time(PUT_OFF + 0.1)
    assert server.counters.attempts == before + 1
    there = drive.accept(backend)
    drive.run_until(lambda: there.got == b"and speaks first")
    drive.pass_time(1)  # some of them are forgotten
    drive.connect(listen)
    drive.run_until(lambda: server.counters.attempts == before + 2)


def test_one_that_is_put_off_and_leaves_is_never_dialled_for(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend))
    for _ in range(MANY_RESETS + 1):
        client = drive.connect(listen)
        drive.accept(backend)
        client.reset()
        drive.run_until(lambda: not drive.engine.counters.open_sessions)
    later = drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.open_sessions)
    [server] = drive.states(listen)
    before = server.counters.attempts
    later.reset()
    drive.run_until(lambda: not drive.engine.counters.open_sessions)
    drive.pass_time(1)
    assert server.counters.attempts == before


def test_a_chain_whose_client_said_its_fin_is_gone_after_the_half_close_timeout(make_drive: Callable[..., Drive]) -> None:
    pair = Pair(make_drive, replace(UNSHARED, timeouts=Timeouts(half_close=2.0)), max_connections=FEW)
    client = pair.connect()
    pair.run_until(lambda: pair.sessions == [FEW, FEW])
    client.finish()
    pair.run_until(lambda: "client done" in {view.state for drive in pair.drives for view in drive.sessions()})
    for _ in range(10):
        pair.pass_time(0.5)
    pair.run_until(lambda: not any(pair.sessions))


def accept_one(drive: Drive, listen: Listen) -> int:
    """Dials that were begun in the very turn that accepted a client."""
    [server] = drive.states(listen)
    before, seen = server.counters.attempts, drive.engine.counters.frontends[listen].connections
    while drive.engine.counters.frontends[listen].connections == seen:
        drive.engine.on_ready(1.0)
    return server.counters.attempts - before


def test_a_client_at_a_servers_address_is_dialled_for_at_once(drive: Drive) -> None:
    """A pod that calls its own node; whatever is tried out on one machine."""
    backend = drive.backend()
    listen = drive.serve(server_at(backend))
    for _ in range(2):
        client = drive.connect(listen)
        assert accept_one(drive, listen) == 1
        server = drive.accept(backend)
        client.finish()
        server.finish()
        drive.run_until(lambda: not drive.engine.counters.open_sessions)


def test_one_that_reset_is_served_a_turn_later_for_a_while(drive: Drive) -> None:
    """It may be a chain; if it is not, it is served as others are, also by a server that speaks first."""
    backend = drive.backend()
    listen = drive.serve(server_at(backend))
    first = drive.connect(listen)
    drive.accept(backend)
    first.reset()
    drive.run_until(lambda: not drive.engine.counters.open_sessions)
    later = drive.connect(listen)
    assert accept_one(drive, listen) == 0
    drive.accept(backend).say(b"I speak first")
    drive.run_until(lambda: later.got)
    drive.clock.now += SUSPICION
    drive.connect(listen)
    assert accept_one(drive, listen) == 1


def test_one_that_reset_elsewhere_than_at_a_servers_address_is_dialled_for_at_once(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend))
    first = drive.connect(listen, source="127.0.0.9")
    drive.accept(backend)
    first.reset()
    drive.run_until(lambda: not drive.engine.counters.open_sessions)
    drive.connect(listen, source="127.0.0.9")
    assert accept_one(drive, listen) == 1


def test_nothing_is_remembered_of_a_server_that_is_gone(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend))
    client = drive.connect(listen)
    drive.accept(backend)
    client.reset()
    dialer = drive.engine._life.dialer
    drive.run_until(lambda: dialer.resetting_clients)
    drive.serve(server_at(backend, "renamed"), listen=listen)
    assert dialer.resetting_clients
    drive.remove(listen)
    assert not dialer.server_ips
    assert not dialer.resetting_clients


def test_a_dial_of_one_worker_is_known_to_the_others(make_drive: Callable[..., Drive]) -> None:
    shared = mmap(-1, SIZE)
    drives = [make_drive(splice=False, worker=worker, own_dials=OwnDials(worker, shared)) for worker in (1, 2)]
    port = free_port()
    for drive, ip, other in zip(drives, ("127.0.0.1", "127.0.0.2"), ("127.0.0.2", "127.0.0.1"), strict=True):
        drive.serve(Server("other", Address(other, port)), listen=Listen("tcp", ip, port))
    client = drives[0].connect(Listen("tcp", "127.0.0.1", port))

    def over() -> bool:
        drives[1].turn()
        return bool(client.error) and not drives[0].engine.counters.open_sessions

    drives[0].run_until(over)
    found = [one for drive in drives for one in drive.engine.counters.frontends.values()]
    assert [(one.sessions_total, one.denied["loop"]) for one in found] == [(1, 0), (0, 1)]
    assert not remembered(drives[0])


def test_the_dials_of_a_worker_that_died_are_forgotten() -> None:
    shared = mmap(-1, SIZE)
    main, one, other = (OwnDials(worker, shared) for worker in range(3))
    one.add("192.0.2.1", 40000)
    other.add("192.0.2.1", 40001)
    other.add("2001:db8::1", 40002)
    main.forget(1)
    assert not main.has("192.0.2.1", 40000)
    assert main.has("::ffff:192.0.2.1", 40001)
    assert not main.has("192.0.2.2", 40001)
    one.remove("2001:db8::1", 40002)
    other.remove("2001:db8::2", 40002)
    assert main.has("2001:db8::1", 40002)
    other.remove("2001:db8::1", 40002)
    assert not main.has("2001:db8::1", 40002)


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
