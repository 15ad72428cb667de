"""The scalar types of the config: text as users write it, parsed once into what the core needs.

Every parser raises `wrong(what, hint)`; the place is added later. addresses.py has the types of addresses and names of hosts.
"""

import math
import re
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, PlainValidator, ValidationInfo

from pylb.config.addresses import parse_host, parse_network
from pylb.config.problems import wrong
from pylb.config.value_type import TEXT, Json, JsonType, either, listed, numbers, one_or_more, parsed, plain_text, show
from pylb.core import address as core
from pylb.core.access import AccessRule
from pylb.core.auth import ANYWHERE
from pylb.core.checks import BadCheck, parse_check
from pylb.core.log import FACILITIES, Target, parse_target
from pylb.core.policy import Balance, Check

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
NEVER = math.inf  # seconds
MAX_DURATION = 366 * 24 * 3600.0
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")  # as in core.registration: names are compared


_DURATION: Json = {"anyOf": [{"type": "string", "pattern": "^[0-9]+(ms|s|m|h|d)$"}, {"const": 0}]}
_BOOL: Json = {"type": "boolean"}
_EVERYBODY: Json = either(_BOOL, {"type": "array", "items": TEXT})
_BALANCE: Json = {"enum": [str(one) for one in Balance]}
_CHECK: Json = either(
    {"const": "tcp"},
    {
        "type": "object",
        "properties": {key: {} for key in ("http", "method", "expect", "host", "send", "steps", "port")},
        "additionalProperties": False,
    },
)
_RULE: Json = {
    "type": "object",
    "properties": {"allow": TEXT, "deny": TEXT},
    "additionalProperties": False,
    "minProperties": 1,
    "maxProperties": 1,
}


def parse_duration(value: object) -> float:
    """`500ms`, `5s`, `10m`, `1h`, `7d` and plain `0`, as seconds."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value == 0:
            return 0.0
        raise wrong(f"{value} is a duration without a unit", f"write {value}s, or 500ms, 10m, 1h, 7d")
    match = re.fullmatch(r"([0-9]{1,12})(ms|s|m|h|d)", value) if isinstance(value, str) else None
    if match is None:
        raise wrong(f"{show(value)} is not a duration", "one whole number and a unit: 500ms, 5s, 10m, 1h or 7d")
    seconds = int(match[1]) * _UNITS[match[2]] if match[2] != "ms" else int(match[1]) / 1000
    if seconds > MAX_DURATION:
        raise wrong(f"{value} is longer than a year", "at most 366d")
    return seconds


def duration_text(seconds: float) -> str:
    """A duration as people write it and `parse_duration` reads it. Whole milliseconds only; "never" for NEVER."""
    if seconds == NEVER:
        return "never"
    if seconds >= 2 * _UNITS["d"] and seconds % _UNITS["d"] == 0:
        return f"{int(seconds / _UNITS['d'])}d"
    for unit in ("h", "m", "s"):
        if seconds and seconds % _UNITS[unit] == 0:
            return f"{int(seconds / _UNITS[unit])}{unit}"
    return f"{round(seconds * 1000)}ms" if seconds else "0s"


def _name(value: object) -> str:
    text = plain_text(value, "a name")
    if NAME.fullmatch(text) is None:
        raise wrong(f"{show(text)} is not a name", "letters, digits and inside '.', '_', '-'; at most 253")
    return text


def _path(value: object, info: ValidationInfo) -> Path:
    text = plain_text(value, "a path")
    if not text or "\0" in text or text.startswith("~"):
        raise wrong(f"{show(text)} is not a usable path", "write it in full; ~ is not expanded")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise wrong(f"{show(text)} is not a usable path") from None
    base: Path = info.context or Path()
    return base / text


def _log_target(value: object, info: ValidationInfo) -> Target:
    hint = "stdout, file:/var/log/pylb/sessions.log, udp:192.0.2.1:514, or unix:/dev/log"
    target = parsed(parse_target, plain_text(value, "a target for the log"), hint)
    if target.kind == "udp":
        return target._replace(place=parse_host(target.place))
    return target if target.kind == "stdout" else target._replace(place=str(_path(target.place, info)))


def _facility(value: object) -> str:
    if value not in FACILITIES:
        near = get_close_matches(str(value), FACILITIES, n=1)
        raise wrong(
            f"{show(value)} is not a syslog facility", f"did you mean {near[0]}?" if near else "local0 to local7, daemon"
        )
    return str(value)


def _secret(value: object) -> str:
    """Printable ASCII, because it is sent in an HTTP header (RFC 9110 5.5). No message contains its text."""
    if not isinstance(value, str):
        raise wrong("the secret is not a text", "quote it")
    if not value or not value.isascii() or not value.isprintable() or value != value.strip():
        raise wrong("the secret is empty or has characters that no header can carry", "printable ASCII, no blank ends")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise wrong(f"{show(value)} is not true or false")
    return value


def _legacy_from(value: object) -> tuple[core.Network, ...]:
    """`true` is everybody, `false` nobody."""
    if isinstance(value, bool):
        return ANYWHERE if value else ()
    if not isinstance(value, list):
        raise wrong(f"{show(value)} is not true, false, or a list of networks", 'as in ["192.0.2.0/24"]')
    return tuple(parse_network(item) for item in value)


def _whole(low: int, high: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong(f"{show(value)} is not a whole number", f"{low} to {high}")
        if not low <= value <= high:
            raise wrong(f"{show(value)} is out of range", f"{low} to {high}")
        return value

    return parse


def _positive(seconds: float) -> float:
    if seconds <= 0:
        raise wrong("this duration must be longer than 0")
    return seconds


def _or_never(seconds: float) -> float:
    return seconds or NEVER


def _probe_interval(seconds: float) -> float:
    if seconds < 0.1:
        raise wrong(f"{duration_text(seconds)} is too short an interval", "at least 100ms")
    return seconds


def _duration_or_never(value: object) -> float:
    return NEVER if value == "never" else _positive(parse_duration(value))


def _at_least_a_second(seconds: float) -> float:
    if seconds < 1:
        raise wrong(f"{duration_text(seconds)} is too short an interval", "at least 1s")
    return seconds


def _balance(value: object) -> Balance:
    if not isinstance(value, str) or value not in list(Balance):
        near = get_close_matches(str(value), list(Balance), n=1)
        raise wrong(f"{show(value)} is not a way to balance", f"did you mean {near[0]}?" if near else ", ".join(Balance))
    return Balance(value)


def _workers(value: object) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_WORKERS:
        raise wrong(f"{show(value)} is not a number of workers", f"0-{MOST_WORKERS}, or auto")
    return value


def _check(value: object) -> Check:
    try:
        return parse_check(value)
    except BadCheck as bad:
        raise wrong(str(bad), bad.hint) from None


def _access_rule(value: object) -> AccessRule:
    hint = "as in {allow: 192.0.2.0/24} or {deny: 2001:db8::/32}"
    if not isinstance(value, dict) or len(value) != 1 or not value.keys() <= {"allow", "deny"}:
        raise wrong(f"{show(value)} is not an access rule", hint)
    [(verb, network)] = value.items()
    return AccessRule(verb == "allow", parse_network(network))


Duration = Annotated[float, PlainValidator(parse_duration), JsonType("duration", _DURATION)]
DurationOrNever = Annotated[
    float, PlainValidator(_duration_or_never), JsonType("duration > 0, or `never`", either(_DURATION, {"const": "never"}))
]
LegacyFrom = Annotated[
    tuple[core.Network, ...],
    PlainValidator(_legacy_from),
    JsonType("true, false, or list of CIDR", _EVERYBODY),
]
LongerThanZero = Annotated[
    float, PlainValidator(parse_duration), AfterValidator(_positive), JsonType("duration > 0", _DURATION)
]
ZeroIsNever = Annotated[
    float, PlainValidator(parse_duration), AfterValidator(_or_never), JsonType("duration; 0: never", _DURATION)
]
ProbeInterval = Annotated[
    float, PlainValidator(parse_duration), AfterValidator(_probe_interval), JsonType("duration", _DURATION)
]
ResolveInterval = Annotated[
    float, PlainValidator(parse_duration), AfterValidator(_at_least_a_second), JsonType("duration", _DURATION)
]
Name = Annotated[str, PlainValidator(_name), JsonType("name")]
NameOrAny = Annotated[str, PlainValidator(lambda value: value if value == core.ANY else _name(value)), JsonType("name or `*`")]
FilePath = Annotated[Path, PlainValidator(_path), JsonType("path")]
LogTarget = Annotated[Target, PlainValidator(_log_target), JsonType("`stdout`, `file:PATH`, `udp:HOST:PORT`, `unix:PATH`")]
Facility = Annotated[str, PlainValidator(_facility), JsonType("`local0` … `local7`, `daemon`, …", {"enum": list(FACILITIES)})]
Secret = Annotated[str, PlainValidator(_secret), JsonType("text")]
Flag = Annotated[bool, PlainValidator(_flag), JsonType("true, false", _BOOL)]
Weight = Annotated[int, PlainValidator(_whole(0, 256)), JsonType("0-256", numbers(0, 256))]
SmallCount = Annotated[int, PlainValidator(_whole(1, 100)), JsonType("1-100", numbers(1, 100))]
Retries = Annotated[int, PlainValidator(_whole(0, 100)), JsonType("0-100", numbers(0, 100))]
AtLeastOne = Annotated[int, PlainValidator(_whole(1, 1_000_000)), JsonType("whole number > 0", numbers(1, 1_000_000))]
Recorded = Annotated[int, PlainValidator(_whole(0, 100_000)), JsonType("0-100000", numbers(0, 100_000))]
Connections = Annotated[int, PlainValidator(_whole(0, 10_000_000)), JsonType("whole number", numbers(0, 10_000_000))]
BalanceName = Annotated[
    Balance,
    PlainValidator(_balance),
    JsonType("leastconn, roundrobin, random, source, first", _BALANCE),
]
MOST_WORKERS = 64
Workers = Annotated[
    int | Literal["auto"],
    PlainValidator(_workers),
    JsonType("0-64, `auto`", {"anyOf": [numbers(0, MOST_WORKERS), {"const": "auto"}]}),
]
CheckSpec = Annotated[
    Check,
    PlainValidator(_check),
    JsonType(
        "`tcp`, `{http: PATH, method: GET, expect: 200, host: NAME}`, `{send: TEXT, expect: TEXT}`, "
        "`{steps: [{send: TEXT, expect: TEXT}, …]}`; each with `port: N`",
        _CHECK,
    ),
]
Port = Annotated[int, PlainValidator(_whole(1, 65535)), JsonType("1-65535", numbers(1, 65535))]
Rate = Annotated[int, PlainValidator(_whole(0, 1_000_000)), JsonType("per second", numbers(0, 1_000_000))]
Percent = Annotated[int, PlainValidator(_whole(1, 100)), JsonType("1-100", numbers(1, 100))]
Prefix = Annotated[int, PlainValidator(_whole(1, 128)), JsonType("1-128", numbers(1, 128))]
AccessEntry = Annotated[AccessRule, PlainValidator(_access_rule), JsonType("`{allow: CIDR}` or `{deny: CIDR}`", _RULE)]
AccessEntries = Annotated[
    tuple[AccessEntry, ...],
    BeforeValidator(one_or_more),
    JsonType("list of `{allow: CIDR}` and `{deny: CIDR}`", listed(_RULE)),
]
Names = Annotated[tuple[NameOrAny, ...], BeforeValidator(one_or_more), JsonType("list of names, `*` for any", listed(TEXT))]
