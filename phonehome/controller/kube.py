"""Calls to the Kubernetes API server: a bounded request, and a watch. Token and CA files are read again before each call.

Projected service account tokens end after an hour (the kubelet writes new ones), and a CA can be rotated.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, NamedTuple

from phonehome.client import CALL_TIMEOUT, Bounds, CallError, Cancel, Client, lower_headers, trust
from phonehome.message import Reply, Request, retry_after
from phonehome.values import Endpoint, Token, clean_token

MOST_ANSWER = 32 * 1024 * 1024  # bytes of a list: one that is over it would not fit into memory either
MOST_LINE = 4 * 1024 * 1024  # bytes of a watch event; etcd's own bound for an object is 1.5 MiB
LIST_TIMEOUT = 60.0  # seconds for a page
CHUNK = 64 * 1024  # bytes read at once from a watch

BULKY = ("managedFields", "images")  # of every object and of every node: most of their text, and nobody here reads them


class ApiError(Exception):
    """The API server answered, but not what was asked for."""

    def __init__(self, status: int, text: object, wait: float | None = None) -> None:
        """`text`: the server's own, of which the log gets no control character."""
        text = "".join(one if one.isprintable() else " " for one in text[:300]) if isinstance(text, str) else ""
        super().__init__(f"{status} {text}" if text else str(status))
        self.status = status
        self.text = text
        self.wait = wait  # Retry-After, in seconds

    @property
    def hint(self) -> str:
        return {
            401: "is the token of the service account mounted, and still valid?",
            403: "apply deploy/kubernetes/controller/base.yaml",
            404: "does PYLB_KUBE_API name an API server?",
        }.get(self.status, "")


class Access(NamedTuple):
    """Where the API server is, and the files that open it."""

    endpoint: Endpoint
    token_file: str
    ca_file: str | None  # None: the system's authorities


class Api:
    """Belongs to one thread: several threads have one each."""

    def __init__(self, access: Access, read_file: Callable[[str], str]) -> None:
        self._access = access
        self._read_file = read_file
        self._ca: str | None = None
        self._context: ssl.SSLContext | None = None
        self._client = Client(access.endpoint, "source", None)

    def get(self, path: str, *, cancel: Cancel | None = None) -> dict[str, Any]:
        """Raises CallError or ApiError."""
        return self._answer(Request("GET", path, None), LIST_TIMEOUT, cancel)

    def post(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """Raises CallError or ApiError."""
        return self._answer(Request("POST", path, _encoded(document)), CALL_TIMEOUT, None)

    def patch(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """A merge patch (RFC 7386). Raises CallError or ApiError."""
        headers = (("Content-Type", "application/merge-patch+json"),)
        return self._answer(Request("PATCH", path, _encoded(document), headers), CALL_TIMEOUT, None)

    def watch(self, path: str, silence: float, *, cancel: Cancel) -> Generator[bytes, None, None]:
        """The lines of a watch, until it ends. A line that the end cut off is dropped. Raises CallError, also when nothing
        came for `silence` seconds, or ApiError."""
        token = self._credentials()
        opening = min(silence, CALL_TIMEOUT)
        with self._client.exchange(Request("GET", path, None), token, opening, cancel=cancel) as (response, bounds):
            if response.status != 200:
                raise _error(Reply(response.status, lower_headers(response), response.read(bounds.most)))
            yield from _lines(response.read1, bounds, silence)

    def _answer(self, request: Request, timeout: float, cancel: Cancel | None) -> dict[str, Any]:
        reply = self._client.call(request, self._credentials(), timeout, cancel=cancel, most=MOST_ANSWER)
        if not 200 <= reply.status < 300:
            raise _error(reply)
        found = decoded(reply.body)
        if found is None:
            raise ApiError(reply.status, f"its answer is not a JSON object ({len(reply.body)} bytes)")
        return found

    def _credentials(self) -> Token:
        """Raises CallError: without its files there is no call."""
        try:
            token = clean_token(self._read_file(self._access.token_file))
            if self._access.endpoint.secure:
                self._read_authorities()
        except ssl.SSLError:
            raise CallError("no usable certificate", str(self._access.ca_file), unsent=True) from None
        except (OSError, ValueError) as exc:
            text = (exc.strerror or type(exc).__name__) if isinstance(exc, OSError) else "not usable"
            where = f"{self._access.token_file}, {self._access.ca_file}: {text}"
            raise CallError("cannot read the credentials", where, unsent=True) from None
        if token is None:
            raise CallError("no token", self._access.token_file, unsent=True)
        self._client.use((), self._context)
        return token

    def _read_authorities(self) -> None:
        """A file that is broken or missing changes nothing, except at the start. Raises ssl.SSLError, OSError or ValueError."""
        try:
            ca = self._read_file(self._access.ca_file) if self._access.ca_file else None
            if self._context is None or ca != self._ca:
                self._context, self._ca = trust(ca), ca
        except (ssl.SSLError, OSError, ValueError):
            if self._context is None:
                raise


def decoded(text: bytes) -> dict[str, Any] | None:
    """A JSON object without what only costs memory. None: it is not one."""
    try:
        found = json.loads(text, object_hook=_lean)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _lean(found: dict[str, Any]) -> dict[str, Any]:
    """While the text is parsed, so that a long list never exists in full."""
    for key in BULKY:
        found.pop(key, None)
    return found


def _lines(read: Callable[[int], bytes], bounds: Bounds, silence: float) -> Iterator[bytes]:
    rest = b""
    while True:
        bounds.deadline, bounds.rest = time.monotonic() + silence, MOST_LINE
        chunk = read(CHUNK)
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > MOST_LINE:
            raise CallError("event too long", f"more than {MOST_LINE} bytes")
        yield from filter(None, lines)


def _encoded(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _error(reply: Reply) -> ApiError:
    """The message of a Status object (metav1.Status)."""
    return ApiError(reply.status, (decoded(reply.body) or {}).get("message"), retry_after(reply, time.time()))
