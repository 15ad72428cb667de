"""What all verbs have in common: how they end when something is in the way, and that --help has them."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from pylb.cli.main import SECTIONS, main
from pylb.cli.program import Verbs
from tests.cli.every_verb import verbs, with_option
from tests.support.processes import ROOT


def every_verb(folder: Path, *circumstance: str) -> dict[str, Any]:
    """What tests/cli/every_verb.py says, in a folder with a pylb.yaml whose state directory is there too."""
    (folder / "pylb.yaml").write_text("state_dir: state\n")
    (folder / "haproxy.cfg").write_text(
        "listen web\n  bind *:443\n  use_backend x if { src 10.0.0.1 }\n  server s1 192.0.2.7:30443\n"
    )
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "STATE_DIRECTORY": str(folder / "state"), "PYTHONPATH": str(ROOT)}
    environ["PYLB_CONFIG"] = ""  # never the config of a service of this machine
    done = subprocess.run(
        [sys.executable, "-m", "tests.cli.every_verb", *circumstance],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env=environ,
        timeout=50,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    assert len(found) > 10
    return found


def test_a_full_disk_is_one_sentence_whatever_is_asked(tmp_path: Path) -> None:
    sentence = "the output could not be written: No space left on device\n"
    for verb, ended in every_verb(tmp_path, "full").items():
        assert (verb, ended["code"], ended["stderr"]) == (verb, 2, sentence)


def test_a_reader_that_has_left_ends_a_verb_without_a_word(tmp_path: Path) -> None:
    for verb, ended in every_verb(tmp_path, "left").items():
        assert (verb, ended["code"], ended["stderr"]) == (verb, 1, "")


def test_ctrl_c_while_pylb_does_not_answer_is_no_traceback(tmp_path: Path) -> None:
    for verb, ended in every_verb(tmp_path, "interrupted").items():
        assert (verb, ended["code"], ended["stderr"].strip()) == (verb, 130, "")


FAILURE = {"error", "detail", "hint", "exit_code"}
ANSWERS = (  # need no running pylb
    "check",
    "doctor",
    "install-service",
    *(f"token {verb}" for verb in ("create", "list", "revoke", "rotate", "switch-key")),
)
ALSO = {"import": {"differences", "notes", "unread"}}  # what a failure says besides
WITHOUT = {
    ("run",): "serves until it ends, and logs as log.format says",
    ("demo",): "is for people to watch",
    ("schema",): "is JSON",
    ("completion",): "is a program for a shell",
}


def test_a_verb_with_json_that_fails_says_so_in_one_json_object(tmp_path: Path) -> None:
    found = every_verb(tmp_path, "json")
    assert set(ANSWERS) < set(found)
    for verb, ended in found.items():
        said = json.loads(ended["stdout"])
        if verb not in ANSWERS:
            assert (verb, set(said), said["exit_code"]) == (verb, FAILURE | ALSO.get(verb, set()), ended["code"])
            assert ended["code"] in (1, 2)
            assert said["detail"]
            assert said["detail"] in ended["stderr"]  # for whoever looks
            assert "Traceback" not in ended["stderr"]


def test_so_does_one_that_was_called_wrongly(tmp_path: Path) -> None:
    for verb, ended in every_verb(tmp_path, "json", "--no-such-option").items():
        said = json.loads(ended["stdout"])
        assert (set(said), said["error"], said["exit_code"], ended["code"]) == (FAILURE, "usage", 2, 2)
        assert said["hint"] == f"pylb {verb} --help"


def test_a_bug_is_said_to_be_one_also_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **_more: object) -> None:
        raise ZeroDivisionError("no number")

    monkeypatch.setattr(main.commands["routes"], "callback", broken)
    ended = CliRunner().invoke(main, ["routes", "--json"])
    assert ended.exit_code == 2
    assert json.loads(ended.stdout)["detail"] == "ZeroDivisionError: no number"
    assert "this is a bug of pylb" in ended.stderr
    assert "Traceback" in ended.stderr


def test_each_help_fits_80_columns_and_names_what_an_option_takes() -> None:
    for path in [(), ("ctl",), ("token",), *(path for path, _command in verbs())]:
        text = CliRunner().invoke(main, [*path, "--help"], env={"COLUMNS": "80"}).stdout
        assert (path, [line for line in text.splitlines() if len(line) > 80]) == (path, [])
        # What an option takes has a name from the task, not from click: SECONDS, N.
        assert (path, re.findall(r"--\S+ ((?:INTEGER|FLOAT|TEXT|PATH|BOOLEAN|FILENAME)\b.*)", text)) == (path, [])


@pytest.mark.parametrize(
    ("typed", "here"),
    [
        (["start"], "No such command 'start'. Here it is: pylb run, or for the service systemctl start pylb"),
        (["token", "renew", "app"], "No such command 'renew'. Here it is: pylb token rotate"),
        (["help", "routes"], "No such command 'help'. Here it is: pylb --help, or pylb VERB --help"),
        (["ctl", "undrain", "203.0.113.7"], "No such command 'undrain'. Here it is: pylb ctl ready"),
        (["routs"], "Did you mean 'routes'?"),
    ],
)
def test_a_verb_of_another_program_leads_to_the_one_here(typed: list[str], here: str) -> None:
    ended = CliRunner().invoke(main, typed)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert here in ended.stderr


def test_a_wrong_option_says_what_to_write() -> None:
    ended = CliRunner().invoke(main, ["ctl", "drain", "203.0.113.7", "--for", "5x"])
    assert ended.exit_code == 2
    said = "Invalid value for '--for': '5x' is not a duration (one whole number and a unit: 500ms, 5s, 10m, 1h or 7d)"
    assert said in ended.stderr


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["run", "--listen"], "Try 'pylb run --help' for help.\n\nError: Option '--listen' requires an argument."),
        (["ctl", "drain", "203.0.113.7", "--for"], "Try 'pylb ctl drain --help' for help."),
        (["ctl", "drain", "203.0.113.7", "--for", "0s"], "0s is no time at all"),
        (["sessions", "--code", "SC"], "--code and --since are of sessions that have ended: add --ended"),
        (["sessions", "--since", "10m"], "--code and --since are of sessions that have ended: add --ended"),
    ],
)
def test_what_was_typed_wrongly_is_said_with_the_verb_whose_help_has_more(typed: list[str], said: str) -> None:
    ended = CliRunner().invoke(main, typed, prog_name="pylb")
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"Usage: pylb {typed[0]}")
    assert said in ended.stderr


def test_a_config_that_this_user_may_not_read_says_who_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """click said that it is not readable, and a file of PYLB_CONFIG or its directory "no pylb is running with this file"."""
    file = tmp_path / "closed/pylb.yaml"
    file.parent.mkdir()
    file.write_text("state_dir: state\n")
    monkeypatch.setattr("pylb.cli.client.os.access", lambda path, _mode: path != file)
    for typed, env in ((["-c", str(file)], {}), ([], {"PYLB_CONFIG": str(file)})):
        ended = CliRunner().invoke(main, ["status", *typed], env=env)
        assert (ended.exit_code, ended.stdout) == (2, "")
        assert f"{file} may not be read by this user: ask as root or as the user that pylb runs as" in ended.stderr


def test_a_pylb_that_does_not_answer_in_time_may_still_do_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: object) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr("pylb.web.control_client.call", late)
    (tmp_path / "pylb.yaml").write_text("state_dir: state\n")
    ended = CliRunner().invoke(main, ["release", "443", "-c", str(tmp_path / "pylb.yaml")])
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr.endswith(
        "control.sock: pylb did not answer within 30 s (it may still do what it was asked: look at `pylb status` and its log)\n"
    )


@pytest.mark.parametrize("path", [(), ("ctl",), ("token",)])
def test_each_verb_that_is_named_instead_exists(path: tuple[str, ...]) -> None:
    group: Any = main
    for name in path:
        group = group.commands[name]
    assert isinstance(group, Verbs)
    assert group.instead
    assert group.instead.keys() & group.commands.keys() == set()
    for here in group.instead.values():
        for verb in re.findall(r"pylb ((?:ctl |token )?[a-z][a-z-]*)", here):
            inside: Any = main
            for word in verb.split():
                assert word in inside.commands, here
                inside = inside.commands[word]


def test_the_help_has_every_verb_in_a_section() -> None:
    listed = {name for names in SECTIONS.values() for name in names}
    assert set(main.commands) - listed == set()
    text = CliRunner().invoke(main, ["--help"]).stdout
    assert text.index("\nLook:") < text.index("\nSet up:")


def test_a_shell_shows_the_line_of_the_help_beside_a_verb() -> None:
    """It was cut: "Show what goes where and why: port"."""
    for names in SECTIONS.values():
        for name, line in names.items():
            assert main.commands[name].short_help == line


def test_every_verb_says_what_it_does_and_what_each_option_is_for() -> None:
    for path, command in verbs():
        assert (path, bool(command.help)) == (path, True)
        options = [one for one in command.params if isinstance(one, click.Option)]
        assert [(path, one.name) for one in options if not one.help] == []


def test_every_verb_has_json_unless_no_program_would_read_it() -> None:
    assert {path for path, _command in verbs()} - set(with_option("--json")) == WITHOUT.keys()


@pytest.mark.parametrize(
    ("option", "environ", "coloured"),
    [
        ([], {}, False),
        ([], {"CLICOLOR_FORCE": "1"}, True),
        ([], {"FORCE_COLOR": "1"}, True),
        ([], {"CLICOLOR_FORCE": "0"}, False),
        ([], {"CLICOLOR_FORCE": "1", "NO_COLOR": "1"}, False),
        (["--colour"], {"NO_COLOR": "1"}, True),
        (["--no-colour"], {"CLICOLOR_FORCE": "1"}, False),
    ],
)
def test_colours_into_a_pipe_only_if_they_are_asked_for(
    option: list[str], environ: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"port": 1, "unbound": "", "why": "", "frontend": "f", "server": "s", "address": "a", "weight": 1, "state": "down"}
    row |= {"held_by": [], "lease_expires_in": None, "accepts": None, "check": None, "asked_ago": None}
    monkeypatch.setattr("pylb.cli.routes.ask", lambda *_: {"routes": [row], "notes": []})
    for name in ("NO_COLOR", "CLICOLOR_FORCE", "FORCE_COLOR", "CLICOLOR"):
        monkeypatch.delenv(name, raising=False)
    ended = CliRunner().invoke(main, [*option, "routes"], env=environ)
    assert ended.exit_code == 0
    assert ("\x1b[31mdown\x1b[0m" in ended.stdout) == coloured
