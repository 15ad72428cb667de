"""Where the config comes from: the file, or what was in force when pylb last ran with it."""

from collections.abc import Mapping
from pathlib import Path

from pylb.config.load import load, parse, read_text
from pylb.config.problems import ConfigErrors
from pylb.config.root import Config
from pylb.control.storage.files import read_regular, write_private
from pylb.control.storage.places import default_state_dir, likely_state_dir

FORWARDS = "forward-"  # and a port: directories of `pylb run --listen` in the default state directory
LAST_GOOD = "config.last-good"
MOST_BYTES = 64 << 20


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
        """The state directory that the file names, even where the file is not valid YAML; else the default."""
        return likely_state_dir(self.path, self._environ)
