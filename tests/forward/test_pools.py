"""Several servers: limits and the queue in front of them, what happens to live sessions, and where they are dialled from."""

import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest

from pylb.core.address import Address, Listen
from pylb.core.policy import AdminState, Backups, Balance, HealthPolicy, OnDown, Policy, Timeouts, WhenAllDown
from pylb.core.recorder import parse_session_id
from pylb.core.table import BACKUP, DOWN
from pylb.forward.session import ServerState
from tests.support.drive import Drive, Peer, policy, readable, server_at
from tests.support.netns import Namespace

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


# ---------------------------------------------------------------- full servers


def test_clients_wait_in_order_while_all_servers_are_full(drive: Drive) -> None:
    one, two = drive.backend(), drive.backend()
    listen = drive.serve(server_at(one, "one", most=1), server_at(two, "two", most=1))
    first, second = drive.connect(listen), drive.connect(listen)
    at_one, at_two = drive.accept(one), drive.accept(two)
    waiting = [drive.connect(listen) for _ in range(3)]
    for number, client in enumerate(waiting):
        client.say(b"%d" % number)
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 3)
    drive.clock.now += 1.25
    end(drive, first, at_one)
    served = drive.accept(one)
    drive.run_until(lambda: served.got == b"0")
    assert drive.engine.counters.frontends[listen].queued == 2
    end(drive, second, at_two)
    other = drive.accept(two)
    drive.run_until(lambda: other.got == b"1")
    end(drive, waiting[0], served)
    assert (drive.records[2].queue_ms, drive.records[2].connect_ms, drive.records[2].code) == (1250, 0, "--")


def test_a_backup_is_no_place_to_go_while_the_others_are_only_full(drive: Drive) -> None:
    one, backup = drive.backend(), drive.backend()
    listen = drive.serve(server_at(one, "one", most=1), server_at(backup, "backup", rank=2))
    drive.connect(listen)
    drive.accept(one)
    drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)


def test_who_waits_too_long_is_reset(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend, most=1), policy=policy(queue=2.0))
    drive.connect(listen)
    drive.accept(backend)
    waiting = drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)
    drive.pass_time(1.9)
    assert not drive.records
    drive.pass_time(0.2)
    drive.run_until(lambda: waiting.error)
    record = drive.record()
    assert (record.code, record.queue_ms // 100, record.connect_ms, record.server) == ("sQ", 20, -1, "")


def test_a_queue_has_its_length(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend, most=1), policy=Policy(max_queue=1))
    drive.connect(listen)
    drive.accept(backend)
    drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)
    third = drive.connect(listen)
    drive.run_until(lambda: third.error)
    assert drive.record().code == "PQ"
    assert drive.engine.counters.frontends[listen].denied == {"queue": 1}


def test_a_client_that_leaves_the_queue_makes_room_in_it(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend, most=1), policy=Policy(max_queue=1))
    drive.connect(listen)
    drive.accept(backend)
    for _ in range(2):
        waiting = drive.connect(listen)
        drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)
        waiting.reset()
        drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 0)
    assert [record.code for record in drive.records] == ["CQ", "CQ"]


def test_what_a_waiting_client_said_and_its_fin_are_delivered(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend, most=1))
    first = drive.connect(listen)
    at = drive.accept(backend)
    waiting = drive.connect(listen)
    waiting.say(b"x" * 100_000)
    waiting.finish()
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)
    drive.run_until_quiet()
    end(drive, first, at)
    server = drive.accept(backend)
    drive.run_until(lambda: server.eof)
    assert len(server.got) == 100_000


@pytest.mark.parametrize("relief", ["a server more", "a higher limit", "no limit"])
def test_a_new_table_serves_the_queue(drive: Drive, relief: str) -> None:
    one, two = drive.backend(), drive.backend()
    listen = drive.serve(server_at(one, "one", most=1))
    drive.connect(listen)
    drive.accept(one)
    drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)
    if relief == "a server more":
        drive.serve(server_at(one, "one", most=1), server_at(two, "two"), listen=listen)
        drive.accept(two)
    else:
        drive.serve(server_at(one, "one", most=2 if relief == "a higher limit" else 0), listen=listen)
        drive.accept(one)


def test_who_was_refused_and_waits_is_served_by_the_only_server_of_a_new_table(drive: Drive) -> None:
    """Found by the state machine: what was tried before is not the one server there is now."""
    refusing, one, two = server_at(drive.nobody(), "refuses"), drive.backend(), drive.backend()
    listen = drive.serve(refusing, server_at(one, "one", rank=1, most=1))
    drive.connect(listen)
    drive.accept(one)
    waiting = drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)
    drive.serve(server_at(two, "two"), listen=listen)
    drive.accept(two)
    assert not waiting.error


def test_who_was_refused_by_a_server_that_has_left_is_counted_all_the_same(drive: Drive) -> None:
    """Found by the state machine: the label was gone, and the session with it."""
    refusing, backend = server_at(drive.nobody(), "refuses"), drive.backend()
    listen = drive.serve(refusing, server_at(backend, "one", rank=1, most=1))
    drive.connect(listen)
    drive.accept(backend)
    waiting = drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)
    drive.serve(listen=listen)
    drive.run_until(lambda: waiting.error)
    assert drive.record().code == "SC"
    assert drive.engine.counters.frontends[listen].servers[""].closed == {"SC": 1}


def test_who_waits_for_a_server_that_is_gone_is_reset(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend, most=1))
    drive.connect(listen)
    drive.accept(backend)
    waiting = drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)
    drive.serve(listen=listen)
    drive.run_until(lambda: waiting.error)
    assert drive.record().code == "SC"


def test_a_server_that_refuses_gives_its_place_to_the_next_in_the_queue(drive: Drive) -> None:
    """Its slot was taken while it was dialled."""
    hole, backend = drive.black_hole(), drive.backend()
    listen = drive.serve(server_at(hole, "hole", most=1), policy=policy(connect=1.0))
    clients = [drive.connect(listen) for _ in range(2)]
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)
    drive.serve(server_at(hole, "hole", most=1), server_at(backend, "b", rank=1), policy=policy(connect=1.0), listen=listen)
    drive.pass_time(1.1)
    drive.accept(backend)  # the first one's retry
    drive.pass_time(1.1)
    drive.accept(backend)
    assert not any(client.error for client in clients)


def test_a_removed_frontends_queue_is_served_as_its_sessions_are(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend, most=1))
    first = drive.connect(listen)
    at = drive.accept(backend)
    drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)
    drive.remove(listen)
    end(drive, first, at)
    drive.accept(backend)


# ---------------------------------------------------------------- live sessions of a server


@dataclass
class Live:
    """Sessions of one server."""

    listen: Listen
    where: Address
    clients: list[Peer] = field(default_factory=list)
    servers: list[Peer] = field(default_factory=list)


def sessions(drive: Drive, number: int, chosen: Policy | None = None) -> Live:
    backend = drive.backend()
    live = Live(drive.serve(server_at(backend), policy=chosen), Address(*backend.getsockname()[:2]))
    for _ in range(number):
        live.clients.append(drive.connect(live.listen))
        live.servers.append(drive.accept(backend))
    drive.run_until_quiet()
    return live


def test_a_server_that_is_down_keeps_its_sessions_unless_told_otherwise(drive: Drive) -> None:
    live = sessions(drive, 3)
    drive.serve(server_at(live.where, rank=DOWN), listen=live.listen)
    drive.pass_time(1.0)
    assert not any(client.error for client in live.clients)


def test_on_down_close_resets_the_sessions_of_a_server_that_is_down(drive: Drive) -> None:
    chosen = Policy(on_down=OnDown.CLOSE)
    live = sessions(drive, 3, chosen)
    drive.serve(server_at(live.where, rank=DOWN), policy=chosen, listen=live.listen)
    drive.pass_time(0.1)
    drive.run_until(lambda: all(peer.error for peer in (*live.clients, *live.servers)))
    assert [record.code for record in drive.records] == ["DD"] * 3


def test_a_drained_server_loses_its_sessions_at_its_deadline_spread_out_idle_ones_first(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pylb.forward.engine.DRAIN_RATE", 10.0)
    chosen = Policy(timeouts=replace(Timeouts(), drain=60.0))
    live = sessions(drive, 4, chosen)
    drive.serve(server_at(live.where, weight=0, admin=AdminState.DRAIN), policy=chosen, listen=live.listen)
    drive.pass_time(50.0, step=5.0)
    for busy in (0, 2):  # the others are idle
        live.clients[busy].say(b"x")
        drive.run_until(lambda busy=busy: live.servers[busy].got)
    drive.pass_time(9.5, step=0.5)
    assert not drive.records
    gone: list[set[int]] = []
    for _ in range(12):
        drive.pass_time(0.1)
        drive.run_until_quiet()
        gone.append({number for number, client in enumerate(live.clients) if client.error})
    sizes = [len(found) for found in gone]
    assert sizes == sorted(sizes)
    assert all(after - before <= 1 for before, after in pairwise(sizes)), sizes
    assert sizes[-1] == 4
    assert {1, 3} <= next(found for found in gone if len(found) == 2)
    assert {record.code for record in drive.records} == {"KD"}


def test_a_server_that_is_ready_again_keeps_its_sessions(drive: Drive) -> None:
    chosen = Policy(timeouts=replace(Timeouts(), drain=1.0))
    live = sessions(drive, 2, chosen)
    drive.serve(server_at(live.where, weight=0, admin=AdminState.DRAIN), policy=chosen, listen=live.listen)
    drive.pass_time(0.5)
    drive.serve(server_at(live.where), policy=chosen, listen=live.listen)
    drive.pass_time(3.0)
    assert not any(client.error for client in live.clients)


def test_maintenance_takes_no_session_away_and_gives_none(drive: Drive) -> None:
    chosen = Policy(timeouts=replace(Timeouts(), drain=1.0))
    live = sessions(drive, 2, chosen)
    drive.serve(server_at(live.where, weight=0, admin=AdminState.MAINT), policy=chosen, listen=live.listen)
    refused = drive.connect(live.listen)
    drive.run_until(lambda: refused.error)
    drive.pass_time(3.0)
    assert not any(client.error for client in live.clients)


def test_an_eviction_takes_none_that_came_later_and_outlives_the_server_in_the_table(drive: Drive) -> None:
    chosen = Policy(timeouts=replace(Timeouts(), drain=1.0))
    live = sessions(drive, 2, chosen)
    drive.serve(server_at(live.where, weight=0, admin=AdminState.DRAIN), policy=chosen, listen=live.listen)
    other = drive.backend()
    drive.serve(server_at(other, "other"), policy=chosen, listen=live.listen)
    later = drive.connect(live.listen)
    drive.accept(other)
    drive.pass_time(2.0)
    drive.run_until(lambda: all(client.error for client in live.clients))
    assert not later.error


def test_sessions_are_listed_and_shut_down_by_number_or_server(drive: Drive) -> None:
    live = sessions(drive, 3)
    live.clients[0].say(b"hello")
    drive.run_until(lambda: live.servers[0].got)
    drive.clock.now += 2.5
    [view] = [one for one in drive.sessions() if one.client_port == live.clients[0].local.port]
    assert view[:7] == ("127.0.0.1", live.clients[0].local.port, "web", live.listen, "a", live.where, "relaying")
    assert (view.age, view.bytes_in, view.bytes_out) == (2.5, 5, 0)
    number = parse_session_id(view.id)
    assert drive.engine.shutdown_session(number) == 1
    assert drive.engine.shutdown_session(number) == 0
    drive.run_until(lambda: live.clients[0].error)
    assert drive.engine.shutdown_sessions(live.listen, Address("127.0.0.1", 1)) == 0
    assert drive.engine.shutdown_sessions(live.listen, live.where) == 2
    drive.pass_time(0.1)
    drive.run_until(lambda: all(peer.error for peer in live.clients))
    assert [record.code for record in drive.records] == ["KD"] * 3


def test_a_session_without_a_server_is_listed_too(drive: Drive) -> None:
    drive.connect(drive.serve(server_at(drive.black_hole())))
    drive.run_until(drive.sessions)
    [view] = drive.sessions()
    assert (view.state, view.server) == ("dialing", "a")


# ---------------------------------------------------------------- the global limit


def test_no_frontend_takes_the_places_that_the_others_need(make_drive: Callable[..., Drive]) -> None:
    drive = make_drive(splice=True, max_connections=40)
    backend = drive.backend()
    greedy, modest = (drive.serve(server_at(backend), name=name) for name in ("greedy", "modest"))
    for _ in range(45):
        drive.connect(greedy)
    drive.run_until_quiet()
    counters = drive.engine.counters
    assert counters.frontends[greedy].sessions == 40 - counters.reserve == 35
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
    assert (drive.engine.counters.reserve, drive.engine.counters.shared) == (4, 6)
    drive.remove(listens[0])
    drive.remove(listens[3])
    assert (drive.engine.counters.reserve, drive.engine.counters.shared) == (8, 2)
    for client in clients:
        client.reset()
    drive.run_until(lambda: drive.engine.counters.open_sessions == 0)
    assert drive.engine.counters.shared == 0


# ---------------------------------------------------------------- where servers are dialled from


def test_source_addresses_take_turns(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend), policy=Policy(source_addresses=("127.0.0.5", "::1", "127.0.0.6")))
    seen = []
    for _ in range(4):
        drive.connect(listen)
        seen.append(drive.accept(backend).sock.getpeername()[0])
    assert Counter(seen) == {"127.0.0.5": 2, "127.0.0.6": 2}
    assert seen[0] != seen[1]


def test_a_source_address_of_another_family_is_not_used(drive: Drive) -> None:
    backend = drive.backend("::1")
    listen = drive.serve(server_at(backend), policy=Policy(source_addresses=("127.0.0.5",)))
    drive.connect(listen)
    assert drive.accept(backend).sock.getpeername()[0] == "::1"


def test_an_address_this_machine_does_not_have_is_passed_over_and_none_left_is_our_fault(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend), policy=Policy(source_addresses=("192.0.2.77", "127.0.0.6")))
    for _ in range(2):
        drive.connect(listen)
        assert drive.accept(backend).sock.getpeername()[0] == "127.0.0.6"
    drive.serve(server_at(backend), policy=Policy(source_addresses=("192.0.2.77",)), listen=listen)
    client = drive.connect(listen)
    drive.run_until(lambda: client.error)
    assert drive.record().code == "RC"
    assert drive.witness.connects == [("a", "resource")]


def test_one_server_takes_more_connections_than_one_source_has_ports(
    loopback: Namespace, make_drive: Callable[..., Drive]
) -> None:
    """Ten ephemeral ports, two addresses: twenty connections to one NodePort."""
    loopback.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=41000 41009")
    drive = make_drive(splice=True)
    backend = drive.backend(port=30443)
    one = Policy(source_addresses=("127.0.0.5", "127.0.0.6"))
    listen = drive.serve(server_at(backend), policy=one)
    with_ports = []
    for number in range(20):
        with_ports.append(drive.connect(listen, source=f"127.0.1.{number + 1}"))
        drive.accept(backend)
    last = drive.connect(listen, source="127.0.1.30")
    drive.run_until(lambda: last.error)
    assert drive.record().code == "RC"
    assert not any(client.error for client in with_ports)


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
