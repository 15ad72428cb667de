"""A real pylb in the lab: its config, its process, and its answers."""

import http.client
import json
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from tests.support.baseline import IDLE_CPU, idle_cpu
from tests.support.netns import LB, Lab, Namespace
from tests.support.processes import EndedError, Process, Processes, python
from tests.support.waiting import eventually

WEBHOOK, ADMIN, NODEPORT = 9000, 8404, 30843
TOKENS = {name: f"{name}-secret-of-32-characters-{'x' * 9}" for name in ("app", "other")}
NODES = "203.0.113.0/24"
# Beats, probes and deadlines scaled down: a test is over in seconds.
DEFAULTS: Mapping[str, Any] = {
    "timeouts": {"connect": "1s", "drain": "2s", "shutdown": "1s"},
    "health": {"interval": "200ms", "rise": 1, "fall": 3},
}
VOLATILE = ("expires_in", "last_seen_ago")  # of /v1/registrations: they move with time


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def fetch(at: Namespace, address: tuple[str, int], method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
    """One HTTP request from the namespace. `headers` with underscores for dashes."""
    with at.inside():
        connection = http.client.HTTPConnection(*address, timeout=10)
        connection.connect()
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return Answer(response.status, dict(response.headers), response.read())
    finally:
        connection.close()


class Balancer:
    """pylb in the lab's `lb`. Nothing runs until `start`."""

    def __init__(self, lab: Lab, processes: Processes, folder: Path, workers: int = 0) -> None:
        self.lab = lab
        self.workers = workers
        self._processes = processes
        self.state_dir = folder / "state"
        self.config_file = folder / "pylb.yaml"
        self.process: Process | None = None
        self._descriptors = self._open = 0
        self.configure()

    @property
    def at(self) -> Namespace:
        return self.lab.lb

    def configure(self, **sections: Any) -> None:
        """Write a config with what the tests need, and `sections` on top (JSON is YAML)."""
        self.config_file.write_text(json.dumps(self.config() | sections, indent=1))

    def config(self) -> dict[str, Any]:
        return {
            "webhook": {"listen": f"*:{WEBHOOK}", "insecure": True},
            "state_dir": str(self.state_dir),
            "workers": self.workers,
            "defaults": dict(DEFAULTS),
            "leases": {"min_ttl": "1s", "keep_stale": "1h"},
            "tokens": [self.token("app"), self.token("other")],
        }

    def token(self, name: str, **more: Any) -> dict[str, Any]:
        """A line of `tokens:`: any name, all ports but the very low ones, all nodes."""
        scope = {"names": ["*"], "ports": ["25-29999"], "targets": [NODES]}
        return {"name": name, "secret": TOKENS[name], **scope, **more}

    # ------------------------------------------------------------ the process

    def start(self, *, wrapper: Sequence[str] = ()) -> None:
        """Start pylb; `wrapper` runs it as another user. Returns once /readyz is 200."""
        argv = (*wrapper, *python("pylb", "run", "-c", str(self.config_file)))
        self.process = self._processes.start("pylb", argv, at=self.at)
        eventually(self._is_ready, within=20, what="/readyz is 200")
        self._open = self._ports_open()
        self._descriptors = self._settled_descriptors()

    def _settled_descriptors(self) -> int:
        """The number of descriptors, once our last request is closed in pylb, too, and three readings are equal."""
        looks: list[int] = []

        def settled() -> bool:
            if ADMIN in self._local_ports("01", "08"):  # ESTABLISHED, CLOSE_WAIT
                looks.clear()
                return False
            looks.append(self.running.descriptors())
            return len(looks) >= 3 and len(set(looks[-3:])) == 1

        eventually(settled, within=5, what="the number of descriptors stands still")
        return looks[-1]

    def _is_ready(self) -> bool:
        if not self.running.alive:
            raise EndedError(f"pylb ended:\n{self.running.text()}")
        return self.admin("/readyz").status == 200

    def _ports_open(self) -> int:
        return sum(one["unbound"] is None for one in self.table()["frontends"])

    @property
    def running(self) -> Process:
        assert self.process is not None, "pylb was not started"
        return self.process

    def kill(self) -> None:
        self.running.kill()

    def reload(self) -> None:
        self.running.signal(signal.SIGHUP)

    def check_settled(self) -> None:
        """Check that, once all clients are gone, there are no more sessions, descriptors and CPU use than at the start."""
        if self.process is None or not self.process.alive:
            return
        process = self.process
        self._processes.stop(but=process)

        def settled() -> bool:
            sessions = self.admin("/v1/sessions").json["open"]
            assert sessions == 0, f"{sessions} sessions"
            opened = self._ports_open() - self._open
            # one socket per worker and port, in main and in the worker
            wanted = self._descriptors + opened * (2 * self.workers or 1)
            found = process.descriptors()
            assert found == wanted, f"{found} descriptors, not {wanted}"
            return True

        eventually(settled, within=15, what="no session and no descriptor is left")  # between two probes of a black hole
        share = idle_cpu(process.pid, *process.children())
        assert share < IDLE_CPU, f"a process of pylb burns {share:.0%} of a core while nothing happens"
        assert "Traceback" not in process.text()

    def command(self, *args: str) -> tuple[str, ...]:
        """Run `pylb args -c CONFIG` beside the server."""
        return python("pylb", *args, "-c", str(self.config_file))

    # ------------------------------------------------------------ its faces

    def admin(self, path: str) -> Answer:
        return fetch(self.at, ("127.0.0.1", ADMIN), "GET", path)

    def table(self) -> Any:
        return self.admin("/v1/table").json

    def registrations(self) -> list[dict[str, Any]]:
        """The registrations, without fields that change with time."""
        found = self.admin("/v1/registrations").json["registrations"]
        for one in found:
            one["lease"] = {key: value for key, value in one["lease"].items() if key not in VOLATILE}
        return [{key: value for key, value in one.items() if key not in VOLATILE} for one in found]

    def everything(self) -> tuple[Any, ...]:
        """Everything that a refused call must not change: in memory, on disk, and the open ports."""
        state = self.state_dir / "state.json"
        on_disk = state.read_bytes() if state.exists() else None
        return self.table(), self.registrations(), on_disk, self.listening()

    def listening(self) -> set[int]:
        """The TCP ports on which a process in pylb's namespace listens."""
        return self._local_ports("0A")

    def _local_ports(self, *states: str) -> set[int]:
        """The local ports of sockets in pylb's namespace in one of these states (proc(5); net/tcp_states.h)."""
        rows = [line.split() for name in ("tcp", "tcp6") for line in self.at.run("cat", f"/proc/net/{name}").splitlines()[1:]]
        return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] in states}

    def metric(self, line: str) -> float:
        """The value of one sample, named as in the text format: `name{label="value"}`; its labels may be in any order."""
        [[wanted]] = [family.samples for family in text_string_to_metric_families(f"{line} 0\n")]
        for family in text_string_to_metric_families(self.admin("/metrics").body.decode()):
            for sample in family.samples:
                if (sample.name, sample.labels) == (wanted.name, wanted.labels):
                    return float(sample.value)
        raise AssertionError(f"no sample {line}")

    def call(
        self, method: str, name: str, body: Any = None, *, at: Namespace, token: str = "app", raw: bytes | None = None
    ) -> Answer:
        """The native API; `name` is NAME/INSTANCE, `token` a name of TOKENS or a secret, `raw` a body as it is."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        return fetch(
            at,
            (LB, WEBHOOK),
            method,
            f"/v1/registrations/{name}",
            data,
            Authorization=f"Bearer {TOKENS.get(token, token)}",
            Content_Type="application/json",
        )

    def post_legacy(self, body: str, *, at: Namespace, **headers: str) -> Answer:
        return fetch(at, (LB, WEBHOOK), "POST", "/hooks/update-haproxy", body.encode(), **headers)

    def register(
        self, name: str, ports: Mapping[int, int], *, at: Namespace, token: str = "app", **more: Any
    ) -> dict[str, Any]:
        """Register with PUT; `ports` is {port: target port}. Returns the answer, which must be 200 or 201."""
        body = {
            "frontends": [{"port": port, "target_port": target} for port, target in ports.items()],
            "ttl": None,
        } | more
        answer = self.call("PUT", name, body, at=at, token=token)
        assert answer.status in (200, 201), answer
        found: dict[str, Any] = answer.json
        return found


def connect(at: Namespace, port: int, host: str = LB, timeout: float = 5.0) -> socket.socket:
    """A client's connection to a frontend."""
    with at.inside():
        return socket.create_connection((host, port), timeout)


def greeting(sock: socket.socket) -> list[str]:
    """The first line of the app (support/pod.py): [name, port, client ip, client port]. [] if the connection just ends."""
    said = b""
    while not said.endswith(b"\n"):
        byte = sock.recv(1)
        if not byte:
            return said.decode().split()
        said += byte
    return said.decode().split()


def echo(sock: socket.socket, data: bytes = b"ping") -> bytes:
    """The echo of `data`; shorter if the connection ends."""
    sock.sendall(data)
    got = b""
    while len(got) < len(data) and (more := sock.recv(len(data) - len(got))):
        got += more
    return got


def ask(at: Namespace, port: int, host: str = LB) -> list[str]:
    """Make one whole connection. Returns the app's greeting, after checking an echo."""
    with connect(at, port, host) as sock:
        said = greeting(sock)
        assert echo(sock) == b"ping"
        return said
