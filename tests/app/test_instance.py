"""pylb/cli/instance.py and the order of configs: every verb finds the running pylb, whatever has become of its file."""

import fcntl
import json
import os
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from pylb.cli.client import _chosen
from pylb.cli.instance import find
from pylb.cli.main import main
from pylb.config import ConfigErrors
from pylb.control.storage.places import chosen
from tests.app.instance import Instance, cli

# What becomes of a config while its pylb runs, and whether `pylb check` would then find a mistake in it.
DAMAGES = {
    "not YAML": "webhook: [\nstate_dir: {state}\n",
    "a wrong state_dir": "state_dir: 5\n",
    "emptied": "",
    "another state_dir": "state_dir: {state}/elsewhere\n",
    "its state_dir line is gone": "webhook: [\n",
}


def ask(file: Path, *args: str) -> Result:
    """A verb with this config, in this process: starting one takes longer than all else."""
    return CliRunner().invoke(main, [*args, "-c", str(file)])


# ------------------------------------------------------------ which pylb


@pytest.mark.root
def test_a_stranger_who_says_that_he_runs_with_the_systems_config_is_not_asked(tmp_path: Path) -> None:
    """Root would go by the config in his directory, and write its new tokens there."""
    file, theirs = tmp_path / "pylb.yaml", tmp_path / "theirs"
    file.write_text("webhook: [\n")
    theirs.mkdir()
    answer = json.dumps({"ok": True, "config": str(file)}).encode() + b"\n"

    class Stranger(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            if self.rfile.readline():
                self.wfile.write(answer)

    with (theirs / "lock").open("w") as lock, socketserver.UnixStreamServer(str(theirs / "control.sock"), Stranger) as server:
        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            assert find(file).state_dir == theirs  # it is root's
            os.chown(theirs, 65534, 65534)
            with pytest.raises(ConfigErrors):
                find(file)
            os.chown(file, 0, 65534)  # those to whom the config belongs, as the service's user
            assert find(file).state_dir == theirs
        finally:
            server.shutdown()


# ------------------------------------------------------------ which config


def test_the_config_is_the_named_one_then_that_of_the_environment_then_the_systems(tmp_path: Path) -> None:
    system = tmp_path / "pylb.yaml"
    assert chosen(None, {}, system) is None
    system.touch()
    assert chosen(None, {}, system) == system
    assert chosen(None, {"PYLB_CONFIG": "other.yaml"}, system) == Path("other.yaml")
    assert chosen(None, {"PYLB_CONFIG": ""}, system) is None  # the embedded defaults, on a machine with a service too
    assert chosen(Path("named.yaml"), {"PYLB_CONFIG": "other.yaml"}, system) == Path("named.yaml")


@pytest.mark.root
def test_a_user_who_may_not_read_the_systems_config_goes_without_one(tmp_path: Path) -> None:
    system = tmp_path / "etc/pylb.yaml"
    system.parent.mkdir(mode=0o700)
    system.touch()
    child = os.fork()
    if child == 0:
        os.setresuid(65534, 65534, 65534)
        os._exit(0 if chosen(None, {}, system) is None else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_every_verb_finds_a_pylb_by_the_config_of_the_environment(pylb: Instance, echo_port: int) -> None:
    env = {"PYLB_CONFIG": str(pylb.file)}
    none = cli(pylb.folder, "routes", env=env)
    assert (none.returncode, f"control.sock (config: {pylb.file})" in none.stderr) == (2, True)
    pylb.start(argv=(*pylb.command("run")[:3], "run"), env=env)
    pylb.running.has_said(f"config: {pylb.file}\n")
    assert pylb.register(pylb.port, echo_port).status == 201
    [row] = json.loads(cli(pylb.folder, "routes", "--json", env=env).stdout)
    assert row["port"] == pylb.port
    assert cli(pylb.folder, "check", env=env).stdout.startswith(f"{pylb.file}: ok")


def test_every_command_that_has_a_config_chooses_it_in_the_same_way() -> None:
    def leaves(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
        if isinstance(command, click.Group):
            for word, one in command.commands.items():
                yield from leaves(one, f"{name} {word}")
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield name.strip(), command

    without = []
    for name, command in leaves(main, ""):
        options = [one for one in command.params if "-c" in one.opts]
        assert [one.callback for one in options] in ([], [_chosen]), name
        without += [] if options or command.hidden else [name]
    assert {"demo", "schema", "install-service", "uninstall-service"} <= set(without)  # these concern no running pylb
    assert not {"run", "status", "reload", "upgrade", "token list", "ctl list"} & set(without)


# ------------------------------------------------------------ a config that leads nowhere


def test_a_running_pylb_is_found_whatever_has_become_of_its_file(pylb: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(pylb.folder / "home"))
    pylb.start()
    assert find(pylb.file) == (pylb.state_dir, "")
    link = pylb.folder / "link.yaml"
    link.symlink_to(pylb.file)
    for what, text in DAMAGES.items():
        pylb.file.write_text(text.format(state=pylb.state_dir))
        found = find(pylb.file)
        assert (what, found.state_dir) == (what, pylb.state_dir)
        assert f"asking the pylb that uses {pylb.state_dir}, which was started with {pylb.file}" in found.note
        assert find(link).state_dir == pylb.state_dir
    pylb.file.write_bytes(b"\xff\xfe\x00")
    assert find(pylb.file).state_dir == pylb.state_dir
    pylb.file.unlink()
    assert find(pylb.file).state_dir == pylb.state_dir
    other = pylb.folder / "other.yaml"  # nobody was started with it
    with pytest.raises(ConfigErrors):
        find(other)
    other.write_text("webhook: [\n")
    with pytest.raises(ConfigErrors):
        find(other)


def test_no_verb_is_blind_through_a_broken_file(pylb: Instance, echo_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(pylb.folder / "home"))
    pylb.start()
    assert pylb.register(pylb.port, echo_port).status == 201
    pylb.file.write_text("webhook: [\n")  # not even the state_dir is in it
    said = ""
    for verb in (["status", "--json"], ["routes"], ["sessions"], ["history"], ["explain", str(pylb.port)], ["ctl", "list"]):
        done = ask(pylb.file, *verb)
        assert (verb, done.exit_code) == (verb, 0)
        said += done.stderr
    where = f"asking the pylb that uses {pylb.state_dir}, which was started with {pylb.file}\n"
    assert said.startswith(f"{pylb.file} is broken (pylb check -c {pylb.file}); {where}")
    assert said.count("is broken") == 1  # or `status --watch` would say it every two seconds
    refused = ask(pylb.file, "reload")
    assert (refused.exit_code, f"{pylb.file}:2:1: error: " in refused.stderr) == (1, True)
    assert ask(pylb.file, "token", "list").stdout.splitlines()[1].startswith("app ")
    doctor = json.loads(ask(pylb.file, "doctor", "--json").stdout)
    assert (doctor[0]["what"], doctor[0]["ok"]) == ("config", False)
    assert len(doctor) > 3
    pylb.file.write_text("")  # leads to the default directory, where nobody is: a token that was made there would be nobody's
    found = ask(pylb.file, "token", "list")
    assert found.stdout.splitlines()[1].startswith("app ")
    assert f"going by the last good config, from {pylb.state_dir}" in found.stderr
    pylb.configure(state_dir=str(pylb.folder / "elsewhere"))
    refused = ask(pylb.file, "reload")
    assert (refused.exit_code, "state_dir cannot change while pylb runs (restart it" in refused.stderr) == (1, True)
    other = pylb.folder / "other.yaml"
    other.write_text("webhook: [\n")
    for verb in ("routes", "upgrade"):
        refused = ask(other, verb)
        assert (verb, refused.exit_code) == (verb, 2)
        mistake, nobody = refused.stderr.splitlines()
        assert (mistake.startswith(f"{other}:2:1: error: "), nobody) == (True, "no pylb is running with this file")
    assert ask(other, "doctor").stderr.endswith(f"\nthe config comes first: pylb check -c {other}\n")
