"""The script that moves a floating address by a provider's API, against a stub of that API."""

import json
import os
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.support.peers import need
from tests.support.processes import ROOT

FOLDER = ROOT / "deploy" / "keepalived"
SCRIPT = FOLDER / "floating-address"


class Api(ThreadingHTTPServer):
    """Hetzner's, as far as the script needs it: the floating IP 7 is at `server`."""

    def __init__(self) -> None:
        self.server = 1
        self.refuse = 0  # so many calls
        self.calls: list[str] = []
        super().__init__(("127.0.0.1", 0), _Calls)


class _Calls(BaseHTTPRequestHandler):
    server: Api

    def _answer(self, status: int, body: object) -> None:
        text = json.dumps(body, indent=2).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _allowed(self) -> bool:
        self.server.calls.append(f"{self.command} {self.path}")
        if self.server.refuse:
            self.server.refuse -= 1
            self._answer(503, {})
            return False
        if self.headers["Authorization"] != "Bearer secret":
            self._answer(401, {})
            return False
        return True

    def do_GET(self) -> None:
        if self._allowed():
            self._answer(200, {"floating_ip": {"id": 7, "server": self.server.server, "ip": "127.0.0.1"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._allowed():
            self.server.server = body["server"]
            self._answer(201, {"action": {"status": "running"}})

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def api() -> Iterator[Api]:
    need("curl")
    with Api() as found:
        thread = Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def run(api: Api, folder: Path, *args: str, **settings: str) -> subprocess.CompletedProcess[str]:
    values = {"API": f"http://127.0.0.1:{api.server_port}", "TOKEN": "secret", "FLOATING_IP": "7", "SERVER": "42"}
    values |= {"ADDRESS": "127.0.0.1"} | settings
    file = folder / "env"
    file.write_text("".join(f"{key}={value}\n" for key, value in values.items()))
    environ = {"PATH": os.environ["PATH"], "ENV_FILE": str(file)}
    return subprocess.run([SCRIPT, *args], check=False, capture_output=True, text=True, env=environ, timeout=40)


GET, ASSIGN = "GET /floating_ips/7", "POST /floating_ips/7/actions/assign"


def test_the_master_gets_the_address_once(api: Api, tmp_path: Path) -> None:
    done = run(api, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "the floating IP 127.0.0.1 is given to this machine (server 42)\n"
    assert (api.server, api.calls) == (42, [GET, ASSIGN])
    again = run(api, tmp_path, "if-held")
    assert (again.returncode, again.stdout, api.calls[2:]) == (0, "", [GET])


def test_a_number_that_only_begins_like_its_own_is_another_machine(api: Api, tmp_path: Path) -> None:
    api.server = 421
    assert run(api, tmp_path).returncode == 0
    assert api.server == 42


def test_the_timer_asks_nobody_on_a_machine_without_the_address(api: Api, tmp_path: Path) -> None:
    done = run(api, tmp_path, "if-held", ADDRESS="192.0.2.99")
    assert (done.returncode, done.stdout, api.calls) == (0, "", [])


def test_a_call_that_fails_is_made_again_and_one_that_is_refused_is_a_failure(api: Api, tmp_path: Path) -> None:
    api.refuse = 1
    assert run(api, tmp_path).returncode == 0
    assert api.server == 42
    api.server = 1
    done = run(api, tmp_path, TOKEN="other")
    assert done.returncode != 0
    assert "401" in done.stderr
    assert "other" not in done.stderr
    assert api.server == 1


def test_a_missing_setting_is_named(api: Api, tmp_path: Path) -> None:
    done = run(api, tmp_path, SERVER="")
    assert done.returncode != 0
    assert "SERVER" in done.stderr
    assert api.calls == []


def test_systemd_finds_no_fault_in_the_timer() -> None:
    units = [str(FOLDER / f"floating-address.{kind}") for kind in ("timer", "service")]
    done = subprocess.run([need("systemd-analyze"), "verify", *units], check=False, capture_output=True, text=True, timeout=30)
    faults = [line for line in done.stderr.splitlines() if "floating-address" in line and "is not executable" not in line]
    assert faults == []
