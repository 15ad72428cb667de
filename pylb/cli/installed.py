"""What an installed pylb has on a machine: its versions in /opt/pylb, and the links that lead to one of them."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

_RELEASE = r".+-\d{8}-\d{6}"  # the name of a version's directory, as install.py makes it


@dataclass(frozen=True, slots=True)
class Link:
    """A link that is changed in one step (rename(2)): at any moment it leads to the old target or to the new one."""

    path: Path
    target: str  # relative to its directory


@dataclass(frozen=True, slots=True)
class CommandLink:
    """The link by which a shell finds `pylb`, or man its page. Whatever else is in its place stays there."""

    path: Path
    target: str  # relative to its directory

    @property
    def program(self) -> Path:
        """What it leads to. A `..` behind a link stays: it is the kernel that follows the link first."""
        below = self.target.lstrip("./")
        up = (len(self.target) - len(below)) // len("../")
        return self.path.parent.parents[up - 1] / below


@dataclass(frozen=True, slots=True)
class OldVersions:
    """The versions in `folder` that are neither in `used`, nor the one before, nor run by a process: they are removed."""

    folder: Path
    used: str  # the one that was just installed
    before: str  # the one before it, for the way back; "": none


def command_link(prefix: Path) -> CommandLink:
    return CommandLink(prefix / "usr/local/bin/pylb", "../../../opt/pylb/bin/pylb")


def manual_link(prefix: Path) -> CommandLink:
    """`bin` is a link, too: what is beside it is that of the version in use."""
    return CommandLink(prefix / "usr/local/share/man/man1/pylb.1", "../../../../../opt/pylb/bin/../share/man/man1/pylb.1")


def version_in_use(home: Path) -> str:
    """The version that the link in /opt/pylb leads to; "": there is none."""
    link = home / "bin"
    return link.readlink().parent.name if link.is_symlink() else ""


def point(link: Link) -> str:
    """Returns what there is to say about it, or "" """
    link.path.parent.mkdir(parents=True, exist_ok=True)
    before = link.path.readlink() if link.path.is_symlink() else None
    draft = link.path.with_name(f".{link.path.name}.new")
    draft.unlink(missing_ok=True)
    draft.symlink_to(link.target)
    draft.replace(link.path)
    return "" if before is None else f"before: {before}"


def offer(link: CommandLink) -> str:
    """Make the link, if nobody else has its place. Returns what there is to say about it, or "" """
    if is_ours(link):
        return "is there"
    if os.path.lexists(link.path):
        return f"WARNING: {link.path} is not ours and stays as it is; ours is {link.program}"
    return point(Link(link.path, link.target))


def is_ours(link: CommandLink) -> bool:
    return link.path.is_symlink() and _same(link.path.parent / link.path.readlink(), link.program)


def _same(one: Path, other: Path) -> bool:
    return os.path.normpath(one) == os.path.normpath(other)


def superfluous(old: OldVersions) -> list[str]:
    """What is to be removed: only directories that are named as install.py names them."""
    if not old.folder.is_dir():
        return []
    there = {path.name for path in old.folder.iterdir() if path.is_dir() and re.fullmatch(_RELEASE, path.name)}
    return sorted(there - {old.used, old.before} - running_versions(old.folder))


def prune(old: OldVersions) -> str:
    """Remove them. Returns what there is to say about it, or "" """
    for name in (removed := superfluous(old)):
        shutil.rmtree(old.folder / name)
    return f"removed: {', '.join(removed)}" if removed else ""


def running_versions(folder: Path, proc: Path = Path("/proc")) -> set[str]:
    """The versions that processes were started from: main, its workers, and those that only end their sessions.

    The environment's interpreter is the first word of their command line.
    """
    found = set()
    for process in proc.iterdir():
        try:
            program = Path(os.fsdecode((process / "cmdline").read_bytes().partition(b"\0")[0]))
        except OSError:
            continue  # it has ended, or is not a process
        if program.is_relative_to(folder):
            found.add(program.relative_to(folder).parts[0])
    return found
