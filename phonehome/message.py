"""The requests to pylb and its answers (its native registration API). Pure: no socket, no clock, no log.

    PUT    {prefix}/v1/registrations/{name}/{instance}   {"frontends": […], "address": …, "ttl": …, "state": …}
    DELETE {prefix}/v1/registrations/{name}/{instance}

Answers are read leniently (unknown keys are ignored, missing ones have a default), so that an older phone-home still
works with a newer pylb; only JSON that cannot be an answer of pylb counts as a refusal.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, Union
from urllib.parse import quote

from phonehome.sanitize import sanitized
from phonehome.settings import SOURCES, Settings
from phonehome.values import NotationError, parse_url, port_text

MOST_FRONTENDS = 64  # of a registration (the server's rule); an answer with more is not pylb's
MOST_NUMBER = 1 << 62  # JSON does not limit the digits; pylb sends no larger number
READY, DRAINING = "ready", "draining"  # `state` on the wire
RELEASED = "released"  # what a DELETE leaves behind


class Request(NamedTuple):
    method: str
    path: str  # below the endpoint's prefix
    body: bytes | None
    headers: tuple[tuple[str, str], ...] = ()  # beside those of every call


class Reply(NamedTuple):
    """An HTTP answer as it came; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Placed(NamedTuple):
    """One port as pylb has it now; it sends to `address` and `target_port`."""

    port: int
    address: str
    target_port: int
    reachable: str  # yes | refused | timeout | unreachable | "" when pylb does not say
    hint: str
    protocol: str = "tcp"
    last: int = 0  # the last port of a range; 0: it is one port

    @property
    def text(self) -> str:
        """`443`, `443/udp`, or `20000-20099`."""
        return port_text(self.port, self.protocol, self.last)


class Accepted(NamedTuple):
    result: str  # created | unchanged | moved | updated | released
    generation: int
    durable: bool
    ttl: int | None  # the granted lease, seconds
    frontends: tuple[Placed, ...]
    note: str = ""  # a message from pylb for the owner, such as an address that it did not accept


class Refused(NamedTuple):
    status: int
    error: str
    detail: str
    hint: str
    retry_after: float | None  # seconds

    @property
    def passing(self) -> bool:
        """Whether the same call may succeed later without a change by anybody."""
        return self.status in (408, 429) or self.status >= 500


Answer = Union[Accepted, Refused]  # noqa: UP007  evaluated at run time: X | Y needs Python 3.10


def registration(settings: Settings, state: str) -> Request:
    """All ports in one call, so that they change together or not at all. `state` is ready or draining."""
    frontends: list[dict[str, object]] = []
    for frontend in settings.frontends:
        entry: dict[str, object] = {
            "port": _ports(frontend.port, frontend.last),
            "target_port": _ports(frontend.target_port, frontend.target_last),
        }
        if frontend.protocol != "tcp":
            entry["protocol"] = frontend.protocol
        if frontend.allows_names:
            entry["names"] = "allowed"
        if frontend.server_names:
            entry["server_names"] = frontend.server_names
        if frontend.proxy_protocol is not None:
            entry["proxy_protocol"] = frontend.proxy_protocol
        if frontend.weight is not None:
            entry["weight"] = frontend.weight
        if frontend.backup:
            entry["backup"] = True
        if frontend.health is not None:
            entry["health"] = frontend.health
        frontends.append(entry)
    body = {
        "frontends": frontends,
        "address": None if settings.address in SOURCES else settings.address,
        "ttl": settings.ttl,
        "state": state,
    }
    return Request("PUT", _path(settings), json.dumps(body, separators=(",", ":")).encode())


def _ports(port: int, last: int) -> int | str:
    return f"{port}-{last}" if last else port


def release(settings: Settings) -> Request:
    return Request("DELETE", _path(settings), None)


def _path(settings: Settings) -> str:
    return f"/v1/registrations/{quote(settings.name, safe='')}/{quote(settings.instance, safe='')}"


def read(reply: Reply, now: float, token: str) -> Answer:
    """`now` is Unix time, used only for a Retry-After given as a date; `token` is what no text may repeat."""
    if 300 <= reply.status < 400:
        return Refused(
            reply.status,
            "redirected",
            f"sent on to {_place(reply, token)}; redirects are not followed, because the token would go to wherever they point",
            "put the final address into PYLB_URL",
            None,
        )
    document = _document(reply.body)
    if 200 <= reply.status < 300:
        return _accepted(document, token) if document is not None else _not_from_pylb(reply)
    if document is None:
        return _not_from_pylb(reply)._replace(retry_after=retry_after(reply, now))
    error = sanitized(document.get("error"), token)
    return Refused(
        reply.status,
        error if re.fullmatch(r"[a-z0-9_]{1,40}", error) else f"status {reply.status}",
        sanitized(document.get("detail"), token),
        sanitized(document.get("hint"), token),
        retry_after(reply, now),
    )


def _place(reply: Reply, token: str) -> str:
    """The target of a redirect, without its path, which is foreign text."""
    try:
        found = parse_url(reply.headers.get("location", ""))
    except NotationError:
        return "elsewhere"
    return sanitized(f"{'https' if found.secure else 'http'}://{found.label}", token)


def _document(body: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError; deep nesting is a RecursionError
        return None
    return found if isinstance(found, dict) else None


def _not_from_pylb(reply: Reply) -> Refused:
    """Quotes nothing: error pages show the request, including the token."""
    what = "HTML" if reply.body.lstrip()[:1] == b"<" else "something"
    detail = f"answered {reply.status} with {what} that is not pylb's JSON ({len(reply.body)} bytes)"
    return Refused(reply.status, "not_pylb", detail, "does PYLB_URL name pylb's webhook address and port?", None)


def _accepted(document: dict[str, Any], token: str) -> Accepted:
    lease, placed = document.get("lease"), document.get("frontends")
    items = [item for item in (placed if isinstance(placed, list) else ()) if isinstance(item, dict)][:MOST_FRONTENDS]
    return Accepted(
        result=sanitized(document.get("result"), token),
        generation=_number(document.get("generation")) or 0,
        durable=document.get("durable") is not False,
        ttl=_number(lease.get("ttl")) if isinstance(lease, dict) else None,
        frontends=tuple(_placed(item, token) for item in items),
        note=sanitized(document.get("note"), token),
    )


def _placed(item: dict[str, Any], token: str) -> Placed:
    return Placed(
        port=_number(item.get("port")) or 0,
        address=_address(item.get("address")),
        target_port=_number(item.get("target_port")) or 0,
        reachable=sanitized(item.get("reachable"), token),
        hint=sanitized(item.get("hint"), token),
        protocol="udp" if item.get("protocol") == "udp" else "tcp",
        last=_number(item.get("last_port")) or 0,
    )


def _address(value: object) -> str:
    try:
        return str(ipaddress.ip_address(value)) if isinstance(value, str) and "%" not in value else "?"
    except ValueError:
        return "?"


def _number(value: object) -> int | None:
    """A JSON number as a whole one; true is an int in Python, but not a number in JSON."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= MOST_NUMBER:  # NaN is not
        return None
    return int(value)


def retry_after(reply: Reply, now: float) -> float | None:
    """RFC 9110 section 10.2.3: seconds or a date. Only for 429 and 503; the schedule decides how much of it counts."""
    text = reply.headers.get("retry-after", "").strip()
    if reply.status not in (429, 503) or not text:
        return None
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(parsedate_to_datetime(text).timestamp() - now, 0.0)
    except (ValueError, TypeError, OverflowError):  # TypeError: Python before 3.10 on something that is not a date
        return None
