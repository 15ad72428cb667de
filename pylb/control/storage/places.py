"""Where the config and the state directory are, for whoever has read no config yet."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

SYSTEM_FILE = Path("/etc/pylb/pylb.yaml")  # where `pylb install-service` puts it
VARIABLE = "PYLB_CONFIG"
_STATE_DIR_LINE = re.compile(r"""^[ \t{]*["']?state_dir["']?\s*:\s*["']?([^"'#\n]+?)["']?,?\s*(?:#.*)?$""", re.MULTILINE)


def chosen(given: Path | None, environ: Mapping[str, str], system: Path = SYSTEM_FILE) -> Path | None:
    """The file to go by: -c, else $PYLB_CONFIG, else the system's. None: the embedded defaults, also if PYLB_CONFIG is empty.

    The system's file only for those who may read it: others on the same machine can still try a pylb of their own.
    """
    if given is not None:
        return given
    if (named := environ.get(VARIABLE)) is not None:
        return Path(named) if named else None
    return system if os.access(system, os.R_OK) else None


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """systemd's StateDirectory= (a colon list, systemd.exec(5)), else below the home directory (XDG base directories)."""
    if first := environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(first)
    home = environ.get("HOME", "")
    return Path(home) / ".local/state/pylb" if home.startswith("/") else Path("/var/lib/pylb")


def likely_state_dir(file: Path | None, environ: Mapping[str, str]) -> Path:
    """The state directory that a config names, found by its line, so that the file need not be valid YAML; else the default."""
    try:
        found = None if file is None else _STATE_DIR_LINE.search(file.read_text("utf-8", "replace"))
    except (OSError, ValueError):
        found = None
    if found is None or file is None:
        return default_state_dir(environ)
    return file.absolute().parent / found.group(1).strip()  # an absolute one stays as it is
