"""The floating address of two machines, with the real keepalived and the shipped config: what moves it, how fast, and what not.

Seconds are logged (--log-cli-level=info), not bounded: what is checked is that it moves, or does not, and which connections
fail meanwhile.
"""

import json
import logging
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.balancer import ADMIN, NODEPORT, TOKENS, fetch
from tests.support.load import Load
from tests.support.netns import Lab, Namespace
from tests.support.peers import need
from tests.support.processes import ROOT, Process, Processes, listens, python
from tests.support.waiting import eventually, pause

log = logging.getLogger(__name__)

SHIPPED = ROOT / "deploy" / "keepalived" / "keepalived.conf"
FLOATING, PORT = "203.0.113.9", 2600
FLOWS = """
import socket, sys, threading
def flow():
    with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as sock:
        block = bytes(65536)
        sock.recv(200)
        while True:
            sock.sendall(block)
            left = len(block)
            while left:
                left -= len(sock.recv(left)) or sys.exit("cut")
for _ in range(int(sys.argv[3])):
    threading.Thread(target=flow).start()
"""


class Machine:
    """A pylb and a keepalived, in a namespace of their own."""

    def __init__(self, at: Namespace, addresses: tuple[str, str], priority: int, processes: Processes, folder: Path) -> None:
        self.at, (self.own, self.other) = at, addresses
        self._priority, self._processes, self.folder = priority, processes, folder
        self.file = folder / "pylb.yaml"
        self.pylb: Process | None = None
        self.keepalived: Process | None = None

    def configure(self, lab: Lab, workers: int) -> None:
        self.folder.mkdir()
        found: dict[str, Any] = {
            "webhook": {"listen": "127.0.0.1:9000"},
            "metrics": {"listen": "*:9100", "allow": ["203.0.113.0/24"]},
            "admin": {"peers": [{"name": "other", "url": f"http://{self.other}:9100"}]},
            "cluster": {"addresses": [FLOATING, "2001:db8::9"]},
            "state_dir": str(self.folder / "state"),
            "workers": workers,
            "tokens": [{"name": "app", "secret": TOKENS["app"], "ports": ["2500-2599"]}],
            "frontends": [{"name": "web", "listen": f"*:{PORT}", "servers": [f"{lab.a.address}:{NODEPORT}"]}],
        }
        self.file.write_text(json.dumps(found))
        text = SHIPPED.read_text()
        wanted = {
            "router_id lb-a": f"router_id {self.at.name}",
            "priority 100": f"priority {self._priority}",
            "unicast_src_ip 203.0.113.1": f"unicast_src_ip {self.own}",
            "        203.0.113.2 ": f"        {self.other} ",
        }
        for was, now in wanted.items():
            assert text.count(was) == 1, was
            text = text.replace(was, now)
        (self.folder / "keepalived.conf").write_text(text)

    def start_pylb(self) -> None:
        self.pylb = self._processes.start(f"pylb-{self.own}", python("pylb", "run", "-c", str(self.file)), at=self.at)
        eventually(self.is_ready, within=20, what="/readyz is 200")

    def start_keepalived(self, program: str) -> None:
        pids = (f"--{which}={self.folder}/{which}" for which in ("pid", "vrrp_pid", "checkers_pid"))
        argv = (program, "--dont-fork", "--log-console", "--vrrp", f"--use-file={self.folder}/keepalived.conf", *pids)
        self.keepalived = self._processes.start(f"keepalived-{self.own}", argv, at=self.at)

    def is_ready(self) -> bool:
        assert self.pylb is not None
        assert self.pylb.alive, self.pylb.text()
        return fetch(self.at, ("127.0.0.1", ADMIN), "GET", "/readyz").status == 200

    def has_address(self) -> bool:
        found = self.at.run("ip", "-br", "address", "show", "dev", "eth0")
        return f" {FLOATING}/24" in found and " 2001:db8::9/64" in found

    def says_it_has(self) -> list[str]:
        """The same by its metrics: 0 or 1 for each address."""
        text = fetch(self.at, ("127.0.0.1", ADMIN), "GET", "/metrics").body.decode()
        return re.findall(r"^pylb_address_held\S* (\d)", text, re.MULTILINE)

    def log(self) -> str:
        assert self.keepalived is not None
        return self.keepalived.text()

    def ask(self, *verb: str) -> str:
        return self.at.run(*python("pylb", *verb, "-c", str(self.file)))


class Pair:
    def __init__(self, lab: Lab, processes: Processes, folder: Path, workers: int) -> None:
        program = need("keepalived")
        self.lab = lab
        lab.a.nodeport(NODEPORT, 8080)
        pod = processes.start("pod", python("tests.support.pod", "web", "8080"), at=lab.a.pod)
        listens((lab.a.address, NODEPORT), lab.client, pod)
        one = Machine(lab.lb, ("203.0.113.1", "203.0.113.2"), 100, processes, folder / "a")
        two = Machine(lab.host("lb-b", 2), ("203.0.113.2", "203.0.113.1"), 90, processes, folder / "b")
        for machine in (one, two):
            machine.configure(lab, workers)
            machine.start_pylb()
        self.holder, self.other = one, two
        one.start_keepalived(program)
        eventually(one.has_address, within=30, what="the first one has the address")
        two.start_keepalived(program)
        eventually(lambda: "Entering BACKUP STATE" in two.log(), within=30, what="the second one is there")

    def moved(self) -> None:
        eventually(self.other.has_address, within=30, what="the address moves")

    def is_where_it_was(self) -> bool:
        """Also never meanwhile."""
        assert "Entering MASTER STATE" not in self.other.log(), self.other.log()
        return self.holder.has_address() and not self.other.has_address()

    def load(self) -> Load:
        return Load((FLOATING, PORT), 200.0, _echoes, at=self.lab.client, timeout=3.0)


def _echoes(sock: socket.socket) -> bool:
    if not sock.recv(200).startswith(b"web "):
        return False
    sock.sendall(b"ping")
    return sock.recv(16) == b"ping"


def outage(load: Load) -> float:
    """Seconds from the first failed connection's begin to the last one's."""
    return max(one.began for one in load.failed) - min(one.began for one in load.failed) if load.failed else 0.0


def say(what: str, seconds: float, load: Load) -> None:
    reasons = sorted({re.sub(r"\d+", "N", one.what) for one in load.failed})
    failed = f"{len(load.failed)} of {load.done} new connections failed over {outage(load):.1f} s {reasons}"
    log.info("%s: moved after %.1f s; %s", what, seconds, failed)


@pytest.fixture
def pair(lab: Lab, processes: Processes, tmp_path: Path) -> Pair:
    return Pair(lab, processes, tmp_path, 0)


@pytest.mark.timeout(180)
def test_standby_moves_the_address_and_cuts_only_what_is_open_at_that_moment(pair: Pair) -> None:
    """The address is always on one of the two. Each thread of the load has at most one connection open."""
    before, after = pair.holder, pair.other
    with pair.load() as load:
        eventually(lambda: load.done > 100, within=30)
        assert "active and ready: other" in before.ask("standby")
        began = time.monotonic()
        pair.moved()
        seconds, done = time.monotonic() - began, load.done
        eventually(lambda: load.done > done + 200, within=30)
    say("standby", seconds, load)
    assert not before.has_address()
    assert (before.says_it_has(), after.says_it_has()) == (["0", "0"], ["1", "1"])
    assert len(load.failed) <= load.THREADS
    before.ask("active")
    pause(8.0)  # nothing happens meanwhile: longer than its checks take to pass
    assert (before.has_address(), after.has_address()) == (False, True)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("fault", ["pylb is killed", "keepalived is stopped", "the machine is gone"])
def test_a_fault_moves_the_address_and_new_connections_succeed_again(pair: Pair, fault: str) -> None:
    before = pair.holder
    with pair.load() as load:
        eventually(lambda: load.done > 100, within=30)
        began = time.monotonic()
        assert before.pylb is not None
        assert before.keepalived is not None
        if fault == "pylb is killed":
            before.pylb.kill()
        elif fault == "keepalived is stopped":
            before.keepalived.terminate()
        else:
            before.at.ip("link set eth0 down")
        pair.moved()
        seconds = time.monotonic() - began
        pause(4.0)  # what had begun before the move has its timeout
        failed, done = len(load.failed), load.done
        eventually(lambda: load.done > done + 200, within=30)
        assert len(load.failed) == failed
    say(fault, seconds, load)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("workers", [0, 1])
def test_neither_load_nor_an_upgrade_nor_a_restart_moves_it(
    lab: Lab, processes: Processes, tmp_path: Path, workers: int, request: pytest.FixtureRequest
) -> None:
    """16 flows as fast as they go for 15 s; with --long 64 for a minute. The restart is that of a crash: kill -9."""
    pair = Pair(lab, processes, tmp_path, workers)
    before = pair.holder
    flows, lasting = (64, 60.0) if request.config.getoption("--long") else (16, 15.0)
    busy = processes.start("flows", (sys.executable, "-c", FLOWS, FLOATING, str(PORT), str(flows)), at=lab.client)
    pause(lasting)  # nothing happens meanwhile
    assert busy.alive, busy.text()
    assert pair.is_where_it_was()
    pid = int(before.ask("upgrade").split()[1])
    pause(8.0)  # longer than the checks take to fail
    assert pair.is_where_it_was()
    busy.kill()
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    before.start_pylb()
    log.info("workers %d: from kill -9 to ready %.1f s", workers, time.monotonic() - began)
    pause(8.0)
    assert pair.is_where_it_was()
