"""The log of sessions of a running pylb, in one process and with workers."""

import os
import re
import signal
import socket
import subprocess
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from tests.app.instance import Instance, echo
from tests.support.peers import need
from tests.support.ports import free_port
from tests.support.processes import ROOT
from tests.support.waiting import eventually

PAGE = ROOT / "docs" / "logs.md"
WORKERS = pytest.mark.parametrize("workers", [0, 2])


def configure(pylb: Instance, echo_port: int, workers: int, dead: int = 0, **log: object) -> None:
    """`dead`: a port whose server refuses."""
    ports = {"echo": (pylb.port, echo_port), "dead": (dead, 1)}
    frontends = [
        {"name": name, "listen": f"127.0.0.1:{port}", "servers": [f"127.0.0.1:{server}"]}
        for name, (port, server) in ports.items()
        if port
    ]
    pylb.configure(frontends=frontends, workers=workers, log=log)


def session(pylb: Instance, data: bytes = b"ping") -> str:
    """One that ends in order. The client's address."""
    with socket.create_connection(("127.0.0.1", pylb.port), timeout=10) as client:
        name = "{}:{}".format(*client.getsockname())
        if data:
            assert echo(client, data) == data
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
        return name


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@WORKERS
def test_a_file_that_logrotate_moved_away_is_opened_anew_on_sigusr1(pylb: Instance, echo_port: int, workers: int) -> None:
    path, moved = pylb.folder / "sessions.log", pylb.folder / "sessions.log.1"
    configure(pylb, echo_port, workers, target="file:sessions.log", format="logfmt")
    process = pylb.start()
    before = session(pylb)
    eventually(lambda: before.partition(":")[2] in text(path), what="the first line")
    path.rename(moved)
    for pid in (process.pid, *process.children()):  # as systemctl kill does it
        os.kill(pid, signal.SIGUSR1)
    process.has_said("sessions.log was opened again")
    after = session(pylb)
    eventually(lambda: after.partition(":")[2] in text(path), what="the line after it")
    [old], [new] = text(moved).splitlines(), text(path).splitlines()
    assert re.fullmatch(r"time=\S+ client=127\.0\.0\.1 client_port=\d+ frontend=echo .* bytes_in=4 bytes_out=4 code=-- .*", new)
    assert f"client_port={before.partition(':')[2]} " in old
    path.rename(pylb.folder / "gone.log")
    path.mkdir()
    process.signal(signal.SIGUSR1)
    process.has_said("sessions.log cannot be opened again: Is a directory; the old file stays in use")
    assert "pylb_log_reopen_failures_total 1.0" in pylb.get("/metrics").body.decode()
    assert process.terminate() == 0


def test_logrotate_as_the_docs_have_it_moves_the_file_away(pylb: Instance, echo_port: int) -> None:
    need("logrotate")
    configure(pylb, echo_port, 0, target="file:sessions.log")
    process = pylb.start()
    for _ in range(2):
        client = session(pylb)
        eventually(lambda client=client: client in text(pylb.folder / "sessions.log"), what="its line")
        snippet = PAGE.read_text().partition("<!-- logrotate -->\n```\n")[2].partition("```")[0]
        for ours, here in {
            "/var/log/pylb": str(pylb.folder),
            "create 0640 pylb adm": "create 0640",
            "systemctl kill -s USR1 pylb.service": f"kill -USR1 {process.pid}",
        }.items():
            assert snippet.count(ours) == 1
            snippet = snippet.replace(ours, here)
        config = pylb.folder / "logrotate.conf"
        config.write_text(snippet)
        before = process.text().count("was opened again")
        argv = ["logrotate", "--force", "--state", str(pylb.folder / "logrotate.state"), str(config)]
        subprocess.run(argv, check=True, capture_output=True, timeout=20)
        eventually(lambda before=before: process.text().count("was opened again") > before, what="it is opened again")
    assert text(pylb.folder / "sessions.log") == ""
    assert client in text(pylb.folder / "sessions.log.1")
    assert (pylb.folder / "sessions.log.2.gz").exists()


def test_a_file_that_cannot_be_opened_ends_the_start_and_the_check_knows_it_before(pylb: Instance, echo_port: int) -> None:
    configure(pylb, echo_port, 0, target="file:nowhere/sessions.log")
    checked = pylb.ask("check")
    assert checked.returncode == 1
    assert f"error: there is no directory {pylb.folder}/nowhere (a file in a directory where pylb's user may write)" in (
        checked.stdout + checked.stderr
    )
    configure(pylb, echo_port, 0, target="file:/proc/1/nothing")
    process = pylb.launch()
    assert process.wait() == 2
    assert "log.target: /proc/1/nothing cannot be opened" in process.text()
    assert "let pylb's user write there, or remove log.target" in process.text()


@WORKERS
def test_letters_are_those_of_the_metric_and_what_went_wrong_is_never_sampled_away(
    pylb: Instance, echo_port: int, workers: int
) -> None:
    dead = free_port()
    configure(pylb, echo_port, workers, dead, target="file:sessions.log", sample=1_000_000, dontlognull=True)
    pylb.start()
    for data in (b"ping", b"", b"pong"):
        session(pylb, data)
    with socket.create_connection(("127.0.0.1", pylb.port), timeout=10) as client:
        assert echo(client) == b"ping"
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    with socket.socket() as client:
        client.settimeout(10)
        with suppress(ConnectionResetError):
            client.connect(("127.0.0.1", dead))
            client.recv(1)
    path = pylb.folder / "sessions.log"
    lines = eventually(lambda: len(found := text(path).splitlines()) == 2 and found, what="two lines")
    codes = Counter(line.split()[6] for line in lines)
    assert codes == {"CD": 1, "SC": 1}
    metric = re.findall(r'pylb_sessions_closed_total\{.*code="(..)".*\} (\d+)', pylb.get("/metrics").body.decode())
    counted: Counter[str] = Counter()
    for code, count in metric:
        counted[code] += int(count)
    assert counted == codes + Counter({"--": 3})


@WORKERS
def test_a_syslog_that_is_not_there_harms_nothing_and_is_counted(pylb: Instance, echo_port: int, workers: int) -> None:
    place = pylb.folder / "log"
    configure(pylb, echo_port, workers, target=f"unix:{place}", tag="haproxy", facility="daemon")
    process = pylb.start()
    session(pylb)
    eventually(lambda: "pylb_log_lines_dropped_total 1.0" in pylb.get("/metrics").body.decode(), what="a dropped line")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(place))
        syslog.setblocking(False)

        def heard() -> str:
            session(pylb)
            return syslog.recv(9999).decode()  # BlockingIOError: not yet

        said = eventually(heard, what="a line, once there is a syslog")
        line = r"127\.0\.0\.1:\d+ .* echo echo/127\.0\.0\.1:\d+ .* -- .*"
        assert re.fullmatch(rf"<30>\w{{3}} [ \d]\d [\d:]{{8}} haproxy\[{process.pid}\]: {line}\n", said)
    assert process.terminate() == 0
