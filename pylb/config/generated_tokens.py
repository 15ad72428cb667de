"""Tokens that `pylb token create` makes: one file each in `{state_dir}/tokens`, 0600.

The keys are those of `tokens:` in the config, with `secrets` in place of `secret`. A token of that name in the config wins.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from pylb.config import models as m
from pylb.config import values as v
from pylb.config.root import token_of
from pylb.control.storage.files import read_regular, write_private
from pylb.core.address import PortsOf
from pylb.core.auth import Token

FOLDER = "tokens"
_MOST_BYTES = 64 * 1024


class GeneratedToken(m.TokenEntry):
    """The newest secret comes first; the others are being phased out."""

    secrets: Annotated[tuple[v.Secret, ...], Field(min_length=1, repr=False)]
    created: str = ""  # ISO 8601, only shown

    def token(self) -> Token:
        return token_of(self, self.secrets)


@dataclass(slots=True)
class GeneratedTokens:
    tokens: dict[str, GeneratedToken] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)  # about files that cannot be used; the others are valid
    listed: bool = True  # False: the directory cannot be read, so there may be others


def read_generated(state_dir: Path) -> GeneratedTokens:
    found = GeneratedTokens()
    try:
        files = paths(state_dir)
    except OSError as error:
        return GeneratedTokens(complaints=[f"{state_dir / FOLDER} cannot be read: {error.strerror}"], listed=False)
    for path in files:
        try:
            made = GeneratedToken.model_validate(json.loads(read_regular(path, _MOST_BYTES)))
            if path.name != made.name:
                raise ValueError(f"it is the file of a token called {made.name!r}")  # noqa: TRY301 - one place says it
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            found.complaints.append(f"{path} is left out: {place}: {first['msg']}")
        except (OSError, ValueError, RecursionError) as error:
            found.complaints.append(f"{path} is left out: {error}")
        else:
            found.tokens[made.name] = made
    return found


def paths(state_dir: Path) -> list[Path]:
    """The files that exist at the moment. Raises OSError: nobody can say."""
    try:
        return sorted(path for path in (state_dir / FOLDER).iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


def write_generated(state_dir: Path, made: GeneratedToken) -> None:
    """Atomic: the whole file or nothing. Raises OSError."""
    folder = state_dir / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    write_private(folder / made.name, json.dumps(dict(_written(made)), indent=1).encode())


def remove_generated(state_dir: Path, name: str) -> None:
    """Raises OSError."""
    (state_dir / FOLDER / name).unlink()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _written(made: GeneratedToken) -> Iterator[tuple[str, Any]]:
    for key in GeneratedToken.model_fields:
        if key in made.model_fields_set:
            yield key, _plain(getattr(made, key))


def _plain(value: Any) -> Any:
    """The form that the config's parsers read."""
    if isinstance(value, IPv4Network | IPv6Network | PortsOf):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
