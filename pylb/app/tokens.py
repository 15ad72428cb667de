"""The tokens in force: those from the config, those made by `pylb token`, and the one of the first run.

Their files are read again when they change, so that a secret is replaced without a reload.
"""

import logging
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pylb.config import Config, first_run_token, read_secrets_again
from pylb.config.generated_tokens import GeneratedTokens, paths, read_generated
from pylb.control.storage.files import read_regular, set_aside, write_private
from pylb.core.auth import STRONG, Keyring, Token
from pylb.host.machine import local_addresses

log = logging.getLogger("pylb")

TOKEN_FILE = "token"  # noqa: S105 - a file's name
_MOST_BYTES = 4096
TLS_FOLDER = "tls"  # the self-signed key and certificate


class TokenStore:
    """`secret` is the first run's; None: not in force, because there are other tokens."""

    def __init__(self, config: Config) -> None:
        """Raises OSError: there is no token, and none can be stored."""
        self._generated = read_generated(config.state_dir)
        self._reported: list[str] = []
        self.secret: str | None = None
        self.use(config)

    @property
    def generated(self) -> GeneratedTokens:
        return self._generated

    def use(self, config: Config) -> None:
        """Raises OSError."""
        in_force = first_run_in_force(config, self._generated)
        self.secret = generated_secret(config.state_dir, self.secret) if in_force else None
        self._config = config

    def read_again(self) -> None:
        """Read the files again. The content of a file that cannot be read stays in force; this is reported once."""
        self._config, complaints = read_secrets_again(self._config)
        found = read_generated(self._config.state_dir)
        kept = {name: made for name, made in self._generated.tokens.items() if not found.listed or _complained(found, name)}
        self._generated = GeneratedTokens(kept | found.tokens, found.complaints)
        self._say([*complaints, *found.complaints])
        try:
            self.use(self._config)
        except OSError as error:
            log.error("the first run's token cannot be kept: %s", error)

    def keyring(self) -> Keyring:
        config, found = self._config, list(self._unshadowed())
        if self.secret is not None:
            found.append(first_run_token(self.secret, config.reserved_ports))
        return config.keyring(*found)

    def files(self) -> Iterable[Path]:
        """A change of these files is a reason to read again."""
        state_dir = self._config.state_dir
        yield from (entry.secret_file for entry in self._config.tokens if entry.secret_file is not None)
        yield state_dir / TOKEN_FILE
        with suppress(OSError):  # what they say stays in force, and `read_again` reports it
            yield from paths(state_dir)

    def _unshadowed(self) -> Iterable[Token]:
        configured = {entry.name for entry in self._config.tokens}
        self._say(
            f"token {name!r} is in the config too, which counts; `pylb token revoke {name}` removes the other one"
            for name in sorted(self._generated.tokens.keys() & configured)
        )
        return (made.token() for name, made in self._generated.tokens.items() if name not in configured)

    def _say(self, texts: Iterable[str]) -> None:
        for text in texts:
            if text not in self._reported:
                self._reported = [*self._reported[-100:], text]
                log.error("%s", text)


def _complained(found: GeneratedTokens, name: str) -> bool:
    return any(f"/{name} is left out" in text for text in found.complaints)


def first_run_in_force(config: Config, made: GeneratedTokens) -> bool:
    """It stays in force beside those that `pylb token create` makes, until it is revoked."""
    return not config.tokens and (not made.tokens or os.path.lexists(config.state_dir / TOKEN_FILE))


def generated_secret(state_dir: Path, before: str | None = None) -> str:
    """The token of a machine without other ones: read from the state directory, made at the first run (0600).

    If the file is damaged, the secret in force (`before`) stays; without one the file is set aside for a new secret: callers
    with the old one are refused, and every port serves. Raises OSError: no secret can be stored.
    """
    path = state_dir / TOKEN_FILE
    try:
        return _secret(read_regular(path, _MOST_BYTES))
    except (OSError, ValueError) as error:
        if not os.path.lexists(path):
            return _new_secret(path)
        if before is not None:
            log.error("%s cannot be used: %s; its secret stays as it was", path, error)
            return before
        log.error("%s cannot be used: %s%s; a new secret takes its place", path, error, set_aside(path))
    return _new_secret(path)


def _new_secret(path: Path) -> str:
    """Raises OSError."""
    made = secrets.token_urlsafe(24)
    write_private(path, made.encode() + b"\n")
    return made


def _secret(data: bytes) -> str:
    """Raises ValueError."""
    text = data.decode("ascii").strip()
    if len(text) < STRONG or not text.isprintable():
        raise ValueError(f"it has {len(text)} characters, {STRONG} printable ones are needed")
    return text


def names_of_machine(config: Config) -> list[str]:
    """The names and addresses in a certificate of ours."""
    return [*config.own_names, *sorted(local_addresses()), "localhost", "127.0.0.1", "::1"]
