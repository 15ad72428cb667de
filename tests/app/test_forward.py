"""`pylb run --listen PORT --to SERVER`: a forward without a config, and what it is found by."""

import json
import os
import signal
import socket
from pathlib import Path

import click
import pytest

from pylb.cli.forward import forwards, written
from pylb.config import default_state_dir, load, parse
from tests.app.instance import START_SECONDS, cli, echo, fetch
from tests.support.ports import free_port
from tests.support.processes import Process, Processes, python
from tests.support.waiting import eventually

# ------------------------------------------------------------ the words


@pytest.mark.parametrize(
    ("listens", "to", "expected"),
    [
        (["8443"], ["127.0.0.1:8000"], ["*:8443 -> 127.0.0.1:8000"]),
        ([":8443"], ["8000"], ["*:8443 -> 127.0.0.1:8000"]),
        (["127.0.0.1:8443"], ["app.example.net:80"], ["127.0.0.1:8443 -> app.example.net:80"]),
        (["[::1]:80"], ["[2001:db8::1]:80"], ["[::1]:80 -> [2001:db8::1]:80"]),
        (["80"], ["10.0.0.1:80,10.0.0.2:80"], ["*:80 -> 10.0.0.1:80, 10.0.0.2:80"]),
        (["80"], ["10.0.0.1:80", "10.0.0.2:80"], ["*:80 -> 10.0.0.1:80, 10.0.0.2:80"]),
        (["80", "443"], ["8080", "8443"], ["*:80 -> 127.0.0.1:8080", "*:443 -> 127.0.0.1:8443"]),
    ],
)
def test_each_port_goes_to_its_servers(listens: list[str], to: list[str], expected: list[str]) -> None:
    assert [str(one) for one in forwards(listens, to)] == expected


@pytest.mark.parametrize(
    ("listens", "to", "message"),
    [
        (["8443"], [], "a forward needs both: --listen 8443 --to 127.0.0.1:8000"),
        ([], ["8000"], "a forward needs both"),
        (["80", "443"], ["8080"], "2 --listen and 1 --to: each --listen needs its own --to, in the same order"),
        (["80", "80"], ["8080", "8081"], r"\*:80 is named twice"),
        (["http"], ["8080"], "'http' is not HOST:PORT: write a port, or ADDRESS:PORT"),
        (["65536"], ["8080"], r"'65536' is not a port \(1-65535\): write a port, or ADDRESS:PORT"),
        (["80-90"], ["8080"], "'80-90' is not HOST:PORT: .*several ports need a --listen and a --to each"),
        (["443/udp"], ["8080"], "'443/udp': without a config only TCP is forwarded: write one with `protocol: udp`"),
        (["80"], [""], "'' is not HOST:PORT: write a port of this machine, or HOST:PORT"),
        (["80"], ["10.0.0.1:80,"], "'' is not HOST:PORT: write a port of this machine, or HOST:PORT"),
        (["80"], ["10.0.0.1"], "'10.0.0.1' is not HOST:PORT: write a port of this machine, or HOST:PORT"),
        (["80"], ["70000"], r"'70000' is not a port \(1-65535\): "),
        (["80"], ["http://10.0.0.1:80/"], "'http://10.0.0.1:80/' is a URL"),
        (["80"], ["my_app:80"], "'my_app' is neither an IP address nor a host name"),
        (["80"], ["169.254.0.1:80"], "169.254.0.1 is link-local: never a server"),
    ],
)
def test_a_mistake_says_what_is_meant(listens: list[str], to: list[str], message: str) -> None:
    with pytest.raises(click.UsageError, match=message):
        forwards(listens, to)


def test_the_file_that_is_written_is_a_config_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    path = written(forwards(["127.0.0.1:8443", "127.0.0.2:8443", "80"], ["8000", "app.example.net:80", "8001,8002"]))
    assert path == default_state_dir({"HOME": str(tmp_path)}) / "forward-8443" / "pylb.yaml"
    config = load(path, {})
    assert (config.webhook, config.warnings, config.state_dir) == ((), (), path.parent)
    assert [(one.name, str(one.listen), len(one.servers)) for one in config.frontends] == [
        ("port-8443-127.0.0.1", "127.0.0.1:8443", 1),
        ("port-8443-127.0.0.2", "127.0.0.2:8443", 1),
        ("port-80", "*:80", 2),
    ]
    assert path.read_text().startswith("# Written anew by each `pylb run --listen 127.0.0.1:8443 --to 127.0.0.1:8000 --listen")


def test_the_admin_port_is_none_of_those_that_it_forwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    config = load(written(forwards(["8404", "8405"], ["8000", "8001"])), {})
    assert config.admin.listen.port > 8405


def test_a_config_without_a_webhook_needs_frontends() -> None:
    text = 'webhook: []\nfrontends: [{name: a, listen: "*:80", servers: ["10.0.0.1:80"]}]\n'
    assert parse(text, "pylb.yaml").webhook == ()


# ------------------------------------------------------------ one that runs


def started(processes: Processes, *args: str) -> Process:
    process = processes.start("forward", python("pylb", "run", *args))
    process.has_said("pylb is up", within=START_SECONDS)
    return process


def serves(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        return echo(sock) == b"ping"


def test_a_forward_serves_and_every_command_finds_it(processes: Processes, echo_port: int) -> None:
    port, dead = free_port(), free_port()
    process = started(processes, "--listen", f"127.0.0.1:{port}", "--to", f"{echo_port},{dead}")
    said = process.text()
    assert f"forwarding 127.0.0.1:{port} -> 127.0.0.1:{echo_port}, 127.0.0.1:{dead}\n" in said
    assert f"127.0.0.1:{dead} does not accept connections yet (refused): until it does, clients are reset\n" in said
    assert "pylb is up: no webhook, admin on http://127.0.0.1:84" in said
    assert "Try it here" not in said
    assert serves(port)
    folder = processes.folder
    assert str(port) in cli(folder, "routes").stdout
    assert "127.0.0.1" in cli(folder, "explain", str(port)).stdout

    again = cli(folder, "run", "--listen", f"127.0.0.2:{port}", "--to", str(echo_port))
    file = default_state_dir({"HOME": str(folder)}) / f"forward-{port}" / "pylb.yaml"
    assert (again.returncode, again.stderr) == (2, f"a forward of port {port} runs already: pylb status -c {file}\n")

    token = cli(folder, "token", "create", "app", "--ports", "443", "-c", str(file))
    no_webhook = "this config has no webhook, so nobody can register"
    assert (token.returncode, no_webhook in token.stderr) == (1, True)

    other = free_port()
    second = started(processes, "--listen", f"127.0.0.1:{other}", "--to", str(echo_port))
    assert serves(other)
    both = cli(folder, "routes")
    assert (both.returncode, "2 forwards run here, and one has to be named: -c " in both.stderr) == (2, True)
    assert str(port) in cli(folder, "routes", "-c", str(file)).stdout
    assert second.terminate() == 0
    assert process.terminate() == 0


def test_a_forward_is_upgraded_like_any_other(processes: Processes, echo_port: int, successors: list[int]) -> None:
    port = free_port()
    process = started(processes, "--listen", f"127.0.0.1:{port}", "--to", str(echo_port))
    admin = int(process.text().partition("admin on http://127.0.0.1:")[2].partition(",")[0])
    done = cli(processes.folder, "upgrade", "--json")
    assert done.returncode == 0, done.stderr
    successors.append(int(json.loads(done.stdout)["lines"][0].split()[1]))
    eventually(lambda: not process.alive, within=20, what="the old one has ended")
    assert serves(port)
    assert fetch(("127.0.0.1", admin), "GET", "/readyz").status == 200
    os.kill(successors[0], signal.SIGTERM)


def test_a_port_that_cannot_be_opened_ends_it_with_the_reason(tmp_path: Path, echo_port: int) -> None:
    """With a config it would start, serve the rest and try again; here there is no rest."""
    done = cli(tmp_path, "run", "--listen", f"127.0.0.1:{echo_port}", "--to", "8000")
    assert done.returncode == 2
    assert f"pylb did not start:\n127.0.0.1:{echo_port} cannot be opened: Address already in use. " in done.stderr
    assert f"(ss -ltnp 'sport = :{echo_port}' says who has it), or choose another port for --listen.\n" in done.stderr


def test_listen_and_a_config_exclude_each_other(tmp_path: Path) -> None:
    done = cli(tmp_path, "run", "-c", "pylb.yaml", "--listen", "80", "--to", "8080")
    assert (done.returncode, "--listen and --to are instead of -c" in done.stderr) == (2, True)
