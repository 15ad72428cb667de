"""A real `python -m pylb run -c FILE` on loopback, and the callers and nodes around it.

Every address of 127.0.0.0/8 is a machine of its own here: a phone-home calls from 127.0.0.7, and its NodePort is there.
"""

import http.client
import json
import signal
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.ports import free_port
from tests.support.processes import EndedError, Process, Processes, python
from tests.support.waiting import eventually

START_SECONDS = 15.0
ANSWER_SECONDS = 10.0


def secret(name: str) -> str:
    return f"{name}-secret-of-32-characters-xxxxxxxxx"


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def error(self) -> str:
        """The `error` of a refusal, whose three keys are checked on the way; `port` is there if it is about one."""
        found = self.json
        assert set(found) - {"port"} == {"error", "detail", "hint"}, found
        assert all(isinstance(each, str) for each in found.values()), found
        code: str = found["error"]
        return code


class Pylb:
    """Its config is a dict (JSON is YAML); `start` returns once /readyz is 200."""

    def __init__(self, processes: Processes, folder: Path, **sections: Any) -> None:
        self.processes, self.folder = processes, folder
        self.file, self.state_dir = folder / "pylb.yaml", folder / "state"
        self.webhook, self.admin = free_port(), free_port()
        self.process: Process | None = None
        self.sections = sections
        self.configure()

    def configure(self, **sections: Any) -> None:
        self.sections |= sections
        config: dict[str, Any] = {
            "webhook": {"listen": f"127.0.0.1:{self.webhook}"},
            "admin": {"listen": f"127.0.0.1:{self.admin}"},
            "state_dir": str(self.state_dir),
            "defaults": {"timeouts": {"shutdown": "500ms", "connect": "1s"}},
            "tokens": [token("app"), token("other")],
        }
        self.file.write_text(json.dumps(config | self.sections, indent=1))

    # ------------------------------------------------------------ the process

    def start(self, *prefix: str, within: float = START_SECONDS) -> "Pylb":
        """`prefix`: words before the command, such as prlimit's."""
        process = self.process = self.processes.start("pylb", (*prefix, *python("pylb", "run", "-c", str(self.file))))

        def ready() -> bool:
            if not process.alive:
                raise EndedError(f"pylb ended with {process.wait()}:\n{process.text()}")
            return self.get("/readyz").status == 200

        eventually(ready, within=within, what="/readyz is 200")
        return self

    @property
    def running(self) -> Process:
        assert self.process is not None
        return self.process

    def reload(self, says: str = "") -> None:
        """SIGHUP; returns once the log has more to say (and holds `says`)."""
        before = len(self.running.text())
        self.running.signal(signal.SIGHUP)
        eventually(lambda: "reload" in self.running.text()[before:].lower(), what=f"a reload\n{self.running.text()}")
        assert says in self.running.text()[before:]

    def cli(self, verb: str, *args: str) -> subprocess.CompletedProcess[str]:
        return cli(self.folder, verb, "-c", str(self.file), *args)

    # ------------------------------------------------------------ its faces

    def get(self, path: str, **headers: str) -> Answer:
        return call(self.admin, "GET", path, headers=headers)

    def put(self, who: str, body: Any, *, by: str = "app", source: str = "127.0.0.1") -> Answer:
        """PUT /v1/registrations/{who}; `body` as an object or as bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return call(
            self.webhook, "PUT", f"/v1/registrations/{who}", data, {"Authorization": f"Bearer {secret(by)}"}, source=source
        )

    def delete(self, who: str, *, by: str = "app", source: str = "127.0.0.1") -> Answer:
        headers = {"Authorization": f"Bearer {secret(by)}"}
        return call(self.webhook, "DELETE", f"/v1/registrations/{who}", None, headers, source=source)

    def hook(self, body: Any, *, secret: str | None, source: str = "127.0.0.1", method: str = "POST") -> Answer:
        """The legacy route, as the shell client's curl calls it."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | ({} if secret is None else {"X-Funkypenguin-Token": secret})
        return call(self.webhook, method, "/hooks/update-haproxy", data if method == "POST" else None, headers, source=source)

    def metrics(self) -> list[tuple[str, dict[str, str], float]]:
        """(name, labels, value) of every sample."""
        from prometheus_client.parser import text_string_to_metric_families

        families = text_string_to_metric_families(self.get("/metrics").text)
        return [(each.name, each.labels, each.value) for family in families for each in family.samples]

    def registrations(self) -> dict[str, Any]:
        """By name/instance."""
        return {f"{each['name']}/{each['instance']}": each for each in self.get("/v1/registrations").json["registrations"]}


def token(name: str, **more: Any) -> dict[str, Any]:
    """A line of `tokens:` that may register any name, on the ports of the tests, at any loopback address."""
    scope = {"names": ["*"], "ports": ["20000-29999"], "targets": ["127.0.0.0/8"], "target_ports": ["1-65535"]}
    return {"name": name, "secret": secret(name), **scope, **more}


def cli(folder: Path, *args: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`pylb args` to its end, `folder` being the home directory."""
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "LC_ALL": "C.UTF-8", "PYLB_CONFIG": ""} | dict(env or {})
    return subprocess.run(python("pylb", *args), env=environ, capture_output=True, text=True, timeout=30, check=False)


def call(
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    source: str = "127.0.0.1",
) -> Answer:
    """One HTTP request to 127.0.0.1, called from the address `source`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS, source_address=(source, 0))
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        return Answer(response.status, dict(response.headers), response.read())
    finally:
        connection.close()


def raw(port: int, request: bytes) -> bytes:
    """What the server says to these exact bytes until it closes."""
    with socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS) as sock:
        sock.sendall(request)
        got = b""
        while data := sock.recv(65536):
            got += data
        return got


def wants(*ports: tuple[int, int], **more: Any) -> dict[str, Any]:
    """A native body for (port, target_port) pairs."""
    return {"frontends": [{"port": port, "target_port": target} for port, target in ports], **more}


# ---------------------------------------------------------------- the apps


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.server.met += 1  # type: ignore[attr-defined]
        try:
            self.request.sendall(self.server.banner)  # type: ignore[attr-defined]
            while data := self.request.recv(65536):
                self.request.sendall(data)
        except OSError:
            pass  # the test has ended


class App(socketserver.ThreadingTCPServer):
    """Says `NAME\\n` to whoever connects, then echoes."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128  # the default of 5 drops connections of a load

    def __init__(self, name: str, ip: str, port: int) -> None:
        self.banner = f"{name}\n".encode()
        self.met = 0  # connections
        super().__init__((ip, port), _Handler)


@contextmanager
def serving(name: str, port: int, ip: str = "127.0.0.1") -> Iterator[App]:
    with App(name, ip, port) as app:
        thread = threading.Thread(target=app.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield app
        finally:
            app.shutdown()
            thread.join()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS)


def banner(sock: socket.socket) -> str:
    """The name of the app that answers; empty if the connection ends instead."""
    got = b""
    try:
        while not got.endswith(b"\n") and (data := sock.recv(1)):
            got += data
    except ConnectionResetError:
        return ""
    return got.decode().strip()


def answers(port: int) -> str:
    """Who answers a new connection to the port."""
    with connect(port) as sock:
        return banner(sock)


def echoes(sock: socket.socket, data: bytes = b"ping") -> bool:
    sock.sendall(data)
    got = b""
    while len(got) < len(data) and (more := sock.recv(len(data) - len(got))):
        got += more
    return got == data


def is_open(port: int) -> bool:
    try:
        connect(port).close()
    except ConnectionRefusedError:
        return False
    except ConnectionResetError:
        pass  # accepted, and reset at once for want of a server
    return True


def split(said: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (lower case) and the rest of a raw HTTP answer."""
    head, _, body = said.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    status = int(lines[0].split()[1])
    return status, {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}, body
