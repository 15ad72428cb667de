"""The calls that replace a whole set of servers, and pylb's answers to them. Pure.

    PUT     {prefix}/v1/registrations/{name}     {"frontends": […], "servers": […], "access": […], "idle_timeout": …, "ttl": …}
    DELETE  {prefix}/v1/registrations/{name}
    GET     {prefix}/v1/registrations            {"registrations": [{"name": …}, …]}, those of the caller's token

A refusal may say which port it is about ("port": "25", or "443/udp"): then the others can be registered without it. An
acceptance says of each port how many servers there are, and how many accepted a connection.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import quote

from phonehome import message
from phonehome.controller.desired import PortKey, Wanted, body
from phonehome.message import Accepted, Refused, Reply, Request
from phonehome.sanitize import sanitized
from phonehome.values import is_name

SEQUENCE = "Pylb-Sequence"


class Outcome(NamedTuple):
    """`refused_ports` is empty if the refusal is about the whole call. `silent`: why no server of a port answers, by port."""

    answer: message.Answer
    refused_ports: frozenset[PortKey] = frozenset()
    silent: Mapping[PortKey, str] = MappingProxyType({})

    @property
    def accepted(self) -> bool:
        return isinstance(self.answer, Accepted)


def put(wanted: Wanted, ttl: int, without: Collection[PortKey] = ()) -> Request:
    # A resourceVersion is opaque by its documentation and a growing number in every API server; another one is not sent.
    sequence = ((SEQUENCE, wanted.sequence),) if wanted.sequence.isdigit() else ()
    return Request("PUT", _path(wanted.name), body(wanted, ttl, without), sequence)


def delete(name: str) -> Request:
    return Request("DELETE", _path(name), None)


def get() -> Request:
    return Request("GET", "/v1/registrations", None)


def read(reply: Reply, now: float, token: str) -> Outcome:
    answer = message.read(reply, now, token)
    if isinstance(answer, Refused):
        return Outcome(answer, _ports(reply))
    return Outcome(answer, silent=_silent(reply, token))


def names(reply: Reply) -> frozenset[str] | None:
    """The names of the sets in the answer to `get`, which are those without an instance; None if it is not such an answer."""
    document = _document(reply)
    found = document.get("registrations") if reply.status == 200 else None
    if not isinstance(found, list):
        return None
    sets = (one for one in found if isinstance(one, dict) and one.get("instance") is None and not one.get("legacy"))
    texts = (one.get("name") for one in sets)
    return frozenset(text for text in texts if isinstance(text, str) and is_name(text))


def _path(name: str) -> str:
    return f"/v1/registrations/{quote(name, safe='')}"


def _ports(reply: Reply) -> frozenset[PortKey]:
    number, _, protocol = str(_document(reply).get("port", "")).partition("/")
    if not (number.isascii() and number.isdigit()) or protocol not in ("", "tcp", "udp"):
        return frozenset()
    return frozenset({((protocol or "tcp").upper(), int(number[:6]))})


def _silent(reply: Reply, token: str) -> dict[PortKey, str]:
    """The ports of which pylb says that no server accepts a connection, with what that usually means."""
    items = _document(reply).get("frontends")
    found: dict[PortKey, str] = {}
    for one in items if isinstance(items, list) else ():
        if isinstance(one, dict) and one.get("servers") and one.get("answering") == 0 and isinstance(one.get("port"), int):
            found[str(one.get("protocol", "tcp")).upper(), one["port"]] = sanitized(one.get("hint"), token)
    return found


def _document(reply: Reply) -> dict[str, object]:
    try:
        found = json.loads(reply.body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
