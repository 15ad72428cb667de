"""Where the config comes from: the file, or what was in force when pylb last ran with it."""

import re
from collections.abc import Mapping
from pathlib import Path

from pylb.config.load import default_state_dir, load, parse, read_text
from pylb.config.problems import ConfigErrors
from pylb.config.root import Config
from pylb.control.storage.files import read_regular, write_private

LAST_GOOD = "config.last-good"
MOST_BYTES = 64 << 20
_STATE_DIR_LINE = re.compile(r"""^[ \t{]*["']?state_dir["']?\s*:\s*["']?([^"'#\n]+?)["']?,?\s*(?:#.*)?$""", re.MULTILINE)


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

    def last_good(self) -> Config | None:
        """What was in force when pylb last ran with this file, if it is remembered and still valid.

        A secret file that is gone costs its token's calls, not the ports: they serve what is registered.
        """
        if self.path is None:
            return None
        kept = self.state_dir() / LAST_GOOD
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

    def state_dir(self) -> Path:
        """Of a file that may not even be YAML: its state_dir line, else the default."""
        try:
            found = _STATE_DIR_LINE.search(self.path.read_text()) if self.path is not None else None
        except (OSError, ValueError):
            found = None
        if found is None or self.path is None:
            return default_state_dir(self._environ)
        return self.path.absolute().parent / found.group(1).strip()  # an absolute one stays as it is
