"""Completion: what a shell shows on Tab comes from the running pylb, and from nobody where it is away."""

import os
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pylb.api import completion
from pylb.control.sharing import MemberView
from pylb.core.address import Listen
from pylb.web.control_client import call
from tests.app.instance import Instance, cli, echo
from tests.support.peers import need
from tests.support.ports import free_port
from tests.support.processes import ROOT, python


def offered(line: str, folder: Path, breaks: str = "", config: Path | None = None) -> list[str]:
    """What bash's function gets for this line."""
    environ = {"_PYLB_COMPLETE": "bash_complete", "COMP_LINE": line, "COMP_BREAKS": breaks, "PYLB_CONFIG": str(config or "")}
    done = cli(folder, env=environ)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.fixture
def busy(pylb: Instance, echo_port: int) -> Instance:
    """With a static frontend called web, a registration of the token app."""
    pylb.configure(frontends=[{"name": "web", "listen": f"127.0.0.1:{free_port()}", "servers": [f"127.0.0.1:{echo_port}"]}])
    pylb.start()
    assert pylb.register(pylb.port, echo_port).status == 201
    return pylb


def test_operands_are_completed_with_ports_names_and_ids_of_the_running_pylb(busy: Instance, echo_port: int) -> None:
    port = str(busy.port)

    def on_tab(line: str) -> list[str]:
        return offered(line, busy.folder, config=busy.file)

    assert f"plain,{port}" in on_tab(f"pylb explain {port[:3]}")
    assert on_tab("pylb explain we") == ["plain,web"]
    assert on_tab("pylb release app/") == ["plain,app/one"]
    assert on_tab("pylb ctl drain web/") == [f"plain,web/127.0.0.1:{echo_port}"]
    assert on_tab("pylb ctl drain 127") == ["plain,127.0.0.1"]
    assert on_tab("pylb token rotate ") == ["plain,app"]
    assert on_tab("pylb sessions --frontend w") == ["plain,web"]
    assert on_tab("pylb ctl weight web/x d") == ["plain,default"]
    assert on_tab("pylb ctl shutdown session ") == []
    assert offered(f"pylb explain -c {busy.file} we", busy.folder) == ["plain,web"]  # by -c as well
    assert offered(f"pylb token -c {busy.file} rotate a", busy.folder) == ["plain,app"]


def test_what_is_not_a_question_for_words_is_refused(busy: Instance) -> None:
    for wrong in ({}, {"kinds": "port", "prefix": ""}, {"kinds": [1], "prefix": ""}, {"kinds": ["nonsense"], "prefix": ""}):
        answer = call(busy.state_dir / "control.sock", {"verb": "complete"} | wrong)
        assert (answer["ok"], answer["error"]) == (False, "invalid")


def test_a_live_session_is_completed_by_its_id(busy: Instance) -> None:
    with socket.create_connection(("127.0.0.1", busy.port), timeout=10) as client:
        echo(client)
        found = offered("pylb explain 0x", busy.folder, config=busy.file)
        assert [word[:8] for word in found] == ["plain,0x"]
        assert found == offered("pylb ctl shutdown session ", busy.folder, config=busy.file)


def test_verbs_and_options_are_completed_without_a_pylb_and_the_rest_is_silence(tmp_path: Path) -> None:
    assert offered("pylb rou", tmp_path) == ["plain,routes"]
    assert offered("pylb routes --rej", tmp_path) == ["plain,--rejected"]
    assert offered("pylb completion z", tmp_path) == ["plain,zsh"]
    assert offered("pylb routes -c py", tmp_path) == ["file,py"]
    assert offered("pylb explain 4", tmp_path) == []
    assert offered("pylb explain 4", tmp_path, config=tmp_path / "missing.yaml") == []
    (tmp_path / "broken.yaml").write_text("state_dir: [\n")
    assert offered("pylb ctl drain ", tmp_path, config=tmp_path / "broken.yaml") == []
    assert offered("pylb restart ", tmp_path) == offered("pylb xyzzy ", tmp_path)  # whatever pylb says of it if it is run


def test_in_a_real_bash_a_word_with_a_colon_is_completed_from_the_colon_on(busy: Instance, echo_port: int) -> None:
    """bash takes what is behind the last colon for the word, see COMP_WORDBREAKS."""
    script = subprocess.run(python("pylb", "completion", "bash"), check=True, capture_output=True, text=True, cwd=ROOT).stdout
    program = busy.folder / "pylb"
    program.write_text(f'#!/bin/sh\nexec {" ".join(python("pylb"))} "$@"\n')
    program.chmod(0o755)
    line = f"pylb ctl drain web/127.0.0.1:{str(echo_port)[:1]} and more"
    asked = f"COMP_LINE={line!r} COMP_POINT={len(line) - 9}; _pylb_completion pylb; printf '%s|' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(
        ["bash", "--norc", "-c", f"{script}\n{asked}"],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": f"{busy.folder}:{os.environ['PATH']}", "HOME": str(busy.folder), "PYLB_CONFIG": str(busy.file)},
        timeout=30,
    )
    assert (done.stdout, done.stderr) == (f"{echo_port}|", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one_that_the_shell_can_read(shell: str, tmp_path: Path) -> None:
    file = tmp_path / "script"
    file.write_text(cli(tmp_path, "completion", shell).stdout)
    assert "_PYLB_COMPLETE" in file.read_text()
    done = subprocess.run([need(shell), "-n", str(file)], check=False, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")


async def test_names_of_routes_and_balancers_that_may_be_forgotten_are_words_too() -> None:
    listens = [Listen("tcp", "*", 443), Listen("tcp", "*", 443)._replace(server_name="git.example.net")]
    frontends = {one: SimpleNamespace(name="web", listen=one, servers=()) for one in listens}
    members = [MemberView("lb-a", True, True, 1, 1, False), MemberView("lb-b", False, False, 1, 1, True)]
    sharing = SimpleNamespace(view=lambda: SimpleNamespace(members=members))
    registry: Any = SimpleNamespace(table=SimpleNamespace(frontends=frontends), sharing=sharing)
    assert await completion.words(registry, (), (), ["server_name"], "git") == [("git.example.net", "port 443")]
    assert await completion.words(registry, (), (), ["balancer"], "") == [("lb-b", "away")]
    registry.sharing = None
    assert await completion.words(registry, (), (), ["balancer"], "") == []


async def test_the_words_of_thousands_of_frontends_are_never_sorted_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It happens on the loop that forwards."""
    ports = [*range(30000, 20000, -1)]
    listens = [Listen("tcp", "*", port) for port in ports]
    frontends = {one: SimpleNamespace(name=f"app-{one.port}", listen=one, servers=()) for one in listens}
    registry: Any = SimpleNamespace(table=SimpleNamespace(frontends=frontends))
    sizes, sort = [], completion._first

    def counting(found: Mapping[str, str]) -> list[tuple[str, str]]:
        sizes.append(len(found))
        return sort(found)

    monkeypatch.setattr(completion, "_first", counting)
    found = await completion.words(registry, (), (), ["port", "frontend"], "")
    assert [word for word, _ in found] == [str(port) for port in sorted(ports)[: completion.MOST]]
    assert max(sizes) <= 5 * completion.MOST
