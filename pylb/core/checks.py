"""Health checks as people write them, in the config and in a registration: `tcp`, or a mapping.

`{"http": PATH, "expect": 200, "host": NAME, "port": N}` or `{"send": TEXT, "expect": TEXT, "port": N}`.
"""

import re
from collections.abc import Mapping
from typing import Any

from pylb.core.policy import CONNECT, Check, CheckKind

HINT = "tcp, {http: /health}, {send: TEXT, expect: TEXT}; each may have a port"
_KEYS = {"http", "host", "send", "expect", "port"}
MOST_TEXT = 1024  # characters of a text


class BadCheck(ValueError):  # noqa: N818 - a mistake of whoever wrote it
    """The text says what is wrong, `hint` what to write."""

    def __init__(self, text: str, hint: str = HINT) -> None:
        super().__init__(text)
        self.hint = hint


def parse_check(value: object) -> Check:
    """Raises BadCheck."""
    if value == "tcp":
        return CONNECT
    if not isinstance(value, Mapping) or not value:
        raise BadCheck(f"{_shown(value)} is not a check")
    if unknown := value.keys() - _KEYS:
        raise BadCheck(f"{_shown(min(unknown, key=str))} is no key of a check")
    port = _port(value["port"]) if "port" in value else 0
    if "http" in value:
        if "send" in value:
            raise BadCheck("a check is http or send, not both")
        return _http(value, port)
    if "host" in value:
        raise BadCheck("host without http")
    send, expect = (_text(value.get(key, ""), f"what to {key}").encode() for key in ("send", "expect"))
    if not (send or expect or port):
        raise BadCheck("a check that sends nothing and expects nothing", "tcp")
    return Check(CheckKind.SEND if send or expect else CheckKind.TCP, send, expect, port=port)


def written(check: Check) -> str | dict[str, Any]:
    """As `parse_check` reads it."""
    port = {"port": check.port} if check.port else {}
    if check.kind is CheckKind.HTTP:
        low, high = check.status
        host = {"host": check.host} if check.host else {}
        return {"http": check.path, "expect": f"{low}-{high}", **host, **port}
    if check.kind is CheckKind.SEND:
        return {"send": check.send.decode(), "expect": check.expect.decode(), **port}
    return port or "tcp"


def _http(value: Mapping[str, Any], port: int) -> Check:
    path, host = _text(value["http"], "a path"), _text(value.get("host", ""), "a host name")
    if not re.fullmatch(r"/[!-~]*", path):
        raise BadCheck(f"{_shown(path)} is not a path", "as in /health: a slash, then printable ASCII without blanks")
    if not re.fullmatch(r"[!-~]*", host):
        raise BadCheck(f"{_shown(host)} is not a host name", "as in app.example.net, or app.example.net:8080")
    return Check(CheckKind.HTTP, path=path, host=host, status=_status(value.get("expect", "200-399")), port=port)


def _status(value: object) -> tuple[int, int]:
    """`200`, or `"200-399"`."""
    match = re.fullmatch(r"([1-5][0-9]{2})(?:-([1-5][0-9]{2}))?", str(value))
    if match is None or int(match[2] or match[1]) < int(match[1]):
        raise BadCheck(f"{_shown(value)} is not an HTTP status", 'as in 200, or "200-399"')
    return int(match[1]), int(match[2] or match[1])


def _port(value: object) -> int:
    if type(value) is not int or not 1 <= value <= 65535:
        raise BadCheck(f"{_shown(value)} is not a port", "1 to 65535")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or len(value) > MOST_TEXT:
        raise BadCheck(f"{_shown(value)} is not {what}", f"text, at most {MOST_TEXT} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadCheck(f"{_shown(value)} has half of a surrogate pair: no UTF-8 can be made of it", "text") from None
    return value


def _shown(value: object) -> str:
    """Short, and printable whatever it holds."""
    if isinstance(value, Mapping | list):
        return "a mapping" if isinstance(value, Mapping) else "a list"
    text = ascii(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
