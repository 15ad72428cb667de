"""The life of flows: beginnings and ends; and what it costs a pylb without UDP."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

import pytest

from pylb.core.address import Address, Listen
from pylb.core.policy import Policy, Timeouts
from pylb.core.recorder import Query
from pylb.core.table import Server
from pylb.forward.flow import Flow
from tests.support.datagrams import DatagramDrive, DatagramPeer, codes, settled
from tests.support.ports import ports_in_a_row


@pytest.fixture
def drive(make_udp: Callable[..., DatagramDrive]) -> DatagramDrive:
    return make_udp()


# ------------------------------------------------------------ ends


def test_a_flow_is_settled_when_its_client_goes_on_after_an_answer(drive: DatagramDrive) -> None:
    server = drive.server()
    listen = drive.serve_udp(server)
    client = drive.client(listen)
    states = []
    for _ in range(2):
        client.send(b"x")
        drive.settle()
        states.append(drive.sessions()[0].state)
        server.answer()
        drive.settle()
        states.append(drive.sessions()[0].state)
    assert states == ["unsettled", "unsettled", "settled", "settled"]


def test_a_settled_flow_ends_after_udp_idle_an_unsettled_one_after_30_seconds(drive: DatagramDrive) -> None:
    server = drive.server()
    listen = drive.serve_udp(server)
    settled(drive, listen, server)
    drive.client(listen).send(b"x")
    drive.settle()
    drive.pass_time(29)
    assert not drive.records
    drive.pass_time(12)
    assert [record.bytes_in for record in drive.records] == [1]
    drive.pass_time(77)
    assert len(drive.records) == 1
    drive.pass_time(14)
    assert codes(drive) == ["--", "--"]
    assert drive.records[1].server == "a"
    assert drive.counters(listen).bytes_out == drive.records[1].bytes_out == 8


def test_either_direction_keeps_a_flow(drive: DatagramDrive) -> None:
    server = drive.server()
    listen = drive.serve_udp(server, policy=Policy(timeouts=Timeouts(udp_idle=10)))
    client = settled(drive, listen, server)
    [flow] = drive.flows()
    for way in range(6):
        if way % 2:
            client.send(b"x")
        else:
            server.send(b"y", flow.sock.getsockname())
        drive.settle()
        drive.pass_time(8)
    assert not drive.records
    drive.pass_time(13)
    assert codes(drive) == ["--"]


def test_with_responses_a_flow_ends_with_its_last_answer(drive: DatagramDrive) -> None:
    server = drive.server()
    listen = drive.serve_udp(server, policy=Policy(responses=2))
    client = drive.client(listen)
    client.send(b"abc", size=1)
    drive.settle()
    [_, _, (_, source)] = server.got()
    server.send(b"12345", source, size=1)
    drive.settle()
    assert len(drive.flows()) == 1
    server.send(b"6", source)
    drive.settle()
    assert codes(drive) == ["--"]
    assert b"".join(client.texts()) == b"123456"
    [[trace]] = drive.engine.ended(Query())
    assert (trace.closed_by, trace.closed_how) == ("pylb", "all answers came")


def test_an_answer_that_never_came_is_a_server_timeout(drive: DatagramDrive) -> None:
    server = drive.server()
    listen = drive.serve_udp(server, policy=Policy(responses=1))
    drive.client(listen).send(b"x")
    drive.settle()
    drive.pass_time(45)
    assert codes(drive) == ["sD"]


def test_after_requests_datagrams_the_next_begins_another_flow_and_answers_still_come(drive: DatagramDrive) -> None:
    one, two = drive.server(), drive.server()
    listen = drive.serve_udp(one, two, policy=Policy(requests=2))
    client = drive.client(listen)
    for number in range(4):
        client.send(b"%d" % number)
    drive.settle()
    assert sorted((one.answer(), two.answer())) == [[b"0", b"1"], [b"2", b"3"]]
    drive.settle()
    assert sorted(client.texts()) == [b"0", b"1", b"2", b"3"]
    drive.pass_time(45)
    assert codes(drive) == ["--", "--"]


def test_with_no_responses_each_datagram_is_a_flow(drive: DatagramDrive) -> None:
    server = drive.server()
    listen = drive.serve_udp(server, policy=Policy(responses=0))
    client = drive.client(listen)
    for _ in range(3):
        client.send(b"x")
        drive.settle()
    assert codes(drive) == ["--", "--"]
    assert len(server.got()) == 3


def test_a_port_that_is_closed_ends_its_flows_at_once_and_can_be_opened_again(drive: DatagramDrive) -> None:
    server = drive.server()
    listen = drive.serve_udp(server)
    settled(drive, listen, server)
    drive.remove(listen)
    drive.settle()
    assert codes(drive) == ["KD"]
    drive.serve_udp(server, listen=listen)
    settled(drive, listen, server)


def test_the_flows_of_a_closed_port_pass_nothing_on_and_hold_no_turn_longer_than_others(drive: DatagramDrive) -> None:
    server = drive.server(rcvbuf=1 << 20)
    listen = drive.serve_udp(server)
    clients = [drive.client(listen) for _ in range(100)]
    for client in clients:
        client.send(b"x")
    drive.settle()
    assert len(server.answer()) == 100
    drive.remove(listen)
    drive.engine.on_ready()
    assert 0 < len(codes(drive)) < 40
    drive.settle()
    assert codes(drive) == ["KD"] * 100
    for client in clients:
        with suppress(ConnectionRefusedError):
            assert client.texts() == []


def test_the_operator_ends_a_flow_or_all_of_a_server(drive: DatagramDrive) -> None:
    server = drive.server()
    listen = drive.serve_udp(server)
    for _ in range(3):
        settled(drive, listen, server)
    assert drive.engine.shutdown_session(drive.flows()[0].number) == 1
    assert drive.engine.shutdown_session(12345) == 0
    assert drive.engine.shutdown_sessions(listen, server.address) == 2
    drive.pass_time(0.2)
    assert codes(drive) == ["KD"] * 3
    client = settled(drive, listen, server)
    drive.pass_time(6)
    drive.exchange(client, server)
    assert len(drive.flows()) == 1


def test_a_drain_reads_no_more_and_kills_at_its_deadline(drive: DatagramDrive) -> None:
    server = drive.server()
    listen = drive.serve_udp(server)
    client = settled(drive, listen, server)
    [flow] = drive.flows()
    drive.engine.drain(drive.clock.now + 5, accept=False)
    client.send(b"x")
    server.send(b"late answer", flow.sock.getsockname())
    drive.settle()
    assert client.texts() == [b"late answer"]
    assert server.texts() == []
    drive.pass_time(6)
    assert codes(drive) == ["KD"]


def test_a_port_that_could_not_be_read_is_not_read_again_after_a_drain(drive: DatagramDrive) -> None:
    server = drive.server()
    listen = drive.serve_udp(server)
    client = settled(drive, listen, server)
    ports = drive.engine._flows.ports
    ports.back_off(ports.by_listen[listen])
    drive.engine.drain(drive.clock.now + 60, accept=False)
    client.send(b"for the next pylb")
    drive.pass_time(3)
    assert server.texts() == []


# ------------------------------------------------------------ ranges, faults, costs


def test_each_port_of_a_range_goes_to_its_own_port(drive: DatagramDrive) -> None:
    first = ports_in_a_row(6)
    target = first + 3
    servers = []
    for step in range(3):
        sock = drive._sock("127.0.0.1")
        sock.bind(("127.0.0.1", target + step))
        servers.append(DatagramPeer(sock))
    listen = Listen("udp", "127.0.0.1", first, first + 2)
    drive.serve_udp(Server("a", Address("127.0.0.1", target, "udp", target + 2)), listen=listen)
    for step, server in enumerate(servers):
        drive.exchange(drive.client(Listen("udp", "127.0.0.1", first + step)), server)
    assert len(drive.engine.counters.frontends) == 1
    drive.engine.shutdown_sessions(listen, Address("127.0.0.1", target, "udp", target + 2))
    drive.pass_time(0.2)
    assert sorted(record.listen_port for record in drive.records) == list(listen.ports)


def test_a_fault_ends_one_flow_with_code_i_and_the_others_go_on(drive: DatagramDrive, monkeypatch: pytest.MonkeyPatch) -> None:
    server = drive.server()
    listen = drive.serve_udp(server)
    good, bad = drive.client(listen), drive.client(listen)
    drive.exchange(good, server)
    drive.exchange(bad, server)
    broken = drive.flows()[1]

    def fail(flow: Flow) -> None:
        if flow is broken:
            raise RuntimeError("a fault of the test")

    with monkeypatch.context() as patched:
        patched.setattr(drive.engine._flows.homes, "is_lost", fail)
        bad.send(b"x")
        good.send(b"y")
        drive.settle()
    assert server.texts() == [b"y"]
    assert codes(drive) == ["ID"]
    assert drive.faults == ["RuntimeError('a fault of the test')"]
    drive.faults.clear()
    drive.exchange(bad, server)
    assert drive.balances(listen)


def test_a_fault_while_a_refused_datagram_is_sent_again_ends_that_flow_alone(
    drive: DatagramDrive, monkeypatch: pytest.MonkeyPatch
) -> None:
    listen = drive.serve_udp(Server("a", drive.nobody_there()))
    client, other = drive.client(listen), drive.client(listen)
    assert drive.engine._flows is not None
    rehome = drive.engine._flows.rehome

    def fail(flow: Flow) -> None:
        if flow.server is not None:
            raise RuntimeError("a fault of the test")
        rehome(flow)

    with monkeypatch.context() as patched:
        patched.setattr(drive.engine._flows, "rehome", fail)
        client.send(b"refused")
        client.send(b"again")  # the kernel reports the refusal in place of sending it
        other.send(b"x")
        drive.engine.on_ready()
    assert codes(drive) == ["ID"]
    assert drive.dropped(listen)["fault"] == 1
    assert drive.faults == ["RuntimeError('a fault of the test')"]
    drive.faults.clear()
    [flow] = drive.flows()
    assert flow.client == other.sock.getsockname()  # its port was not left alone for a while
    assert drive.balances(listen)


def test_a_flow_is_recorded_and_traced_like_a_session(drive: DatagramDrive) -> None:
    server = drive.server()
    listen = drive.serve_udp(server)
    settled(drive, listen, server)
    number = drive.flows()[0].number
    live = drive.engine.trace(number)
    assert live is not None
    assert (live.state, live.address, live.closed_by) == ("settled", server.address, "")
    drive.pass_time(150)
    ended = drive.engine.trace(number)
    assert ended is not None
    assert (ended.state, ended.closed_how, ended.record.server_active) == ("closed", "timed out", 0)


def test_a_pylb_without_udp_loads_none_of_it() -> None:
    code = """
import sys
from pylb.core.address import Listen
from pylb.core.policy import Policy
from pylb.core.table import Frontend, make_table
from pylb.forward.engine import Engine
from tests.support.drive import Witness
from tests.support.ports import free_port
engine = Engine(observer=Witness(), max_connections=9, on_fault=print)
listen = Listen("tcp", "127.0.0.1", free_port())
assert not engine.apply(make_table(1, {listen: Frontend("a", listen, Policy(), ())}))
engine.on_ready(); engine.tick(1.0); engine.close()
print(sorted(name for name in sys.modules if "flow" in name and "pylb" in name or "datagram" in name or "homes" in name))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout == "['pylb.core.flow']\n"  # the words of a record, without which no trace can be read
