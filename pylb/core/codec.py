"""Values as plain JSON, for the channel between pylb's processes: a table, a count, an answer.

`plain(value)` needs no type; `made(type, plain)` checks every field against the type's annotations and raises Malformed for
anything that does not match them exactly. The types are those of core: frozen dataclasses, NamedTuples, enums, and tuples and
dicts of them. A dataclass is sent as the list of its fields, so both ends must be of the same version.
"""

import types
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pylb.core.access import AccessList, AccessRule, Networks

T = TypeVar("T")
_Made = Callable[[Any], Any]


class Malformed(ValueError):  # noqa: N818 - a condition that one line describes
    """The value does not match the type."""


def to_plain(value: Any) -> Any:
    """The form that json.dumps takes. Text stays text, bytes become latin-1 text, None stays None."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if is_dataclass(value):
        return [to_plain(getattr(value, name)) for name in _names(cast("Any", type(value)))]
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return [[to_plain(key), to_plain(item)] for key, item in value.items()]
    if isinstance(value, AccessList):
        return [to_plain(value.rules), to_plain(value.within)]
    if isinstance(value, Networks):
        return [str(network) for network in value.networks]
    return str(value)  # a network


def from_plain(wanted: type[T], value: Any) -> T:
    """The value of type `wanted`. Raises Malformed."""
    return cast("T", _maker(cast("Any", wanted))(value))


@cache
def _names(wanted: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(wanted) if field.init)


@cache
def _maker(wanted: Any) -> _Made:
    if wanted in _SPECIAL:
        return _SPECIAL[wanted]
    origin = get_origin(wanted)
    if origin in (Union, types.UnionType):
        return _optional(wanted)
    if origin is Literal:
        return _choice(get_args(wanted))
    if origin is tuple:
        return _tuple(get_args(wanted))
    if origin is dict:
        return _dict(*get_args(wanted))
    if is_dataclass(wanted):
        return _fields(cast("type[Any]", wanted), _names(cast("Any", wanted)))
    if issubclass(wanted, tuple):
        return _fields(wanted, wanted._fields, optional=len(wanted._field_defaults))
    if issubclass(wanted, Enum):
        return _enum(wanted)
    return _scalar(wanted)


def _scalar(wanted: type[Any]) -> _Made:
    def make(value: Any) -> Any:
        if type(value) is not wanted:
            raise Malformed(f"{value!r:.80} is not of type {wanted.__name__}")
        return value

    return make


def _float(value: Any) -> float:
    if type(value) is not float and type(value) is not int:
        raise Malformed(f"{value!r:.80} is not a number")
    try:
        return float(value)
    except OverflowError:
        raise Malformed("a number of more than 308 digits") from None


def _bytes(value: Any) -> bytes:
    try:
        return bytes(_text(value).encode("latin-1"))
    except UnicodeEncodeError:
        raise Malformed("text that does not stand for bytes") from None


def _network(value: Any) -> IPv4Network | IPv6Network:
    try:
        return ip_network(_text(value))
    except ValueError as error:
        raise Malformed(str(error)) from None


def _access(value: Any) -> AccessList:
    rules, within = _list(value, 2)
    return AccessList(_maker(tuple[AccessRule, ...])(rules), None if within is None else _access(within))


def _networks(value: Any) -> Networks:
    return Networks([_network(item) for item in _list(value)])


def _enum(wanted: type[Enum]) -> _Made:
    def make(value: Any) -> Any:
        try:
            return wanted(value)
        except ValueError:
            raise Malformed(f"{value!r:.80} is not of type {wanted.__name__}") from None

    return make


def _choice(words: tuple[Any, ...]) -> _Made:
    def make(value: Any) -> Any:
        if value not in words:
            raise Malformed(f"{value!r:.80} is none of {words}")
        return value

    return make


def _optional(wanted: Any) -> _Made:
    [one] = [arg for arg in get_args(wanted) if arg is not type(None)]
    inner = _maker(one)
    return lambda value: None if value is None else inner(value)


def _tuple(args: tuple[Any, ...]) -> _Made:
    if args[-1] is ...:
        inner = _maker(args[0])
        return lambda value: tuple([inner(item) for item in _list(value)])
    makers = [_maker(arg) for arg in args]
    return lambda value: tuple(make(item) for make, item in zip(makers, _list(value, len(makers)), strict=True))


def _dict(key: Any, item: Any) -> _Made:
    pairs = _maker(tuple[tuple[key, item], ...])
    return lambda value: dict(pairs(value))


def _fields(wanted: type[Any], names: tuple[str, ...], optional: int = 0) -> _Made:
    """`optional`: so many at the end may be missing, because an older pylb does not know them (an upgrade)."""
    hints = get_type_hints(wanted)
    makers = [_maker(hints[name]) for name in names]
    least = len(makers) - optional

    def make(value: Any) -> Any:
        items = _list(value)
        if not least <= len(items) <= len(makers):
            raise Malformed(f"{value!r:.80} is not of type {wanted.__name__}")
        return wanted(*[maker(item) for maker, item in zip(makers, items, strict=False)])

    return make


def _list(value: Any, length: int | None = None) -> list[Any]:
    if type(value) is not list or length not in (None, len(value)):
        raise Malformed(f"{value!r:.80} is not a list" + (f" of {length}" if length is not None else ""))
    return value


_text = _scalar(str)
_SPECIAL: dict[Any, _Made] = {
    float: _float,
    bytes: _bytes,
    IPv4Network | IPv6Network: _network,
    AccessList: _access,
    Networks: _networks,
}
