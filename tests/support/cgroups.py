"""Control groups that a run makes for its machines. Their names contain its pid, so a later run knows to whom they belonged."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

from tests.support.waiting import eventually

# Version 1 and 2 (cgroups(7)), wherever systemd looks for its own.
ROOTS = tuple(Path(root) for root in ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"))
_OURS = re.compile(r"pylb-test-([0-9]+)")


def own() -> str:
    """The group of this run, below each of ROOTS."""
    return f"pylb-test-{os.getpid()}"


def remove(name: str) -> None:
    """Remove a group and those below it. No process may run in them."""
    for folder in _folders(name):
        for below in (*sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True), folder):
            below.rmdir()


def end(name: str) -> None:
    """Kill all processes in a group and remove it."""
    for pid in _members(name):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has just ended
    eventually(lambda: not _members(name), within=20, what=f"all of {name} has ended")
    remove(name)


def end_those_of_dead_runs() -> None:
    """End groups of runs whose process is gone, since nobody else ends their processes, such as a machine's systemd."""
    names = {folder.name for root in ROOTS if root.is_dir() for folder in root.iterdir() if folder.is_dir()}
    for name in sorted(names):
        ours = _OURS.fullmatch(name)
        if ours is not None and not Path(f"/proc/{ours[1]}").exists():
            end(name)


def _folders(name: str) -> Iterator[Path]:
    return (root / name for root in ROOTS if (root / name / "cgroup.procs").exists())


def _members(name: str) -> set[int]:
    found: set[int] = set()
    for folder in _folders(name):
        for file in folder.rglob("cgroup.procs"):
            found |= {int(line) for line in file.read_text().split()}
    return found - {0}  # of another pid namespace
