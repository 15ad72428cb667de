"""Workers that are none: what main does with a process that lies, dies, or says nothing."""

import asyncio
import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from pylb.core.address import Listen
from pylb.core.policy import Policy
from pylb.core.table import Frontend, make_table
from pylb.forward.own_dials import OwnDials
from pylb.host.systemd import SystemdService
from pylb.upgrade.sockets import ListeningSockets
from pylb.workers.archive import CodeArchive
from pylb.workers.fleet import Fleet, FleetObserver
from pylb.workers.messages import VERSION, Hello
from pylb.workers.process import WorkerProcess
from tests.support.ports import free_port, ports_in_a_row

ROOT = Path(__file__).resolve().parents[2]


class Impostor(CodeArchive):
    """Starts `script` instead of a worker. It finds the channel as `channel`, a Channel, and `say(message)`."""

    HEAD = """
        import socket, sys, time
        sys.path.insert(0, sys.argv[2])
        from pylb.workers.channel import Channel
        from pylb.workers.messages import *
        channel = Channel(socket.socket(fileno=int(sys.argv[1])))
        def say(message): channel.send(*encoded(message))
        """

    def __init__(self, script: str) -> None:
        self._script = textwrap.dedent(self.HEAD) + textwrap.dedent(script)
        self.started = 0
        self.own_dials = OwnDials(0)

    def start(self, channel: int) -> "subprocess.Popen[bytes]":
        self.started += 1
        argv = [sys.executable, "-c", self._script, str(channel), str(ROOT)]
        return subprocess.Popen(argv, pass_fds=(channel,))

    def close(self) -> None:
        pass


def hello(worker: int) -> Hello:
    return Hello(VERSION, worker, 1, 100, 10, 1 << 20, "none")


@asynccontextmanager
async def running(archive: CodeArchive, count: int = 1) -> AsyncIterator[Fleet]:
    observer = FleetObserver(lambda *_: None, lambda *_: None, lambda _: None)
    fleet = Fleet(count, hello, observer, ListeningSockets(SystemdService({})), archive)
    try:
        yield fleet
    finally:
        fleet.close()


async def until(check: Callable[[], object], caplog: pytest.LogCaptureFixture, within: float = 15.0) -> None:
    try:
        async with asyncio.timeout(within):
            while not check():  # noqa: ASYNC110 - a test waits for anything
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(caplog.text) from None


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pylb")
    monkeypatch.setattr("pylb.workers.supervisor.START", 2.0)


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("channel._sock.send(b'GET / HTTP/1.0\\r\\n\\r\\n'); time.sleep(20)", "is not the head of a frame"),
        ("say(Ready('0.0.0/0')); time.sleep(20)", "it is of version 0.0.0/0"),
        ("say(Ready(VERSION)); say(Request(1, 'sessions', None, None)); time.sleep(20)", "Request from a worker"),
        ("channel.send(KINDS.index(Report), b'[1]'); time.sleep(20)", "is malformed"),
    ],
)
async def test_who_says_what_no_worker_says_is_replaced(script: str, complaint: str, caplog: pytest.LogCaptureFixture) -> None:
    archive = Impostor(script)
    async with running(archive) as fleet:
        await fleet.start()
        await until(lambda: archive.started >= 3, caplog)  # by others, ever more slowly
    assert complaint in caplog.text
    assert "ended by signal 9, it said what no worker says" in caplog.text
    assert "start 2 in a row that did not last: again in 400 ms" in caplog.text


async def test_one_that_never_says_it_is_ready_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    archive = Impostor("time.sleep(30)")
    async with running(archive) as fleet:
        await fleet.start()
        await until(lambda: archive.started >= 2, caplog)
    assert "not all workers have started within 2 s: 0 of 1 workers serve" in caplog.text
    assert "stands still: replaced" in caplog.text


async def test_one_that_applies_nothing_holds_a_call_for_a_second(caplog: pytest.LogCaptureFixture) -> None:
    async with running(Impostor("say(Ready(VERSION)); time.sleep(30)")) as fleet:
        await fleet.start()
        loop = asyncio.get_running_loop()
        started = loop.time()
        await fleet.applied()
        assert await fleet.sessions() == []
        assert 1.9 < loop.time() - started < 4
        request_task = loop.create_task(fleet.sessions())
        await asyncio.sleep(0)
        request_task.cancel()
        await asyncio.gather(request_task, return_exceptions=True)
        assert not fleet._requests._answers  # nobody waits for one any more
    assert "has not applied the table within 1 s" in caplog.text
    assert "a worker has not answered within 1 s: sessions" in caplog.text


async def test_a_program_that_cannot_be_started_ends_the_start() -> None:
    class Missing(Impostor):
        def start(self, channel: int) -> "subprocess.Popen[bytes]":  # noqa: ARG002 - the program's
            raise FileNotFoundError(2, "no such file")

    async with running(Missing("")) as fleet:
        with pytest.raises(FileNotFoundError):
            await fleet.start()


async def test_a_worker_that_cannot_be_watched_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It seemed to run, and nobody would have seen its end; what was sent to it raised."""
    archive = Impostor("time.sleep(20)")
    started: list[subprocess.Popen[bytes]] = []

    def start(channel: int) -> "subprocess.Popen[bytes]":
        started.append(Impostor.start(archive, channel))
        return started[0]

    def no_descriptor_left(_pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(archive, "start", start)
    monkeypatch.setattr(os, "pidfd_open", no_descriptor_left)
    worker = WorkerProcess(0, archive, lambda *_: None, lambda *_: None)
    with pytest.raises(OSError, match="Too many open files"):
        worker.start(hello(0))
    assert not worker.runs
    worker.signal(signal.SIGTERM)
    assert started[0].returncode == -signal.SIGKILL


async def test_a_real_worker_serves_what_it_is_told_and_only_that(caplog: pytest.LogCaptureFixture) -> None:
    """A port that is taken is reported; with two workers two sockets share the others."""
    policy, ports = Policy(bind="127.0.0.1"), [Listen("tcp", "127.0.0.1", free_port()) for _ in range(3)]
    table = make_table(1, {listen: Frontend("web", listen, policy, ()) for listen in ports})
    with socket.create_server(("127.0.0.1", ports[0].port)):
        async with running(CodeArchive(), count=2) as fleet:
            await fleet.start()
            failed = fleet.apply(table)
            assert {listen: error.errno for listen, error in failed.items()} == {ports[0]: 98}
            await fleet.applied()
            assert (await fleet.counters()).frontends.keys() == set(ports[1:])
            fleet.open(ports[1], freebind=False)
            fleet.discard(ports[1])  # it is in force
            for port in ports[1:]:
                with suppress(ConnectionResetError):  # it has no server; the reset may be there before connect() is
                    _reader, writer = await asyncio.open_connection("127.0.0.1", port.port)
                    writer.close()
            fleet.apply(make_table(2, {}))
            await fleet.applied()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", ports[1].port)
            assert [worker.serves for worker in fleet._workers] == [True, True]
    assert "fault" not in caplog.text


async def test_a_range_of_which_somebody_has_a_port_is_not_opened_and_the_port_is_named() -> None:
    first = ports_in_a_row(3)
    listen = Listen("tcp", "127.0.0.1", first, first + 2)
    table = make_table(1, {listen: Frontend("wide", listen, Policy(bind="127.0.0.1"), ())})
    async with running(Impostor("")) as fleet:
        with socket.create_server(("127.0.0.1", first + 1)):
            failed = fleet.apply(table)
            assert (failed[listen].errno, failed[listen].strerror) == (98, f"port {first + 1}: {os.strerror(98)}")
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", first)
        assert not fleet.apply(make_table(2, dict(table.frontends)))


def test_the_archive_holds_what_a_worker_imports_and_nothing_more() -> None:
    """Started from it alone, it has every module of pylb that it needs; none of asyncio, threads or third parties."""
    archive = CodeArchive()
    try:
        script = (
            f"import sys; sys.path.insert(0, '/proc/self/fd/{archive.fd}'); import pylb.workers.worker; "
            "print(*sorted(name for name in sys.modules))"
        )
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", script], pass_fds=(archive.fd,), capture_output=True, text=True, check=True
        )
    finally:
        archive.close()
    loaded = set(done.stdout.split())
    assert not loaded & {"asyncio", "uvloop", "threading", "logging", "aiohttp", "pydantic", "yaml", "ssl"}
    own = {name for name in loaded if name.startswith("pylb.")}
    assert own >= {"pylb.forward.engine", "pylb.workers.main_connection", "pylb.logs.formats"}
    assert not {name for name in own if name.startswith(("pylb.control", "pylb.web", "pylb.config", "pylb.app"))}
