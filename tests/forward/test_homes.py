"""A flow's server: one that refuses, is down, drained, back or gone, and what that means for its flows."""

from collections.abc import Callable

import pytest

from pylb.core.policy import AdminState, Balance, OnDown, Policy, Timeouts
from pylb.core.table import DOWN, LAST_RESORT, Server
from tests.support.datagrams import DatagramDrive, DatagramPeer, codes, settled


@pytest.fixture
def drive(make_udp: Callable[..., DatagramDrive]) -> DatagramDrive:
    return make_udp()


def test_a_server_that_left_takes_its_flows_with_it_and_one_that_drains_keeps_them(drive: DatagramDrive) -> None:
    one, two = drive.server(), drive.server()
    a, b = Server("a", one.address), Server("b", two.address)
    listen = drive.serve_udp(a)
    client = settled(drive, listen, one)
    drive.serve_udp(Server("a", one.address, rank=LAST_RESORT), b, listen=listen)
    drive.exchange(client, one)
    drive.serve_udp(b, listen=listen)
    drive.exchange(client, two)
    assert drive.sessions()[0].state == "unsettled"
    drive.exchange(client, two)
    assert drive.sessions()[0].state == "settled"
    assert drive.counters(listen).datagrams.rehomed == 1
    assert drive.balances(listen)


def test_a_server_that_is_down_loses_its_flows_to_one_that_is_up(drive: DatagramDrive) -> None:
    one, two = drive.server(), drive.server()
    listen = drive.serve_udp(one)
    client = settled(drive, listen, one)
    down = Server("a", one.address, rank=DOWN)
    drive.serve_udp(down, listen=listen)
    drive.exchange(client, one)  # there is no other
    assert drive.counters(listen).datagrams.rehomed == 0
    drive.serve_udp(down, Server("b", two.address), listen=listen)
    drive.exchange(client, two)
    assert drive.counters(listen).datagrams.rehomed == 1


def test_on_down_close_ends_them(drive: DatagramDrive) -> None:
    server = drive.server()
    listen = drive.serve_udp(server)
    settled(drive, listen, server)
    drive.serve_udp(Server("a", server.address, rank=DOWN), listen=listen, policy=Policy(on_down=OnDown.CLOSE))
    drive.pass_time(0.2)
    assert codes(drive) == ["DD"]


def test_those_of_a_server_that_is_up_again_live(drive: DatagramDrive) -> None:
    server, policy = drive.server(), Policy(on_down=OnDown.CLOSE)
    listen = drive.serve_udp(server, policy=policy)
    settled(drive, listen, server)
    drive.clock.now += 0.05
    drive.serve_udp(Server("a", server.address, rank=DOWN), listen=listen, policy=policy)
    drive.clock.now += 0.05
    drive.serve_udp(server, listen=listen, policy=policy)
    client = settled(drive, listen, server)
    drive.pass_time(7)
    assert codes(drive) == ["DD"]
    drive.exchange(client, server)
    assert [view.state for view in drive.sessions()] == ["settled"]


def test_a_server_that_is_back_gets_its_share_of_new_flows_little_by_little(drive: DatagramDrive) -> None:
    one, two = drive.server(), drive.server()
    slow = Policy(balance=Balance.ROUNDROBIN, slow_start=30.0)

    def share(count: int = 110) -> float:
        """Of `two`, of that many flows."""
        for _ in range(count):
            drive.client(listen).send(b"x")  # it stays open: the next one must not get its port, and with it its flow
        drive.settle()
        found = len(two.got())
        assert found + len(one.got()) == count
        return found / count

    listen = drive.serve_udp(one, two, policy=slow)
    assert share(20) == 0.5
    drive.serve_udp(Server("a", one.address), Server("b", two.address, rank=DOWN), policy=slow, listen=listen)
    assert share(20) == 0.0
    drive.serve_udp(one, two, policy=slow, listen=listen)
    drive.pass_time(0.1)
    assert share() == pytest.approx(0.1 / 1.1, abs=0.02)
    drive.pass_time(15)
    assert share() == pytest.approx(0.5 / 1.5, abs=0.03)
    drive.pass_time(17)
    assert share(20) == 0.5


def test_a_drained_server_keeps_its_flows_until_timeouts_drain(drive: DatagramDrive) -> None:
    server = drive.server()
    policy = Policy(timeouts=Timeouts(drain=20))
    listen = drive.serve_udp(server, policy=policy)
    client = settled(drive, listen, server)
    drained = Server("a", server.address, weight=0, rank=LAST_RESORT, admin=AdminState.DRAIN)
    drive.serve_udp(drained, listen=listen, policy=policy)
    drive.exchange(client, server)
    drive.pass_time(19)
    assert not drive.records
    drive.pass_time(7)
    assert codes(drive) == ["KD"]


def test_a_refusal_moves_the_flow_and_counts_once(drive: DatagramDrive) -> None:
    two, gone = drive.server(), drive.nobody_there()
    listen = drive.serve_udp(Server("a", gone), policy=Policy())
    client = drive.client(listen)
    client.send(b"lost")
    drive.settle()
    drive.settle()
    assert drive.witness.connects == [("a", "refused")]
    drive.serve_udp(Server("a", gone), Server("b", two.address), listen=listen)
    drive.exchange(client, two)
    assert drive.witness.connects == [("a", "refused")]
    assert drive.counters(listen).servers["a"].failures == {"refused": 1}
    assert drive.counters(listen).datagrams.rehomed == 1
    assert drive.balances(listen)


def test_a_server_that_refuses_and_is_the_only_one_is_asked_again_each_time(drive: DatagramDrive) -> None:
    gone = drive.nobody_there()
    listen = drive.serve_udp(Server("a", gone))
    client = drive.client(listen)
    for _ in range(20):
        client.send(b"x")
        drive.settle()
    assert drive.counters(listen).servers["a"].failures == {"refused": 1}
    assert len(drive.flows()) == 1
    assert drive.balances(listen)
    drive.pass_time(45)
    assert codes(drive) == ["SC"]
    assert drive.records[0].retries == 1


def test_a_server_that_comes_back_is_reported_with_its_first_answer(drive: DatagramDrive) -> None:
    server = drive.server()
    address = server.address
    listen = drive.serve_udp(server)
    client = settled(drive, listen, server)
    server.sock.close()
    client.send(b"lost")
    drive.settle()
    again = drive._sock("127.0.0.1")
    again.bind((address.ip, address.port))
    drive.exchange(client, DatagramPeer(again))
    assert drive.witness.connects == [("a", "refused"), ("a", None)]


def test_without_a_server_datagrams_are_counted_and_the_flow_finds_one_that_comes(drive: DatagramDrive) -> None:
    server = drive.server()
    listen = drive.serve_udp()
    client = drive.client(listen)
    client.send(b"x")
    client.send(b"yy", size=1)
    drive.settle()
    assert drive.dropped(listen) == {"no_server": 3}
    assert [view.state for view in drive.sessions()] == ["new"]
    drive.serve_udp(server, listen=listen)
    drive.exchange(client, server)
    assert drive.balances(listen)
