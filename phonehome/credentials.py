"""What a load balancer is called with, and how it is trusted: token, pins, authorities.

Their files are read again before each call, so that a rotated Secret or a renewed certificate needs no restart. A file
that is missing or incomplete changes nothing: the previous content stays in use, and the log says so once.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable

from phonehome.client import trust
from phonehome.settings import Settings, parse_joins
from phonehome.values import Endpoint, Token, clean_token

MOST = 64 * 1024  # bytes per file


def read_file(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read(MOST)


def tokens(settings: Settings) -> list[Token]:
    """The current tokens of all load balancers."""
    found = [Credentials(settings, endpoint, None, lambda _line: None) for endpoint in settings.endpoints]
    for one in found:
        one.refresh()
    return [one.token for one in found]


class Credentials:
    """Belongs to one thread."""

    def __init__(
        self, settings: Settings, endpoint: Endpoint, context: ssl.SSLContext | None, log: Callable[[str], None]
    ) -> None:
        """`context` is what `trust` made from `settings.ca`."""
        self.token: Token = endpoint.token or settings.token
        self.pins = endpoint.pins
        self.context = context
        self._label = endpoint.label
        self._settings = settings
        self._log = log
        self._ca = settings.ca
        self._said = ""

    def refresh(self) -> None:
        trouble = self._read()
        if trouble and trouble != self._said:
            self._log(f"{self._label}: {trouble}; the previous content stays in use")
        self._said = trouble

    def _read(self) -> str:
        """What is wrong with the files, without any of their content."""
        for path, use in (
            (self._settings.token_file, self._use_token),
            (self._settings.join_file, self._use_join),
            (self._settings.ca_file, self._use_ca),
        ):
            try:
                trouble = use(read_file(path)) if path else ""
            except OSError as exc:
                trouble = exc.strerror or type(exc).__name__
            except ValueError:
                trouble = "not text"
            if trouble:
                return f"{path}: {trouble}"
        return ""

    def _use_token(self, text: str) -> str:
        token = clean_token(text)
        if token is None:
            return "contains no token"
        self.token = token
        return ""

    def _use_join(self, text: str) -> str:
        problems: list[str] = []
        found, _ = parse_joins(text, problems.append)
        mine = next((one for one in found if one.label == self._label), None)
        if mine is None or mine.token is None:
            where = ", ".join(one.label for one in found) or "nothing"
            return problems[0] if problems else f"now names {where} (which needs a restart)"
        self.token, self.pins = mine.token, mine.pins
        return ""

    def _use_ca(self, text: str) -> str:
        if text != self._ca:
            try:
                self.context = trust(text)
            except (ssl.SSLError, ValueError):
                return "contains no usable certificate"
            self._ca = text
        return ""
