"""The three types of HTTP here: a `Call` comes in, a `Router` finds its handler, and an `Answer` goes out."""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote


@dataclass(frozen=True, slots=True)
class Call:
    """One complete request."""

    method: str
    path: str  # raw: still percent-encoded, without the query
    headers: Mapping[str, str]  # names in lower case; the values of a repeated header are joined by ", "
    peer: str  # the TCP peer's IP, canonical text
    local: str  # the IP it connected to
    body: bytes = b""
    args: tuple[str, ...] = ()  # what the `{}` of the route matched, decoded
    query: Mapping[str, str] = field(default_factory=dict)  # decoded; if a key is repeated, the last value counts


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes | bytearray = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    close: bool = False  # close the connection after the answer
    chunks: AsyncGenerator[bytes] | None = None  # instead of a body: written as they come, for as long as the client takes them


Handler = Callable[[Call], Awaitable[Answer]]


def json_answer(status: int, value: Any, **headers: str) -> Answer:
    """`value` as JSON, one line; a keyword `Retry_After="1"` becomes the header `Retry-After: 1`."""
    body = json.dumps(value, separators=(",", ":")).encode() + b"\n"
    return Answer(status, body, headers={name.replace("_", "-"): text for name, text in headers.items()})


def text_answer(status: int, line: str, **headers: str) -> Answer:
    """`line` unchanged, because the exact bytes of a legacy answer matter."""
    names = {name.replace("_", "-"): text for name, text in headers.items()}
    return Answer(status, line.encode(), "text/plain; charset=utf-8", names)


class NoRoute(Exception):  # noqa: N818 - an answer (404 or 405), not an error of ours
    """There is no such path (`allow` is empty), or it does not accept this method (`allow` lists those that it accepts)."""

    def __init__(self, allow: tuple[str, ...] = ()) -> None:
        super().__init__(allow)
        self.allow = allow


class Router:
    """`{"GET /v1/things/{}": handler}`; `{}` matches one path segment, a GET route answers HEAD as well."""

    def __init__(self, routes: Mapping[str, Handler]) -> None:
        self._routes: list[tuple[str, tuple[str, ...], Handler]] = []
        for route, handler in routes.items():
            method, _, path = route.partition(" ")
            self._routes.append((method, tuple(path.split("/")), handler))

    def find(self, method: str, path: str) -> tuple[Handler, tuple[str, ...]]:
        """The handler and what its `{}` matched. Raises NoRoute."""
        segments = path.split("/")
        allow: list[str] = []
        for route_method, pattern, handler in self._routes:
            args = _match(pattern, segments)
            if args is None:
                continue
            if method == route_method or (method == "HEAD" and route_method == "GET"):
                return handler, args
            allow += ["GET", "HEAD"] if route_method == "GET" else [route_method]
        raise NoRoute(tuple(allow))


def _match(pattern: tuple[str, ...], segments: list[str]) -> tuple[str, ...] | None:
    if len(pattern) != len(segments):
        return None
    args = []
    for want, have in zip(pattern, segments, strict=True):
        if want == "{}" and have:
            # Decoded per segment, after the split: "a%2Fb" is one name with a slash in it, not a deeper path.
            args.append(unquote(have))
        elif want != have:
            return None
    return tuple(args)
