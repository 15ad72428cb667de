"""Where the config comes from: the file, or what was in force when pylb last ran with it."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from pylb.config.load import default_state_dir, load, parse, read_text
from pylb.config.problems import ConfigErrors
from pylb.config.root import Config
from pylb.control.storage.files import read_regular, write_private

SYSTEM_FILE = Path("/etc/pylb/pylb.yaml")  # where `pylb install-service` puts it
VARIABLE = "PYLB_CONFIG"
FORWARDS = "forward-"  # and a port: directories of `pylb run --listen` in the default state directory
LAST_GOOD = "config.last-good"
MOST_BYTES = 64 << 20
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


class ConfigSource:
    """Where the config comes from: a file, or nothing. Remembers the last good one in the state directory."""

    def __init__(self, path: Path | None, environ: Mapping[str, str]) -> None:
        self.path = path
        self._environ = environ
        self._text = ""

    def load(self) -> Config:
        """What the file says now. Raises ConfigErrors."""
        text = None if self.path is None else read_text(self.path)
        config = load(self.path, self._environ, text=text)
        self._text = text or ""
        return config

    def read(self, path: Path, text: str) -> Config:
        """What `text`, as the file at `path`, would mean. Raises ConfigErrors."""
        return load(path, self._environ, text=text)

    def last_good(self, state_dir: Path | None = None) -> Config | None:
        """What was in force when pylb last ran with this file, if it is remembered and still valid.

        A secret file that is gone costs its token's calls, not the ports: they serve what is registered.
        """
        if self.path is None:
            return None
        kept = (state_dir or self.state_dir()) / LAST_GOOD
        try:
            text = read_regular(kept, MOST_BYTES).decode()
            try:
                return load(self.path, self._environ, text=text)
            except ConfigErrors:
                return parse(text, str(self.path), self._environ)
        except (OSError, ValueError, ConfigErrors):
            return None

    def keep(self, config: Config) -> None:
        """Remember what `config` was loaded from just before, whatever the file holds by now: for a start with a broken one.

        Raises OSError.
        """
        if self.path is not None:
            write_private(config.state_dir / LAST_GOOD, self._text.encode())

    def named_state_dir(self) -> Path:
        """The state directory that the file names, or the default one. Opens no other file. Raises ConfigErrors."""
        if self.path is None:
            return default_state_dir(self._environ)
        return parse(read_text(self.path), str(self.path), self._environ).state_dir

    def state_dir(self) -> Path:
        """Of a file that may not even be YAML: its state_dir line, else the default."""
        try:
            found = None if self.path is None else _STATE_DIR_LINE.search(self.path.read_text("utf-8", "replace"))
        except (OSError, ValueError):
            found = None
        if found is None or self.path is None:
            return default_state_dir(self._environ)
        return self.path.absolute().parent / found.group(1).strip()  # an absolute one stays as it is
