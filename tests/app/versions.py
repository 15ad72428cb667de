"""Several installed versions of pylb, and processes that are nobody's children of ours."""

import shutil
import sys
from pathlib import Path

from bench.processes import state
from tests.app.instance import Instance
from tests.support.processes import ROOT


def gone(pid: int) -> bool:
    return state(pid) in (None, "Z")


def known(pylb: Instance) -> list[int]:
    """The pids of all mains and workers of its state directory that were not seen to have ended."""
    file = pylb.state_dir / "processes"
    return [int(line.split()[0]) for line in file.read_text().splitlines()] if file.exists() else []


class Tree:
    """Installed versions side by side, and a link to the one that counts, as `pylb install-service` lays them out."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._link = folder / "current"

    def install(self, version: str, *edits: tuple[str, str, str]) -> Path:
        """This source as another version, with edits: file, text, and what is in its place. The first one counts.

        With its compiled modules, which would take a third of its first start. Those of edited files are made again, because
        their size differs. Files of modules that are just being compiled are left out: they are gone a moment later.
        """
        root = self._folder / version
        shutil.copytree(ROOT / "pylb", root / "pylb", ignore=shutil.ignore_patterns("*.pyc.*"))
        (root / "bin").mkdir()
        program = root / "bin" / "pylb"
        path = f"import sys; sys.path.insert(0, {str(root)!r})"
        program.write_text(f"#!{sys.executable}\n{path}\nfrom pylb.cli.main import main\nmain()\n")
        program.chmod(0o755)
        for name, text, instead in (("pylb/__init__.py", '__version__ = "', f'__version__ = "{version}-'), *edits):
            file = root / name
            assert text in file.read_text()
            file.write_text(file.read_text().replace(text, instead))
        if not self._link.exists():
            self.use(version)
        return root

    def use(self, version: str) -> None:
        """As `ln -sfn` does, in one step."""
        draft = self._folder / ".current"
        draft.symlink_to(version)
        draft.replace(self._link)

    def command(self, pylb: Instance) -> tuple[str, ...]:
        return (str(self._link / "bin" / "pylb"), "run", "-c", str(pylb.file))
