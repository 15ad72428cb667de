"""Two balancers with one table, three members of etcd as deploy/etcd sets them up, and their clients, in network namespaces.

Seconds are logged (--log-cli-level=info), not bounded: what is checked is what is served, and which connections fail meanwhile.
"""

import json
import logging
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.balancer import ADMIN, NODEPORT, TOKENS, WEBHOOK, Answer, fetch
from tests.support.load import Load
from tests.support.netns import Lab, Namespace
from tests.support.peers import need
from tests.support.processes import ROOT, Process, Processes, listens, python
from tests.support.waiting import eventually, pause

log = logging.getLogger(__name__)

SHIPPED = ROOT / "deploy" / "etcd"
PORT = 8443
PASSWORDS = {"ROOT_PASSWORD": "for-root", "PYLB_PASSWORD": "for-the-balancers"}
MEMBERS = {"etcd-a": 51, "etcd-b": 52, "etcd-c": 53}


class EtcdMember:
    """The shipped env file with the addresses of this lab."""

    def __init__(self, at: Namespace, name: str, folder: Path, processes: Processes) -> None:
        self.at, self.name, self._folder, self._processes = at, name, folder, processes
        self.url = f"https://203.0.113.{MEMBERS[name]}:2379"
        self.process: Process | None = None

    def environ(self) -> dict[str, str]:
        found = dict(re.findall(r"^(ETCD_\w+)=(.*)$", (SHIPPED / "etcd.env").read_text(), re.MULTILINE))
        for letter, number in (("5", 51), ("6", 52), ("7", 53)):
            found = {key: value.replace(f"10.0.0.{letter}:", f"203.0.113.{number}:") for key, value in found.items()}
        own = f"203.0.113.{MEMBERS[self.name]}"
        for key in ("LISTEN_CLIENT_URLS", "ADVERTISE_CLIENT_URLS", "LISTEN_PEER_URLS", "INITIAL_ADVERTISE_PEER_URLS"):
            found[f"ETCD_{key}"] = found[f"ETCD_{key}"].replace("203.0.113.51", own)
        found |= {"ETCD_NAME": self.name, "ETCD_DATA_DIR": str(self._folder / self.name)}
        for key, value in found.items():
            found[key] = value.replace("/etc/etcd/ca.pem", f"{self._folder}/ca.pem").replace(
                "/etc/etcd/member", f"{self._folder}/{self.name}"
            )
        return {**found, "PATH": os.environ["PATH"], "ETCD_BCRYPT_COST": "4"}

    def start(self) -> None:
        self.process = self._processes.start(self.name, (need("etcd"),), env=self.environ(), at=self.at)

    @property
    def running(self) -> Process:
        assert self.process is not None
        return self.process


class Machine:
    """A pylb in a namespace of its own."""

    def __init__(self, at: Namespace, name: str, address: str, folder: Path, processes: Processes) -> None:
        self.at, self.name, self.address = at, name, address
        self._folder, self._processes = folder / name, processes
        self._folder.mkdir()
        self.file = self._folder / "pylb.yaml"
        self.pylb: Process | None = None

    def configure(self, urls: list[str], etcd: Path) -> None:
        password = self._folder / "password"
        password.write_text(PASSWORDS["PYLB_PASSWORD"] + "\n")
        password.chmod(0o600)
        cluster = {"endpoints": urls, "ca": str(etcd / "ca.pem"), "username": "pylb", "password_file": str(password)}
        scope = {"names": ["*"], "ports": ["25-29999"], "targets": ["203.0.113.0/24"]}
        found: dict[str, Any] = {
            "webhook": {"listen": f"*:{WEBHOOK}", "insecure": True},
            "state_dir": str(self._folder / "state"),
            "leases": {"min_ttl": "1s"},
            "tokens": [{"name": name, "secret": secret, **scope} for name, secret in TOKENS.items()],
            "cluster": {"name": self.name, "etcd": cluster},
        }
        self.file.write_text(json.dumps(found))

    def start(self) -> None:
        self.pylb = self._processes.start(self.name, python("pylb", "run", "-c", str(self.file)), at=self.at)
        eventually(self._is_ready, within=30, what=f"{self.name} is ready")

    def _is_ready(self) -> bool:
        assert self.running.alive, self.running.text()
        return fetch(self.at, ("127.0.0.1", ADMIN), "GET", "/readyz").status == 200

    @property
    def running(self) -> Process:
        assert self.pylb is not None
        return self.pylb

    def is_connected(self) -> bool:
        return bool(fetch(self.at, ("127.0.0.1", ADMIN), "GET", "/readyz").json["shared"])

    def connected(self) -> None:
        eventually(self.is_connected, within=60, what=f"{self.name} is connected\n{self.running.text()}")

    def call(self, at: Namespace, port: int, name: str = "web", *, token: str = "app", ttl: int = 60) -> Answer:
        body = json.dumps({"frontends": [{"port": port, "target_port": NODEPORT}], "ttl": ttl}).encode()
        return fetch(
            at,
            (self.address, WEBHOOK),
            "PUT",
            f"/v1/registrations/{name}/one",
            body,
            Authorization=f"Bearer {TOKENS[token]}",
            Content_Type="application/json",
        )

    def routes(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.at.run(*python("pylb", "routes", "--json", "-c", str(self.file))))
        return found

    def differences(self) -> list[Any]:
        argv = self.at.command(*python("pylb", "cluster", "diff", "--json", "-c", str(self.file)))
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=30)
        found: list[Any] = json.loads(done.stdout)
        return found


class Cluster:
    def __init__(self, lab: Lab, processes: Processes, folder: Path) -> None:
        self.lab = lab
        self._etcd = folder / "etcd"
        self._etcd.mkdir()
        names = [f"{name}=203.0.113.{number}" for name, number in MEMBERS.items()]
        subprocess.run([SHIPPED / "certificates", *names], cwd=self._etcd, check=True, capture_output=True)
        self.members = [EtcdMember(lab.host(name, number), name, self._etcd, processes) for name, number in MEMBERS.items()]
        for member in self.members:
            member.start()
        self._set_up_users()
        for node in (lab.a, lab.b):
            node.nodeport(NODEPORT, 8080)
            pod = processes.start(f"pod-{node.address}", python("tests.support.pod", "web", "8080"), at=node.pod)
            listens((node.address, NODEPORT), lab.client, pod)
        self.a = Machine(lab.lb, "lb-a", "203.0.113.1", folder, processes)
        self.b = Machine(lab.host("lb-b", 2), "lb-b", "203.0.113.2", folder, processes)
        self.machines = [self.a, self.b]
        for one in self.machines:
            one.configure([member.url for member in self.members], self._etcd)
            one.start()
        for one in (self.a, self.b):
            one.connected()

    def _set_up_users(self) -> None:
        first = self.members[0]
        environ = {"PATH": os.environ["PATH"], "ETCDCTL_CACERT": str(self._etcd / "ca.pem"), **PASSWORDS}

        def is_up() -> bool:
            health = ["etcdctl", "endpoint", "health", "--endpoints", "https://127.0.0.1:2379"]
            argv = first.at.command(*health)
            done = subprocess.run(argv, env={**environ, "ETCDCTL_API": "3"}, check=False, capture_output=True, timeout=20)
            return done.returncode == 0

        eventually(is_up, within=40, what=f"etcd has a quorum\n{first.running.text()[-2000:]}")
        argv = first.at.command(str(SHIPPED / "users"))
        done = subprocess.run(argv, env=environ, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    def serves(self, one: Machine, port: int) -> bool:
        with self.lab.client.inside():
            try:
                with socket.create_connection((one.address, port), 3) as sock:
                    return sock.recv(200).startswith(b"web ")
            except OSError:
                return False

    def load(self, one: Machine, port: int, rate: float = 100.0) -> Load:
        return Load((one.address, port), rate, _echoes, at=self.lab.client, timeout=5.0)


def _echoes(sock: socket.socket) -> bool:
    if not sock.recv(200).startswith(b"web "):
        return False
    sock.sendall(b"ping")
    return sock.recv(16) == b"ping"


@pytest.fixture
def cluster(lab: Lab, processes: Processes, tmp_path: Path) -> Cluster:
    for program in ("etcd", "etcdctl", "openssl"):
        need(program)
    return Cluster(lab, processes, tmp_path)


def seconds_until(happens: Callable[[], object], what: str) -> float:
    began = time.monotonic()
    eventually(happens, within=60, what=what)
    found = time.monotonic() - began
    log.info("%s: %.2f s", what, found)
    return found


@pytest.mark.timeout(300)
def test_registered_at_one_served_by_the_other_and_what_fails_harms_nothing(cluster: Cluster) -> None:
    a, b, lab = cluster.a, cluster.b, cluster.lab
    waits = []
    for number in range(10):
        assert a.call(lab.a, PORT + number, name=f"web{number}").status == 201
        waits.append(seconds_until(lambda number=number: cluster.serves(b, PORT + number), "registered at a, served by b"))
    log.info("the slowest of ten: %.2f s", max(waits))
    assert b.differences() == a.differences() == []

    with cluster.load(b, PORT) as load:
        for member in cluster.members[1:]:
            member.running.kill()
        seconds_until(lambda: not a.is_connected() and not b.is_connected(), "no quorum, and both have noticed")
        assert a.call(lab.a, PORT, name="web0").status == 200  # a beat
        assert a.call(lab.b, PORT, name="web0").status == 200  # a move
        answer = a.call(lab.a, PORT + 50, name="new")
        assert (answer.status, answer.json["error"]) == (503, "store_unavailable")
        for member in cluster.members[1:]:
            member.start()
        seconds_until(lambda: a.is_connected() and b.is_connected(), "the quorum is back, and both have noticed")
        assert a.call(lab.a, PORT + 50, name="new").status == 201
        seconds_until(lambda: cluster.serves(b, PORT + 50), "registered at a, served by b")
        eventually(lambda: not b.differences() and not a.differences(), what="they agree")
        routes = {row["port"]: row["address"] for row in b.routes()}
        assert routes[PORT] == f"{lab.b.address}:{NODEPORT}"  # the move of the outage

        a.running.kill()
        assert b.call(lab.b, PORT, name="web0").status == 200  # the phone-home finds the other one
        assert cluster.serves(b, PORT + 1)
        a.start()
        seconds_until(a.is_connected, "killed, started, connected")
        seconds_until(lambda: cluster.serves(a, PORT + 50), "and serves all")
    assert load.done > 100
    assert load.failed == []
    log.info("new connections meanwhile: %d, failed: %d", load.done, len(load.failed))


@pytest.mark.timeout(300)
def test_of_two_claims_of_one_port_one_gets_it(cluster: Cluster) -> None:
    a, b, lab = cluster.a, cluster.b, cluster.lab
    with ThreadPoolExecutor(2) as both:
        for number in range(50):
            port = PORT + number
            first = both.submit(a.call, lab.a, port, f"web{number}")
            second = both.submit(b.call, lab.b, port, f"mail{number}", token="other")
            answers = [first.result(), second.result()]
            assert sorted(one.status for one in answers) == [201, 409], [one.body for one in answers]
    eventually(lambda: not a.differences() and not b.differences(), within=30, what="they agree")
    owners = [{row["port"]: row["address"] for row in one.routes()} for one in (a, b)]
    assert owners[0] == owners[1]
    assert len(owners[0]) == 50


class Chaos:
    """Whatever may happen to two balancers, three members and eight apps."""

    def __init__(self, cluster: Cluster, rnd: random.Random) -> None:
        self._cluster, self._rnd = cluster, rnd
        self.nodes = dict.fromkeys(range(8), cluster.lab.a)
        self._frozen: list[EtcdMember] = []
        self._dead: list[EtcdMember] = []
        self.happened: list[str] = []
        self.again = 0  # calls that had to be repeated

    def happen(self) -> None:
        events: list[Callable[[], None]] = [self.kill, self.restart, self.lose_member, self.freeze_member, self.mend, self.move]
        event = self._rnd.choices(events, (1, 1, 1, 1, 2, 3))[0]
        self.happened.append(event.__name__)
        event()

    def kill(self) -> None:
        machine = self._rnd.choice(self._cluster.machines)
        machine.running.kill()
        machine.start()

    def restart(self) -> None:
        machine = self._rnd.choice(self._cluster.machines)
        machine.running.terminate()
        machine.start()

    def _well(self) -> list[EtcdMember]:
        return [one for one in self._cluster.members if one not in (*self._frozen, *self._dead)]

    def lose_member(self) -> None:
        for member in self._rnd.sample(self._well(), 1) if self._well() else ():
            member.running.kill()
            self._dead.append(member)

    def freeze_member(self) -> None:
        for member in self._rnd.sample(self._well(), 1) if self._well() else ():
            member.running.signal(signal.SIGSTOP)
            self._frozen.append(member)

    def mend(self) -> None:
        for member in self._frozen:
            member.running.signal(signal.SIGCONT)
        for member in self._dead:
            member.start()
        self._frozen, self._dead = [], []

    def move(self) -> None:
        number, lab = self._rnd.choice(list(self.nodes)), self._cluster.lab
        self.nodes[number] = lab.b if self.nodes[number] is lab.a else lab.a

    def call(self) -> None:
        machine = self._rnd.choice(self._cluster.machines)
        for number, node in self.nodes.items():
            answer = machine.call(node, PORT + number, name=f"web{number}")
            assert answer.status in (200, 201, 503), (answer.body, self.happened)
            self.again += answer.status == 503

    def agrees(self) -> None:
        """Mended, and called once more."""
        for machine in self._cluster.machines:
            machine.connected()
        for machine in self._cluster.machines:
            for number, node in self.nodes.items():
                assert machine.call(node, PORT + number, name=f"web{number}").status in (200, 201)
        for machine in self._cluster.machines:
            eventually(lambda machine=machine: not machine.differences(), within=60, what=f"they agree: {self.happened}")
            routes = {row["port"]: row["address"] for row in machine.routes()}
            assert routes == {PORT + number: f"{node.address}:{NODEPORT}" for number, node in self.nodes.items()}
            assert all(self._cluster.serves(machine, PORT + number) for number in self.nodes)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_whatever_happens_what_is_called_for_is_served_in_the_end(cluster: Cluster) -> None:
    """Ten minutes: kills, freezes, restarts of both balancers and all members, and moves; phone-homes call either balancer."""
    seed = int(os.environ.get("CHAOS", "1"))
    log.info("seed %d (CHAOS=…)", seed)
    rnd, end = random.Random(seed), time.monotonic() + 600
    chaos = Chaos(cluster, rnd)
    while time.monotonic() < end:
        chaos.happen()
        chaos.call()
        pause(rnd.random())
        if rnd.random() < 0.1:
            chaos.mend()
            chaos.agrees()
    chaos.mend()
    chaos.agrees()
    log.info("events: %d, calls that had to be repeated: %d", len(chaos.happened), chaos.again)
