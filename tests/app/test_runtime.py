"""The runtime socket as scripts use it: raw bytes on the socket, beside a real haproxy where the form is what matters."""

import csv
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pylb import __version__
from pylb.haproxy.translate import translate
from tests.app.conftest import echo_server
from tests.app.instance import Instance, echo
from tests.app.instance import converse as say
from tests.support.peers import need
from tests.support.ports import free_port
from tests.support.processes import Processes
from tests.support.waiting import eventually

# Keys of `show info` that pylb has nothing to say of, and says nothing.
UNKNOWN_KEYS = {"FailedResolutions"}  # pylb resolves with the system's resolver, and counts nothing of it
# Columns that haproxy fills for a TCP proxy and pylb does not: figures of haproxy's HTTP/1, HTTP/2 and TLS modules.
OF_MODULES = ("ssl_", "h1_", "h2_")


def rows(text: str) -> list[dict[str, str]]:
    """Of `show stat`."""
    lines = text.removeprefix("# ").strip().split("\n")
    return list(csv.DictReader(lines))


def row(found: list[dict[str, str]], proxy: str, service: str) -> dict[str, str]:
    [one] = [each for each in found if (each["pxname"], each["svname"]) == (proxy, service)]
    return one


def at_rest(*sockets: Path) -> tuple[str, ...] | None:
    """What all say to `show stat`; None while a server of one has just failed a check, as on a machine that is busy: its status
    counts then, and columns are filled that are empty elsewhere."""
    found = tuple(say(path, "show stat\n") for path in sockets)
    servers = [one for text in found for one in rows(text) if one["type"] == "2"]
    return (
        found
        if all((one["status"], one["last_chk"]) == ("UP", "") and "L4OK" in one["check_status"] for one in servers)
        else None
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runtime")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Processes]:
    with Processes(folder) as found:
        yield found


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of an echo server that all tests here use."""
    with echo_server() as found:
        yield found


@pytest.fixture(scope="module")
def haproxy(running: Processes, folder: Path, port: int) -> Path:
    """The socket of a real haproxy with one TCP proxy, whose server is checked and up."""
    path = folder / "real.sock"
    config = folder / "haproxy.cfg"
    config.write_text(
        f"global\n stats socket {path} mode 600 level admin\n"
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n"
        f"listen web\n bind 127.0.0.1:{free_port()}\n server one 127.0.0.1:{port} check inter 100ms\n"
    )
    running.start("haproxy", [need("haproxy"), "-db", "-f", str(config)])
    eventually(lambda: "L4OK" in say(path, "show stat\n"), what="haproxy has checked its server")
    return path


@pytest.fixture(scope="module", params=[0, 2], ids=["one process", "two workers"])
def web(request: pytest.FixtureRequest, running: Processes, folder: Path, port: int) -> Instance:
    """A pylb with the same proxy."""
    where = folder / f"with-{request.param}"
    where.mkdir()
    pylb = Instance(running, where)
    web = {"name": "web", "listen": f"127.0.0.1:{pylb.port}", "servers": [{"address": f"127.0.0.1:{port}", "weight": 3}]}
    defaults = {"health": {"mode": "active", "interval": "200ms"}, "timeouts": {"shutdown": "1s"}}
    pylb.configure(frontends=[web], workers=request.param, defaults=defaults)
    pylb.start()
    eventually(lambda: "L4OK" in say(pylb.state_dir / "haproxy.sock", "show stat\n"))
    return pylb


@pytest.fixture
def runtime(web: Instance) -> Path:
    return web.state_dir / "haproxy.sock"


def shown(web: Instance) -> Any:
    """Its one server, as /v1/table has it."""
    return web.get("/v1/table").json["frontends"][0]["servers"][0]


def test_show_stat_and_show_info_have_the_form_of_the_real_one(runtime: Path, haproxy: Path) -> None:
    theirs, ours = eventually(lambda: at_rest(haproxy, runtime), what="both have servers that passed their last check")
    assert ours.split("\n")[0] == theirs.split("\n")[0]
    assert ours[-2:] == theirs[-2:] == "\n\n"
    for service in ("FRONTEND", "BACKEND", None):
        their, our = (
            next(one for one in rows(text) if one["svname"] == service or (service is None and one["type"] == "2"))
            for text in (theirs, ours)
        )
        filled = {column for column, value in their.items() if value and not column.startswith(OF_MODULES)}
        assert {column for column in filled if not our[column]} == set(), service
        assert {our["pxname"], our["type"], our["mode"], our["status"]} == {"web", their["type"], "tcp", their["status"]}
    keys = [[line.partition(":")[0] for line in say(path, "show info\n").splitlines()] for path in (haproxy, runtime)]
    assert [key for key in keys[0] if key not in UNKNOWN_KEYS] == keys[1]
    state = [say(path, "show servers state\n").split("\n") for path in (haproxy, runtime)]
    assert state[0][:2] == state[1][:2]
    assert [len(lines[2].split()) for lines in state] == [25, 25]
    assert state[0][2].split()[5:7] == state[1][2].split()[5:7] == ["2", "0"]  # running, nothing forced
    assert state[0][2].split()[10:12] == state[1][2].split()[10:12]  # the last check, and its result


def test_the_same_mistakes_get_the_same_answers(runtime: Path, haproxy: Path, port: int) -> None:
    for line in (
        "set server web/x state maint",
        "set server x/one state maint",
        "set server web/{} state foo",
        "set server web/{} state",
        "set server web/{} weight 300",
        "set server web/{} weight x",
        "set server web/{} weight 3x",
        "set server web/{} weight -3%",
        "set server web/{} weight 3%%",
        "set server web/{} weight --5",
        "set server web/{} weight " + "9" * 400,
        "set weight web/{}",
        "set weight foo 1",
        "get weight web/x",
        "disable server web",
        "shutdown session",
        "shutdown session 0x123",
        "shutdown sessions server web/x",
        "show sess 0x1",
        "show servers state x",
        "show stat x -1 -1",
        "set timeout cli",
        "set timeout cli 5",
    ):
        label = f"127.0.0.1:{port}"
        theirs, ours = say(haproxy, line.format("one") + "\n"), say(runtime, line.format(label) + "\n")
        assert ours.strip() == theirs.strip(), line
        assert ours.endswith("\n"), line


def test_servers_are_changed_as_by_pylb_ctl(runtime: Path, web: Instance, port: int) -> None:
    server = f"web/127.0.0.1:{port}"
    assert say(runtime, f"get weight {server}\n") == "3 (initial 3)\n\n"
    assert say(runtime, f"set server {server} weight 7\n") == "\n"
    assert say(runtime, f"get weight {server}\n") == "7 (initial 3)\n\n"
    assert say(runtime, f"set weight {server} 200%;get weight web/127.0.0.1:{port}\n") == "\n6 (initial 3)\n\n"
    say(runtime, f"set server {server} state drain\n")
    assert shown(web)["state"] == "drain"
    assert row(rows(say(runtime, "show stat\n")), "web", f"127.0.0.1:{port}")["status"] == "DRAIN"
    say(runtime, f"disable server {server}\n")
    assert shown(web)["state"] == "maint"
    assert row(rows(say(runtime, "show stat up\n")), "web", "BACKEND")["status"] == "DOWN"
    assert len(rows(say(runtime, "show stat no-maint\n"))) == 2
    say(runtime, f"enable server {server};set weight {server} 100%\n")
    assert shown(web)["weight"] == 3
    assert "admin" in [event["kind"] for event in web.get("/v1/events").json["events"]]


def test_an_imported_server_has_the_name_that_commands_for_haproxy_take(pylb: Instance, port: int) -> None:
    bind, servers = f"127.0.0.1:{pylb.port}", [f"127.0.0.1:{port}", f"127.0.0.1:{free_port()}"]
    text = f"listen mqtt\n mode tcp\n bind {bind}\n server m1 {servers[0]}\n server m2 {servers[1]} backup\n"
    document = yaml.safe_load(translate([("haproxy.cfg", text)]).text)
    pylb.configure(frontends=document["frontends"])
    pylb.start()
    path = pylb.state_dir / "haproxy.sock"
    assert say(path, "set server mqtt/m1 state maint\n") == "\n"
    status = {one["svname"]: one["status"] for one in rows(say(path, "show stat mqtt 4 -1\n"))}
    assert status["m1"] == "MAINT"
    assert status["m2"] != "MAINT"


def test_sessions_are_shown_and_ended(runtime: Path, web: Instance, port: int) -> None:
    other = socket.create_connection(("127.0.0.1", web.port), timeout=10)
    with other, socket.create_connection(("127.0.0.1", web.port), timeout=10) as client:
        assert echo(other) == echo(client) == b"ping"
        client_port = client.getsockname()[1]
        [line] = [line for line in say(runtime, "show sess\n").splitlines() if f"src=127.0.0.1:{client_port} " in line]
        assert f" fe=web be=web srv=127.0.0.1:{port} " in line
        name = line.partition(":")[0]
        assert say(runtime, f"show sess {name}\n").startswith(f"{name}: proto=tcpv4 ")
        assert say(runtime, f"shutdown session {name}\n") == "\n"
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert echo(other) == b"ping"
        assert say(runtime, f"shutdown sessions server web/127.0.0.1:{port}\n") == "\n"
        with pytest.raises(ConnectionResetError):
            other.recv(1)
    eventually(lambda: say(runtime, "show sess\n") == "\n", what="no session is left")
    found = row(rows(say(runtime, "show stat\n")), "web", f"127.0.0.1:{port}")  # the only sessions it ever had
    assert (found["scur"], found["stot"], found["connect"], found["bin"], found["bout"]) == ("0", "2", "2", "12", "12")
    assert row(rows(say(runtime, "show stat web 1 -1\n")), "web", "FRONTEND")["conn_tot"] == "2"


def test_one_line_is_answered_and_the_connection_closed_unless_it_is_a_prompt(runtime: Path) -> None:
    assert say(runtime, "show version\n") == f"{__version__}\n\n"
    assert say(runtime, "show version;show backend\n") == f"{__version__}\n\n# name\nweb\n\n"
    assert say(runtime, "show version") == f"{__version__}\n\n"
    talk = say(runtime, "prompt\nshow version\n\nshow backend;show version\nquit\nshow version\n")
    assert talk == f"\n> {__version__}\n\n> \n> # name\nweb\n\n{__version__}\n\n> "
    assert say(runtime, "show nothing\n").startswith("Unknown command")
    assert "max_connections" in say(runtime, "set maxconn server web/x 5\n")
    assert "systemctl reload pylb" in say(runtime, "disable frontend web\n")
    assert "Prometheus" in say(runtime, "clear counters all\n")
    assert "  show stat" in say(runtime, "help show\n")
    assert "shutdown" not in say(runtime, "help show\n")
    assert say(runtime, "") == ""
