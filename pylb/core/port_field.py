"""The type of a port in a call: a number, or a range as text."""

import re
from typing import Annotated, Any, NamedTuple

from pydantic import Field, ValidatorFunctionWrapHandler, WithJsonSchema, WrapValidator

from pylb.core.address import parse_port_range

_RANGE = re.compile(r"[0-9]{1,5}-[0-9]{1,5}")


class PortRange(NamedTuple):
    first: int
    last: int


def _port_or_range(value: Any, port: ValidatorFunctionWrapHandler) -> object:
    """A number, or the PortRange of a text; what else it may be, `port` refuses."""
    if isinstance(value, str) and _RANGE.fullmatch(value):
        return PortRange(*parse_port_range(value))
    return port(value)


# Not a union with PortRange: its errors would name a branch beside the field.
PortField = Annotated[
    int,
    Field(ge=1, le=65535),
    WrapValidator(_port_or_range),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 65535}, {"type": "string", "pattern": _RANGE.pattern}]}
    ),
]


def ends(port: Any) -> PortRange:
    return port if isinstance(port, PortRange) else PortRange(port, 0)
