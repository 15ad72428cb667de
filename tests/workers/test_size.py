"""What a table costs whoever serves it, counted and not timed: a move among 400 frontends costs what it costs among 20, in the
engine, in main with workers, and in a worker. A port that opens and closes again does, too."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pylb.core.address import Address, Listen
from pylb.core.log import Selection
from pylb.core.policy import Policy
from pylb.core.table import Frontend, Server, Table
from pylb.forward.counters import Counters, FrontendCounters
from pylb.forward.engine import Engine
from pylb.forward.own_dials import OwnDials
from pylb.logs.formats import LineBatch
from pylb.workers.archive import CodeArchive
from pylb.workers.channel import Channel
from pylb.workers.fleet import Fleet, FleetObserver
from pylb.workers.main_connection import MainConnection
from pylb.workers.messages import (
    PIECE,
    VERSION,
    Hello,
    TableChange,
    TablePart,
    encoded,
    frontend_count,
    numbered_frontend,
    report,
)
from tests.support.counting import counting

FEW, MANY = 20, 400
SLACK = 1.2
POLICY = Policy()
HELLO = Hello(VERSION, 1, 2, 1000, 10, 1 << 20, "none", 1.0, Selection())


def at(number: int) -> Listen:
    return Listen("tcp", "*", 10_000 + number)


def frontend(number: int, ip: str = "192.0.2.1") -> Frontend:
    pool = tuple(Server(f"pod-{one}", Address(f"192.0.2.{one}", 30000)) for one in range(2, 5))
    return Frontend(f"app-{number}", at(number), POLICY, (Server("pod-1", Address(ip, 30000)), *pool))


def full(frontends: int) -> Table:
    return Table().edited(1, {at(number): frontend(number) for number in range(frontends)})


def sockets(*_args: object, **_named: object) -> socket.socket:
    """Nobody listens: none of the ports is really opened."""
    return socket.socket()


@contextmanager
def engine(table: Table) -> Iterator[Callable[[Table], object]]:
    def fail(what: str, error: Exception) -> None:
        raise AssertionError(what) from error

    made = Engine(observer=Quiet(), max_connections=100_000, on_fault=fail, opener=sockets)
    try:
        made.apply(table)
        yield made.apply
    finally:
        made.close()


class Quiet:
    wants_records = False

    def session_ended(self, record: object) -> None:
        pass

    def connect_ended(self, *_args: object) -> None:
        pass


class Ports:
    """A source of sockets that listen to nobody."""

    open = staticmethod(sockets)

    def closed(self, listen: Listen) -> None:
        pass

    def give_back(self, listen: Listen) -> None:
        pass


class UnusedArchive(CodeArchive):
    """No worker is ever started."""

    def __init__(self) -> None:
        self.own_dials = OwnDials(0)

    def close(self) -> None:
        pass


@contextmanager
def fleet(table: Table) -> Iterator[Callable[[Table], object]]:
    made = Fleet(
        2, lambda _seat: HELLO, FleetObserver(lambda *_: None, lambda *_: None, lambda _: None), Ports(), UnusedArchive()
    )
    try:
        made.apply(table)
        counts = [frontend_count(listen, FrontendCounters(one.name)) for listen, one in table.frontends.items()]
        made._totals.heard(7, report(Counters(100), 0.0, tuple(counts)))
        yield made.apply
    finally:
        made.close()


@contextmanager
def worker(table: Table) -> Iterator[Callable[[Table], object]]:
    main, own = map(Channel, socket.socketpair())
    link = MainConnection(own, HELLO, LineBatch("none", Selection()))
    made = Engine(observer=link, max_connections=100_000, on_fault=link.fault, opener=sockets)
    link.begin(made)

    def apply(after: Table) -> None:
        """What main would send, without its sockets."""
        before = made.table
        touched = after.touched if after.since is not None else frozenset(after.frontends)
        there = [after.frontends[listen] for listen in sorted(touched) if listen in after.frontends]
        for start in range(0, len(there), PIECE):
            some = there[start : start + PIECE]
            policies = {} if before.frontends else {1: POLICY}
            main.send(*encoded(TablePart(policies, tuple(numbered_frontend(one, 1) for one in some))))
        closed = tuple(listen for listen in touched if listen not in after.frontends)
        main.send(*encoded(TableChange(before.generation, after.generation, (), closed)))
        while made.table.generation != after.generation:
            made.on_ready()
            link.work()

    try:
        apply(table)
        yield apply
    finally:
        made.close()
        main.close()
        own.close()


@pytest.mark.parametrize("serving", [engine, fleet, worker])
def test_a_table_costs_what_it_touches_however_many_frontends_there_are(serving: Callable[..., object]) -> None:
    costs: dict[str, list[int]] = {}
    for frontends in (FEW, MANY):
        table = full(frontends)
        with serving(table) as apply:  # type: ignore[attr-defined]
            for what, edit in {
                "whatever is made only once": {at(1): frontend(1, "192.0.2.98")},
                "a move": {at(3): frontend(3, "192.0.2.99")},
                "one more port": {at(5000): frontend(5000)},
                "a port that closes": {at(5000): None},
            }.items():
                table = table.edited(table.generation + 1, edit)
                with counting() as calls:
                    apply(table)
                    costs.setdefault(what, []).append(calls())
    del costs["whatever is made only once"]
    assert {what: found for what, found in costs.items() if found[1] > SLACK * found[0] + 50} == {}
