"""Every alert, on a real pylb with the fault and a real Prometheus beside it; and the dashboard has something to show.

One Prometheus sees four targets: one that is sick, one that is worn out (few files, a full disk, nobody for its log), one
that is not there, and one that is well, about which nothing may ever be said.
"""

import os
import resource
import shlex
import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pylb.control.tasks import Part
from tests.app.conftest import echo_port, processes
from tests.app.instance import Instance, echo, token
from tests.deploy.dashboard import expressions
from tests.deploy.prometheus import WINDOW, Prometheus
from tests.deploy.test_prometheus import alerts as rules
from tests.support.certificate import self_signed
from tests.support.peers import need
from tests.support.ports import free_port, refusing_port
from tests.support.processes import Processes, python
from tests.support.waiting import eventually, pause

__all__ = ["echo_port", "processes"]  # fixtures

PORTS = 60  # of the worn one: its main process keeps a socket of each
WITHIN = 30.0  # seconds; it takes about five

# What has no reason to be there: nobody made such a call, nothing failed in accept, and nobody was started anew.
EMPTY = {"Calls of phone-homes B", "Faults D", "Starts and upgrades"}


@pytest.fixture
def prometheus(processes: Processes, tmp_path: Path) -> Prometheus:
    return Prometheus(processes, tmp_path, need("prometheus"), free_port())


@pytest.fixture
def instances(processes: Processes, tmp_path: Path) -> Callable[[str], Instance]:
    def make(name: str) -> Instance:
        (tmp_path / name).mkdir()
        return Instance(processes, tmp_path / name)

    return make


class Sick:
    """`workers: 0`, and all that can go wrong with frontends, calls and the config."""

    def __init__(self, pylb: Instance, server: int, folder: Path) -> None:
        self.pylb = pylb
        certificate = self_signed(folder, "localhost", lasts=timedelta(days=10))
        tls = {"certificate": str(certificate.certificate), "key": str(certificate.key)}
        listeners = [{"listen": f"127.0.0.1:{pylb.webhook}"}, {"listen": f"127.0.0.1:{free_port()}", "tls": tls}]
        self.dead, self.taken, self.full, self.guarded = (free_port() for _ in range(4))
        well = [f"127.0.0.1:{server}"]
        frontends = [
            {"name": "dead", "listen": f"127.0.0.1:{self.dead}", "servers": [f"127.0.0.1:{free_port()}"]},
            {"name": "taken", "listen": f"127.0.0.1:{self.taken}", "servers": well},
            {"name": "full", "listen": f"127.0.0.1:{self.full}", "servers": well, "max_connections": 2},
            {"name": "guarded", "listen": f"127.0.0.1:{self.guarded}", "servers": well, "access": [{"deny": "127.0.0.0/8"}]},
        ]
        leases = {"min_ttl": "1s", "keep_stale": "12h"}  # so that a port closes within the day
        # Nobody has the address, and nobody is at the endpoint.
        cluster = {"addresses": ["192.0.2.9"], "etcd": {"endpoints": [f"http://127.0.0.1:{refusing_port()}"]}}
        pylb.configure(webhook=listeners, frontends=frontends, tokens=[token(names=["*"])], leases=leases, cluster=cluster)

    def launch(self, stack: ExitStack) -> None:
        stack.enter_context(socket.create_server(("127.0.0.1", self.taken)))
        self.pylb.launch()

    def suffer(self, stack: ExitStack, server: int) -> None:
        for _ in range(10):
            visited(self.dead)
        for _ in range(150):
            visited(self.guarded)
        for _ in range(2):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", self.full)))
            assert echo(client) == b"ping"
        assert self.pylb.register(self.pylb.port, server, name="silent", ttl=1).status == 201
        assert self.pylb.register(22, server).status == 403
        assert self.pylb.ask("standby", "--force").returncode == 0
        self.pylb.file.write_text("webhook: [")
        self.pylb.reload("reload refused")


class Worn:
    """`workers: 1`, with nobody who takes its log, hardly a file left, and soon no disk."""

    def __init__(self, pylb: Instance, server: int) -> None:
        self.pylb, self.web, self._faults = pylb, free_port(), pylb.folder / "faults"
        ports = [self.web, *(free_port() for _ in range(PORTS))]
        frontends = [
            {"name": f"web-{number}", "listen": f"127.0.0.1:{port}", "servers": [f"127.0.0.1:{server}"]}
            for number, port in enumerate(ports)
        ]
        tokens, defaults = [token(names=["*"])], {"bind": "127.0.0.2"}  # the sick one has the same port
        pylb.configure(frontends=frontends, workers=1, tokens=tokens, defaults=defaults, leases={"min_ttl": "1s"})

    def launch(self) -> None:
        self._faults.mkdir()
        run = python("tests.support.faulty", "run", "-c", str(self.pylb.file))
        self.pylb.launch(argv=("sh", "-c", f"exec {shlex.join(run)} > /dev/full"), env={"FAULTS": str(self._faults)})

    def suffer(self, server: int, port: int) -> None:
        """`port`: that belongs to another app at the sick one."""
        main = self.pylb.running
        assert self.pylb.register(port, server, name="rival", ttl=3600).status == 201
        (self._faults / Part.RATES).touch()
        for name in ("one", "two", "three"):
            assert self.pylb.register(free_port(), server, name=name, ttl=1).status == 201
        for _ in range(3):
            visited(self.web)  # each is a line of the log
        [worker] = main.children()
        subprocess.run(["kill", "-KILL", str(worker)], check=True)
        with socket.create_connection(("127.0.0.1", self.web), 10) as client:
            assert echo(client) == b"ping"  # by its successor
        resource.prlimit(main.pid, resource.RLIMIT_FSIZE, (8, 8))  # as a full disk: no file may grow (EFBIG)
        assert self.pylb.register(free_port(), server, name="four").status == 503
        files = int(len(os.listdir(f"/proc/{main.pid}/fd")) / 0.85)
        resource.prlimit(main.pid, resource.RLIMIT_NOFILE, (files, files))
        main.signal(signal.SIGSTOP)
        pause(1.0)  # the fault itself: this is how late its loop comes to its turn
        main.signal(signal.SIGCONT)


def visited(port: int) -> None:
    """By a client that says nothing, until its end: a reset, if nobody serves it."""
    try:
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.shutdown(socket.SHUT_WR)
            client.recv(1)
    except OSError:  # ENOTCONN too: it was reset before it said FIN
        pass


def expected(sick: Sick) -> list[dict[str, str]]:
    """Labels of what must fire."""
    return [
        {"alertname": "PylbDown", "instance": "gone"},
        {"alertname": "PylbNoUsableServer", "instance": "sick", "frontend": "dead"},
        {"alertname": "PylbServerDown", "instance": "sick", "frontend": "dead"},
        {"alertname": "PylbPortNotOpen", "instance": "sick", "frontend": "taken"},
        {"alertname": "PylbStaleLease", "instance": "sick", "name": "silent"},
        {"alertname": "PylbPortCloses", "instance": "sick", "frontend": f"silent-{sick.pylb.port}"},
        {"alertname": "PylbCallsRefused", "instance": "sick", "reason": "port_forbidden"},
        {"alertname": "PylbReloadFailed", "instance": "sick"},
        {"alertname": "PylbCertificateExpiresSoon", "instance": "sick"},
        {"alertname": "PylbAtLimit", "instance": "sick", "frontend": "full"},
        {"alertname": "PylbClientsDenied", "instance": "sick", "frontend": "guarded", "reason": "access"},
        {"alertname": "PylbConnectFailures", "instance": "sick", "frontend": "dead"},
        {"alertname": "PylbStandby", "instance": "sick"},
        {"alertname": "PylbClusterDisconnected", "instance": "sick"},
        {"alertname": "PylbOwnersDiffer", "instance": "sick", "port": str(sick.pylb.port), "name": "silent"},
        {"alertname": "PylbOwnersDiffer", "instance": "worn", "port": str(sick.pylb.port), "name": "rival"},
        {"alertname": "PylbFloatingAddress", "instance": "sick", "address": "192.0.2.9"},
        {"alertname": "PylbLeasesPreserved", "instance": "worn"},
        {"alertname": "PylbStateNotDurable", "instance": "worn"},
        {"alertname": "PylbLogLinesDropped", "instance": "worn"},
        {"alertname": "PylbLoopLag", "instance": "worn", "process": "main"},
        {"alertname": "PylbFileDescriptors", "instance": "worn", "process": "main"},
        {"alertname": "PylbInternalFault", "instance": "worn"},
        {"alertname": "PylbTaskFailed", "instance": "worn", "task": "rates"},
    ]


def covers(wanted: dict[str, str], fired: dict[str, Any]) -> bool:
    return fired["state"] == "firing" and wanted.items() <= fired["labels"].items()


@pytest.mark.timeout(120)
def test_every_alert_fires_on_its_fault_and_none_where_all_is_well(
    prometheus: Prometheus, instances: Callable[[str], Instance], echo_port: int, tmp_path: Path
) -> None:
    sick, worn, well = Sick(instances("sick"), echo_port, tmp_path), Worn(instances("worn"), echo_port), instances("well")
    with ExitStack() as stack:
        targets = {"sick": sick.pylb.admin, "worn": worn.pylb.admin, "well": well.admin, "gone": free_port()}
        prometheus.launch(targets)
        sick.launch(stack)
        worn.launch()
        well.start()
        assert well.register(well.port, echo_port, ttl=3600).status == 201
        visited(well.port)
        # Increases are counted from what was there before.
        eventually(lambda: len(prometheus.query("up == 1")) == 3, within=WITHIN, what="three targets are up")
        assert not [one for one in prometheus.alerts() if one["labels"]["instance"] == "well"]

        sick.suffer(stack, echo_port)
        worn.suffer(echo_port, sick.pylb.port)

        wanted = expected(sick)
        assert {one["alertname"] for one in wanted} == {rule["alert"] for rule in rules()}
        seen: list[dict[str, Any]] = []

        def all_fired() -> bool:
            visited(sick.dead)  # a rate is of what goes on
            seen.extend(prometheus.alerts())
            missing = [one for one in wanted if not any(covers(one, fired) for fired in seen)]
            assert missing == []
            return True

        eventually(all_fired, within=WITHIN, what="all fire")
        assert not [one for one in seen if one["labels"]["instance"] == "well"]
        for one in seen:
            said = one["annotations"]["summary"] + one["annotations"]["description"]
            assert one["labels"]["instance"] in said
            assert not [word for word in ("{{", "<no value>", "<error", "NaN") if word in said], said

        unshown = [place for place, query in expressions(WINDOW) if not prometheus.query(query)]
        assert set(unshown) <= EMPTY
        assert _linted(need("promtool"), sick.pylb.get("/metrics").body) == []


def _linted(promtool: str, scrape: bytes) -> list[str]:
    """What Prometheus' own linter has to say of the names and the text."""
    result = subprocess.run([promtool, "check", "metrics"], input=scrape, capture_output=True, check=False, timeout=30)
    return (result.stdout + result.stderr).decode().splitlines()
