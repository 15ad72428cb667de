"""Real children: their CPU, their memory, their end."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import processes
from bench.processes import Address, BenchError, Process, free_ports
from tests.support.ports import free_port

LISTEN = "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1])))"
# Listens only after its worker has burnt 0.3 s and taken 64 MiB. The worker ends with it: nobody writes into `life`.
WORKER = """
import os, time
read, write = os.pipe()
life, held = os.pipe()
if os.fork() == 0:
    os.close(held)
    block = bytearray(b"x") * (64 << 20)
    while time.process_time() < 0.3: pass
    os.write(write, b".")
    os.read(life, 1)
    os._exit(0)
os.read(read, 1)
"""
BURN = "import time\nwhile time.process_time() < {seconds}: pass"


@contextmanager
def child(code: str, folder: Path) -> Iterator[tuple[Process, Address]]:
    """A Python child that runs `code`, then listens on argv[1] and waits to be stopped."""
    port = free_port()
    script = f"{code}\n{LISTEN}\ntime.sleep(3600)"
    with Process.started("child", [sys.executable, "-c", script, str(port)], folder) as process:
        yield process, Address("127.0.0.1", port)


def test_cpu_seconds_are_those_the_child_used(tmp_path):
    with child(BURN.format(seconds=0.4), tmp_path) as (process, address):
        process.wait_listening(address)

        assert 0.4 <= process.cpu_seconds() < 0.6


def test_cpu_seconds_and_memory_include_a_worker_of_the_child(tmp_path):
    with child(WORKER, tmp_path) as (process, address):
        process.wait_listening(address)

        assert process.cpu_seconds() >= 0.3
        assert 64 << 20 <= process.memory_bytes() < 96 << 20


def test_a_child_has_a_session_of_its_own(tmp_path):
    with child("", tmp_path) as (process, _):
        assert os.getsid(process.pid) == process.pid != os.getsid(0)


def test_a_child_that_dies_before_it_listens_is_reported_with_its_last_words(tmp_path):
    with (
        child("raise SystemExit('no such option')", tmp_path) as (process, address),
        pytest.raises(BenchError, match=r"ended with code 1 before it listened(.|\n)*no such option"),
    ):
        process.wait_listening(address)


def test_a_child_that_never_listens_is_reported_and_still_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "READY_SECONDS", 0.2)
    with (
        child("import time; time.sleep(3600)", tmp_path) as (process, address),
        pytest.raises(BenchError, match=r"did not listen on 127\.0\.0\.1"),
    ):
        process.wait_listening(address)

    assert not Path(f"/proc/{process.pid}").exists()


def test_leaving_the_block_stops_the_child(tmp_path):
    with child("", tmp_path) as (process, address):
        process.wait_listening(address)

    assert not Path(f"/proc/{process.pid}").exists()


def test_an_interrupt_inside_an_uninterrupted_block_is_raised_at_its_end():
    order = []

    def interrupted() -> None:
        with processes.uninterrupted():
            signal.raise_signal(signal.SIGINT)
            order.append("inside")
        order.append("after")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)

    assert order == ["inside"]


def test_a_child_that_ignores_sigterm_is_killed_with_its_own_children(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "STOP_SECONDS", 0.2)
    stubborn = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.fork() or time.sleep(3600)"
    with child(stubborn, tmp_path) as (process, address):
        process.wait_listening(address)
        family = processes.family(process.pid)
        assert len(family) == 2

    # The grandchild is init's to reap, so it may be a zombie for a moment; it holds nothing and runs no more.
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in family):
        assert time.monotonic() < deadline


def _runs(pid: int) -> bool:
    try:
        return processes._stat_fields(pid)[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_port_somebody_listens_on_is_not_free():
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        with pytest.raises(BenchError, match="fewer than 1 free ports"):
            free_ports("127.0.0.1", 1, iter([taken]))

    assert free_ports("127.0.0.1", 1, iter([taken])) == [taken]


def test_children_are_read_again_when_a_thread_ended_meanwhile(monkeypatch):
    read, missed = Path.read_text, []

    def gone_at_first(path, *args):
        if path.name == "children" and not missed:
            missed.append(path)
            raise FileNotFoundError(path)
        return read(path, *args)

    monkeypatch.setattr(Path, "read_text", gone_at_first)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        assert child.pid in processes.children(os.getpid())
        assert missed
        assert processes.descriptors(child.pid) >= 3
    assert processes.children(child.pid) == []
    assert processes.descriptors(child.pid) == 0
