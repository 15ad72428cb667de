"""pylb as a service on a machine with systemd: installed by the commands of docs/install.md, and asked by systemctl."""

import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.load import Load
from tests.support.netns import LB, Namespace
from tests.support.processes import ROOT
from tests.support.waiting import eventually
from tests.system.machine import Machine

CONFIG = "/etc/pylb/pylb.yaml"
PORT = 8443
RATE = 100.0  # new connections a second
CLIENT_SECONDS = 60.0  # a client's patience; longer than any restart on a busy machine
SOURCE = (
    "pyproject.toml",
    "requirements.lock",
    "README.md",
    "LICENSE",
    "Makefile",
    "pylb",
    "phonehome",
    "deploy",
    "docs/pylb.1",
)
DROP_IN = "/etc/systemd/system/pylb.service.d/test.conf"
_PIP = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/srv/wheels"}  # the machine has no way out
_PIDS = "grep -ls /system.slice/pylb.service /proc/[0-9]*/cgroup | tr -dc '0-9\\n'"


def commands(page: str, holding: str) -> list[str]:
    """The lines of the one shell block of a page that holds this text, as root types them: without sudo and comments."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    [found] = [block for block in blocks if holding in block]
    lines = [line.partition("  #")[0].strip() for line in found.splitlines()]
    return [line.replace("sudo ", "") for line in lines if line and not line.startswith("#")]


def exchange(sock: socket.socket) -> bool:
    """The app's greeting, and an echo."""
    greeting = b""
    while not greeting.endswith(b"\n"):
        data = sock.recv(100)
        if not data:
            return False
        greeting += data
    sock.sendall(b"ping")
    return greeting.startswith(b"app ") and sock.recv(100) == b"ping"


class Service:
    def __init__(self, machine: Machine, client: Namespace) -> None:
        self.machine = machine
        self._client = client
        self.good = ""  # the version that was installed first

    # ------------------------------------------------------------ installing

    def checkout(self) -> None:
        """A clone in /srv/pylb after `make run`, and what pip would fetch in /srv/wheels."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        wheels = [sys.executable, "-m", "pip", "wheel", "-q", "-w", str(self.machine.file("/srv/wheels"))]
        for wanted in (["-r", str(ROOT / "requirements.lock")], [*project["build-system"]["requires"], "editables"]):
            done = subprocess.run([*wheels, *wanted], capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 0, done.stderr
        for name in SOURCE:
            source, to = ROOT / name, self.machine.file(f"/srv/pylb/{name}")
            to.parent.mkdir(exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, to, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, to)
        self.machine.sh("cd /srv/pylb && make .venv/.run PYTHON=python3", environ=_PIP)

    def do(self, line: str) -> str:
        """One command of a page, in the clone."""
        return self.machine.sh(f"cd /srv/pylb && {line}", environ=_PIP)

    def versions(self) -> list[str]:
        return self.machine.sh("ls /opt/pylb/versions").split()

    def use(self, version: str) -> None:
        self.machine.sh(f"ln -sfn versions/{version}/bin /opt/pylb/bin")

    def only_the_good_one(self) -> None:
        self.use(self.good)
        self.machine.sh(f"cd /opt/pylb/versions; for one in *; do [ $one = {self.good} ] || rm -rf $one; done")

    def edited(self, name: str, file: str, text: str, instead: str) -> None:
        """A copy of the good version, as another one, with `instead` in place of `text`."""
        old, new = f"/opt/pylb/versions/{self.good}", f"/opt/pylb/versions/{name}"
        self.machine.sh(f"cp -a {old} {new}; sed -i 's#{old}#{new}#' {new}/bin/pylb")
        [path] = self.machine.file(new).glob(f"lib/python3*/site-packages/{file}")
        found = path.read_text()
        assert text in found
        path.write_text(found.replace(text, instead))

    # ------------------------------------------------------------ systemd

    def show(self, key: str) -> str:
        return self.machine.run("systemctl", "show", "pylb", f"--property={key}", "--value").stdout.strip()

    @property
    def main(self) -> int:
        """Its pid in the machine."""
        return int(self.show("MainPID"))

    def pids(self) -> list[int]:
        """All processes of the unit's cgroup."""
        return sorted(int(pid) for pid in self.machine.sh(_PIDS, check=False).split())

    def systemctl(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.machine.run("systemctl", *words, check=check)

    def kill(self, number: int) -> float:
        """A signal to main alone, and when it was sent."""
        os.kill(self.machine.outside(self.main), number)
        return time.monotonic()

    def version(self) -> str:
        """Of the pylb that answers on the admin port."""
        with self.machine.network.inside():
            admin = http.client.HTTPConnection("127.0.0.1", 8404, timeout=CLIENT_SECONDS)
            admin.connect()
        admin.request("GET", "/metrics")
        found = re.search(r'pylb_build_info\{.*version="([^"]+)"', admin.getresponse().read().decode())
        admin.close()
        assert found
        return found[1]

    def upgrade(self) -> subprocess.CompletedProcess[str]:
        """To the version that counts now; asked with the good one's program, whatever the other one's can do."""
        program = f"/opt/pylb/versions/{self.good}/bin/pylb"
        return self.machine.run(program, "upgrade", "-c", CONFIG, check=False)

    def journal(self) -> str:
        return self.machine.run("journalctl", "--unit=pylb", "--no-pager", "--output=cat").stdout

    @contextmanager
    def with_settings(self, text: str) -> Iterator[None]:
        """As `systemctl edit` does it; in force from the next restart."""
        file = self.machine.file(DROP_IN)
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"[Service]\n{text}\n")
        self.systemctl("daemon-reload")
        try:
            yield
        finally:
            file.unlink()
            self.systemctl("daemon-reload")

    # ------------------------------------------------------------ clients

    def connect(self, port: int = PORT) -> socket.socket:
        with self._client.inside():
            return socket.create_connection((LB, port), timeout=CLIENT_SECONDS)

    def serves(self, port: int = PORT) -> bool:
        with self.connect(port) as sock:
            return exchange(sock)

    @contextmanager
    def under_load(self, what: str) -> Iterator[Load]:
        """A steady load of new connections; what became of them is printed (pytest -rP shows it)."""
        with Load((LB, PORT), RATE, exchange, at=self._client, timeout=CLIENT_SECONDS) as load:
            flows(load)
            yield load
            flows(load)
        print(f"{what}: {load.done} connections, {len(load.failed)} failed")  # noqa: T201 - the figures, for pytest -rP

    def alone(self, *others: int) -> None:
        """Waits until the unit's cgroup has its main process and nothing else."""

        def settled() -> bool:
            found: Sequence[int] = self.pids()
            assert found == sorted([self.main, *others]), found
            return True

        eventually(settled, within=60, what="main is alone in its cgroup")


def flows(load: Load) -> None:
    """Some more connections are over."""
    before = load.done
    eventually(lambda: load.done > before + 50, within=90, what="connections go on")


def config(service: Service) -> Path:
    return service.machine.file(CONFIG)
