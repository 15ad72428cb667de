"""Whatever is in the place of a file of the state directory: pylb starts, every port serves, and the loss is said."""

import json
import os
import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.app.instance import Answer, Instance, echo, fetch
from tests.support.peers import need_root
from tests.support.ports import free_port
from tests.support.processes import Processes
from tests.support.waiting import eventually

# What a pylb that has run leaves there. Sockets and what a `pylb token create` makes included.

FILES = (
    "state.json",
    "state.json.previous",
    "history.jsonl",
    "processes",
    "lock",
    "token",
    "tokens/made",
    "config.last-good",
    "tls/cert.pem",
    "tls/key.pem",
    "control.sock",
    "haproxy.sock",
    "tokens",
    "tls",
)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _deep(path: Path) -> None:
    path.write_bytes(b"[" * 200_000)


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(65 << 20)


def _dangling(path: Path) -> None:
    path.symlink_to("/nonexistent/place")


def _elsewhere(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def _full_directory(path: Path) -> None:
    path.mkdir()
    (path / "something").write_text("x")


KINDS: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.with_name("before").read_bytes()[:-7]),
    "NaN": lambda path: path.write_bytes(b'{"version":1,"sha256":"","payload":{"generation":NaN},"name":NaN}\n'),
    "1e999": lambda path: path.write_bytes(b'{"generation":1e999,"time":1e999,"by":[],"lines":[]}\n'),
    "digits": lambda path: path.write_bytes(b"9" * 5000 + b" 1\n"),
    "deep nesting": _deep,
    "huge": _huge,
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 100),
    "not UTF-8": lambda path: path.write_bytes(b"\xff" + path.with_name("before").read_bytes()),
    "a directory": lambda path: path.mkdir(),
    "a directory with something in it": _full_directory,
    "a FIFO": _fifo,
    "a dangling symlink": _dangling,
    "a symlink to something else": _elsewhere,
}


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with all of it, of a pylb that was killed: to be copied."""
    folder = tmp_path_factory.mktemp("used")
    with Processes(folder) as processes:
        pylb = Instance(processes, folder)
        configure(pylb, free_port())  # the port is of no use here
        pylb.start()
        made = pylb.ask("token", "create", "made", "--ports", "20000-29999", "--targets", "127.0.0.0/8")
        assert made.returncode == 0, made.stderr
        for instance in ("one", "two"):  # a .previous too
            assert register(pylb, instance).status == 201
        eventually((pylb.state_dir / "history.jsonl").exists, what="the history is there")
        pylb.running.kill()
    assert {name for name in FILES if not os.path.lexists(pylb.state_dir / name)} == set()
    return pylb.state_dir


REGISTERED = free_port()  # held by the state that all tests start with


def configure(pylb: Instance, target: int) -> None:
    """A static frontend, self-signed TLS and plain HTTP, and the token of the first run."""
    webhook = [
        {"listen": f"127.0.0.1:{pylb.webhook}", "insecure": True},
        {"listen": f"127.0.0.1:{free_port()}", "tls": "self-signed"},
    ]
    static = {"name": "web", "listen": f"127.0.0.1:{pylb.port}", "servers": [f"127.0.0.1:{target}"]}
    pylb.configure(webhook=webhook, tokens=None, frontends=[static])


def register(pylb: Instance, instance: str) -> Answer:
    """With the secret of the first run."""
    secret = (pylb.state_dir / "token").read_text().strip()
    body = {"frontends": [{"port": REGISTERED, "target_port": 1}], "ttl": None, "address": "127.0.0.1"}
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
    return fetch(("127.0.0.1", pylb.webhook), "PUT", f"/v1/registrations/app/{instance}", json.dumps(body), headers)


def spoil(path: Path, kind: str) -> None:
    """`kind` in place of what is there; what KINDS needs of it is beside it meanwhile."""
    before = path.with_name("before")
    if path.is_file():
        shutil.copy(path, before)
    else:
        before.write_bytes(b"0123456789")
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    KINDS[kind](path)
    before.unlink()


DIRECTORIES = ("tokens", "tls")


@pytest.mark.parametrize("kind", KINDS)
def test_garbage_in_place_of_all_files_ends_no_start(used: Path, pylb: Instance, echo_port: int, kind: str) -> None:
    configure(pylb, echo_port)
    starts(pylb, used, [name for name in FILES if name not in DIRECTORIES], kind)


@pytest.mark.parametrize("kind", KINDS)
def test_garbage_in_place_of_directories_ends_no_start(used: Path, pylb: Instance, echo_port: int, kind: str) -> None:
    configure(pylb, echo_port)
    starts(pylb, used, DIRECTORIES, kind)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_garbage_in_place_of_any_one_file_ends_no_start(used: Path, pylb: Instance, echo_port: int, kind: str) -> None:
    configure(pylb, echo_port)
    for name in FILES:
        starts(pylb, used, [name], kind)


# What an operator must know of: registrations and the pinned key are gone.
LOSSES = {"state.json": "state.json is not usable: ", "tls/cert.pem": "the webhook's own certificate cannot be used: "}


def starts(pylb: Instance, used: Path, names: Sequence[str], kind: str) -> None:
    shutil.rmtree(pylb.state_dir, ignore_errors=True)
    shutil.copytree(used, pylb.state_dir, ignore=lambda _folder, found: [one for one in found if one.endswith(".sock")])
    for sock in ("control.sock", "haproxy.sock"):
        (pylb.state_dir / sock).touch()
    for name in names:
        spoil(pylb.state_dir / name, kind)
    process = pylb.start()
    visit(pylb)
    eventually(lambda: register(pylb, "again").status in (200, 201), what=f"{names}: {kind}\n{process.text()}")
    assert "Traceback" not in process.text()
    for name, said in LOSSES.items():
        if name in names:
            eventually(lambda said=said: said in process.text(), what=f"{name}: {kind} is in the log")  # type: ignore[misc]
    assert process.terminate() == 0
    again = pylb.start()  # and what it wrote is no garbage
    visit(pylb)
    assert "not usable" not in again.text()
    assert again.terminate() == 0


def visit(pylb: Instance) -> None:
    with socket.create_connection(("127.0.0.1", pylb.port), 5) as client:
        assert echo(client) == b"ping"


def test_files_that_nobody_may_read_end_no_start(used: Path, pylb: Instance, echo_port: int) -> None:
    need_root()  # who may read everything; so pylb has to do without the right to
    configure(pylb, echo_port)
    shutil.copytree(used, pylb.state_dir, ignore=lambda _folder, found: [one for one in found if one.endswith(".sock")])
    for path in pylb.state_dir.rglob("*"):
        if path.is_file():
            path.chmod(0)
    without = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")
    process = pylb.start(argv=(*without, *pylb.command("run")))
    visit(pylb)
    process.has_said("state.json is not usable: [Errno 13] Permission denied")
    assert process.terminate() == 0


def test_a_byte_that_is_not_utf8_in_the_token_of_a_running_pylb_changes_nothing(pylb: Instance, echo_port: int) -> None:
    configure(pylb, echo_port)
    pylb.start()
    path = pylb.state_dir / "token"
    secret = path.read_bytes()
    with socket.create_connection(("127.0.0.1", pylb.port), 5) as session:
        assert echo(session) == b"ping"
        path.write_bytes(b"\xff" + secret)
        pylb.running.has_said("its secret stays as it was")
        assert echo(session) == b"ping"
    path.write_bytes(secret)
    assert register(pylb, "again").status == 201
