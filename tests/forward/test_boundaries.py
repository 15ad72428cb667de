"""A fault of our own ends nobody but the session, port or call that it happened in, and frees before anything is told."""

import errno
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from pylb.core.address import Listen
from pylb.core.policy import OnDown, Policy
from pylb.core.session import SessionRecord
from pylb.core.table import DOWN
from pylb.forward import faults
from pylb.forward.listener import ACCEPT_ERRORS, BATCH, LONGEST_BACKOFF, AcceptResult
from tests.support.baseline import descriptors
from tests.support.drive import Drive, Witness, policy, server_at
from tests.support.kernel import PASS, Epoll, Sick

Make = Callable[..., Drive]


class Deaf(Witness):
    """It hears of a session's end, and fails then."""

    def session_ended(self, record: SessionRecord) -> None:
        super().session_ended(record)
        raise RuntimeError("deaf")


def boom(*_args: Any, **_kwargs: Any) -> None:
    raise RuntimeError("boom")


def test_a_fault_in_the_books_leaks_neither_descriptors_nor_a_place(make_drive: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    drive = make_drive(splice=False, max_connections=1, observer=Deaf())
    before = descriptors()
    backend = drive.backend()
    listen = drive.serve(server_at(backend))
    opened = descriptors()
    for _ in range(3):
        client = drive.connect(listen)
        server = drive.accept(backend)
        with monkeypatch.context() as patched:
            patched.setattr(drive.engine._accounts, "_end", boom)
            client.reset()
            drive.run_until(lambda: not drive.engine.counters.open_sessions)
        server.close()
        assert descriptors() == opened, "a session's descriptors are free although it could not be recorded"
    assert not drive.engine._life.halves
    drive.engine.counters.frontends[listen].sessions_total -= 3  # their records were never made
    for counters in drive.engine.counters.frontends[listen].servers.values():
        counters.closed.clear()
    drive.engine.counters.frontends[listen].session_seconds.counts = [0] * 13
    assert len(before) < len(opened)


@pytest.mark.parametrize("where", ["observer", "recorder", "room", "wall"])
def test_who_is_told_of_an_end_may_fail_and_nothing_stays(
    make_drive: Make, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    drive = make_drive(splice=False, max_connections=2, observer=Deaf() if where == "observer" else None)
    backend = drive.backend()
    listen = drive.serve(server_at(backend))
    client, neighbour = drive.connect(listen), drive.connect(listen)
    server, other = drive.accept(backend), drive.accept(backend)
    recorder = drive.engine._accounts.recorder
    assert recorder is not None
    broken = {"recorder": (recorder, "add"), "room": (drive.engine._life, "on_end"), "wall": (drive.engine._accounts, "_wall")}
    with monkeypatch.context() as patched:
        if where in broken:
            patched.setattr(*broken[where], boom)
        client.reset()
        drive.run_until(lambda: drive.engine.counters.open_sessions == 1)
        drive.run_until(lambda: server.error)
    assert drive.engine.counters.faults == 1
    neighbour.say(b"unharmed")
    drive.run_until(lambda: other.got == b"unharmed")


def test_a_fault_in_the_middle_of_a_batch_loses_no_event_behind_it(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    """Edge-triggered events are reported once: what is behind the fault must still be dealt with."""
    healthy, sick = drive.backend(), drive.backend()
    good, bad = drive.serve(server_at(healthy)), drive.serve(server_at(sick), name="bad")
    clients = [drive.connect(good) for _ in range(8)]
    servers = [drive.accept(healthy) for _ in clients]
    drive.run_until_quiet()
    reader, writer = os.pipe()
    drive.engine.watch(reader, boom)
    os.write(writer, b"!")
    monkeypatch.setattr(drive.engine._ports, "_accept", boom)
    waiting = drive.connect(bad)
    for client in clients:
        client.say(b"x" * 1000)
        client.step()
    for _ in range(50):
        drive.engine.on_ready()
    assert drive.engine.counters.faults == 2, "the accept and the callback, neither of them again before the next tick"
    for server in servers:
        server.step()
    assert sum(len(server.got) for server in servers) == 8000
    drive.engine.tick(drive.clock.now)
    drive.engine.on_ready()
    assert drive.engine.counters.faults == 3, "the callback is tried again"
    drive.engine.unwatch(reader)
    os.close(reader)
    os.close(writer)
    monkeypatch.undo()
    drive.pass_time(0.3)
    server = drive.accept(sick)
    waiting.say(b"late, but there")
    drive.run_until(lambda: server.got == b"late, but there")


def test_an_observer_that_fails_at_a_connect_harms_neither_session_nor_queue(make_drive: Make) -> None:
    class Broken(Witness):
        connect_ended = boom  # type: ignore[assignment]

    drive = make_drive(splice=False, observer=Broken())
    backend = drive.backend()
    listen = drive.serve(server_at(drive.nobody(), "refuses"), server_at(backend, "b", rank=1))
    client = drive.connect(listen)
    server = drive.accept(backend)
    client.say(b"hello")
    drive.run_until(lambda: server.got == b"hello")
    assert drive.engine.counters.faults == 1


def test_a_fault_while_a_server_is_emptied_ends_one_session_and_the_next_has_its_turn(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = drive.backend()
    cut = Policy(on_down=OnDown.CLOSE)
    listen = drive.serve(server_at(backend), policy=cut)
    for _ in range(4):
        drive.connect(listen)
        drive.accept(backend)
    drive.run_until_quiet()
    fire = drive.engine._life.fire
    failing = iter([True])

    def once(*args: Any) -> None:
        if next(failing, False):
            boom()
        fire(*args)

    monkeypatch.setattr(drive.engine._life, "fire", once)
    drive.serve(server_at(backend, rank=DOWN), policy=cut, listen=listen)
    drive.pass_time(0.3)
    drive.run_until(lambda: not drive.engine.counters.open_sessions)
    assert sorted(record.code for record in drive.records) == ["DD", "DD", "DD", "ID"]


def test_a_fault_at_a_queue_deadline_spares_those_behind(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend, most=1), policy=policy(queue=1, connect=1))
    drive.connect(listen)
    drive.accept(backend)
    for _ in range(3):
        drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 3)
    fire = drive.engine._life.fire
    failing = iter([True])

    def once(*args: Any) -> None:
        if next(failing, False):
            boom()
        fire(*args)

    monkeypatch.setattr(drive.engine._life, "fire", once)
    drive.pass_time(1.5)
    assert sorted(record.code for record in drive.records) == ["IQ", "sQ", "sQ"]


def test_a_port_that_cannot_be_opened_by_a_fault_does_not_keep_the_others_closed(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    opener = drive.engine._ports._opener
    backend = drive.backend()
    first = drive.serve(server_at(backend))

    def sometimes(listen: Any, **more: Any) -> Any:
        return boom() if listen.port % 2 else opener(listen, **more)

    monkeypatch.setattr(drive.engine._ports, "_opener", sometimes)
    odd, even = Listen("tcp", "127.0.0.1", first.port), Listen("tcp", "127.0.0.2", first.port // 2 * 2)
    bad = Listen("tcp", "127.0.0.2", even.port + 1)
    failed = drive.serve_or_fail(server_at(backend), listen=bad, name="bad")
    assert list(failed) == [bad]
    assert not [listen for listen in drive.serve_or_fail(server_at(backend), listen=even, name="even") if listen != bad]
    drive.connect(odd)
    drive.accept(backend)


def test_reports_of_faults_are_few_and_the_count_is_whole(drive: Drive) -> None:
    before = len(drive.faults)
    errors = [RuntimeError(str(number)) for number in range(1000)]
    for error in errors:
        drive.engine.faults.add("a test", error)
    assert drive.engine.counters.faults == 1000
    assert len(drive.faults) - before == faults.BURST
    drive.pass_time(1.2)
    last = RuntimeError("the last")
    drive.engine.faults.add("a test", last)
    assert drive.faults[-1] == "RuntimeError('the last')"
    assert "990 more" in last.__notes__[0]


# ------------------------------------------------------------ accept(2)


def test_every_errno_of_the_manual_has_its_verdict() -> None:
    named = (
        "EAGAIN EWOULDBLOCK EBADF ECONNABORTED EFAULT EINTR EINVAL EMFILE ENFILE ENOBUFS ENOMEM ENOTSOCK EOPNOTSUPP EPERM "
        "EPROTO ENOSR ESOCKTNOSUPPORT EPROTONOSUPPORT ETIMEDOUT ENETDOWN ENOPROTOOPT EHOSTDOWN ENONET EHOSTUNREACH ENETUNREACH"
    )
    assert {getattr(errno, name) for name in named.split()} == ACCEPT_ERRORS.keys()


def test_a_callback_that_fails_and_has_closed_its_descriptor_breaks_no_batch(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend))
    reader, writer = os.pipe()

    def close_and_fail() -> None:
        os.close(reader)
        boom()

    drive.engine.watch(reader, close_and_fail)
    os.write(writer, b"!")
    client = drive.connect(listen)
    drive.engine.on_ready()
    assert drive.engine.counters.faults == 1
    server = drive.accept(backend)
    client.say(b"unharmed")
    drive.run_until(lambda: server.got == b"unharmed")
    drive.engine.unwatch(reader)
    os.close(writer)


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.ENOSPC, errno.EEXIST], ids=lambda code: errno.errorcode[code])
def test_a_descriptor_that_cannot_be_watched_again_is_not_forgotten(drive: Drive, code: int) -> None:
    """Or a worker would never hear main again."""
    sick, heard = Sick(), bytearray()
    drive.engine._epoll = drive.engine._watched._epoll = Epoll(drive.engine._epoll, sick)  # type: ignore[assignment]
    reader, writer = os.pipe()

    def hear() -> None:
        sick.meet("hear")
        heard.extend(os.read(reader, 10))

    drive.engine.watch(reader, hear)
    os.write(writer, b"a table")
    sick.armed = {"hear": [0], "epoll_ctl": [code, PASS]}  # PASS: of the unregister
    drive.engine.on_ready()
    for _ in range(2):
        drive.pass_time(0.1)
    assert heard == b"a table"
    assert not sick.armed["epoll_ctl"]
    drive.engine.unwatch(reader)
    os.close(reader)
    os.close(writer)


def test_a_closed_descriptor_is_not_tried_again_and_one_that_epoll_refuses_holds_up_no_other(drive: Drive) -> None:
    sick, heard = Sick(), []
    drive.engine._epoll = drive.engine._watched._epoll = Epoll(drive.engine._epoll, sick)  # type: ignore[assignment]
    pipes = [os.pipe() for _ in range(3)]
    for reader, writer in pipes:
        drive.engine.watch(reader, partial(failing_once, sick, heard, reader))
        os.write(writer, b"?")
    sick.armed = {"hear": [0, 0, 0]}
    drive.engine.on_ready()
    closed, refused, other = pipes
    os.close(closed[0])  # without unwatch
    sick.armed = {"epoll_ctl": [errno.ENOMEM, PASS]}
    before = drive.engine.counters.faults
    drive.pass_time(0.1)
    assert heard == [other[0]]
    drive.pass_time(0.2)
    assert heard == [other[0], refused[0]]
    assert drive.engine.counters.faults == before + 1
    assert not drive.engine._watched._suspended
    for reader, _ in pipes:
        drive.engine.unwatch(reader)
    for fd in (closed[1], *refused, *other):
        os.close(fd)


def failing_once(sick: Sick, heard: list[int], reader: int) -> None:
    sick.meet("hear")
    os.read(reader, 10)
    heard.append(reader)


class Failing:
    """A listening socket whose accept() fails with these errno first, then for ever with the last."""

    def __init__(self, sock: Any, *codes: int) -> None:
        self._sock, self._codes, self.calls = sock, list(codes), 0

    def _accept(self) -> Any:
        self.calls += 1
        code = self._codes.pop(0) if len(self._codes) > 1 else self._codes[0]
        if code:
            raise OSError(code, os.strerror(code))
        return self._sock._accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


@pytest.mark.parametrize("code", [*ACCEPT_ERRORS, errno.EXDEV, errno.EIO], ids=lambda code: errno.errorcode[code])
def test_no_errno_of_accept_makes_the_engine_spin(drive: Drive, code: int) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend))
    port = drive.engine._ports.by_listen[listen]
    sick = port.sock = Failing(port.sock, code)  # type: ignore[assignment]
    drive.connect(listen)
    for _ in range(50):
        drive.engine.on_ready()
    if ACCEPT_ERRORS.get(code) is AcceptResult.EMPTY:
        assert sick.calls <= 50, "once a turn: the kernel says there is one, and none comes"
    else:
        assert sick.calls <= BATCH, "a batch at most, then not before the next tick"
    before = sick.calls
    for _ in range(300):
        drive.pass_time(0.1)
    if ACCEPT_ERRORS.get(code) in (AcceptResult.PORT, None):
        assert sick.calls - before <= 9, "ever less often"
        assert sum(errno.errorcode[code] in fault or "OSError" in fault for fault in drive.faults) == 1, "reported once"
        assert drive.engine.counters.faults == 0, "no fault of ours"
    port.sock = sick._sock
    drive.pass_time(LONGEST_BACKOFF + 1)
    drive.accept(backend)  # and once it is over the client is served


def test_a_port_that_somebody_shut_down_costs_a_few_calls(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend))
    drive.engine._ports.by_listen[listen].sock.shutdown(socket.SHUT_RDWR)  # as main does for a port of a worker
    for _ in range(200):
        drive.engine.on_ready()
    assert drive.engine.counters.accept_errors == {"EINVAL": 1}
    drive.pass_time(120)
    assert drive.engine.counters.accept_errors["EINVAL"] <= 12
    assert len(drive.faults) == 1
    other = drive.serve(server_at(backend), name="other")
    drive.connect(other)
    drive.accept(backend)


def test_a_port_that_cannot_be_taken_from_epoll_is_closed(make_drive: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What epoll_ctl(2) says then means that it was not there."""
    drive = make_drive(splice=False)
    backend = drive.backend()
    listens = [drive.serve(server_at(backend), name=name) for name in ("one", "two")]
    epoll = drive.engine._epoll

    class Failing:
        def unregister(self, fd: int) -> None:
            epoll.unregister(fd)
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        def __getattr__(self, name: str) -> Any:
            return getattr(epoll, name)

    monkeypatch.setattr(drive.engine._ports, "_epoll", Failing())
    drive.remove(listens[0])
    assert list(drive.engine._ports.by_listen) == [listens[1]]
    with pytest.raises(ConnectionRefusedError):
        drive.connect(listens[0])
    assert not drive.faults


def test_a_fault_in_the_closing_of_a_port_keeps_no_other_part_of_a_table_out_of_force(
    make_drive: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would end the process: a sink that does not apply what control decided cannot go on."""
    drive = make_drive(splice=False)
    backend = drive.backend()
    one, two = (drive.serve(server_at(backend), name=name) for name in ("one", "two"))
    monkeypatch.setattr(drive.engine._timers, "sweep_group", boom)
    del drive._frontends[two]
    drive.remove(one)
    monkeypatch.undo()
    assert len(drive.faults) == 2
    assert drive.engine.table.frontends == {}
    assert not drive.engine._ports.by_listen
    fresh = drive.serve(server_at(backend), name="three")
    drive.connect(fresh)
    drive.accept(backend)
