"""The legacy phone-home's body, however damaged it arrives. How long its lease lasts is learned in lease.py.

The client fills a shell template: every value is a string, unset ones are empty, and `dst-ip` is what `curl ifconfig.co`
printed, today an HTML page whose raw quotes and newlines break the JSON. Then a strict pattern takes the other fields. It is
anchored at the end of the body, so it does not matter what the page contains.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from pylb.core.address import parse_ip, parse_port
from pylb.core.errors import Code, Refused
from pylb.core.policy import ProxyProtocol
from pylb.core.strict_json import unique_keys

_SEND_PROXY = {"": ProxyProtocol.NONE, "send-proxy": ProxyProtocol.V1, "send-proxy-v2": ProxyProtocol.V2}
_HEAD = re.compile(r'\s*\{\s*"dst-ip"\s*:\s*"')
_TAIL = re.compile(
    r'"frontend-port"\s*:\s*"([^"\\]*)"\s*,\s*"backend-port"\s*:\s*"([^"\\]*)"\s*,\s*"action"\s*:\s*"([^"\\]*)"\s*,'
    r'\s*"name"\s*:\s*"([^"\\]*)"\s*(?:,\s*"send[-_]proxy"\s*:\s*"([^"\\]*)"\s*)?\}\s*'
)
_IP_LIKE = re.compile(r"(?=.*[.:])[0-9a-fA-F.:%/\[\]]+")
_UNNAMEABLE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class LegacyCall:
    action: Literal["add", "delete"]
    port: int
    target_port: int  # 0 in a delete that does not say it
    name: str
    send_proxy: ProxyProtocol
    address: str | None  # a valid dst-ip in canonical form; None: use the calling address
    address_note: str = ""  # why dst-ip was unusable, for the log


def parse_legacy(body: bytes) -> LegacyCall:
    """Raises Refused: INVALID_JSON when nothing can be recovered, INVALID naming the field."""
    fields, broken = _fields(body)
    action = _text(fields, "action")
    if action not in ("add", "delete"):
        raise Refused(Code.INVALID, f"action: {action[:40]!r} is neither 'add' nor 'delete'")
    port = _port(fields, "frontend-port")
    target_port = 0 if action == "delete" and not _text(fields, "backend-port") else _port(fields, "backend-port")
    send = (_text(fields, "send-proxy") or _text(fields, "send_proxy")).strip()
    if send not in _SEND_PROXY:
        hint = "empty, 'send-proxy' or 'send-proxy-v2'"
        raise Refused(Code.INVALID, f"send-proxy: {send[:40]!r} is not a PROXY protocol keyword", hint)
    address, note = (None, "dst-ip broke the JSON: it is a page, not an address") if broken else _address(fields)
    return LegacyCall(
        cast('Literal["add", "delete"]', action),
        port,
        target_port,
        _name(_text(fields, "name")),
        _SEND_PROXY[send],
        address,
        note,
    )


def _fields(body: bytes) -> tuple[Mapping[str, Any], bool]:
    """The fields, and whether they had to be recovered. Raises Refused."""
    text = body.decode("utf-8", "replace")
    try:
        data = json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError):
        return _salvage(text), True
    if not isinstance(data, dict):
        raise Refused(Code.INVALID, "the body is not a JSON object")
    return data, False


def _salvage(text: str) -> dict[str, str]:
    start = text.rfind('"frontend-port"')
    found = _TAIL.fullmatch(text, start) if start > 0 and _HEAD.match(text) else None
    if found is None:
        raise Refused(Code.INVALID_JSON, "the body is not JSON, and not the legacy form behind a broken dst-ip")
    names = ("frontend-port", "backend-port", "action", "name", "send-proxy")
    return dict(zip(names, found.groups(default=""), strict=True))


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Refused(Code.INVALID, f"{name}: a text or a whole number, not {str(value)[:40]!r}")
    return str(value)


def _port(fields: Mapping[str, Any], name: str) -> int:
    try:
        return parse_port(_text(fields, name))
    except ValueError as error:
        raise Refused(Code.INVALID, f"{name}: {str(error)[:80]}") from None


def _address(fields: Mapping[str, Any]) -> tuple[str | None, str]:
    """A mistyped address is refused. Any other text is what a web site said instead of one, and not the pod's fault."""
    text = _text(fields, "dst-ip").strip()
    if not text:
        return None, ""
    try:
        return parse_ip(text), ""
    except ValueError as error:
        if _IP_LIKE.fullmatch(text):
            raise Refused(Code.INVALID, f"dst-ip: {str(error)[:80]}", "an IP address, or empty for the calling one") from None
        return None, f"dst-ip {text[:40]!r} is not an address"


def _name(text: str) -> str:
    """Only a description: each character that a name cannot have becomes a dash."""
    return _UNNAMEABLE.sub("-", text).strip("-._")[:63].rstrip("-._") or "legacy"
