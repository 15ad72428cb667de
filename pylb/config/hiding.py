"""Hides texts from messages that are a secret, or may be a secret in the wrong place.

A message names line, column and key, so its reader finds the text. `pylb check` runs in CI, whose logs others can read.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from difflib import get_close_matches

from pylb.config.models import TokenEntry
from pylb.config.problems import Problem
from pylb.config.value_type import show
from pylb.config.values import NAME
from pylb.config.yamlplace import Plain

HIDDEN = "(not shown)"
_SECRET_KEY = re.compile(r"secret|token|passw|key$", re.IGNORECASE)
# Characters that values with numbers and networks may have in a token's entry and still be shown.
_PLAIN = re.compile(r"\s*[0-9][0-9a-fA-F.:/,\s-]{0,43}|\*")
_NUMBERS = frozenset({"ports", "target_ports", "targets", "sources"})
_RANDOM = re.compile(r"(?=.*[0-9])(?=.*[a-z])(?=.*[A-Z])[A-Za-z0-9+/_=~.-]{16,}|(?=.*[0-9])(?=.*[a-f])[0-9a-f]{16,}")


def hidden(problems: Iterable[Problem], data: Plain) -> list[Problem]:
    """The problems of a file whose plain value is `data`, without texts that may be secrets."""
    several = list(problems)
    texts = sorted(set(_secretive(data)), key=len, reverse=True) if several else []
    return [replace(one, message=_masked(one.message, texts), hint=_masked(one.hint, texts)) for one in several]


def _masked(message: str, texts: Iterable[str]) -> str:
    for text in texts:
        for form in (show(text), repr(text)):
            message = message.replace(form, HIDDEN)
        if len(text) >= 4 and not text.isalpha():  # what may be an ordinary word is hidden only where it is quoted
            for form in (text, ascii(text)[1:-1][:60], text[:40]):
                message = message.replace(form, HIDDEN)
    return message


def _secretive(value: Plain, key: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "tokens":
                yield from _of_tokens(inner)
                continue
            if _RANDOM.fullmatch(name):
                yield name
            yield from _secretive(inner, name)
    elif isinstance(value, list):
        for item in value:
            yield from _secretive(item, key)
    elif isinstance(value, str) and ((_SECRET_KEY.search(key) and not value.startswith("/")) or _RANDOM.fullmatch(value)):
        yield value


def _of_tokens(value: Plain) -> Iterator[str]:
    """The secrets, and every text that is not what its key expects."""
    for entry in value if isinstance(value, list) else [value]:
        if not isinstance(entry, dict):
            yield from _with_pieces(_texts(entry))
            continue
        for key, inner in entry.items():
            if key not in TokenEntry.model_fields and not get_close_matches(key, TokenEntry.model_fields, n=1):
                yield from _with_pieces([key])
            yield from _with_pieces(text for text in _texts(inner) if not _fits(key, text))


def _fits(key: str, text: str) -> bool:
    if key in ("name", "names"):
        return NAME.fullmatch(text) is not None and _RANDOM.fullmatch(text) is None
    if key == "secret_file":
        return _RANDOM.fullmatch(text.rpartition("/")[2]) is None
    plain = _PLAIN.fullmatch(text) is not None and _RANDOM.fullmatch(text) is None
    return key in _NUMBERS and (plain or len(text) < 8)


def _texts(value: Plain) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def _with_pieces(texts: Iterable[str]) -> Iterator[str]:
    """The texts, and the pieces of them that the parsers of ranges and addresses quote."""
    for text in texts:
        yield text
        pieces = (piece.strip() for sign in "-:" for piece in (*text.partition(sign), *text.rpartition(sign)))
        yield from (piece for piece in pieces if len(piece) >= 4)
