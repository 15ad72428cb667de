"""Several servers: which of them serves, and what they share; full ones are in test_full_servers.py."""

import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from pylb.core.address import Address
from pylb.core.policy import Backups, Balance, HealthPolicy, Policy, WhenAllDown
from pylb.core.table import BACKUP, DOWN
from pylb.forward.session import ServerState
from tests.support.drive import Drive, Peer, readable, server_at

BALANCES = list(Balance)


def end(drive: Drive, client: Peer, server: Peer) -> None:
    """In order, and settled."""
    before = len(drive.records)
    client.finish()
    server.finish()
    drive.run_until(lambda: len(drive.records) > before)


@pytest.mark.parametrize("balance", BALANCES)
def test_refusing_servers_cost_no_client_with_any_balance(drive: Drive, balance: Balance) -> None:
    backend = drive.backend()
    dead = [server_at(drive.nobody(), f"dead-{number}") for number in range(3)]
    listen = drive.serve(*dead, server_at(backend, "alive"), policy=Policy(balance=balance))
    for _ in range(8):
        client = drive.connect(listen)
        end(drive, client, drive.accept(backend))
        assert not client.error
    assert {record.server for record in drive.records} == {"alive"}
    assert all(record.retries <= 3 for record in drive.records)


@pytest.mark.parametrize("balance", BALANCES)
def test_the_preferred_rank_serves_as_long_as_it_has_a_server(drive: Drive, balance: Balance) -> None:
    first, second = drive.backend(), drive.backend()
    listen = drive.serve(
        server_at(second, "last", rank=3),
        server_at(first, "fresh"),
        server_at(drive.nobody(), "x", rank=2),
        policy=Policy(balance=balance),
    )
    for _ in range(3):
        end(drive, drive.connect(listen), drive.accept(first))
    drive.serve(
        server_at(second, "last", rank=3), server_at(drive.nobody(), "x", rank=2), policy=Policy(balance=balance), listen=listen
    )
    for _ in range(3):
        end(drive, drive.connect(listen), drive.accept(second))
    assert Counter(record.server for record in drive.records) == {"fresh": 3, "last": 3}


REFUSE = HealthPolicy(when_all_down=WhenAllDown.REFUSE)


@pytest.mark.parametrize("balance", BALANCES)
def test_where_down_means_not_permitted_no_connect_goes_to_a_server_that_is_down(drive: Drive, balance: Balance) -> None:
    replica = drive.backend()
    refuse = Policy(balance=balance, health=REFUSE)
    for servers in (
        [server_at(replica, "replica", rank=DOWN)],
        [server_at(drive.nobody(), "primary"), server_at(replica, "replica", rank=DOWN)],  # nor does a retry
        [server_at(drive.nobody(), "primary", rank=DOWN), server_at(replica, "backup", rank=DOWN, backup=True)],
    ):
        listen = drive.serve(*servers, policy=refuse)
        client = drive.connect(listen)
        drive.run_until(lambda client=client: client.error or client.eof)
        assert drive.records[-1].code == "SC"
        assert not readable(replica)
    assert drive.engine.counters.frontends[listen].servers["backup"].attempts == 0


@pytest.mark.parametrize("balance", BALANCES)
def test_one_server_alone_may_refuse_while_it_is_down(drive: Drive, balance: Balance) -> None:
    """A registration says it of its own server; the others are tried when all are down."""
    tried, spared = drive.backend(), drive.backend()
    servers = [replace(server_at(spared, "refuses", rank=DOWN), health=REFUSE), server_at(tried, "tries", rank=DOWN)]
    listen = drive.serve(*servers, policy=Policy(balance=balance))
    for _ in range(4):
        end(drive, drive.connect(listen), drive.accept(tried))


@pytest.mark.parametrize("balance", [balance for balance in BALANCES if balance is not Balance.SOURCE])
@pytest.mark.parametrize(("backups", "served"), [(Backups.FIRST, {"b1"}), (Backups.ALL, {"b1", "b2", "b3"})])
def test_of_backups_the_first_serves_or_all(drive: Drive, balance: Balance, backups: Backups, served: set[str]) -> None:
    if (balance, backups) == (Balance.FIRST, Backups.ALL):
        served = {"b1"}
    backend = drive.backend("0.0.0.0")
    at = [Address(f"127.0.0.{number}", backend.getsockname()[1]) for number in (1, 2, 3)]
    lines = [server_at(address, f"b{number}", rank=BACKUP, backup=True) for number, address in enumerate(at, 1)]
    listen = drive.serve(server_at(drive.nobody(), "main"), *lines, policy=Policy(balance=balance, backups=backups))
    for _ in range(24):
        end(drive, drive.connect(listen), drive.accept(backend))
    assert {record.server for record in drive.records} == served


def test_the_next_backup_serves_while_the_first_is_down(drive: Drive) -> None:
    first, second = drive.backend(), drive.backend()
    lines = [server_at(first, "b1", rank=DOWN, backup=True), server_at(second, "b2", rank=BACKUP, backup=True)]
    listen = drive.serve(server_at(drive.nobody(), "main", rank=DOWN), *lines)
    end(drive, drive.connect(listen), drive.accept(second))


def test_of_those_that_are_down_backups_are_tried_last(drive: Drive) -> None:
    main, backup = drive.backend(), drive.backend()
    listen = drive.serve(server_at(backup, "b", rank=DOWN, backup=True), server_at(main, "main", rank=DOWN))
    for _ in range(3):
        end(drive, drive.connect(listen), drive.accept(main))


def test_a_server_that_is_back_gets_its_share_little_by_little(drive: Drive) -> None:
    one, two = drive.backend(), drive.backend()
    slow = Policy(balance=Balance.ROUNDROBIN, slow_start=30.0)

    def share(count: int = 110) -> float:
        """Of `two`, of that many sessions."""
        before = len(drive.records)
        for _ in range(count):
            client = drive.connect(listen)
            drive.run_until(lambda: readable(one) or readable(two))
            end(drive, client, drive.accept(one if readable(one) else two))
        return sum(record.server == "two" for record in drive.records[before:]) / count

    listen = drive.serve(server_at(one, "one"), server_at(two, "two"), policy=slow)
    assert share(20) == 0.5  # the first servers of a frontend have nobody to leave the load to
    drive.serve(server_at(one, "one"), server_at(two, "two", rank=DOWN), policy=slow, listen=listen)
    assert share(20) == 0.0
    drive.serve(server_at(one, "one"), server_at(two, "two"), policy=slow, listen=listen)
    drive.pass_time(0.1)
    assert share() == pytest.approx(0.1 / 1.1, abs=0.02)
    drive.pass_time(15)
    assert share() == pytest.approx(0.5 / 1.5, abs=0.03)
    drive.serve(server_at(one, "one", weight=1), server_at(two, "two", weight=1), policy=slow, listen=listen)
    assert share() == pytest.approx(0.5 / 1.5, abs=0.03)  # another table does not begin anew
    drive.pass_time(16)
    assert share(20) == 0.5
    assert not drive.engine._ramping


def test_a_client_stays_with_its_server_by_source(drive: Drive) -> None:
    backends = {name: drive.backend() for name in "abcde"}
    listen = drive.serve(
        *(server_at(backend, name) for name, backend in backends.items()), policy=Policy(balance=Balance.SOURCE)
    )
    clients = [drive.connect(listen, source=f"127.0.0.{2 + number % 4}") for number in range(12)]
    drive.run_until(lambda: sum(state.sessions for state in drive.states(listen)) == 12)
    drive.run_until_quiet()
    for client in clients:
        client.reset()
    drive.run_until(lambda: len(drive.records) == 12)
    servers: dict[str, set[str]] = {}
    for record in drive.records:
        servers.setdefault(record.client, set()).add(record.server)
    assert len(servers) == 4
    assert all(len(names) == 1 for names in servers.values())


# ---------------------------------------------------------------- the global limit


def test_no_frontend_takes_the_places_that_the_others_need(make_drive: Callable[..., Drive]) -> None:
    drive = make_drive(splice=True, max_connections=40)
    backend = drive.backend()
    greedy, modest = (drive.serve(server_at(backend), name=name) for name in ("greedy", "modest"))
    for _ in range(45):
        drive.connect(greedy)
    drive.run_until_quiet()
    counters = drive.engine.counters
    assert counters.frontends[greedy].sessions == 40 - counters.guaranteed == 35
    for _ in range(5):
        drive.connect(modest)
    drive.run_until(lambda: counters.frontends[modest].sessions == 5)
    drive.connect(modest)
    drive.run_until_quiet()
    assert counters.open_sessions == 40


def test_one_frontend_alone_has_all_places(make_drive: Callable[..., Drive]) -> None:
    drive = make_drive(splice=True, max_connections=40)
    listen = drive.serve(server_at(drive.backend()))
    for _ in range(45):
        drive.connect(listen)
    drive.run_until_quiet()
    assert drive.engine.counters.open_sessions == 40


def test_places_are_shared_out_anew_when_frontends_come_and_go(make_drive: Callable[..., Drive]) -> None:
    drive = make_drive(splice=True, max_connections=64)
    backend = drive.backend()
    listens = [drive.serve(server_at(backend)) for _ in range(4)]
    clients = [drive.connect(listens[0]) for _ in range(10)]
    drive.run_until(lambda: drive.engine.counters.open_sessions == 10)
    assert (drive.engine.counters.guaranteed, drive.engine.counters.shared) == (4, 6)
    drive.remove(listens[0])
    drive.remove(listens[3])
    assert (drive.engine.counters.guaranteed, drive.engine.counters.shared) == (8, 2)
    for client in clients:
        client.reset()
    drive.run_until(lambda: drive.engine.counters.open_sessions == 0)
    assert drive.engine.counters.shared == 0


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_what_a_closed_frontend_had_is_gone_with_its_last_session(drive: Drive, balance: Balance, busy: bool) -> None:
    """Without the garbage collector, which the base line turned off."""
    backend = drive.backend()
    servers = [server_at(backend), server_at(drive.nobody(), "other", rank=DOWN), server_at(drive.nobody(), "more", rank=DOWN)]
    listen = drive.serve(*servers, policy=Policy(balance=balance))
    if busy:
        client, server = drive.connect(listen), drive.accept(backend)
        client.say(b"x")
        drive.run_until(lambda: server.got)
    drive.remove(listen)
    if busy:
        end(drive, client, server)
        drive.turn()
        drive.remove(drive.serve(server_at(backend)))  # at the next change of a port
    assert not gc.isenabled()
    assert not [each for each in gc.get_objects() if isinstance(each, ServerState)]
