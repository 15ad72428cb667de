"""`python -m pylb run` on loopback, by its pid."""

import http.client
import json
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.ports import free_port
from tests.support.processes import EndedError, Process, Processes, python
from tests.support.waiting import eventually

SECRET = "a-secret-of-more-than-22-characters"
START_SECONDS = 15.0


class Answer(NamedTuple):
    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Instance:
    """`configure`, then `start`. Ports are free ones of loopback outside the ephemeral range."""

    def __init__(self, processes: Processes, folder: Path) -> None:
        self.processes = processes
        self.folder = folder
        self.file = folder / "pylb.yaml"
        self.state_dir = folder / "state"
        self.webhook, self.admin, self.port = free_port(), free_port(), free_port()
        self.process: Process | None = None
        self.configure()

    def config(self) -> dict[str, Any]:
        return {
            "webhook": {"listen": f"127.0.0.1:{self.webhook}"},
            "admin": {"listen": f"127.0.0.1:{self.admin}"},
            "state_dir": str(self.state_dir),
            "defaults": {"bind": "127.0.0.1", "timeouts": {"shutdown": "5s"}},
            "tokens": [token()],
        }

    def configure(self, **sections: Any) -> None:
        """The config above with `sections` in place of its own; None removes one. (JSON is YAML.)"""
        wanted = {key: value for key, value in (self.config() | sections).items() if value is not None}
        self.file.write_text(json.dumps(wanted, indent=1))

    # ------------------------------------------------------------ the process

    def launch(self, *, argv: Sequence[str] | None = None, env: Mapping[str, str] | None = None) -> Process:
        """Starts it and does not wait."""
        self.process = self.processes.start("pylb", argv or self.command("run"), env=env)
        return self.process

    def start(self, *, argv: Sequence[str] | None = None, env: Mapping[str, str] | None = None) -> Process:
        """Returns once /readyz is 200."""
        process = self.launch(argv=argv, env=env)

        def ready() -> bool:
            if not process.alive:
                raise EndedError(f"pylb ended with {process.wait()}:\n{process.text()}")
            return self.get("/readyz").status == 200

        eventually(ready, within=START_SECONDS, what="/readyz is 200")
        return process

    @property
    def running(self) -> Process:
        assert self.process is not None, "pylb was not started"
        return self.process

    def command(self, verb: str, *args: str) -> tuple[str, ...]:
        return python("pylb", verb, "-c", str(self.file), *args)

    def ask(self, verb: str, *args: str) -> subprocess.CompletedProcess[str]:
        """A verb of the CLI with this config, to its end."""
        return cli(self.folder, verb, *args, "-c", str(self.file))

    def reload(self, says: str) -> None:
        """SIGHUP; returns once pylb has said `says` about it."""
        before = self.running.text().count(says)
        self.running.signal(signal.SIGHUP)
        eventually(lambda: self.running.text().count(says) > before, what=f"pylb says {says!r}\n{self.running.text()}")

    # ------------------------------------------------------------ its faces

    def get(self, path: str, port: int | None = None, host: str = "127.0.0.1") -> Answer:
        return fetch((host, port or self.admin), "GET", path)

    def register(
        self,
        port: int | str,
        target: int,
        *,
        name: str = "app",
        instance: str = "one",
        secret: str = SECRET,
        ttl: int | None = None,
    ) -> Answer:
        body = {"frontends": [{"port": port, "target_port": target}], "ttl": ttl, "address": "127.0.0.1"}
        headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
        return fetch(("127.0.0.1", self.webhook), "PUT", f"/v1/registrations/{name}/{instance}", json.dumps(body), headers)

    def runtime(self, text: str) -> str:
        """What HAProxy's runtime socket says to this until it closes."""
        return converse(self.state_dir / "haproxy.sock", text)

    def routes(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.ask("routes", "--json").stdout)
        return found


def token(name: str = "app", **more: Any) -> dict[str, Any]:
    """A line of `tokens:` that may do everything on this machine."""
    scope = {"ports": ["20000-29999"], "targets": ["127.0.0.0/8"], "target_ports": ["1-65535"]}
    return {"name": name, "secret": SECRET, **scope, **more}


def cli(folder: Path, *args: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`pylb args` with `folder` as the home directory."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "LC_ALL": "C.UTF-8", "PYLB_CONFIG": ""} | (env or {})
    return subprocess.run(python("pylb", *args), check=False, env=environ, capture_output=True, text=True, timeout=40)


def fetch(
    address: tuple[str, int], method: str, path: str, body: str | None = None, headers: Mapping[str, str] | None = None
) -> Answer:
    connection = http.client.HTTPConnection(*address, timeout=10)
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        return Answer(response.status, response.read())
    finally:
        connection.close()


def converse(path: Path, text: str) -> str:
    """What a client of a unix socket that sends this, and ends its side, reads until the other end closes."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        sock.sendall(text.encode())
        sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(65536), b"")).decode()


def echo(sock: socket.socket, data: bytes = b"ping") -> bytes:
    """What comes back for `data`; shorter if the connection ends."""
    sock.sendall(data)
    got = b""
    while len(got) < len(data) and (more := sock.recv(len(data) - len(got))):
        got += more
    return got


def connected(pylb: Instance) -> socket.socket:
    """A client that its server has answered."""
    client = socket.create_connection(("127.0.0.1", pylb.port), 10)
    assert echo(client) == b"ping"
    return client
