"""The command `pylb import haproxy.cfg`, and that pylb serves what HAProxy served from the same file."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread

import pytest
import yaml

from tests.app.instance import cli
from tests.haproxy.test_translate import read
from tests.support.peers import need
from tests.support.ports import free_port
from tests.support.processes import Processes, python
from tests.support.waiting import eventually


def test_the_command_writes_only_what_is_the_same_unless_differences_are_accepted(tmp_path: Path) -> None:
    file = tmp_path / "haproxy.cfg"
    file.write_text("listen web\n  bind *:443\n  use_backend x if { src 10.0.0.1 }\n  server s1 192.0.2.7:30443\n")
    ended = cli(tmp_path, "import", str(file))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert (
        f"difference: {file}:3: use_backend x if {{ src 10.0.0.1 }}: HAProxy would send some connections to x" in ended.stderr
    )
    assert "1 difference: nothing was written" in ended.stderr
    accepted = cli(tmp_path, "import", "--accept-differences", str(file))
    assert accepted.returncode == 0
    assert yaml.safe_load(accepted.stdout)["frontends"][0]["listen"] == "0.0.0.0:443"
    assert "1 frontend translated, 1 difference, 0 notes" in accepted.stderr
    file.write_text("listen web\n  bind *:443\n  server s1 192.0.2.7:30443\n")
    assert cli(tmp_path, "import", str(file)).returncode == 0
    file.write_text("global\n")
    assert cli(tmp_path, "import", str(file)).returncode == 1


def test_a_program_reads_the_config_and_what_differs_as_json(tmp_path: Path) -> None:
    file = tmp_path / "haproxy.cfg"
    file.write_text("listen web\n  bind *:443\n  use_backend x if { src 10.0.0.1 }\n  server s1 192.0.2.7:30443\n")
    refused = cli(tmp_path, "import", "--json", str(file))
    said = json.loads(refused.stdout)
    assert (refused.returncode, said["error"], said["exit_code"]) == (1, "differs", 1)
    assert [(one["file"], one["line"]) for one in said["differences"]] == [(str(file), 3)]
    assert said["differences"][0]["message"] in refused.stderr
    accepted = cli(tmp_path, "import", "--json", "--accept-differences", str(file))
    found = json.loads(accepted.stdout)
    assert (accepted.returncode, found["frontends"], found["differences"]) == (0, 1, said["differences"])
    assert found["config"] == cli(tmp_path, "import", "--accept-differences", str(file)).stdout


def test_a_file_that_cannot_be_read_is_no_difference(tmp_path: Path) -> None:
    """It said "1 difference", and to change haproxy.cfg."""
    ended = cli(tmp_path, "import", "/dev/null")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("/dev/null: cannot be read: not a regular file\n1 file not read: nothing was written")
    assert "difference" not in ended.stderr


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as found:
        yield found


@pytest.mark.e2e
@pytest.mark.parametrize("silent", ["client 500ms\n timeout server 1h", "client 1h\n timeout server 500ms", "client 500ms"])
def test_a_silent_session_ends_by_the_shorter_timeout_as_with_haproxy(
    processes: Processes, tmp_path: Path, silent: str
) -> None:
    ports, target = [free_port(), free_port()], free_port()
    text = f"listen w\n bind 127.0.0.1:{ports[0]}\n timeout connect 9s\n timeout {silent}\n server s 127.0.0.1:{target}\n"
    (tmp_path / "haproxy.cfg").write_text(text)
    imported = read(text.replace(str(ports[0]), str(ports[1]))).text
    faces = {"webhook": {"listen": f"127.0.0.1:{free_port()}"}, "admin": {"listen": f"127.0.0.1:{free_port()}"}}
    (tmp_path / "pylb.yaml").write_text(yaml.safe_dump(faces | {"state_dir": str(tmp_path / "state")}) + imported)
    with ExitStack() as stack:
        server = stack.enter_context(ThreadingTCPServer(("127.0.0.1", target), ReadsToTheEnd))
        Thread(target=server.serve_forever, daemon=True).start()
        stack.callback(server.shutdown)
        processes.start("haproxy", [need("haproxy"), "-f", str(tmp_path / "haproxy.cfg"), "-db"])
        processes.start("pylb", python("pylb", "run", "-c", str(tmp_path / "pylb.yaml")))
        for port in ports:
            client = eventually(lambda port=port: _connected(port), what=f"port {port} is open")
            with client:
                client.settimeout(30)
                try:
                    assert client.recv(1) == b""
                except ConnectionResetError:
                    pass  # pylb resets a session that is silent for too long


class ReadsToTheEnd(StreamRequestHandler):
    def handle(self) -> None:
        self.rfile.read()


def _connected(port: int) -> socket.socket | None:
    try:
        return socket.create_connection(("127.0.0.1", port), timeout=5)
    except OSError:
        return None


@pytest.mark.e2e
def test_pylb_serves_what_haproxy_served_from_the_same_file(processes: Processes, tmp_path: Path) -> None:
    ports, target, dead = [free_port() for _ in range(3)], free_port(), free_port()
    haproxy, mqtt, ranged = ports
    text = (
        "defaults\n  mode tcp\n  timeout connect 2s\n  timeout client 1m\n  timeout server 1m\n  option redispatch\n"
        f"frontend first\n  bind 127.0.0.1:{haproxy}\n  default_backend apps\n"
        f"backend apps\n  balance first\n  server dead 127.0.0.1:{dead}\n  server live 127.0.0.1:{target}\n"
        f"listen mqtt\n  bind 127.0.0.1:{mqtt}\n  server live 127.0.0.1:{target} check backup\n"
        f"listen third\n  bind 127.0.0.1:{ranged}\n  server live 127.0.0.1:{target} send-proxy\n"
    )
    file = tmp_path / "haproxy.cfg"
    file.write_text(text)
    with ExitStack() as stack:
        app = stack.enter_context(socket.create_server(("127.0.0.1", target)))
        old = processes.start("haproxy", [need("haproxy"), "-f", str(file), "-db"])
        before = [_first_bytes(port, app) for port in ports]
        old.stop()
        ended = cli(tmp_path, "import", str(file))
        assert ended.returncode == 0, ended.stderr
        config = tmp_path / "pylb.yaml"
        faces = {"webhook": {"listen": f"127.0.0.1:{free_port()}"}, "admin": {"listen": f"127.0.0.1:{free_port()}"}}
        extra = yaml.safe_dump(faces | {"state_dir": "state"})
        config.write_text(extra + ended.stdout)
        processes.start("pylb", python("pylb", "run", "-c", str(config)))
        after = [_first_bytes(port, app) for port in ports]
    assert before[:2] == after[:2] == [b"hello", b"hello"]
    assert before[2].startswith(b"PROXY TCP4 127.0.0.1")
    assert after[2].startswith(b"PROXY TCP4 127.0.0.1")


def _first_bytes(port: int, app: socket.socket) -> bytes:
    """What the app gets when a client says hello at `port`. Until its first check has passed nobody is served."""

    def served() -> bytes | None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
                client.sendall(b"hello")
                while True:
                    session, _ = app.accept()
                    with session:
                        session.settimeout(5)
                        if first := session.recv(100):  # a health check says nothing
                            return first
        except (OSError, TimeoutError):
            return None  # it is starting

    app.settimeout(1)
    found = eventually(served, what=f"port {port} is served")
    assert found is not None
    return found
