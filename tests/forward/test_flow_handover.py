"""Flows pass from one engine to the next with their sockets: the old one reads nothing more, and nothing is lost meanwhile."""

import errno
import json
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pylb.core.address import Listen
from pylb.core.flow import FlowBatch, FlowState
from pylb.core.policy import AdminState, Policy, SourceLimits, Timeouts
from pylb.core.table import LAST_RESORT, Server
from pylb.forward.passed_flows import PassedFlows
from tests.support.datagrams import DatagramDrive, DatagramPeer
from tests.support.drive import Drive
from tests.support.ports import ports_in_a_row


class Pair:
    """Two engines that share listening sockets, as two processes would: each has a copy of the descriptor."""

    def __init__(self) -> None:
        self.old, self.new = DatagramDrive(), DatagramDrive()
        self.new.engine._opener = self._copy

    def _copy(self, listen: Listen, *, freebind: bool = False) -> socket.SocketType:  # noqa: ARG002 - as an Opener
        assert self.old.engine._flows is not None
        return socket.SocketType(-1, -1, -1, os.dup(self.old.engine._flows.ports.by_listen[listen].fd))

    @property
    def handover(self) -> Any:
        return self.old.engine.flow_handover

    def describe(self) -> list[FlowBatch]:
        """As it arrives: JSON, and descriptors of its own."""
        self.handover.pause()
        return [(json.loads(json.dumps(flows)), [os.dup(fd) for fd in fds]) for flows, fds in self.handover.described()]

    def follow(self, *servers: Server | DatagramPeer, listen: Listen, policy: Policy | None = None) -> None:
        """The next engine takes all, and the old one ends."""
        self.new.engine.take_flows(self.describe())
        self.new.serve_udp(*servers, listen=listen, policy=policy)
        self.old.engine.drain(self.old.clock() + 60)
        self.old.engine.tick(self.old.clock())


@pytest.fixture
def pair(_back_to_the_base_line: None) -> Iterator[Pair]:
    both = Pair()
    yield both
    handover = both.new.engine.flow_handover
    assert handover is None or handover.passed.close() == 0
    for drive in (both.new, both.old):
        drive._counters.clear()  # the counts of a flow are divided between the two
        drive.finish()


def test_a_flow_goes_on_with_its_socket_and_what_came_meanwhile_is_delivered(pair: Pair) -> None:
    server = pair.old.server()
    listen = pair.old.serve_udp(server)
    client = pair.old.client(listen)
    for _ in range(2):
        pair.old.exchange(client, server)
    client.send(b"before")
    pair.old.settle()
    [(_, source)] = server.got()
    pair.handover.pause()
    client.send(b"during")
    server.send(b"back", source)
    pair.old.settle()
    assert (server.texts(), client.texts()) == ([], [])  # it waits in the kernel
    pair.follow(server, listen=listen)
    pair.new.settle()
    assert (server.got(), client.texts()) == ([(b"during", source)], [b"back"])
    [flow] = pair.new.flows()
    assert (flow.state, flow.datagrams_in, flow.datagrams_out) == (FlowState.SETTLED, 4, 3)
    counters = pair.new.counters(listen)
    assert (counters.sessions, counters.sessions_total) == (1, 0)  # the old one has counted it
    assert counters.servers["a"].sessions_total == 0
    assert (pair.old.flows(), pair.old.records) == ([], [])  # it has not ended
    pair.new.pass_time(130)
    [record] = pair.new.records
    assert (record.code, record.bytes_in, record.bytes_out) == ("--", 20, 12)
    datagrams = counters.datagrams
    assert datagrams is not None
    assert (datagrams.relayed_in, datagrams.relayed_out) == (1, 1)  # only what moved here


def test_what_the_kernel_drops_while_nobody_reads_is_counted_once(pair: Pair) -> None:
    server = pair.old.server()
    listen = pair.old.serve_udp(server)
    client = pair.old.client(listen)
    pair.old.exchange(client, server)
    [port] = pair.old.engine._flows.ports.by_listen.values()  # type: ignore[union-attr]
    port.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    pair.handover.pause()
    for _ in range(20):
        client.send(b"x" * 1000)
    pair.follow(server, listen=listen)
    lost = pair.old.dropped(listen)["kernel"]
    assert lost > 0
    pair.new.pass_time(2)
    assert pair.new.dropped(listen)["kernel"] == 0
    assert len(server.texts()) + lost == 20


def test_if_there_is_no_next_engine_after_all_the_old_one_reads_on(pair: Pair) -> None:
    server = pair.old.server()
    listen = pair.old.serve_udp(server)
    client = pair.old.client(listen)
    pair.old.exchange(client, server)
    for flows, fds in pair.describe():
        assert len(flows) == len(fds) == 1
        os.close(fds[0])
    client.send(b"during")
    pair.old.pass_time(200)  # nothing ends meanwhile
    assert server.texts() == []
    pair.handover.resume()
    pair.old.settle()
    assert server.answer() == [b"during"]
    pair.old.settle()
    assert client.texts() == [b"during"]


class RefusingEpoll:
    """Its first `register` fails."""

    def __init__(self, epoll: Any) -> None:
        self._epoll = epoll
        self.refused = 0

    def register(self, fd: int, events: int) -> None:
        if not self.refused:
            self.refused = fd
            raise OSError(errno.ENOSPC, "refused by the test")
        self._epoll.register(fd, events)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)


def test_a_flow_that_cannot_be_watched_again_ends_and_the_others_go_on(pair: Pair) -> None:
    server = pair.old.server()
    listen = pair.old.serve_udp(server)
    clients = [pair.old.client(listen) for _ in range(3)]
    for client in clients:
        pair.old.exchange(client, server)
    pair.handover.pause()
    pair.handover._events = epoll = RefusingEpoll(pair.handover._events)
    pair.handover.resume()
    assert epoll.refused
    assert (len(pair.old.flows()), len(pair.old.faults)) == (2, 1)
    for client in clients:
        pair.old.exchange(client, server)
    assert [record.code for record in pair.old.records] == ["ID"]
    pair.old.faults.clear()


def test_one_that_the_next_engine_cannot_watch_begins_anew_there(pair: Pair) -> None:
    server = pair.old.server()
    listen = pair.old.serve_udp(server)
    clients = [pair.old.client(listen) for _ in range(3)]
    for client in clients:
        pair.old.exchange(client, server)
    pair.new.engine.take_flows(pair.describe())
    handover: Any = pair.new.engine.flow_handover
    handover._events = epoll = RefusingEpoll(handover._events)
    pair.new.serve_udp(server, listen=listen)
    pair.old.engine.drain(pair.old.clock() + 60)
    assert epoll.refused
    assert (len(pair.new.flows()), len(pair.new.faults)) == (2, 1)
    for client in clients:
        pair.new.exchange(client, server)
    assert len(pair.new.flows()) == 3
    pair.new.faults.clear()


def test_a_flow_whose_server_has_left_begins_anew(pair: Pair) -> None:
    server, other = pair.old.server(), pair.old.server()
    listen = pair.old.serve_udp(server)
    client = pair.old.client(listen)
    pair.old.exchange(client, server)
    pair.follow(Server("b", other.address), listen=listen)
    assert pair.new.flows() == []
    client.send(b"ping")
    pair.new.settle()
    assert other.texts() == [b"ping"]


def test_each_port_of_a_range_has_its_own_and_a_source_keeps_its_places(pair: Pair) -> None:
    server, first = pair.old.server(), ports_in_a_row(2)
    policy = Policy(limits=SourceLimits(per_source=2))
    listen = pair.old.serve_udp(server, listen=Listen("udp", "127.0.0.1", first, first + 1), policy=policy)
    clients = [pair.old.client(one) for one in listen.each()]
    for client in clients:
        pair.old.exchange(client, server)
    pair.follow(server, listen=listen, policy=policy)
    for client in clients:
        pair.new.exchange(client, server)
    third = pair.new.client(listen._replace(last=0))
    third.send(b"ping")
    pair.new.settle()
    assert (len(pair.new.flows()), pair.new.counters(listen).denied) == (2, {"per_source": 1})


def test_a_server_that_drains_keeps_its_flows_there_for_timeouts_drain(pair: Pair) -> None:
    server, policy = pair.old.server(), Policy(timeouts=Timeouts(drain=20))
    listen = pair.old.serve_udp(server, policy=policy)
    client = pair.old.client(listen)
    pair.old.exchange(client, server)
    drained = Server("a", server.address, weight=0, rank=LAST_RESORT, admin=AdminState.DRAIN)
    pair.follow(drained, listen=listen, policy=policy)
    for _ in range(3):
        pair.new.exchange(client, server)
        pair.new.pass_time(6)
    assert not pair.new.records
    pair.new.pass_time(8)
    assert [record.code for record in pair.new.records] == ["KD"]


def test_a_header_that_is_due_is_due_there_too(pair: Pair) -> None:
    server = pair.old.server()
    listen = pair.old.serve_udp(server)
    client = pair.old.client(listen)
    pair.old.exchange(client, server)
    [flow] = pair.old.flows()
    flow.header, flow.single = b"HEADER", True
    pair.follow(server, listen=listen)
    client.send(b"ping")
    pair.new.settle()
    assert server.texts() == [b"HEADERping"]


def test_more_than_one_message_is_needed_for_many(pair: Pair) -> None:
    server = pair.old.server(rcvbuf=1 << 20)
    listen = pair.old.serve_udp(server)
    clients = [pair.old.client(listen) for _ in range(201)]
    for client in clients:
        client.send(b"ping")
        pair.old.settle()
    batches = pair.describe()
    assert [len(fds) for _, fds in batches] == [200, 1]
    pair.new.engine.take_flows(batches)
    pair.new.serve_udp(server, listen=listen)
    assert len(pair.new.flows()) == 201
    pair.old.engine.drain(pair.old.clock())
    pair.old.engine.tick(pair.old.clock())


GOOD: dict[str, Any] = {
    "frontend": "127.0.0.1:1/udp", "port": 1, "client": ["127.0.0.1", 2], "local": "", "server": "a",
    "address": "127.0.0.1:3/udp", "state": "settled", "answered": True, "single": False, "header": "",
    "moved": [1, 2, 3, 4], "age": 1.0, "quiet": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"client": []}, {"client": ["::1", 1, 2]}, {"client": [1, 2]}, {"client": None}, {"local": "xy"}, {"local": "00"},
        {"port": "1"}, {"port": -1}, {"server": None}, {"address": "nowhere"}, {"state": "closed"}, {"state": 1},
        {"header": 1}, {"moved": [1]}, {"moved": [1, 2, 3, True]}, {"age": "old"}, {"frontend": "?"}, {"frontend": None},
    ],
    ids=str,
)  # fmt: skip
def test_what_another_version_writes_differently_is_closed_and_the_rest_is_taken(wrong: dict[str, Any]) -> None:
    socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(4)] + [socket.socket()]
    passed = PassedFlows()
    try:
        fds = [os.dup(sock.fileno()) for sock in socks]
        passed.add([GOOD, GOOD | wrong, {}, None, GOOD], [*fds])  # the last one is of TCP
        taken = passed.take(Listen("udp", "127.0.0.1", 1))
        assert [flow.sock.fileno() for flow in taken] == fds[:1]
        for fd in fds[1:]:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)
        taken[0].sock.close()
        assert passed.close() == 0
    finally:
        for sock in socks:
            sock.close()


def test_a_descriptor_without_a_description_is_closed() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fd, passed = os.dup(sock.fileno()), PassedFlows()
        passed.add([], [fd])
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_an_engine_without_udp_has_nothing_to_pass_on(make_drive: Callable[..., Drive]) -> None:
    drive = make_drive(splice=False)
    assert drive.engine.flow_handover is None
    drive.engine.take_flows([])
    assert drive.engine.flow_handover is None
