"""What is asked of pylb and what it answered (its native registration API). Pure: no socket, no clock, no log.

    PUT    {prefix}/v1/registrations/{name}/{instance}   {"frontends": […], "address": …, "ttl": …, "state": …}
    DELETE {prefix}/v1/registrations/{name}/{instance}

Answers are read leniently (unknown keys are ignored, missing ones have a default), so that an older phone-home goes
on working with a newer pylb; only JSON that is no answer of pylb at all is taken for a refusal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, Union
from urllib.parse import quote

from phonehome.settings import SOURCES, Settings

READY, DRAINING = "ready", "draining"  # `state` on the wire
RELEASED = "released"  # what a DELETE leaves behind


class Request(NamedTuple):
    method: str
    path: str  # below the endpoint's prefix
    body: bytes | None


class Reply(NamedTuple):
    """An HTTP answer as it came; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Placed(NamedTuple):
    """One port as pylb has it now: `address` and `target_port` are where it sends."""

    port: int
    address: str
    target_port: int
    reachable: str  # yes | refused | timeout | unreachable | "" when pylb does not say
    hint: str


class Accepted(NamedTuple):
    result: str  # created | unchanged | moved | updated | released
    generation: int
    durable: bool
    ttl: int | None  # the lease as granted, seconds
    frontends: tuple[Placed, ...]
    note: str = ""  # what pylb wants its owner to know, such as an address that it did not take


class Refused(NamedTuple):
    status: int
    error: str
    detail: str
    hint: str
    retry_after: float | None  # seconds

    @property
    def passing(self) -> bool:
        """Whether the same call may succeed later without anybody changing anything."""
        return self.status in (408, 429) or self.status >= 500


Answer = Union[Accepted, Refused]  # noqa: UP007  evaluated at run time: X | Y needs Python 3.10


def registration(settings: Settings, state: str) -> Request:
    """All ports in one call, so that they change together or not at all. `state` is ready or draining."""
    frontends: list[dict[str, object]] = []
    for frontend in settings.frontends:
        entry: dict[str, object] = {"port": frontend.port, "target_port": frontend.target_port}
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


def release(settings: Settings) -> Request:
    return Request("DELETE", _path(settings), None)


def _path(settings: Settings) -> str:
    return f"/v1/registrations/{quote(settings.name, safe='')}/{quote(settings.instance, safe='')}"


def read(reply: Reply, now: float) -> Answer:
    """`now` is Unix time and serves only a Retry-After that is given as a date."""
    if 300 <= reply.status < 400:
        where = plain(reply.headers.get("location", "elsewhere"))
        return Refused(
            reply.status,
            "redirected",
            f"sent on to {where}; redirects are not followed, because the token would go to wherever they point",
            "put the final address into PYLB_URL",
            None,
        )
    document = _document(reply.body)
    if 200 <= reply.status < 300:
        return _accepted(document) if document is not None else _foreign(reply)
    if document is None:
        return _foreign(reply)._replace(retry_after=_retry_after(reply, now))
    return Refused(
        reply.status,
        plain(document.get("error")) or f"status {reply.status}",
        plain(document.get("detail")),
        plain(document.get("hint")),
        _retry_after(reply, now),
    )


def _document(body: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError; deep nesting is a RecursionError
        return None
    return found if isinstance(found, dict) else None


def _foreign(reply: Reply) -> Refused:
    start = plain(reply.body[:80].decode("utf-8", "replace"))
    detail = f"answered {reply.status} with something that is not pylb's JSON: {start!r}"
    return Refused(reply.status, "not_pylb", detail, "does PYLB_URL name pylb's webhook address and port?", None)


def _accepted(document: dict[str, Any]) -> Accepted:
    lease, placed = document.get("lease"), document.get("frontends")
    return Accepted(
        result=plain(document.get("result")),
        generation=_number(document.get("generation")) or 0,
        durable=document.get("durable") is not False,
        ttl=_number(lease.get("ttl")) if isinstance(lease, dict) else None,
        frontends=tuple(_placed(item) for item in (placed if isinstance(placed, list) else ()) if isinstance(item, dict)),
        note=plain(document.get("note")),
    )


def _placed(item: dict[str, Any]) -> Placed:
    return Placed(
        port=_number(item.get("port")) or 0,
        address=plain(item.get("address")),
        target_port=_number(item.get("target_port")) or 0,
        reachable=plain(item.get("reachable")),
        hint=plain(item.get("hint")),
    )


def _number(value: object) -> int | None:
    """A number of JSON as a whole one; true is an int in Python and is none in JSON."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return int(value)
    except (ValueError, OverflowError):  # Python's reader takes NaN and Infinity
        return None


def _retry_after(reply: Reply, now: float) -> float | None:
    """RFC 9110 section 10.2.3: seconds or a date. Counts on 429 and 503 only; how much of it, the schedule says."""
    text = reply.headers.get("retry-after", "").strip()
    if reply.status not in (429, 503) or not text:
        return None
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(parsedate_to_datetime(text).timestamp() - now, 0.0)
    except (ValueError, TypeError, OverflowError):  # TypeError: Python before 3.10 on something that is no date
        return None


def plain(value: object) -> str:
    """Text of the other side as one printable line: it goes into a log that people read in a terminal."""
    if not isinstance(value, str):
        return ""
    return "".join(c if c.isprintable() else " " for c in value[:300]).strip()
