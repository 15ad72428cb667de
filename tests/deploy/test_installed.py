"""The command on the PATH, the versions in /opt/pylb, and `pylb uninstall-service`, in a directory of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from pylb.cli import uninstall
from pylb.cli.install import InstallError
from pylb.cli.installed import (
    Link,
    OldVersions,
    command_link,
    is_ours,
    manual_link,
    offer,
    point,
    prune,
    superfluous,
    version_in_use,
)
from pylb.cli.main import main
from pylb.cli.uninstall import uninstall_service
from tests.deploy.manifests import DEPLOY
from tests.support.processes import Processes
from tests.support.waiting import eventually

OLDEST, OLD, NEW = (f"0.1.{number}-20261124-12000{number}" for number in range(3))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An /opt/pylb with three versions, of which the newest is in use."""
    folder = tmp_path / "root/opt/pylb"
    for version in (OLDEST, OLD, NEW):
        (folder / "versions" / version / "bin").mkdir(parents=True)
    (folder / "bin").symlink_to(f"versions/{NEW}/bin")
    return folder


# ------------------------------------------------------------ the command


def test_the_command_leads_to_the_version_in_use(home: Path, tmp_path: Path) -> None:
    link = command_link(tmp_path / "root")
    (home / "versions" / NEW / "bin/pylb").touch()
    assert offer(link) == ""
    assert link.path.resolve() == home / "versions" / NEW / "bin/pylb"
    assert offer(link) == "is there"
    link.path.unlink()
    link.path.symlink_to(link.program)  # as somebody may have made it by hand
    assert offer(link) == "is there"


def test_the_manual_page_is_that_of_the_version_in_use(tmp_path: Path) -> None:
    home, link = tmp_path / "opt/pylb", manual_link(tmp_path)
    for version in ("1-20260101-000000", "2-20260201-000000"):
        page = home / "versions" / version / "share/man/man1/pylb.1"
        page.parent.mkdir(parents=True)
        (home / "versions" / version / "bin").mkdir()
        page.write_text(version)
        point(Link(home / "bin", f"versions/{version}/bin"))
        offer(link)
        assert (link.path.read_text(), link.program.read_text()) == (version, version)
        assert is_ours(link)


@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_a_command_of_somebody_else_stays_and_that_is_said(kind: str, tmp_path: Path) -> None:
    link = command_link(tmp_path)
    link.path.parent.mkdir(parents=True)
    if kind == "file":
        link.path.write_text("#!/bin/sh\n")
    else:
        link.path.symlink_to("/bin/true" if kind == "link" else "/nowhere")
    before = link.path.lstat()
    assert offer(link) == f"WARNING: {link.path} is not ours and stays as it is; ours is {tmp_path}/opt/pylb/bin/pylb"
    assert (link.path.lstat(), is_ours(link)) == (before, False)


# ------------------------------------------------------------ versions


def test_the_version_before_stays_and_older_ones_go(home: Path) -> None:
    assert version_in_use(home) == NEW
    (home / "versions/by-hand").mkdir()
    old = OldVersions(home / "versions", NEW, OLD)
    assert superfluous(old) == [OLDEST]  # what `--print` names
    assert prune(old) == f"removed: {OLDEST}"
    assert sorted(os.listdir(home / "versions")) == [OLD, NEW, "by-hand"]
    assert prune(old) == ""
    assert superfluous(OldVersions(home / "nowhere", NEW, "")) == []
    assert version_in_use(home / "nowhere") == ""


def test_a_version_that_still_runs_stays(home: Path, tmp_path: Path) -> None:
    """As an old pylb does that only ends its sessions, or one that was not upgraded to the last version."""
    python = home / "versions" / OLDEST / "bin/python"
    python.symlink_to(sys.executable)
    with Processes(tmp_path) as processes:
        process = processes.start("old", [str(python), "-c", "print('runs', flush=True); import time; time.sleep(60)"])
        process.has_said("runs")
        assert prune(OldVersions(home / "versions", NEW, "")) == f"removed: {OLD}"
        process.kill()
    eventually(lambda: not process.alive, what="it has ended")
    assert prune(OldVersions(home / "versions", NEW, "")) == f"removed: {OLDEST}"


# ------------------------------------------------------------ uninstall-service


@pytest.fixture
def service(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root directory as install-service leaves it, and a user who passes for root."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    prefix = tmp_path / "root"
    for name in ("etc/pylb/tokens", "var/lib/pylb", "etc/systemd/system", "etc/sysusers.d"):
        (prefix / name).mkdir(parents=True)
    (prefix / "etc/pylb/pylb.yaml").write_text("tokens: []\n")
    (prefix / "var/lib/pylb/state.json").write_text("{}")
    (prefix / "etc/systemd/system/pylb.service").write_text((DEPLOY / "systemd/pylb.service").read_text())
    (prefix / "etc/sysusers.d/pylb.conf").write_text((DEPLOY / "systemd/sysusers.conf").read_text())
    offer(command_link(prefix))
    offer(manual_link(prefix))
    return prefix


def names(prefix: Path) -> list[str]:
    return sorted(str(path.relative_to(prefix)) for path in prefix.rglob("*") if not path.is_dir() or path.is_symlink())


def test_what_was_installed_goes_and_what_others_wrote_stays(service: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert uninstall_service(agreed=lambda: True, prefix=service) == 0
    assert names(service) == ["etc/pylb/pylb.yaml", "var/lib/pylb/state.json"]
    assert not (service / "opt/pylb").exists()
    said = capsys.readouterr().out
    assert f"remove {service}/usr/local/bin/pylb\n" in said
    assert f"remove {service}/usr/local/share/man/man1/pylb.1\n" in said
    assert f"What stays: the user pylb, {service}/etc/pylb, {service}/var/lib/pylb\n" in said
    assert f"rm -r {service}/etc/pylb {service}/var/lib/pylb; userdel pylb" in said
    assert uninstall_service(agreed=lambda: pytest.fail("asked"), prefix=service) == 0
    assert capsys.readouterr().out == "no pylb is installed as a service here: nothing to remove\n"


def test_a_program_reads_what_was_done_and_what_stays(service: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert uninstall_service(agreed=lambda: True, prefix=service, as_json=True) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert f"remove {service}/usr/local/bin/pylb" in found["done"]
    assert found["stays"] == [f"{service}/etc/pylb", f"{service}/var/lib/pylb"]
    assert "This takes the service off the machine:" in said.err


def test_a_program_that_cannot_say_yes_reads_how(service: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there: Callable[..., int] = uninstall.uninstall_service
    monkeypatch.setattr(uninstall, "uninstall_service", lambda **given: there(**given, prefix=service))
    done = CliRunner().invoke(main, ["uninstall-service", "--json"], input="")
    said = json.loads(done.stdout)
    assert (done.exit_code, said["detail"], said["hint"]) == (1, "nothing was removed", "without a person: --yes")
    assert "Go on?" in done.stderr


def test_without_a_yes_nothing_happens(service: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = names(service)
    assert uninstall_service(agreed=lambda: False, prefix=service) == 1
    assert (names(service), capsys.readouterr().err) == (before, "nothing was removed\n")


def test_a_unit_a_command_and_files_of_somebody_else_stay(service: Path) -> None:
    (service / "etc/systemd/system/pylb.service").write_text("[Service]\nExecStart=/usr/bin/docker run pylb\n")
    command_link(service).path.unlink()
    command_link(service).path.write_text("#!/bin/sh\n")
    (service / "opt/pylb/mine").touch()
    assert uninstall_service(agreed=lambda: True, prefix=service) == 0
    assert {"etc/systemd/system/pylb.service", "opt/pylb/mine", "usr/local/bin/pylb"} <= set(names(service))
    assert os.listdir(service / "opt/pylb") == ["mine"]


def test_systemd_stops_the_service_before_anything_is_removed_and_a_failure_ends_it_there(
    service: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []

    def run(argv: Sequence[str]) -> None:
        done.append(" ".join(argv))
        raise InstallError("it ended with 1", "see its output")

    steps = list(uninstall._steps(service, run, systemd=True))
    assert steps[0].text.endswith("(systemctl disable --now pylb)")
    assert [step.text for step in steps][2] == "tell systemd (systemctl daemon-reload)"
    before = names(service)
    assert uninstall_service(agreed=lambda: True, prefix=service, run=run, systemd=True) == 1
    assert (names(service), done) == (before, ["systemctl disable --now pylb"])
    assert "it ended with 1\n  what to do: what is done stays done; run this again" in capsys.readouterr().err


@pytest.mark.parametrize(("argument", "code", "text"), [("", 1, "nobody said yes; without a person: --yes"), ("--yes", 0, "")])
def test_somebody_has_to_say_yes(argument: str, code: int, text: str, service: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there: Callable[..., int] = uninstall.uninstall_service
    monkeypatch.setattr(uninstall, "uninstall_service", lambda **given: there(**given, prefix=service))
    done = CliRunner().invoke(main, ["uninstall-service", *filter(None, [argument])], input="")
    assert (done.exit_code, text in done.stderr) == (code, True)
    assert (service / "opt/pylb").exists() is (code == 1)


def test_without_root_it_says_so(tmp_path: Path) -> None:
    program = (
        "import os, sys, pathlib\n"
        "from pylb.cli.uninstall import uninstall_service\n"
        "os.geteuid() or os.seteuid(65534)\n"
        "sys.exit(uninstall_service(agreed=lambda: True, prefix=pathlib.Path(sys.argv[1])))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=DEPLOY.parent, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout) == (1, "")
    assert "this needs root\n  what to do: run it with sudo" in done.stderr
