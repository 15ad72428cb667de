"""`pylb install-service`: the plan on paper, and the steps in a directory of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from pylb import __version__, config
from pylb.cli import install
from pylb.cli.install import Command, Directory, File, Host, InstallError, Step, install_service, origin, plan
from tests.deploy.manifests import DEPLOY
from tests.support.peers import need

SOURCE = DEPLOY.parent
HERE = Host(
    interpreter=Path("/usr/bin/python3"),
    requirement="/src/pylb",
    lock=Path("/src/pylb/requirements.lock"),
    configured=False,
    token="a-token-of-thirty-two-characters",
    release="0.1.0-20261124-120000",
    before="",
)


def commands(steps: Sequence[Step]) -> list[tuple[str, ...]]:
    return [step.action.argv for step in steps if isinstance(step.action, Command)]


def paths(steps: Sequence[Step]) -> dict[str, tuple[str, str]]:
    """Path -> (mode, group)."""
    return {
        str(step.action.path): (f"{step.action.mode:04o}", step.action.group)
        for step in steps
        if isinstance(step.action, File | Directory)
    }


# ---------------------------------------------------------------- the plan


def test_the_plan_names_every_file_with_its_mode_and_group() -> None:
    assert paths(plan(HERE, Path("/"))) == {
        "/etc/sysusers.d/pylb.conf": ("0644", "root"),
        "/etc/pylb": ("0750", "pylb"),
        "/etc/pylb/tokens": ("0750", "pylb"),
        "/etc/pylb/tokens/default": ("0640", "pylb"),
        "/etc/pylb/pylb.yaml": ("0640", "pylb"),
        "/etc/systemd/system/pylb.service": ("0644", "root"),
        "/opt/pylb": ("0755", "root"),
        "/opt/pylb/versions": ("0755", "root"),
    }


def test_the_plan_makes_the_user_then_the_environment_then_checks_the_config_and_tells_systemd() -> None:
    venv = "/opt/pylb/versions/0.1.0-20261124-120000"
    pip = (f"{venv}/bin/python", "-I", "-m", "pip", "install", "--disable-pip-version-check", "--no-input")
    assert commands(plan(HERE, Path("/"))) == [
        ("systemd-sysusers", "pylb.conf"),
        ("/usr/bin/python3", "-I", "-m", "venv", venv),
        (*pip, "--require-hashes", "-r", "/src/pylb/requirements.lock"),
        (*pip, "--no-deps", "/src/pylb"),
        (f"{venv}/bin/pylb", "check", "-c", "/etc/pylb/pylb.yaml"),
        ("systemctl", "daemon-reload"),
    ]


def test_without_a_lock_pip_chooses_what_pylb_needs() -> None:
    """It came from an index, which has no lock."""
    words = commands(plan(HERE._replace(lock=None, requirement="pylb==0.1.0"), Path("/")))
    assert [argv[-2:] for argv in words if "pip" in argv] == [("--no-input", "pylb==0.1.0")]


def test_in_another_directory_systemd_is_left_alone() -> None:
    words = commands(plan(HERE, Path("/elsewhere")))
    assert words[0] == ("systemd-sysusers", "--root=/elsewhere", "pylb.conf")
    assert "systemctl" not in {argv[0] for argv in words}
    assert all(path.startswith("/elsewhere/") for path in paths(plan(HERE, Path("/elsewhere"))))


def test_a_machine_with_a_config_gets_no_token_of_ours() -> None:
    steps = plan(HERE._replace(configured=True), Path("/"))
    assert "/etc/pylb/tokens/default" not in paths(steps)
    assert "/etc/pylb/pylb.yaml" in paths(steps)


def test_the_unit_is_the_one_in_deploy() -> None:
    (unit,) = [s.action for s in plan(HERE, Path("/")) if isinstance(s.action, File) and s.action.path.suffix == ".service"]
    assert unit.text == (DEPLOY / "systemd/pylb.service").read_text()


def test_a_wheel_carries_the_files_where_they_are_looked_for() -> None:
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included["deploy/systemd"] == "pylb/data/systemd"
    (manual,) = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"].items()
    assert manual == ("docs/pylb.1", "share/man/man1/pylb.1")
    assert (SOURCE / manual[0]).is_file()


def test_unit_and_plan_agree_on_every_path() -> None:
    unit = install.data("pylb.service")
    assert f"ExecStart=/opt/pylb/bin/pylb run -c {next(p for p in paths(plan(HERE, Path('/'))) if p.endswith('.yaml'))}" in unit
    assert f"User={install.USER}\n" in unit
    assert install.data("sysusers.conf").splitlines()[-1].split()[:2] == ["u", install.USER]


def test_the_starter_config_names_the_token_file_that_the_plan_makes() -> None:
    starter = yaml.safe_load(install.data("pylb.yaml"))
    (token,) = starter["tokens"]
    assert token["secret_file"] in paths(plan(HERE, Path("/")))
    assert starter["webhook"] == [{"listen": "*:9000", "tls": "self-signed"}]
    assert not {22, 9000, 8404} & set(token["ports"])


def test_pylb_accepts_the_starter_config_without_a_warning(tmp_path: Path) -> None:
    token = tmp_path / "default"
    token.write_text(f"{HERE.token}\n")
    token.chmod(0o640)
    path = tmp_path / "pylb.yaml"
    path.write_text(install.data("pylb.yaml").replace("/etc/pylb/tokens/default", str(token)))
    loaded = config.load(path, {})
    assert loaded.warnings == ()
    assert loaded.keyring().find(HERE.token) is not None
    assert str(loaded.state_dir) == "/var/lib/pylb"  # where the unit's StateDirectory is


# ---------------------------------------------------------------- where pylb came from


@pytest.mark.parametrize(
    ("record", "requirement"),
    [
        (None, "pylb-balancer==0.1.0"),
        (
            {"url": "https://example.net/pylb-0.1.0-py3-none-any.whl", "archive_info": {}},
            "https://example.net/pylb-0.1.0-py3-none-any.whl",
        ),
        (
            {"url": "https://example.net/pylb.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "pylb-balancer @ git+https://example.net/pylb.git@abc",
        ),
    ],
)
def test_the_service_gets_the_pylb_that_runs_now(record: dict[str, object] | None, requirement: str) -> None:
    assert origin(None if record is None else json.dumps(record), "0.1.0") == requirement


def test_a_source_directory_is_installed_from_again_even_with_a_space_in_its_name(tmp_path: Path) -> None:
    source = tmp_path / "my pylb"
    source.mkdir()
    record = json.dumps({"url": source.as_uri(), "dir_info": {"editable": True}})
    assert origin(record, "0.1.0") == str(source)
    source.rmdir()
    with pytest.raises(InstallError, match="is gone"):
        origin(record, "0.1.0")


def test_the_first_interpreter_that_works_and_is_not_hidden_by_the_unit_is_used(tmp_path: Path) -> None:
    def python(path: Path, code: int) -> Path:
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\nexit {code}\n")
        path.chmod(0o755)
        return path

    missing, old, good = tmp_path / "missing", python(tmp_path / "old", 1), python(tmp_path / "good", 0)
    at_home = python(tmp_path / "home/python3", 0)
    link = tmp_path / "link"
    link.symlink_to(at_home)
    assert install._interpreter([missing, old, at_home, link, good], hidden=[tmp_path / "home"]) == good
    assert install._interpreter([at_home, good], hidden=[]) == at_home
    with pytest.raises(InstallError, match="may not look in there"):
        install._interpreter([missing, old, at_home, link], hidden=[tmp_path / "home"])
    assert {"/home", "/root"} <= {str(folder) for folder in install.HIDDEN}


# ---------------------------------------------------------------- the steps, done


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    (tmp_path / "root/etc").mkdir(parents=True)
    return tmp_path / "root"


@pytest.fixture
def run() -> tuple[Callable[[Sequence[str]], None], list[str]]:
    """Runs systemd-sysusers for real and notes the others: an environment from the network is another test's matter."""
    need("systemd-sysusers")
    noted: list[str] = []

    def execute(argv: Sequence[str]) -> None:
        noted.append(Path(argv[0]).name)
        if noted[-1] == "systemd-sysusers":
            install.execute(argv)

    return execute, noted


Runner = tuple[Callable[[Sequence[str]], None], list[str]]


def tree(prefix: Path) -> dict[str, tuple[str, str, bytes]]:
    """Path -> (mode, uid:group name, content) of everything in the prefix that is ours."""
    names = {"0": "root", str(install.group_id(prefix / "etc/group", "pylb")): "pylb"}
    found = {}
    for path in sorted(prefix.rglob("*")):
        name = str(path.relative_to(prefix))
        if "pylb" in name and not name.startswith(("opt/", "usr/")):
            status = path.stat()
            owner = f"{status.st_uid}:{names[str(status.st_gid)]}"
            found[name] = (f"{status.st_mode & 0o7777:04o}", owner, path.read_bytes() if path.is_file() else b"")
    return found


@pytest.mark.root
def test_it_lays_out_user_config_token_and_unit(prefix: Path, run: Runner) -> None:
    assert install_service(print_only=False, prefix=prefix, run=run[0]) == 0
    assert run[1] == ["systemd-sysusers", install.host(prefix).interpreter.name, "python", "python"]
    found = tree(prefix)
    assert {name: entry[:2] for name, entry in found.items()} == {
        "etc/sysusers.d/pylb.conf": ("0644", "0:root"),
        "etc/pylb": ("0750", "0:pylb"),
        "etc/pylb/tokens": ("0750", "0:pylb"),
        "etc/pylb/tokens/default": ("0640", "0:pylb"),
        "etc/pylb/pylb.yaml": ("0640", "0:pylb"),
        "etc/systemd/system/pylb.service": ("0644", "0:root"),
    }
    assert len(found["etc/pylb/tokens/default"][2].strip()) == 32
    account = next(line for line in (prefix / "etc/passwd").read_text().splitlines() if line.startswith("pylb:"))
    assert account.endswith(":/var/lib/pylb:/usr/sbin/nologin")


@pytest.mark.root
@pytest.mark.parametrize("umask", [0, 0o077])
def test_the_programs_directories_have_their_modes_whatever_roots_umask_is(prefix: Path, run: Runner, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert install_service(print_only=False, prefix=prefix, run=run[0]) == 0
    finally:
        os.umask(before)
    for name in ("opt/pylb", "opt/pylb/versions"):
        assert (prefix / name).stat().st_mode & 0o7777 == 0o755


@pytest.mark.root
def test_beside_the_debian_package_it_does_nothing(prefix: Path, run: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    program = prefix / "usr/lib/pylb/bin/pylb"
    program.parent.mkdir(parents=True)
    program.touch()
    assert install_service(print_only=False, prefix=prefix, run=run[0]) == 1
    assert "apt remove pylb" in capsys.readouterr().err
    assert run[1] == []
    assert not (prefix / "etc/pylb").exists()


@pytest.mark.root
def test_doing_it_twice_changes_nothing(prefix: Path, run: Runner) -> None:
    assert install_service(print_only=False, prefix=prefix, run=run[0]) == 0
    first = tree(prefix)
    assert install_service(print_only=False, prefix=prefix, run=run[0]) == 0
    assert tree(prefix) == first


@pytest.mark.root
def test_each_installation_is_a_directory_of_its_own_and_a_link_leads_to_the_last(
    prefix: Path, run: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here, link = install.host(prefix), prefix / "opt/pylb/bin"
    for release in ("0.1.0-a", "0.1.0-b"):
        monkeypatch.setattr(install, "host", lambda _prefix, release=release: here._replace(release=release))
        assert install_service(print_only=False, prefix=prefix, run=run[0]) == 0
        assert str(link.readlink()) == f"versions/{release}/bin"
    assert "before: versions/0.1.0-a/bin" in capsys.readouterr().out
    assert (prefix / "usr/local/bin/pylb").readlink() == Path("../../../opt/pylb/bin/pylb")
    link.unlink()
    link.mkdir()  # as an earlier pylb laid it out
    assert install_service(print_only=False, prefix=prefix, run=run[0]) == 1
    assert "is of an older layout: move it away" in capsys.readouterr().err


def test_two_installations_never_share_a_directory(prefix: Path) -> None:
    assert install.host(prefix).release.startswith(f"{__version__}-20")


@pytest.mark.root
def test_the_administrators_config_and_token_are_kept_and_the_unit_is_brought_up_to_date(
    prefix: Path, run: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install_service(print_only=False, prefix=prefix, run=run[0]) == 0
    (prefix / "etc/pylb/pylb.yaml").write_text("tokens: []\n")
    (prefix / "etc/pylb/pylb.yaml").chmod(0o600)
    (prefix / "etc/pylb/tokens/default").write_text("mine\n")
    (prefix / "etc/systemd/system/pylb.service").write_text("[Service]\n")
    assert install_service(print_only=False, prefix=prefix, run=run[0]) == 0
    found = tree(prefix)
    assert found["etc/pylb/pylb.yaml"] == ("0640", "0:pylb", b"tokens: []\n")
    assert found["etc/pylb/tokens/default"][2] == b"mine\n"
    assert found["etc/systemd/system/pylb.service"][2] == (DEPLOY / "systemd/pylb.service").read_bytes()
    assert "systemctl edit pylb" in capsys.readouterr().out


@pytest.mark.root
def test_a_failed_step_is_named_with_what_to_do_and_the_rest_is_not_done(
    prefix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def execute(argv: Sequence[str]) -> None:
        install.execute(argv if argv[0] == "systemd-sysusers" else ["false"])

    assert install_service(print_only=False, prefix=prefix, run=execute) == 1
    said = capsys.readouterr()
    assert "step 9, make the virtual environment: `false` ended with 1" in said.err
    assert "what to do: apt install python3-venv; then run this again" in said.err
    assert "Installed" not in said.out
    assert not (prefix / "etc/systemd/system/pylb.service").exists()


@pytest.mark.root
def test_a_missing_program_is_named(prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def execute(argv: Sequence[str]) -> None:
        install.execute(["no-such-program", *argv])

    assert install_service(print_only=False, prefix=prefix, run=execute) == 1
    assert "step 2, create the user pylb: no-such-program is not installed" in capsys.readouterr().err


@pytest.mark.root
def test_a_command_of_somebody_else_is_named_at_its_step_and_at_the_end(
    prefix: Path, run: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    (prefix / "usr/local/bin").mkdir(parents=True)
    (prefix / "usr/local/bin/pylb").write_text("theirs")
    assert install_service(print_only=False, prefix=prefix, run=run[0]) == 0
    said = capsys.readouterr()
    assert f"WARNING: {prefix}/usr/local/bin/pylb is not ours and stays as it is" in said.out
    assert said.err == f"\n`pylb` above is {prefix}/opt/pylb/bin/pylb: {prefix}/usr/local/bin/pylb is another program's\n"
    assert (prefix / "usr/local/bin/pylb").read_text() == "theirs"


@pytest.mark.root
def test_a_leftover_of_an_interrupted_run_is_no_obstacle(prefix: Path, run: Runner) -> None:
    (prefix / "etc/pylb").mkdir()
    (prefix / "etc/pylb/.pylb.yaml.new").write_text("half")
    assert install_service(print_only=False, prefix=prefix, run=run[0]) == 0
    assert not (prefix / "etc/pylb/.pylb.yaml.new").exists()


@pytest.mark.root
def test_what_root_makes_is_readable_for_the_service_whatever_roots_umask_is(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        install.execute(["mkdir", str(tmp_path / "made")])
    finally:
        os.umask(before)
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o755


def test_print_shows_every_step_and_the_unit_and_does_nothing(prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def execute(argv: Sequence[str]) -> None:
        raise AssertionError(argv)

    assert install_service(print_only=True, prefix=prefix, run=execute) == 0
    said = capsys.readouterr().out
    for step in plan(install.host(prefix), prefix):
        assert f". {step.title}: " in said
    assert (DEPLOY / "systemd/pylb.service").read_text() in said
    assert list(prefix.rglob("*")) == [prefix / "etc"]


def test_a_program_reads_the_steps_as_one_object_and_people_read_them_beside_it(
    prefix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install_service(print_only=True, prefix=prefix, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert [step["title"] for step in found["steps"]] == [step.title for step in plan(install.host(prefix), prefix)]
    assert found["before"] == ""


@pytest.mark.root
def test_while_it_installs_stdout_has_nothing_but_that_object(
    prefix: Path, run: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install_service(print_only=False, prefix=prefix, run=run[0], as_json=True) == 0
    said = capsys.readouterr()
    (starter,) = (step for step in json.loads(said.out)["steps"] if step["title"] == "write the starter config")
    assert starter["action"] == f"{prefix}/etc/pylb/pylb.yaml (0640 root:pylb)"
    assert "Installed. Next " in said.err


def test_the_output_of_a_command_does_not_stand_in_the_json(capfd: pytest.CaptureFixture[str]) -> None:
    install.execute_beside_json(["echo", "pip says"])
    assert capfd.readouterr() == ("", "pip says\n")


def test_a_machine_without_systemd_is_named_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(InstallError, match="does not run systemd") as met:
        install.need_systemd(tmp_path / "nothing")
    assert "pylb run -c /etc/pylb/pylb.yaml" in met.value.remedy
    install.need_systemd(tmp_path)


def test_without_root_it_says_so_and_does_nothing(tmp_path: Path) -> None:
    """In a process that gives root up first, where there is root to give up."""
    prefix = tmp_path / "root"
    prefix.mkdir()
    program = (
        "import os, sys, pathlib\n"
        "from pylb.cli.install import install_service\n"
        "os.geteuid() or os.seteuid(65534)\n"
        "sys.exit(install_service(print_only=False, prefix=pathlib.Path(sys.argv[1])))\n"
    )
    command = [sys.executable, "-c", program, str(prefix)]
    result = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, check=False, timeout=30)
    assert result.returncode == 1
    assert "needs root" in result.stderr
    assert "sudo" in result.stderr
    assert result.stdout == ""
    assert list(prefix.iterdir()) == []
