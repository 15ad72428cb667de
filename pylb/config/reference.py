"""The config reference as Markdown, generated from the models, so that it always agrees with what is checked."""

from collections.abc import Iterator
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pylb.config.explain import section_of
from pylb.config.models import FrontendEntry, PolicySection, Section
from pylb.config.root import Config
from pylb.config.values import Shape, duration_text
from pylb.core.address import Listen
from pylb.core.log import Target

_HEAD = """# Config reference

Generated from the models (docs/generate.py). Every key is optional unless it says *required*; no file at all is a
valid config. `pylb check -c pylb.yaml` prints every mistake with its line. A JSON file works as well.

Durations are one whole number and a unit: `500ms`, `5s`, `10m`, `1h`, `7d`, at most
`366d`. Ports are numbers or ranges: `8443`, `"8883-8899"`.
One value may stand for a list of one. Relative paths start at the config file's directory.
Quote what YAML would read as something else: `"*:443"`, `"22:30"`, `"010"`, `"no"`.
"""


def reference() -> str:
    """A table of all keys for each section, in the order of the file."""
    return "\n".join([_HEAD, *_tables("", Config, "The file")])


def _tables(path: str, section: type[Section], title: str) -> Iterator[str]:
    yield f"## {title}\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    inner: list[tuple[str, type[Section]]] = []
    for key, field in section.model_fields.items():
        if field.exclude or (section is FrontendEntry and key in PolicySection.model_fields):
            continue
        below = section_of(field.annotation)
        if below is not None:
            inner.append((f"{path}{key}{'[]' if _is_list(field.annotation) else ''}", below))
        meaning = field.description or f"see [`{inner[-1][0]}`](#{_anchor(inner[-1][0])})"
        yield f"| `{key}` | {_cell(_type(field, field.annotation))} | {_default(key, field)} | {_cell(meaning)} |"
    if section is FrontendEntry:
        keys = ", ".join(f"`{key}`" for key in PolicySection.model_fields)
        yield f"\nOf [`defaults`](#defaults) also {keys}: keys that are written here win."
    for why in dict.fromkeys(section.reserved.values()):
        keys = ", ".join(f"`{key}`" for key, reason in section.reserved.items() if reason == why)
        yield f"\nRefused: {keys} ({why})."
    yield ""
    for name, below in inner:
        yield from _tables(f"{name}.", below, f"`{name}`")


def _anchor(name: str) -> str:
    """The anchor that GitHub makes from a heading: lower case, no punctuation."""
    return "".join(char for char in name.lower() if char.isalnum() or char in "_-")


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) is tuple


def _type(field: FieldInfo | None, annotation: Any) -> str:
    shape = next((item for item in (field.metadata if field else ()) if isinstance(item, Shape)), None)
    if shape is not None:
        return shape.name
    if get_origin(annotation) is Literal:
        return ", ".join(get_args(annotation))
    parts = [part for part in get_args(annotation) if part not in (NoneType, ...)]
    if section_of(annotation) is not None:
        return "list of mappings" if _is_list(annotation) else "mapping"
    shapes = [item.name for part in parts for item in getattr(part, "__metadata__", ()) if isinstance(item, Shape)]
    return shapes[0] if shapes else ", ".join(_type(None, part) for part in parts)


def _default(key: str, field: FieldInfo) -> str:
    value = field.default
    if key == "state_dir":
        return "see there"  # depends on the environment
    if field.is_required():
        return "*required*"
    if value is PydanticUndefined or value is None:
        return "–"
    shape = _type(field, field.annotation)
    if shape.startswith("duration"):
        return f"`{duration_text(value)}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple) and not isinstance(value, Target | Listen):
        items = (f"{item[0]}-{item[1]}" if isinstance(item, tuple) else str(item) for item in value)
        return "`[" + ", ".join(f'"{item}"' for item in items) + "]`"
    return f'`"{value}"`' if isinstance(value, Listen) or value == "*" else f"`{value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
