"""Any order of datagrams, answers, moves, deaths, refusals, full buffers and silence; and any ancillary data."""

import errno
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pylb.core.address import Listen
from pylb.core.policy import Policy, Timeouts
from pylb.core.table import DOWN, Server
from pylb.forward.datagrams import Datagrams
from pylb.forward.flow import DatagramPort, Flow
from pylb.forward.run_queue import RunQueue
from tests.support.baseline import descriptors
from tests.support.datagrams import DatagramDrive, DatagramPeer

CLIENTS, SERVERS, MOST = 3, 3, 4
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, CLIENTS - 1), st.integers(0, 3000), st.sampled_from([0, 0, 100, 700])),
        st.tuples(st.just("answer"), st.integers(0, SERVERS - 1)),
        st.tuples(st.just("table"), st.lists(st.sampled_from(["up", "down", "gone"]), min_size=SERVERS, max_size=SERVERS)),
        st.tuples(st.just("refuse"), st.integers(0, SERVERS - 1)),
        st.tuples(st.just("full"), st.integers(1, 2)),
        st.tuples(st.just("stranger"), st.integers(0, CLIENTS - 1)),
        st.tuples(st.just("silence"), st.integers(1, 40)),
        st.tuples(
            st.just("turn"),
        ),
    ),
    max_size=25,
)


class World:
    """An engine, its peers, and what each of them may get."""

    def __init__(self) -> None:
        self.drive = DatagramDrive()
        self.servers: list[DatagramPeer | None] = [self.drive.server() for _ in range(SERVERS)]
        self.addresses = [server.address for server in self.servers if server]
        self.states = ["up"] * SERVERS
        self.stranger = self.drive.server()
        self.listen = self.table()
        self.clients = [self.drive.client(self.listen) for _ in range(CLIENTS)]
        self.sent: list[list[bytes]] = [[] for _ in range(CLIENTS)]
        self.arrived: list[list[bytes]] = [[] for _ in range(CLIENTS)]
        self.serial = 0

    def table(self) -> Listen:
        named = zip("abc", self.addresses, self.states, strict=True)
        servers = [Server(name, at, rank=DOWN if state == "down" else 0) for name, at, state in named if state != "gone"]
        policy = Policy(max_connections=MOST, timeouts=Timeouts(udp_idle=20))
        return self.drive.serve_udp(*servers, policy=policy, listen=getattr(self, "listen", None))

    def send(self, which: int, length: int, size: int) -> None:
        self.serial += 1
        mark = b"%d:%d:" % (which, self.serial)
        if size:
            pieces = [mark.ljust(size, b".") for _ in range(max(2, length // size))]
            self.clients[which].send(b"".join(pieces), size=size)
            self.sent[which] += pieces
        else:
            data = mark + b"x" * length if length else b""
            self.clients[which].send(data)
            self.sent[which].append(data)

    def answer(self, which: int) -> None:
        server = self.servers[which]
        for data in server.answer() if server is not None else ():
            if data:
                self.arrived[int(data.split(b":")[0])].append(data)

    def step(self, what: str, *more: Any) -> None:
        if what == "send":
            self.send(*more)
        elif what == "answer":
            self.answer(*more)
        elif what == "table":
            [self.states] = more
            self.table()
        elif what == "refuse" and (server := self.servers[more[0]]) is not None:
            self.answer(more[0])
            server.sock.close()
            self.servers[more[0]] = None
        elif what == "full":
            for flow in self.drive.flows()[: more[0]]:
                flow.single = not flow.single  # one by one, or as trains again
        elif what == "stranger":
            for flow in self.drive.flows():
                if flow.sock is not None:
                    self.stranger.send(b"evil", flow.sock.getsockname())
        elif what == "silence":
            self.drive.pass_time(more[0])
        elif what == "turn":
            self.drive.settle()

    def check(self) -> None:
        drive = self.drive
        drive.settle()
        for which in range(SERVERS):
            self.answer(which)
        drive.settle()
        assert not drive.faults
        assert len(drive.flows()) <= MOST
        for which, client in enumerate(self.clients):
            # Boundaries and strangers: whatever arrives anywhere is one of the datagrams that were sent, as a whole.
            got = [data for data in client.texts() if data]
            assert all(int(data.split(b":")[0]) == which for data in got)
            assert set(got) <= set(self.sent[which])
            assert set(self.arrived[which]) <= set(self.sent[which])
        assert drive.balances(self.listen)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_any_order_keeps_boundaries_counts_everything_and_reaches_no_stranger(steps: list[tuple[Any, ...]]) -> None:
    before = len(descriptors())
    world = World()
    try:
        for step in steps:
            world.step(*step)
        world.check()
    finally:
        world.drive.finish()
    assert len(descriptors()) == before


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 200)), min_size=1, max_size=20))
def test_datagrams_of_one_client_arrive_in_their_order_while_servers_move(steps: list[tuple[int, int]]) -> None:
    world = World()
    try:
        for number, (what, length) in enumerate(steps):
            world.send(0, length + 1, 0)
            if what == 1:
                world.states = world.states[1:] + world.states[:1]
                world.table()
            elif what == 2:
                world.states = ["gone" if number % SERVERS == place else "up" for place in range(SERVERS)]
                world.table()
            elif what == 3:
                world.drive.settle()
                world.answer(number % SERVERS)
        world.drive.settle()
        for server in world.servers:
            numbers = [int(data.split(b":")[1]) for data in server.texts()] if server is not None else []
            assert numbers == sorted(numbers)
    finally:
        world.drive.finish()


class Fake:
    """A listening socket that gives what the test says, once."""

    def __init__(self, answer: tuple[Any, ...]) -> None:
        self.answer: tuple[Any, ...] | None = answer

    def recvmsg_into(self, _buffers: object, _room: int) -> tuple[Any, ...]:
        answer, self.answer = self.answer, None
        if answer is None:
            raise BlockingIOError(errno.EAGAIN, "nothing more")
        return answer


class Finder:
    """Notes for which flow a datagram was looked up."""

    def __init__(self) -> None:
        self.found: list[tuple[Any, ...]] = []
        self.drops: list[str] = []

    def find(self, _port: object, _flow: object, client: Any, local: bytes, count: int) -> None:
        self.found.append((client, local, count))

    def dropped(self, _port: object, reason: str, count: int) -> None:
        self.drops += [reason] * count


ITEMS = st.one_of(
    st.tuples(st.sampled_from([0, 1, 17, 41]), st.integers(0, 300).filter(lambda kind: kind != 104), st.binary(max_size=40)),
    st.tuples(st.just(0), st.just(8), st.binary(min_size=12, max_size=12)),
    st.tuples(st.just(41), st.just(50), st.binary(min_size=20, max_size=20)),
    st.tuples(st.just(17), st.just(104), st.integers(1, 65535).map(lambda size: size.to_bytes(4, "little"))),
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(ITEMS, max_size=6),
    st.integers(0, 65535),
    st.integers(0, 0xFF),
    st.tuples(st.just("198.51.100.7"), st.integers(0, 65535)),
)
def test_any_ancillary_data_is_one_datagram_for_one_flow_or_one_drop(
    items: list[Any], count: int, flags: int, client: tuple[str, int]
) -> None:
    run_queue, finder = RunQueue(), Finder()
    run_queue.budget = 1 << 20
    port = object.__new__(DatagramPort)
    port.flows, port.sock = {}, Fake((count, items, flags, client))  # type: ignore[assignment]
    Datagrams(run_queue, finder).from_clients(port, 1 << 18)  # type: ignore[arg-type]
    assert len(finder.found) + len(finder.drops) == 1
    assert finder.drops == (["truncated"] if flags & 0x28 else ["source_port"] if not client[1] else [])
    assert all(len(local) <= 16 for _, local, _ in finder.found)


def test_a_flow_is_small() -> None:
    """The object itself; its key, address and reply are shared with the maps."""
    assert Flow.__basicsize__ <= 320  # type: ignore[attr-defined]
