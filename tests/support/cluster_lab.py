"""Several balancers with one table, three members of etcd as deploy/etcd sets them up, and nodes, in network namespaces."""

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.balancer import ADMIN, NODEPORT, TOKENS, WEBHOOK, Answer, fetch
from tests.support.load import Load
from tests.support.netns import Lab, Namespace
from tests.support.peers import need
from tests.support.processes import ROOT, Process, Processes, listens, python
from tests.support.waiting import eventually

SHIPPED = ROOT / "deploy" / "etcd"
KEEPALIVED = ROOT / "deploy" / "keepalived" / "keepalived.conf"
FLOATING = "203.0.113.9"
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
    """A pylb in a namespace of its own, and a keepalived if it is started."""

    def __init__(self, at: Namespace, name: str, address: str, folder: Path, processes: Processes) -> None:
        self.at, self.name, self.address = at, name, address
        self._folder, self._processes = folder / name, processes
        self._folder.mkdir()
        self.file = self._folder / "pylb.yaml"
        self.pylb: Process | None = None
        self.successor = 0  # the pid of the pylb that follows it after an upgrade
        self._is_cut = False

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
            "cluster": {"name": self.name, "addresses": [FLOATING], "etcd": cluster},
        }
        self.file.write_text(json.dumps(found))

    # ------------------------------------------------------------- its process

    def start(self) -> None:
        self.pylb, self.successor = self._processes.start(self.name, self._run(), at=self.at), 0
        eventually(self._is_ready, within=60, what=f"{self.name} is ready")

    def _run(self) -> tuple[str, ...]:
        return python("pylb", "run", "-c", str(self.file))

    def _is_ready(self) -> bool:
        assert self.running.alive, self.running.text()
        return fetch(self.at, ("127.0.0.1", ADMIN), "GET", "/readyz").status == 200

    @property
    def running(self) -> Process:
        assert self.pylb is not None
        return self.pylb

    def upgrade(self) -> None:
        self.successor = int(self.ask("upgrade").split()[1])

    def signal(self, number: int) -> None:
        """To the pylb that serves."""
        os.kill(self.successor or self.running.pid, number)

    def end(self, number: int) -> None:
        """With this signal, all of it."""
        if self.successor:
            self.signal(number)
            eventually(lambda: not Path(f"/proc/{self.successor}").exists(), within=30, what=f"{self.name} ends")
        elif number != signal.SIGKILL:
            self.running.signal(number)
            self.running.wait(30)
        self.running.kill()

    def is_connected(self) -> bool:
        return bool(fetch(self.at, ("127.0.0.1", ADMIN), "GET", "/readyz").json["shared"])

    def connected(self) -> None:
        eventually(self.is_connected, within=60, what=f"{self.name} is connected\n{self.running.text()}")

    # ------------------------------------------------------------- its network

    def cut_from_etcd(self) -> None:
        """In both directions, and silently."""
        if not self._is_cut:
            ips = ", ".join(f"203.0.113.{number}" for number in MEMBERS.values())
            self.at.nft(
                "table ip cut {\n"
                f"  chain in {{ type filter hook input priority 0; ip saddr {{ {ips} }} drop; }}\n"
                f"  chain out {{ type filter hook output priority 0; ip daddr {{ {ips} }} drop; }}\n"
                "}"
            )
            self._is_cut = True

    def join_etcd(self) -> None:
        if self._is_cut:
            self.at.nft("delete table ip cut")
            self._is_cut = False

    def keep_address(self, priority: int, others: Sequence[str]) -> None:
        """A keepalived with the shipped config."""
        text = KEEPALIVED.read_text()
        peers = "\n".join(f"        {other}" for other in others)
        wanted = {
            "router_id lb-a": f"router_id {self.name}",
            "priority 100": f"priority {priority}",
            "unicast_src_ip 203.0.113.1": f"unicast_src_ip {self.address}",
            "        203.0.113.2  ": f"{peers}  ",
        }
        for was, now in wanted.items():
            assert text.count(was) == 1, was
            text = text.replace(was, now)
        file = self._folder / "keepalived.conf"
        file.write_text(text)
        pids = (f"--{which}={self._folder}/{which}" for which in ("pid", "vrrp_pid", "checkers_pid"))
        argv = (need("keepalived"), "--dont-fork", "--log-console", "--vrrp", f"--use-file={file}", *pids)
        self._processes.start(f"keepalived-{self.name}", argv, at=self.at)

    def has_address(self) -> bool:
        """Whether the floating address is this machine's: only then can a socket be bound to it."""
        with self.at.inside(), socket.socket() as sock:
            try:
                sock.bind((FLOATING, 0))
            except OSError:
                return False
            return True

    # ------------------------------------------------------------- what it is asked

    def call(
        self, at: Namespace, port: int, name: str = "web", *, token: str = "app", ttl: int = 60, address: str = ""
    ) -> Answer:
        """`address`: another one of its own."""
        body = json.dumps({"frontends": [{"port": port, "target_port": NODEPORT}], "ttl": ttl}).encode()
        headers = {"Authorization": f"Bearer {TOKENS[token]}", "Content_Type": "application/json"}
        return fetch(at, (address or self.address, WEBHOOK), "PUT", f"/v1/registrations/{name}/one", body, **headers)

    def release(self, at: Namespace, name: str, *, token: str = "app") -> Answer:
        headers = {"Authorization": f"Bearer {TOKENS[token]}"}
        return fetch(at, (self.address, WEBHOOK), "DELETE", f"/v1/registrations/{name}/one", **headers)

    def ask(self, *verb: str) -> str:
        return self.at.run(*python("pylb", *verb, "-c", str(self.file)))

    def routes(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.ask("routes", "--json"))
        return found

    def differences(self) -> list[Any]:
        argv = self.at.command(*python("pylb", "cluster", "diff", "--json", "-c", str(self.file)))
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=30)
        found: list[Any] = json.loads(done.stdout)
        return found


class Cluster:
    """`machines` balancers, and `nodes` nodes, each with a pod behind the same NodePort."""

    def __init__(self, lab: Lab, processes: Processes, folder: Path, machines: int = 2, nodes: int = 2) -> None:
        self.lab = lab
        self._etcd = folder / "etcd"
        self._etcd.mkdir()
        names = [f"{name}=203.0.113.{number}" for name, number in MEMBERS.items()]
        subprocess.run([SHIPPED / "certificates", *names], cwd=self._etcd, check=True, capture_output=True)
        self.members = [EtcdMember(lab.host(name, number), name, self._etcd, processes) for name, number in MEMBERS.items()]
        for member in self.members:
            member.start()
        self._set_up_users()
        self.nodes = [lab.a, lab.b, *(lab.node("abcdef"[number - 1], number) for number in range(3, nodes + 1))]
        for node in self.nodes:
            node.nodeport(NODEPORT, 8080)
            pod = processes.start(f"pod-{node.address}", python("tests.support.pod", "web", "8080"), at=node.pod)
            listens((node.address, NODEPORT), lab.client, pod)
        self.machines = [Machine(lab.lb, "lb-a", "203.0.113.1", folder, processes)]
        for number in range(2, machines + 1):
            name = f"lb-{'abc'[number - 1]}"
            self.machines.append(Machine(lab.host(name, number), name, f"203.0.113.{number}", folder, processes))
        self.a, self.b = self.machines[:2]
        for one in self.machines:
            one.configure([member.url for member in self.members], self._etcd)
            one.start()
        for one in self.machines:
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
        return self.answers(one.address, port)

    def answers(self, address: str, port: int) -> bool:
        with self.lab.client.inside():
            try:
                with socket.create_connection((address, port), 3) as sock:
                    return sock.recv(200).startswith(b"web ")
            except OSError:
                return False

    def load(self, address: str, port: int, rate: float = 100.0) -> Load:
        return Load((address, port), rate, _echoes, at=self.lab.client, timeout=5.0)


def _echoes(sock: socket.socket) -> bool:
    if not sock.recv(200).startswith(b"web "):
        return False
    sock.sendall(b"ping")
    return sock.recv(16) == b"ping"
