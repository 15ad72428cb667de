"""The verbs (pylb/cli/main.py, pylb/api/verbs.py): what each says; exit 0 done, 1 the answer is no, 2 could not ask."""

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pylb.app.tokens import TOKEN_FILE
from pylb.config import default_state_dir
from pylb.web.control_client import call
from tests.app.instance import Instance, cli, token
from tests.support.processes import python

INC = """\
### >> Used to run mqtt:{port}
frontend {port}_frontend
  bind *:{port}
  mode tcp
  default_backend {port}_backend
backend {port}_backend
  mode tcp
  server s1 127.0.0.1:{target}
"""

# ------------------------------------------------------------ check


def test_check_of_a_good_config_is_0_and_counts_what_is_in_it(pylb: Instance) -> None:
    ended = pylb.ask("check")
    assert (ended.returncode, ended.stdout) == (0, f"{pylb.file}: ok (0 static frontends, 1 token)\n")
    assert "secret" in ended.stderr  # a warning is no failure


def test_check_of_a_bad_config_is_1_and_names_every_place(tmp_path: Path) -> None:
    file = tmp_path / "pylb.yaml"
    file.write_text("webhok: 3\nadmin: {listen: nowhere}\n")
    ended = cli(tmp_path, "check", "-c", str(file))
    assert ended.returncode == 1
    lines = ended.stderr.splitlines()
    assert lines[0] == f"{file}:1:1: error: unknown key 'webhok' (did you mean 'webhook'?)"
    assert lines[1].startswith(f"{file}:2:17: error: ")
    assert lines[2:] == ["2 mistakes"]
    found = json.loads(cli(tmp_path, "check", "-c", str(file), "--json").stdout)
    assert [(one["file"], one["line"], one["col"]) for one in found] == [(str(file), 1, 1), (str(file), 2, 17)]


def test_of_many_mistakes_check_prints_the_first_unless_all_are_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "pylb.yaml"
    file.write_text("".join(f"xyzzy{number}: 1\n" for number in range(50)))
    lines = cli(tmp_path, "check", "-c", str(file)).stderr.splitlines()
    assert len(lines) == 22
    assert lines[20:] == [f"{file}: and 30 more (pylb check --all)", "50 mistakes"]
    assert sum("known here: webhook, " in line for line in lines) == 1
    every = cli(tmp_path, "check", "--all", "-c", str(file)).stderr.splitlines()
    assert (len(every), every[-1]) == (51, "50 mistakes")
    assert sum("known here: webhook, " in line for line in every) == 50
    assert len(json.loads(cli(tmp_path, "check", "--json", "-c", str(file)).stdout)) == 50


def test_check_without_a_file_checks_the_embedded_defaults(tmp_path: Path) -> None:
    ended = cli(tmp_path, "check", "--json")
    assert (ended.returncode, ended.stdout) == (0, "[]\n")


# ------------------------------------------------------------ nobody to ask


@pytest.mark.parametrize("verb", [("routes",), ("routes", "--json"), ("release", "443")])
def test_without_a_running_pylb_a_question_is_2_and_names_the_socket(verb: tuple[str, ...], tmp_path: Path) -> None:
    ended = cli(tmp_path, *verb)
    socket = default_state_dir({"HOME": str(tmp_path)}) / "control.sock"
    text, hint = f"no pylb is running with {socket}", "start it, or name its config with -c"
    assert (ended.returncode, ended.stderr) == (2, f"{text} ({hint})\n")
    if "--json" in verb:
        assert json.loads(ended.stdout) == {"error": "unusable", "detail": text, "hint": hint, "exit_code": 2}
    else:
        assert ended.stdout == ""


def test_a_config_that_is_not_there_is_2_and_nobody_else_is_asked(tmp_path: Path) -> None:
    ended = cli(tmp_path, "routes", "-c", str(tmp_path / "missing.yaml"))
    assert ended.returncode == 2
    assert "missing.yaml: error: cannot be read: No such file" in ended.stderr


def test_misuse_is_2(tmp_path: Path) -> None:
    assert cli(tmp_path, "relaese").returncode == 2


# ------------------------------------------------------------ a running one


def test_routes_release_and_rejected_of_a_running_pylb(pylb: Instance, echo_port: int) -> None:
    pylb.start()
    assert pylb.ask("routes").stdout.startswith("no frontends")
    assert pylb.ask("routes", "--rejected").stdout == "no call was refused since pylb started\n"
    assert pylb.register(pylb.port, echo_port).status == 201
    assert pylb.register(80, echo_port).status == 403
    (row,) = pylb.routes()
    expected = {
        "port": pylb.port,
        "listen": f"127.0.0.1:{pylb.port}",
        "frontend": f"app-{pylb.port}",
        "unbound": None,
        "server": "one",
        "address": f"127.0.0.1:{echo_port}",
        "state": "up",
        "weight": 1,
        "held_by": ["app/app/one"],
        "lease_expires_in": None,
        "reachable": "yes",
        "accepts": "yes",
        "check": "yes",
        "why": "",
    }
    assert row.pop("asked_ago") >= 0
    assert row == expected
    (refused,) = json.loads(pylb.ask("routes", "--rejected", "--json").stdout)
    assert (refused["error"], refused["token"], refused["what"]) == ("port_forbidden", "app", "PUT app/one")

    ended = pylb.ask("release", "app/one")
    assert (ended.returncode, ended.stdout) == (0, "released app/app/one\n")
    assert "if its phone-home still runs, it registers again at its next call" in ended.stderr
    ended = pylb.ask("release", "app/one")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "nothing is registered as 'app/one'" in ended.stderr
    assert pylb.routes() == []


@pytest.mark.timeout(120)  # two dozen starts of the command
def test_a_server_is_drained_weighed_and_put_back_and_its_sessions_ended(pylb: Instance, echo_port: int) -> None:
    pylb.start()
    assert pylb.register(pylb.port, echo_port).status == 201
    name, where = f"app-{pylb.port}/one", f"127.0.0.1:{echo_port}"

    def row() -> tuple[str, int]:
        (found,) = pylb.routes()
        return found["state"], found["weight"]

    for verb, state in (("drain", ("drain", 0)), ("maint", ("maint", 0)), ("ready", ("up", 1))):
        said = pylb.ask("ctl", verb, "127.0.0.1" if verb == "drain" else f"{pylb.port}/{where}")
        assert (said.returncode, said.stdout) == (0, f"{verb}: {name} ({where})\n")
        assert row() == state
    assert json.loads(pylb.ask("ctl", "weight", name, "7", "--json").stdout) == [f"weight 7: {name} ({where})"]
    assert row() == ("up", 7)
    assert pylb.ask("ctl", "weight", name, "default").returncode == 0
    assert row() == ("up", 1)

    unknown = pylb.ask("ctl", "drain", "web/two")
    assert (unknown.returncode, unknown.stderr) == (1, f"no server is 'web/two' (there are {name})\n")
    assert pylb.ask("ctl", "weight", name, "257").returncode == 2

    with socket.create_connection(("127.0.0.1", pylb.port), timeout=10) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
        own = "{}:{}".format(*client.getsockname())
        (live,) = json.loads(pylb.ask("sessions", "--frontend", str(pylb.port), "--json").stdout)
        assert (live["client"], live["server"], live["state"]) == (own, "one", "relaying")
        assert own in pylb.ask("sessions").stdout
        assert pylb.ask("sessions", "--frontend", "other").stdout.count("\n") == 1
        moved = pylb.ask("ctl", "sessions", str(pylb.port), "--json")
        assert (moved.returncode, "`pylb sessions --frontend" in moved.stderr) == (2, True)
        ended = pylb.ask("ctl", "shutdown", "session", own)
        assert (ended.returncode, ended.stdout) == (0, f"reset: session {live['id']} of {own}\n")
        with pytest.raises(ConnectionResetError):
            client.recv(100)
    assert pylb.ask("ctl", "shutdown", "session", own).returncode == 1
    assert pylb.ask("ctl", "shutdown", "session", "nobody").returncode == 1
    with socket.create_connection(("127.0.0.1", pylb.port), timeout=10) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
        assert pylb.ask("ctl", "shutdown", "sessions", name).stdout == f"reset: 1 session of {name}\n"
        with pytest.raises(ConnectionResetError):
            client.recv(100)
    assert pylb.ask("ctl", "shutdown", "sessions", name).returncode == 1


def test_a_broken_file_does_not_hide_the_pylb_that_runs_with_it(pylb: Instance) -> None:
    pylb.start()
    with pylb.file.open("a") as file:
        file.write("\n]")
    ended = pylb.ask("routes")
    assert (ended.returncode, ended.stdout[:12]) == (0, "no frontends")
    assert f"asking the pylb that uses {pylb.state_dir}" in ended.stderr


def test_old_haproxy_files_become_registrations(pylb: Instance, echo_port: int, tmp_path: Path) -> None:
    folder = tmp_path / "haproxy"
    folder.mkdir()
    (folder / "1.inc").write_text(INC.format(port=pylb.port, target=echo_port))
    (folder / "2.inc").write_text("frontend 25_frontend\n")
    files = [str(path) for path in sorted(folder.iterdir())]
    shown = f"{pylb.port} -> 127.0.0.1:{echo_port} (mqtt)\n"

    dry = pylb.ask("import", "--token", "app", "--dry-run", *files)
    assert (dry.returncode, dry.stdout) == (0, shown)
    assert f"{files[1]}:1: " in dry.stderr

    assert pylb.ask("import", "--token", "app", *files).returncode == 2  # nobody is running yet
    pylb.start()
    done = pylb.ask("import", "--token", "app", *files)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "1 registration imported, 0 refused")
    (row,) = pylb.routes()
    assert (row["port"], row["held_by"]) == (pylb.port, ["app/mqtt (legacy)"])

    again = json.loads(pylb.ask("import", "--token", "app", "--json", *files).stdout)
    server = {"port": pylb.port, "address": f"127.0.0.1:{echo_port}", "name": "mqtt", "send_proxy": "none"}
    assert (again["servers"], again["lines"]) == ([server], [f"unchanged {pylb.port} -> 127.0.0.1:{echo_port}"])
    assert [(note["file"], note["line"]) for note in again["notes"]] == [(files[1], 1)]

    refused = pylb.ask("import", "--token", "nobody", "--json", *files)
    said = json.loads(refused.stdout)
    assert (refused.returncode, said["error"], said["detail"]) == (1, "refused", "0 registrations imported, 1 refused")
    assert "there is no token 'nobody'" in refused.stderr
    assert "there is no token 'nobody'" in said["lines"][0]
    assert pylb.ask("import", "--token", "app", files[1]).returncode == 1  # nothing to import


def test_the_control_socket_refuses_what_it_does_not_understand(pylb: Instance) -> None:
    pylb.start()
    path = pylb.state_dir / "control.sock"

    def error(request: dict[str, Any]) -> tuple[str, str]:
        answer = call(path, request)
        assert answer["ok"] is False
        return answer["error"], answer["detail"]

    assert error({"verb": "release"}) == ("invalid", "what: text is needed")
    assert error({"verb": "import", "items": 3})[0] == "invalid"
    assert error({"verb": "import", "items": [{"action": "add"}], "token": "app"})[0] == "invalid"
    item = {"dst-ip": "x", "frontend-port": str(pylb.port), "backend-port": "30000", "action": "add"}
    expected = "invalid", f"port {pylb.port}: dst-ip is not an IP address"
    assert error({"verb": "import", "items": [item], "token": "app"}) == expected
    assert error({"verb": "dance"})[0] == "not_found"
    assert call(path, {"verb": "ping"}) == {"ok": True, "generation": 0, "config": str(pylb.file)}


def test_reload_by_the_control_socket_tells_what_changed_or_every_mistake(pylb: Instance, echo_port: int) -> None:
    pylb.start()
    path = pylb.state_dir / "control.sock"
    static = {"name": "echo", "listen": f"127.0.0.1:{pylb.port}", "servers": [f"127.0.0.1:{echo_port}"]}
    pylb.configure(frontends=[static])
    lines = [f"reloaded {pylb.file}: opened 127.0.0.1:{pylb.port}", f"port {pylb.port} (echo) opened -> 127.0.0.1:{echo_port}"]
    assert call(path, {"verb": "reload"}) == {"ok": True, "opened": 1, "closed": 0, "changed": 0, "lines": lines}
    pylb.configure(frontends=[static | {"balance": "random"}], leases={"keep_stale": "8d"})
    ended = pylb.ask("reload")
    first, other, step = ended.stdout.splitlines()
    assert (ended.returncode, first) == (0, f"reloaded {pylb.file}: changed 127.0.0.1:{pylb.port}")
    assert other == "other settings changed: leases"
    assert step == f"port {pylb.port} (echo): other settings; live sessions: 0, untouched"
    assert "other settings changed: leases" in pylb.running.text()
    pylb.configure(
        frontends=[static | {"balance": "random"}],
        leases={"keep_stale": "8d"},
        tokens=[token(), token("more", secret="another-secret-of-22-chars")],
    )
    ended = pylb.ask("reload", "--json")
    assert json.loads(ended.stdout) == {
        "opened": 0,
        "closed": 0,
        "changed": 0,
        "lines": [f"reloaded {pylb.file}: nothing in the table changed", "other settings changed: tokens"],
    }
    pylb.configure(frontends=[static | {"balance": "fastest"}])
    answer = call(path, {"verb": "reload"})
    assert answer["error"] == "invalid"
    assert f"{pylb.file}:" in answer["detail"]
    ended = pylb.ask("reload")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"{pylb.file}:" in ended.stderr
    assert "fastest" in ended.stderr


# ------------------------------------------------------------ token


def test_each_new_token_is_another_strong_one(tmp_path: Path) -> None:
    first, second = (cli(tmp_path, "token").stdout.strip() for _ in range(2))
    assert len(first) == len(second) == 32
    assert first != second


def test_the_generated_token_can_be_shown_once_it_exists(tmp_path: Path) -> None:
    ended = cli(tmp_path, "token", "--show")
    assert ended.returncode == 2
    assert "(it is made by the first `pylb run`" in ended.stderr
    folder = default_state_dir({"HOME": str(tmp_path)})
    os.makedirs(folder)
    (folder / TOKEN_FILE).write_text("a-secret\n")
    assert cli(tmp_path, "token", "--show").stdout == "a-secret\n"


# ------------------------------------------------------------ demo


def test_the_demo_moves_the_app_and_loses_no_connection(tmp_path: Path) -> None:
    ended = cli(tmp_path, "demo", "--moves", "1", "--every", "0.3", env={"PYLB_NAME": "", "NAME": "of somebody else"})
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[5].startswith("moved to node B   node A served ")
    assert lines[-1].endswith(" connections, 0 failed")
    assert int(lines[-1].split()[0]) > 0


def test_a_demo_that_cannot_start_its_pylb_shows_why(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nif 'run' in sys.argv: sys.exit('no interpreter today')\n")
    ended = cli(tmp_path, "demo", "--moves", "0", env={"PYTHONPATH": str(tmp_path)})
    assert ended.returncode == 2
    assert "the demo did not run: pylb ended" in ended.stderr
    assert "no interpreter today" in ended.stderr


def test_a_verb_that_was_asked_for_json_says_no_in_json(pylb: Instance) -> None:
    gone = pylb.ask("routes", "--json")
    assert (gone.returncode, json.loads(gone.stdout)["error"]) == (2, "unusable")
    pylb.start()
    no = pylb.ask("release", "nobody", "--json")
    said = json.loads(no.stdout)
    assert (no.returncode, said["error"], "nobody" in said["detail"], bool(said["hint"])) == (1, "not_found", True, True)


@pytest.mark.parametrize("args", [("schema",), ("--help",), ("--version",), ("run", "--help")])
def test_a_full_disk_is_one_sentence(args: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(python("pylb", *args), check=False, stdout=full, stderr=subprocess.PIPE, text=True, timeout=40)
    assert (ended.returncode, ended.stderr) == (2, "the output could not be written: No space left on device\n")


def test_warnings_of_the_config_are_said_by_check_and_not_by_every_verb(pylb: Instance) -> None:
    pylb.start()
    assert "is in the config" in pylb.ask("check").stderr
    assert "is in the config" in pylb.ask("check", "--json").stderr
    for verb in ("routes", "status", "history"):
        assert "is in the config" not in pylb.ask(verb).stderr


def test_a_dry_run_of_an_import_knows_which_tokens_there_are(pylb: Instance, tmp_path: Path) -> None:
    file = tmp_path / "call.json"
    file.write_text(json.dumps({"frontend-port": "7001", "backend-port": "30443", "dst-ip": "203.0.113.7", "action": "add"}))
    pylb.start()
    ended = pylb.ask("import", "--token", "nobody", "--dry-run", str(file))
    assert (ended.returncode, "there is no token called 'nobody'" in ended.stderr) == (1, True)


def test_haproxys_statistics_are_where_they_are_asked_for(pylb: Instance) -> None:
    pylb.start()
    pylb.register(pylb.port, 30443)
    csv = pylb.get("/stats;csv")
    lines = csv.body.decode().splitlines()
    assert (csv.status, lines[0][:17]) == (200, "# pxname,svname,q")
    rows = pylb.runtime("show stat\n").rstrip("\n").splitlines()
    assert [line.split(",")[:2] for line in lines] == [row.split(",")[:2] for row in rows]
    assert pylb.get("/stats").status == 302
