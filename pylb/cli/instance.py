"""Finds the running pylb that a config belongs to, also if its file is broken, gone, or leads elsewhere by now."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pylb.config import ConfigErrors
from pylb.config.source import FORWARDS, ConfigSource
from pylb.control.storage.places import SYSTEM_FILE, VARIABLE
from pylb.host.machine import open_files_of_lock_holders
from pylb.web.control_client import call
from pylb.web.unix import answers

SOCKET = "control.sock"
PATIENCE = 2.0  # seconds for each of the others that run here


class Instance(NamedTuple):
    """`note`: what to tell the person who asked about how it was found, or ""."""

    state_dir: Path
    note: str


def find(file: Path | None) -> Instance:
    """The state directory of the pylb that runs with this config; if none runs, the one that the config names.

    A file that cannot be used leads nowhere, and one that was emptied or edited may lead elsewhere. So those that run here are
    asked which file they were started with. Without a file, a forward of `pylb run --listen` is found too. Raises ConfigErrors:
    the file cannot be used, and no pylb runs with it.
    """
    source, problems = ConfigSource(file, os.environ), None
    guesses: list[Path] = []
    try:
        own = source.named_state_dir()
        if answers_in(own):
            return Instance(own, "")
        if file is None and (running := [one for one in sorted(own.glob(f"{FORWARDS}*")) if answers_in(one)]):
            return _forward(own, running)
        why = f"no pylb uses {own}"
    except ConfigErrors as errors:
        own, problems, why = source.state_dir(), errors, f"{file} is broken (pylb check -c {file})"
        guesses = [own]
    if file is None and VARIABLE in os.environ:  # no file is wanted, not even the system's
        return Instance(own, "")
    started_with = file or SYSTEM_FILE
    for state_dir in [*guesses, *(one for one in _others() if _may_speak_for(one, started_with))]:
        if _runs_with(state_dir, started_with):
            return Instance(state_dir, f"{why}; asking the pylb that uses {state_dir}, which was started with {started_with}")
    if problems is not None:
        raise problems
    return Instance(own, "")


def _forward(own: Path, running: Sequence[Path]) -> Instance:
    """Among those that `pylb run --listen` made."""
    if len(running) == 1:
        return Instance(running[0], "")
    options = ", ".join(f"-c {one / 'pylb.yaml'}" for one in running)
    return Instance(own, f"{len(running)} forwards run here, and one has to be named: {options}")


def answers_in(state_dir: Path) -> bool:
    """Is a pylb there, also if we may not ask it?"""
    try:
        return answers(state_dir / SOCKET)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # somebody may be there whom we may not ask, and the question itself will say so
        return True


def _others() -> Iterator[Path]:
    """The state directories of all pylbs that we may ask. Each holds a lock on a file in its directory."""
    for path in open_files_of_lock_holders():
        if path.name == "lock" and (path.parent / SOCKET).is_socket():
            yield path.parent


def _may_speak_for(state_dir: Path, file: Path) -> bool:
    """Does it belong to root, to us, or to those to whom the config belongs?

    Anybody may hold a lock beside a socket that answers "started with /etc/pylb/pylb.yaml". Root would go by the config in
    there, and write its new tokens there.
    """
    try:
        owner = state_dir.stat()
        if owner.st_uid in (0, os.geteuid()):
            return True
        config = (file if file.exists() else file.parent).stat()
    except OSError:
        return False
    return owner.st_uid == config.st_uid or owner.st_gid == config.st_gid != 0


def _runs_with(state_dir: Path, file: Path) -> bool:
    try:
        answer = call(state_dir / SOCKET, {"verb": "ping"}, PATIENCE)
    except (OSError, ValueError):
        return False
    config = answer.get("config")
    return isinstance(config, str) and os.path.realpath(config) == os.path.realpath(file)
