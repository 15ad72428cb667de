"""No file is touched and no name is asked for in the loop's thread while pylb serves: a disk or a DNS server may hang."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from pylb.workers.archive import CodeArchive
from tests.app.instance import SECRET, Instance, echo, token
from tests.support.certificate import self_signed
from tests.support.ports import free_port
from tests.support.processes import ROOT, python
from tests.support.waiting import eventually


class Watched:
    """A pylb with all that it may read while it runs: secrets, a certificate, a log, a server by its host name."""

    def __init__(self, pylb: Instance, echo_port: int, workers: int) -> None:
        self.pylb, self.echo_port, folder = pylb, echo_port, pylb.folder
        self.touched = folder / "touched"
        self.secret = folder / "secret"
        self.secret.write_text(SECRET)
        self.certificate = self_signed(folder, "localhost", lasts=timedelta(days=100))
        self.workers = workers
        self.web, self.other, self.registered, self.tls_port = pylb.port, free_port(), free_port(), free_port()
        self.configure()
        pylb.start(argv=python("tests.support.watched", "run", "-c", str(pylb.file)), env={"TOUCHED": str(self.touched)})

    def configure(self, *more: dict[str, object]) -> None:
        tls = {"certificate": str(self.certificate.certificate), "key": str(self.certificate.key)}
        self.pylb.configure(
            webhook=[{"listen": f"127.0.0.1:{self.pylb.webhook}"}, {"listen": f"127.0.0.1:{self.tls_port}", "tls": tls}],
            advertise="localhost",
            workers=self.workers,
            tokens=[{**token(names=["*"]), "secret": None, "secret_file": str(self.secret)}],
            log={"target": f"file:{self.pylb.folder / 'sessions.log'}"},
            frontends=[
                {"name": "web", "listen": f"127.0.0.1:{self.web}", "servers": [f"localhost:{self.echo_port}"]},
                *more,
            ],
        )

    def visit(self) -> None:
        with socket.create_connection(("127.0.0.1", self.web), 5) as client:
            assert echo(client) == b"ping"

    def metric(self, name: str) -> float:
        (line,) = [line for line in self.pylb.get("/metrics").body.decode().splitlines() if line.startswith(name + " ")]
        return float(line.split()[1])

    def found(self) -> set[str]:
        """But for what starts a worker: fork and exec stop whoever calls them, and a worker that died is the one reason."""
        starts = CodeArchive.start.__qualname__
        return {line for line in self.touched.read_text().splitlines() if starts not in line}


def reload(watched: Watched) -> None:
    watched.configure({"name": "other", "listen": f"127.0.0.1:{watched.other}", "servers": ["localhost:1"]})
    watched.pylb.reload("reloaded: opened")


def other_secret(watched: Watched) -> None:
    watched.secret.write_text(f"{SECRET}\nanother-{SECRET}\n")
    watched.pylb.running.has_said("tokens read again")


def other_certificate(watched: Watched) -> None:
    before = watched.metric("pylb_certificate_expiry_timestamp_seconds")
    self_signed(watched.pylb.folder, "localhost", lasts=timedelta(days=50))
    eventually(lambda: watched.metric("pylb_certificate_expiry_timestamp_seconds") < before, what="it is in force")


def move(watched: Watched) -> None:
    for target in (watched.echo_port, 1):
        assert watched.pylb.register(watched.registered, target).status in (200, 201)
    history = watched.pylb.state_dir / "history.jsonl"
    eventually(lambda: f":{watched.registered}" in history.read_text(), what="it is in the history")


def reopen(watched: Watched) -> None:
    log = watched.pylb.folder / "sessions.log"
    log.rename(log.with_suffix(".1"))
    watched.pylb.running.signal(signal.SIGUSR1)
    eventually(log.exists, what="the log is opened again")


def look(watched: Watched) -> None:
    for path in (
        "/",
        "/metrics",
        "/metrics?compat=haproxy",
        "/readyz",
        "/v1/table",
        "/v1/sessions",
        "/v1/events",
    ):
        assert watched.pylb.get(path).status == 200, path
    assert "Uptime" in watched.pylb.runtime("show info\n")
    assert watched.pylb.runtime("show stat\n")
    for verb in (("routes",), ("history",), ("plan",), ("explain", str(watched.web)), ("sessions", "--ended"), ("status",)):
        assert watched.pylb.ask(*verb).returncode == 0, verb


def refused_reload(watched: Watched) -> None:
    watched.pylb.file.write_text("frontends: 7")
    watched.pylb.reload("reload refused")


def upgrade(watched: Watched) -> None:
    """The old one forwards a session meanwhile, and both until it ends."""
    watched.configure()
    with socket.create_connection(("127.0.0.1", watched.web), 5) as session:
        assert echo(session) == b"ping"
        done = watched.pylb.ask("upgrade")
        assert done.returncode == 0, done.stderr
        watched.successors.append(int(done.stdout.split()[1]))
        eventually(lambda: watched.pylb.get("/readyz").status == 200)
        assert echo(session) == b"ping"
    assert watched.pylb.running.wait() == 0


def worker_ends(watched: Watched) -> None:
    for worker in watched.pylb.running.children() if watched.workers else ():
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: watched.metric("pylb_worker_restarts_total") >= 1, what="another takes its place")


STEPS: tuple[Callable[[Watched], None], ...] = (
    move,
    reload,
    other_secret,
    other_certificate,
    reopen,
    look,
    worker_ends,
    refused_reload,
    upgrade,
)


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_that_may_hang_happens_in_the_thread_of_the_loop(
    pylb: Instance, echo_port: int, workers: int, successors: list[int]
) -> None:
    watched = Watched(pylb, echo_port, workers)
    watched.successors = successors
    for step in STEPS:
        step(watched)
        watched.visit()
        assert not (found := watched.found()), f"{step.__name__}: " + "\n".join(found)


def test_the_watch_sees_the_thread_of_the_loop_and_no_other(tmp_path: Path) -> None:
    code = (
        "import os, sys, threading; from tests.support.watched import Watcher, watch\n"
        "watcher = Watcher(1); watch(watcher); watcher.on = True\n"
        "def touch(): open('/dev/null').close(); os.stat('/'); os.listdir('/')\n"
        "thread = threading.Thread(target=touch); thread.start(); thread.join()\n"
        "os.write(1, b'--\\n'); touch()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=20, cwd=ROOT)
    other, ours = ended.stdout.split("--\n")
    assert other == ""
    assert [line.split()[0] for line in ours.splitlines()] == ["open", "stat", "os.listdir"]
