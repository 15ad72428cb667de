"""Each test has its own pylb process on loopback, its own folder, and an echo server to send connections to."""

import os
import signal
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.app.instance import Instance
from tests.app.systemd import Systemd
from tests.app.versions import gone, known
from tests.support.processes import Processes
from tests.support.waiting import eventually


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as found:
        yield found


@pytest.fixture
def pylb(processes: Processes, tmp_path: Path) -> Iterator[Instance]:
    """Configured with one token, not running. At the end nothing of it runs, whatever became of its successors and workers."""
    found = Instance(processes, tmp_path)
    yield found
    processes.stop()
    for pid in known(found):
        if not gone(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    found = Systemd(tmp_path)
    yield found
    found.close()


@pytest.fixture
def successors() -> Iterator[list[int]]:
    """Pids to be stopped at the end: nobody else knows of them."""
    found: list[int] = []
    yield found
    for pid in found:
        if not gone(pid):
            os.kill(pid, signal.SIGTERM)
    for pid in found:
        eventually(lambda pid=pid: gone(pid), within=20, what=f"{pid} has stopped")  # type: ignore[misc]


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        try:
            while data := self.request.recv(4096):
                self.request.sendall(data)
        except ConnectionError:
            pass  # a reset is one of the things the tests do


class _Server(socketserver.ThreadingTCPServer):
    request_queue_size = 256  # clients of one test may come together
    daemon_threads = True
    block_on_close = False  # a connection lives as long as its client


@pytest.fixture
def echo_port() -> Iterator[int]:
    """An echo server's, on 127.0.0.1."""
    with echo_server() as port:
        yield port


@contextmanager
def echo_server() -> Iterator[int]:
    """Its port on 127.0.0.1."""
    with _Server(("127.0.0.1", 0), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join(5)
