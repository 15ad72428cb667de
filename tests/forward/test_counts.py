"""What is counted of a frontend and a server: for dashboards, so every number has to be right at the end of a session."""

import os
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

import pytest

from pylb.core.access import AccessList, AccessRule
from pylb.core.address import Address
from pylb.core.policy import Policy
from pylb.core.table import Server
from tests.support.drive import Drive, server_at


def test_a_server_has_the_bytes_times_and_dials_of_its_sessions(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend, "alive"))
    client = drive.connect(listen)
    server = drive.accept(backend)
    counters = drive.engine.counters.frontends[listen]
    alive = counters.servers["alive"]
    drive.run_until(lambda: alive.sessions)
    assert (alive.attempts, alive.sessions, alive.last_at) == (1, 1, drive.clock.now)
    client.say(b"hello")
    server.say(b"good morning")
    drive.run_until(lambda: client.got and server.got)
    drive.clock.now += 2.0
    client.finish()
    server.finish()
    drive.record()
    assert (alive.bytes_in, alive.bytes_out) == (counters.bytes_in, counters.bytes_out) == (5, 12)
    assert (alive.total_seconds, alive.longest_total) == (pytest.approx(2.0), pytest.approx(2.0))
    assert (alive.attempts, alive.sessions, alive.sessions_total, alive.redispatches) == (1, 0, 1, 0)
    assert (counters.connections, counters.sessions_total) == (1, 1)


def test_a_live_sessions_bytes_are_the_servers_by_the_next_sweep(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend, "alive"))
    client = drive.connect(listen)
    server = drive.accept(backend)
    client.say(b"hello")
    drive.run_until(lambda: server.got == b"hello")
    drive.pass_time(6.0)
    assert drive.engine.counters.frontends[listen].servers["alive"].bytes_in == 5


def test_a_redispatch_is_counted_at_the_server_that_failed(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(drive.nobody(), "dead"), server_at(backend, "alive", rank=1))
    drive.connect(listen)
    drive.accept(backend)
    servers = drive.engine.counters.frontends[listen].servers
    drive.run_until(lambda: servers["alive"].sessions)
    assert (servers["dead"].attempts, servers["dead"].redispatches, servers["dead"].sessions_total) == (1, 1, 0)
    assert (servers["alive"].attempts, servers["alive"].redispatches, servers["alive"].sessions_total) == (1, 0, 1)


def test_a_dial_with_no_other_server_is_no_redispatch(drive: Drive) -> None:
    listen = drive.serve(server_at(drive.nobody(), "dead"))
    client = drive.connect(listen)
    drive.run_until(lambda: client.error)
    dead = drive.engine.counters.frontends[listen].servers["dead"]
    assert (dead.attempts, dead.redispatches, dead.failures.total()) == (1, 0, 1)


def test_the_time_in_the_queue_is_not_the_connects(drive: Drive) -> None:
    backend = drive.backend()
    address = Address(*backend.getsockname())
    listen = drive.serve(Server("small", address, max_connections=1))
    first = drive.connect(listen)
    served = drive.accept(backend)
    second = drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued)
    drive.clock.now += 3.0
    first.finish()
    served.finish()
    drive.accept(backend)
    small = drive.engine.counters.frontends[listen].servers["small"]
    drive.run_until(lambda: small.sessions_total == 2)
    assert (small.queue_seconds, small.longest_queue) == (pytest.approx(3.0), pytest.approx(3.0))
    assert small.connect_seconds == pytest.approx(0.0)
    assert not second.error


def test_a_client_refused_at_the_door_is_a_connection_and_no_session(drive: Drive) -> None:
    nobody = AccessList([AccessRule(False, ip_network("0.0.0.0/0"))])
    listen = drive.serve(server_at(drive.backend()), policy=Policy(access=nobody))
    client = drive.connect(listen)
    drive.run_until(lambda: client.error)
    counters = drive.engine.counters.frontends[listen]
    assert (counters.connections, counters.sessions_total, counters.denied) == (1, 0, {"access": 1})


@pytest.mark.parametrize("splice", [True, False])
def test_spliced_bytes_are_counted_when_the_pipe_comes_back(
    make_drive: Callable[..., Drive], monkeypatch: pytest.MonkeyPatch, splice: bool
) -> None:
    drive = make_drive(splice=splice)
    client, server = drive.session()
    real, into_pipes = os.splice, []

    def counted(source: int, destination: int, count: int, **more: Any) -> int:
        moved = real(source, destination, count, **more)
        if source in drive.engine._life.halves:
            into_pipes.append(moved)
        return moved

    monkeypatch.setattr(os, "splice", counted)
    expected = drive.bulk(server, client, bytes(8 << 20), until=lambda: into_pipes or not splice)
    server.finish()
    client.finish()
    drive.run_until(lambda: client.eof)
    drive.record()
    assert client.got == expected
    assert (sum(into_pipes) > 0) is splice
    assert drive.engine.counters.bytes_spliced == sum(into_pipes)
