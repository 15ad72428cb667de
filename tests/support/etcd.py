"""The real etcd, from Debian: members with ports, data and processes of their own."""

import base64
import json
import shutil
import signal
import ssl
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from tests.support.peers import need
from tests.support.ports import free_port
from tests.support.processes import Process, Processes
from tests.support.waiting import eventually


def b64(data: str) -> str:
    return base64.b64encode(data.encode()).decode()


class Member:
    """One etcd process. Ports and data outlive a restart."""

    def __init__(self, name: str, folder: Path, processes: Processes, options: Sequence[str] = (), url: str = "") -> None:
        self.name, self.options = name, options
        self.data = folder / name
        self.url, self.peer_url = url or f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
        self.tls: ssl.SSLContext | None = None
        self._processes = processes
        self.process: Process | None = None

    def start(self, cluster: Sequence["Member"] = ()) -> None:
        members = ",".join(f"{one.name}={one.peer_url}" for one in cluster or [self])
        self.process = self._processes.start(
            self.name,
            (
                *(need("etcd"), "--name", self.name, "--data-dir", str(self.data), "--logger", "zap"),
                *("--listen-client-urls", self.url, "--advertise-client-urls", self.url),
                *("--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url),
                *("--initial-cluster", members, "--heartbeat-interval", "50", "--election-timeout", "500"),
                *self.options,
            ),
        )

    def is_up(self) -> bool:
        """With a quorum."""
        answer: dict[str, Any] = json.loads(self._get("/health"))
        return answer["health"] == "true"

    def wait(self) -> None:
        eventually(self.is_up, within=20, what=f"{self.name} has a quorum")

    @property
    def running(self) -> Process:
        assert self.process is not None
        return self.process

    def freeze(self) -> None:
        self.running.signal(signal.SIGSTOP)

    def wake(self) -> None:
        self.running.signal(signal.SIGCONT)

    def kill(self) -> None:
        self.running.kill()

    def ask(self, path: str, body: dict[str, Any], token: str = "") -> dict[str, Any]:
        """A call of the gateway, by another client than ours."""
        headers = {"Authorization": token} if token else {}
        request = urllib.request.Request(f"{self.url}/v3/{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=10, context=self.tls) as response:
            answer: dict[str, Any] = json.loads(response.read())
        return answer

    def put(self, key: str, value: str) -> int:
        """Returns its revision."""
        return int(self.ask("kv/put", {"key": b64(key), "value": b64(value)})["header"]["revision"])

    def delete(self, key: str) -> None:
        self.ask("kv/deleterange", {"key": b64(key)})

    def compact(self) -> None:
        revision = self.ask("kv/range", {"key": b64("x")})["header"]["revision"]
        self.ask("kv/compaction", {"revision": revision, "physical": True})

    def add_root(self, password: str) -> None:
        """With it, every call needs a user."""
        self.ask("auth/user/add", {"name": "root", "password": password})
        self.ask("auth/role/add", {"name": "root"})
        self.ask("auth/user/grant", {"user": "root", "role": "root"})
        self.ask("auth/enable", {})

    def _get(self, path: str) -> bytes:
        try:
            with urllib.request.urlopen(self.url + path, timeout=3, context=self.tls) as response:
                answer: bytes = response.read()
                return answer
        except urllib.error.HTTPError as error:
            return error.read()


class Members:
    """Several members of one cluster, or one that is alone."""

    def __init__(self, number: int = 1, options: Sequence[str] = ()) -> None:
        need("etcd")
        self._folder = Path(tempfile.mkdtemp(prefix="pylb-etcd-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self._processes = Processes(self._folder)
        self.all = [Member(f"etcd{one}", self._folder, self._processes, options) for one in range(number)]

    def __enter__(self) -> Self:
        for one in self.all:
            one.start(self.all)
        try:
            for one in self.all:
                one.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.all:
            if one.process is not None and one.process.alive:
                one.wake()
        self._processes.stop()
        shutil.rmtree(self._folder)

    @property
    def urls(self) -> list[str]:
        return [one.url for one in self.all]


@contextmanager
def one_member(*options: str) -> Iterator[Member]:
    with Members(1, options) as members:
        yield members.all[0]
