"""What all types of single values share: their names in the reference and the schema, and the messages about a wrong one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pylb.config.problems import wrong

_T = TypeVar("_T")

Json = dict[str, Any]
TEXT: Json = {"type": "string"}


@dataclass(frozen=True, slots=True)
class JsonType:
    """The reference's name for a type, and the JSON Schema of what may be written."""

    name: str
    json: Json = field(default_factory=lambda: dict(TEXT), hash=False)

    def __get_pydantic_json_schema__(self, _core: object, _handler: object) -> Json:
        return dict(self.json)


class OneOrMore:
    """A list with one item may be written as that item."""

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> Json:
        several = handler(core_schema)
        return {"anyOf": [several["items"], several]}


def numbers(low: int, high: int) -> Json:
    return {"type": "integer", "minimum": low, "maximum": high}


def either(*schemas: Json) -> Json:
    return {"anyOf": list(schemas)}


def listed(item: Json) -> Json:
    return either(item, {"type": "array", "items": item})


def one_or_more(value: Any) -> Any:
    """A single value stands for a list of one."""
    return value if isinstance(value, list) or value is None else [value]


def show(value: object) -> str:
    """A user's value for a message: short, and printable whatever it contains."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = ascii(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def plain_text(value: object, what: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        raise wrong(f"{show(value)} is not {what}", "YAML reads a bare yes, no, on, off as true or false: quote it")
    if isinstance(value, int | float):
        raise wrong(f"{show(value)} is a number, not {what}", f'quote it: "{show(value)}"')
    raise wrong(f"{show(value)} is not {what}")


def parsed(parse: Callable[[str], _T], text: str, hint: str) -> _T:
    try:
        return parse(text)
    except ValueError as error:
        raise wrong(str(error), hint) from None
