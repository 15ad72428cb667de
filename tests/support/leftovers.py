"""What a run of the tests must not leave on the machine: processes, network namespaces, mounts, temporary files.

Others may run the same programs and tests at the same time, so each thing must show that it belongs to this run. A process
does so by naming one of the run's folders: it inherits TMPDIR, or has its home, its config or its log there.
"""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from bench.processes import parent
from tests.support.waiting import eventually

PATIENCE = 5.0  # seconds until a process that is ending has to be gone
_NAMESPACES = Path("/run/netns")


class Run:
    """This process's temporary files go to a folder of the run's own; `folders` are all it has."""

    def __init__(self, *folders: Path) -> None:
        # Open to other users, unlike pytest's own: some tests act as somebody else.
        self._temporary = Path(tempfile.mkdtemp(prefix="pylb-tests-"))
        self._temporary.chmod(0o711)
        self._before = tempfile.tempdir, os.environ.get("TMPDIR")
        tempfile.tempdir = os.environ["TMPDIR"] = str(self._temporary)
        self._folders = [str(folder) for folder in (self._temporary, *folders)]
        self._family = set(_ancestors(os.getpid()))

    def end(self) -> list[str]:
        """A line for each thing that is still there, after giving processes that are ending time to do so."""
        tempfile.tempdir, before = self._before
        os.environ.pop("TMPDIR")
        if before is not None:
            os.environ["TMPDIR"] = before
        try:
            eventually(lambda: not self._processes(), within=PATIENCE)
        except AssertionError:
            pass  # they are named below
        files = [f"temporary file {path}" for path in sorted(self._temporary.rglob("*"))]
        if not files:
            self._temporary.rmdir()
        return [*self._processes(), *self._network_namespaces(), *self._mounts(), *files]

    def _processes(self) -> list[str]:
        found = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit() or int(folder.name) in self._family:
                continue
            try:
                if self._is_ours(folder):
                    argv = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found.append(f"process {folder.name} {argv}")
            except OSError:
                continue  # it has ended, or is another user's
        return found

    def _is_ours(self, process: Path) -> bool:
        """A zombie has none of this: whoever started it is at fault, and is found if it lives."""
        said = [(process / name).read_bytes().decode(errors="replace") for name in ("cmdline", "environ")]
        links = [_target(process / "cwd"), *map(_target, (process / "fd").iterdir())]
        return any(_names(text, folder) for text in (*said, *links) for folder in self._folders)

    def _network_namespaces(self) -> list[str]:
        names = sorted(path.name for path in _NAMESPACES.iterdir()) if _NAMESPACES.is_dir() else []
        return [f"network namespace {name}" for name in names if f"-{os.getpid()}-" in name]

    def _mounts(self) -> list[str]:
        points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        return [f"mount {point}" for point in points if any(_names(point, folder) for folder in self._folders)]


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return ""  # a descriptor that was closed meanwhile


def _names(text: str, folder: str) -> bool:
    """Whether a text contains the name, and not only a longer name that begins with it."""
    return any(not after[:1].isalnum() for after in text.split(folder)[1:])


def _ancestors(pid: int) -> Iterable[int]:
    while pid:
        yield pid
        pid = parent(pid)
