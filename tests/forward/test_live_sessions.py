"""What happens to the live sessions of a server that goes down, drains or leaves; how they are listed and shut down."""

from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest

from pylb.core.address import Address, Listen
from pylb.core.policy import AdminState, OnDown, Policy, Timeouts
from pylb.core.recorder import parse_session_id
from pylb.core.table import DOWN
from tests.support.drive import Drive, Peer, server_at


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
    monkeypatch.setattr("pylb.forward.timers.DRAIN_RATE", 10.0)
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
