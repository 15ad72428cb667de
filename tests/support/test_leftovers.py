"""What is left of a run is named, and nothing else."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.processes import state
from tests.support.cgroups import ROOTS, end, end_those_of_dead_runs
from tests.support.leftovers import Run
from tests.support.netns import run as command
from tests.support.peers import missing, need_netns
from tests.support.waiting import eventually

SLEEPS = "import time; time.sleep(60)"
Start = Callable[..., int]


@pytest.fixture
def start() -> Iterator[Start]:
    """A process that nobody waits for; its pid."""
    started: list[subprocess.Popen[bytes]] = []

    def sleeper(*args: str, cwd: Path = Path("/"), env: dict[str, str] | None = None) -> int:
        argv = (sys.executable, "-c", SLEEPS, *args)
        started.append(subprocess.Popen(argv, cwd=cwd, env=env, start_new_session=True))
        pid = started[-1].pid
        eventually(lambda: Path(f"/proc/{pid}/cmdline").read_bytes())  # it has them a moment after its exec
        return pid

    yield sleeper
    for process in started:
        process.kill()
        process.wait(10)


def test_a_run_that_left_nothing_has_no_folder_either(tmp_path: Path) -> None:
    before = tempfile.gettempdir(), os.environ.get("TMPDIR")
    run = Run(tmp_path)
    with tempfile.TemporaryDirectory() as folder:
        assert Path(folder).parent == Path(os.environ["TMPDIR"])
    own = Path(tempfile.gettempdir())

    assert run.end() == []

    assert not own.exists()
    assert (tempfile.gettempdir(), os.environ.get("TMPDIR")) == before


@pytest.mark.parametrize("way", ["inherits", "home", "argument", "folder"])
def test_a_process_is_named_until_it_is_gone(way: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.leftovers.PATIENCE", 0.0)
    run = Run(tmp_path)
    match way:
        case "inherits":
            pid = start()
        case "home":
            pid = start(env={"HOME": str(tmp_path / "home")})
        case "argument":
            pid = start("-c", f"{tmp_path}/pylb.yaml", env={})
        case _:
            pid = start(cwd=tmp_path, env={})

    [line] = run.end()

    assert line.startswith(f"process {pid} {sys.executable} ")
    os.kill(pid, signal.SIGKILL)
    monkeypatch.setattr("tests.support.leftovers.PATIENCE", 10.0)
    assert Run(tmp_path).end() == []


def test_a_process_of_another_run_is_not_ours(start: Start, tmp_path: Path) -> None:
    (tmp_path / "run-1").mkdir()
    run = Run(tmp_path / "run-1")
    start(env={"HOME": f"{tmp_path}/run-12", "ANOTHER": f"{tmp_path}"})
    assert run.end() == []


def test_temporary_files_are_named(tmp_path: Path) -> None:
    run = Run(tmp_path)
    folder = Path(tempfile.mkdtemp())
    (folder / "file").touch()

    assert run.end() == [f"temporary file {folder}", f"temporary file {folder}/file"]

    (folder / "file").unlink()
    folder.rmdir()
    folder.parent.rmdir()


@pytest.mark.root
def test_a_network_namespace_is_named_and_those_of_others_are_not(tmp_path: Path) -> None:
    need_netns()
    run = Run(tmp_path)
    ours, others = f"pylb-{os.getpid()}-9999-left", "pylb-1-9999-left"
    for name in (ours, others):
        command("ip", "netns", "add", name)
    try:
        assert run.end() == [f"network namespace {ours}"]
    finally:
        for name in (ours, others):
            command("ip", "netns", "delete", name)


@pytest.mark.root
def test_machines_of_a_run_that_was_killed_are_ended_and_those_of_others_are_not(start: Start) -> None:
    """As systemd-nspawn leaves them: a group with groups below it, and processes in each."""
    roots = [root for root in ROOTS if (root / "cgroup.procs").exists()]
    if not roots or not os.access(roots[0], os.W_OK):
        missing("needs control groups that root may make")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(10)  # its number is nobody's now
    dead, living, foreign = f"pylb-test-{gone.pid}", f"pylb-test-{os.getpid()}", f"pylb-test-{gone.pid}-of-another"
    pids = {}
    try:
        for name in (dead, living, foreign):
            for folder in (roots[0] / name, roots[0] / name / "payload"):
                folder.mkdir()
                pids[folder] = start()
                (folder / "cgroup.procs").write_text(str(pids[folder]))

        end_those_of_dead_runs()

        assert not (roots[0] / dead).exists()
        states = {folder: state(pid) for folder, pid in pids.items()}
        assert {folder for folder, found in states.items() if found == "Z"} == {one for one in pids if dead in one.parts}
    finally:
        for name in (dead, living, foreign):
            end(name)
