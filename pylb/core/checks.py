"""Health checks as people write them, in the config and in a registration: `tcp`, or a mapping.

`{"http": PATH, "method": "GET", "expect": 200, "host": NAME, "port": N}`, `{"send": TEXT, "expect": TEXT, "port": N}`, or
several of these one after the other: `{"steps": [{"send": TEXT, "expect": TEXT}, …], "port": N}`. A registration may add
`"when_all_down"`.
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pylb.core.policy import CONNECT, UNSAID, Check, CheckKind, HealthOverride, Step, WhenAllDown

HINT = "tcp, {http: /health}, {send: TEXT, expect: TEXT}, {steps: [{send: TEXT, expect: TEXT}]}; each may have a port"
_KEYS = {"http", "method", "host", "send", "expect", "port", "steps"}
MOST_TEXT = 1024  # characters of a text
MOST_STEPS = 16
GET = Check().method

_TEXT = {"type": "string", "maxLength": MOST_TEXT}
_SAID = {"send": _TEXT, "expect": _TEXT}
# What `parse_health` takes, as JSON Schema, as far as a schema can say it: BadCheck says which keys go together.
HEALTH_SCHEMA: Mapping[str, Any] = {
    "anyOf": [
        {"const": "tcp"},
        {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": False,
            "properties": {
                "http": _TEXT | {"pattern": "^/[!-~]*$"},
                "method": {"type": "string", "pattern": "^[A-Z]{1,20}$"},
                "host": _TEXT | {"pattern": "^[!-~]*$"},
                "send": _TEXT,
                "expect": {"anyOf": [_TEXT, {"type": "integer", "minimum": 100, "maximum": 599}]},
                "port": {"type": "integer", "minimum": 1, "maximum": 65535},
                "steps": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MOST_STEPS,
                    "items": {"type": "object", "minProperties": 1, "additionalProperties": False, "properties": _SAID},
                },
                "check": {"const": "tcp"},
                "when_all_down": {"enum": [str(word) for word in WhenAllDown]},
            },
        },
        {"type": "null"},
    ]
}


class BadCheck(ValueError):  # noqa: N818 - a mistake of whoever wrote the check
    """The text says what is wrong, `hint` what to write instead."""

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
        key = min(unknown, key=str)
        near = get_close_matches(str(key), _KEYS, n=1)
        raise BadCheck(f"{_shown(key)} is not a key of a check", HINT + (f"; did you mean {near[0]!r}?" if near else ""))
    port = _port(value["port"]) if "port" in value else 0
    if "http" in value:
        if "send" in value:
            raise BadCheck("a check is http or send, not both")
        if "steps" in value:
            raise BadCheck("a check is http or steps, not both")
        return _http(value, port)
    for key in ("host", "method"):
        if key in value:
            raise BadCheck(f"{key} without http")
    if "steps" in value:
        return Check(CheckKind.SEND, _steps(value), port=port)
    step = _step(value)
    if step == Step():
        if not port:
            raise BadCheck("a check that sends nothing and expects nothing", "tcp")
        return Check(port=port)
    return Check(CheckKind.SEND, (step,), port=port)


def parse_health(value: object) -> HealthOverride:
    """What a registration says about its server's health: a check, `when_all_down`, or both. Raises BadCheck.

    With `when_all_down` the check's keys stand beside it; `tcp`, which has no keys, is written as `{"check": "tcp"}`.
    """
    if not isinstance(value, Mapping) or "when_all_down" not in value:
        return HealthOverride(parse_check(value))
    word = value["when_all_down"]
    if not isinstance(word, str) or word not in list(WhenAllDown):
        raise BadCheck(f"when_all_down: {_shown(word)} is neither try nor refuse", "try, or refuse")
    rest = {key: item for key, item in value.items() if key != "when_all_down"}
    check = rest["check"] if rest.keys() == {"check"} else rest
    return HealthOverride(parse_check(check) if rest else None, when_all_down=WhenAllDown(word))


def written_health(health: HealthOverride) -> str | dict[str, Any] | None:
    """The form that `parse_health` reads; None: nothing is specified."""
    if health == UNSAID:
        return None
    check = None if health.check is None else written(health.check)
    if health.when_all_down is None:
        return check
    asked = {} if check is None else check if isinstance(check, dict) else {"check": check}
    return {**asked, "when_all_down": str(health.when_all_down)}


def written(check: Check) -> str | dict[str, Any]:
    """The form that `parse_check` reads."""
    port = {"port": check.port} if check.port else {}
    if check.kind is CheckKind.HTTP:
        low, high = check.status
        method = {"method": check.method} if check.method != GET else {}
        host = {"host": check.host} if check.host else {}
        return {"http": check.path, **method, "expect": f"{low}-{high}", **host, **port}
    if check.kind is CheckKind.SEND:
        steps = [{"send": step.send.decode(), "expect": step.expect.decode()} for step in check.steps]
        return {**(steps[0] if len(steps) == 1 else {"steps": steps}), **port}
    return port or "tcp"


def _steps(value: Mapping[str, Any]) -> tuple[Step, ...]:
    if "send" in value or "expect" in value:
        raise BadCheck("send and expect belong into the steps", "steps: [{send: TEXT, expect: TEXT}, …]")
    steps = value["steps"]
    if not isinstance(steps, list) or not 1 <= len(steps) <= MOST_STEPS:
        raise BadCheck(f"{_shown(steps)} is not a list of 1 to {MOST_STEPS} steps", "steps: [{send: TEXT, expect: TEXT}, …]")
    found = []
    for number, step in enumerate(steps, 1):
        if not isinstance(step, Mapping) or not step or step.keys() - {"send", "expect"}:
            raise BadCheck(f"step {number} is not a mapping of send and expect", "{send: TEXT, expect: TEXT}, or one of them")
        found.append(_step(step))
        if found[-1] == Step():
            raise BadCheck(f"step {number} sends nothing and expects nothing", "{send: TEXT, expect: TEXT}, or one of them")
    return tuple(found)


def _step(value: Mapping[str, Any]) -> Step:
    send, expect = (_text(value.get(key, ""), f"what to {key}").encode() for key in ("send", "expect"))
    return Step(send, expect)


def _http(value: Mapping[str, Any], port: int) -> Check:
    path, host = _text(value["http"], "a path"), _text(value.get("host", ""), "a host name")
    if not re.fullmatch(r"/[!-~]*", path):
        raise BadCheck(f"{_shown(path)} is not a path", "as in /health: a slash, then printable ASCII without blanks")
    if not re.fullmatch(r"[!-~]*", host):
        raise BadCheck(f"{_shown(host)} is not a host name", "as in app.example.net, or app.example.net:8080")
    method = _text(value.get("method", GET), "a method")
    if not re.fullmatch(r"[A-Z]{1,20}", method):
        raise BadCheck(f"{_shown(method)} is not a method", "GET, HEAD, OPTIONS or another one, in capitals")
    return Check(CheckKind.HTTP, path=path, method=method, host=host, status=_status(value.get("expect", "200-399")), port=port)


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
        raise BadCheck(f"{_shown(value)} has half of a surrogate pair, so it cannot be written as UTF-8", "text") from None
    return value


def _shown(value: object) -> str:
    """Short, and printable whatever it contains."""
    if isinstance(value, Mapping | list):
        return "a mapping" if isinstance(value, Mapping) else "a list"
    text = ascii(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
