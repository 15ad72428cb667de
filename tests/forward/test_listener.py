"""Ports: opened ahead of their table, taken by somebody else, removed while clients wait, and drained."""

import errno
import os
import socket
from typing import Any

import pytest

from pylb.core.address import Listen
from pylb.forward.listener import BATCH, connection_limit
from pylb.forward.session import FrontendState
from pylb.forward.sockets import open_listener
from tests.support.drive import Drive, readable, server_at
from tests.support.ports import free_port


def test_a_port_taken_by_somebody_else_is_reported_and_served_later(drive: Drive) -> None:
    backend = drive.backend()
    port = free_port()
    squatter = drive.backend(port=port)
    listen = Listen("tcp", "127.0.0.1", port)
    failed = drive.serve_or_fail(server_at(backend), listen=listen)
    assert [error.errno for error in failed.values()] == [errno.EADDRINUSE]
    other = Listen("tcp", "127.0.0.1", free_port())
    assert list(drive.serve_or_fail(server_at(backend), listen=other)) == [listen]  # the rest serves all the same
    drive.connect(other)
    drive.accept(backend)
    squatter.close()
    assert drive.publish() == {}
    drive.connect(listen)
    drive.accept(backend)


def test_a_port_opened_ahead_of_its_table_accepts_nothing_until_then(drive: Drive) -> None:
    backend = drive.backend()
    listen = Listen("tcp", "127.0.0.1", free_port())
    drive.engine.open(listen)
    drive.engine.open(listen)
    client = drive.connect(listen)
    client.say(b"patience")
    drive.run_until_quiet()
    assert not readable(drive.engine)
    drive.serve(server_at(backend), listen=listen)
    server = drive.accept(backend)
    drive.run_until(lambda: server.got == b"patience")


def test_a_port_that_was_discarded_is_closed_and_a_served_one_is_not(drive: Drive) -> None:
    ahead = Listen("tcp", "127.0.0.1", free_port())
    drive.engine.open(ahead)
    drive.engine.discard(ahead)
    drive.engine.discard(ahead)
    with pytest.raises(ConnectionRefusedError):
        drive.connect(ahead)
    served = drive.serve()
    drive.engine.discard(served)
    drive.connect(served)


def test_a_listener_that_another_process_holds_too_wakes_this_one_no_more(drive: Drive) -> None:
    """epoll(7): close() takes a descriptor out only when it is the last one of its open file."""
    listen = drive.serve(server_at(drive.backend()))
    elsewhere = os.dup(drive.engine._ports.by_listen[listen].fd)
    drive.engine.drain(drive.clock() + 10, accept=False)
    waiting = drive.connect(listen)  # for whoever holds the socket now
    assert not readable(drive.engine)
    os.close(elsewhere)
    drive.run_until(lambda: waiting.error)


def test_who_waits_at_a_drain_is_served_however_many_there_are(drive: Drive) -> None:
    listen = drive.serve(server_at(drive.backend()))
    clients = [drive.connect(listen) for _ in range(BATCH + 10)]
    drive.engine.drain(drive.clock() + 1000)
    assert drive.engine.counters.open_sessions == len(clients)


def test_whoever_comes_during_a_drain_does_not_hold_it_up(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many come as are accepted, for as long as that goes on."""
    listen = drive.serve(server_at(drive.backend()))
    begin, first, enough = drive.engine._ports._begin, [drive.connect(listen) for _ in range(2 * BATCH)], 10 * BATCH
    came: list[tuple[str, int]] = []

    def begin_and_send_another(frontend: FrontendState, sock: socket.socket, address: tuple[str, int]) -> None:
        came.append(address)
        if len(came) < enough:
            drive.connect(listen)
        begin(frontend, sock, address)

    monkeypatch.setattr(drive.engine._ports, "_begin", begin_and_send_another)
    drive.engine.drain(drive.clock() + 1000)
    assert {client.local.port for client in first} <= {port for _ip, port in came}
    assert len(came) < len(first) + 2 * BATCH


def test_listeners_take_their_descriptors_from_the_sessions() -> None:
    drive = Drive(splice=False, max_connections=5000, nofile=10_000)
    try:
        for _ in range(6):
            drive.serve()
        assert drive.engine.counters.max_connections == connection_limit(10_000, 6)
        drive.remove(next(iter(drive.engine.table.frontends)))
        assert drive.engine.counters.max_connections == connection_limit(10_000, 5)
    finally:
        drive.finish()


def test_a_listener_removed_while_its_clients_wait_does_not_disturb_the_batch(drive: Drive) -> None:
    backend = drive.backend()
    gone, kept = drive.serve(server_at(backend)), drive.serve(server_at(backend))
    waiting = drive.connect(gone)
    drive.connect(kept)
    drive.remove(gone)
    drive.accept(backend)
    drive.run_until(lambda: waiting.error)


@pytest.mark.parametrize("one", ["*", "::", "0.0.0.0", "127.0.0.1", "::1"])
@pytest.mark.parametrize("other", ["*", "::", "0.0.0.0", "127.0.0.1", "::1"])
def test_the_kernel_refuses_two_listeners_exactly_where_core_says_they_overlap(one: str, other: str) -> None:
    port = free_port()
    first, second = Listen("tcp", one, port), Listen("tcp", other, port)
    listener = open_listener(first)
    try:
        open_listener(second).close()
        refused = False
    except OSError as error:
        refused = error.errno == errno.EADDRINUSE
    finally:
        listener.close()
    assert refused is first.overlaps(second)


class Counting:
    """A listening socket that counts its accepts."""

    def __init__(self, sock: Any) -> None:
        self.sock, self.calls = sock, 0

    def _accept(self) -> Any:
        self.calls += 1
        return self.sock._accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


@pytest.mark.parametrize("clients", [1, 3, BATCH])
def test_a_port_accepts_as_many_as_wait_and_does_not_look_for_more(drive: Drive, clients: int) -> None:
    """An accept that finds nobody takes eight times as long as to ask how many there are."""
    listen = drive.serve(server_at(drive.backend()))
    port = drive.engine._ports.by_listen[listen]
    counted = port.sock = Counting(port.sock)  # type: ignore[assignment]
    for _ in range(clients):
        drive.connect(listen)
    drive.engine.on_ready()
    assert counted.calls == drive.engine.counters.open_sessions == clients
    port.sock = counted.sock


def test_a_port_tries_one_accept_although_nobody_waits(drive: Drive) -> None:
    """Another process that shares the socket was faster; or the socket is in error, which only accept() tells."""
    listen = drive.serve(server_at(drive.backend()))
    port = drive.engine._ports.by_listen[listen]
    counted = port.sock = Counting(port.sock)  # type: ignore[assignment]
    assert not drive.engine._ports.accept(port)
    assert counted.calls == 1
    port.sock = counted.sock


class FailsFirst(Counting):
    """The first client of the backlog is gone when it is accepted."""

    def _accept(self) -> Any:
        self.calls += 1
        if self.calls == 1:
            raise ConnectionAbortedError(errno.ECONNABORTED, "gone")
        return self.sock._accept()


@pytest.mark.parametrize("clients", [0, 1])
def test_one_client_that_is_gone_before_its_accept_holds_up_nobody(drive: Drive, clients: int) -> None:
    """It does not count as one of those who wait, and a port backs off only if there are nothing but errors."""
    listen = drive.serve(server_at(drive.backend()))
    port = drive.engine._ports.by_listen[listen]
    failing = port.sock = FailsFirst(port.sock)  # type: ignore[assignment]
    for _ in range(clients):
        drive.connect(listen)
    assert not drive.engine._ports.accept(port)
    assert (drive.engine.counters.open_sessions, port.backoff) == (clients, 0.0)
    port.sock = failing.sock
