"""pydantic's findings in the words of the file: the place, what is wrong, what to write instead."""

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pylb.config.problems import Problem
from pylb.config.section import Section
from pylb.config.value_type import show
from pylb.config.yamlplace import Document, Loc


def explain(error: ValidationError, document: Document, model: type[Section]) -> Iterator[Problem]:
    """One problem for each finding, except where YAML itself already has one."""
    known = {problem.place for problem in document.problems}
    for detail in error.errors(include_url=False):
        loc = detail["loc"]
        unknown = detail["type"] == "extra_forbidden"
        place = document.place(loc, key=unknown)
        if place in known:
            continue
        message, hint = _unknown_key(loc, model) if unknown else _words(detail)
        yield Problem(document.filename, place, message, hint)


def section_at(loc: Loc, model: type[Section]) -> type[Section]:
    """The model whose keys are at `loc`."""
    for step in loc:
        field = model.model_fields.get(step) if isinstance(step, str) else None
        inner = section_of(field.annotation) if field is not None else None
        model = inner or model
    return model


def section_of(annotation: Any) -> type[Section] | None:
    """The model inside `tuple[Model, ...]`, `Model | None` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation if issubclass(annotation, Section) else None
    return next((inner for part in get_args(annotation) if (inner := section_of(part)) is not None), None)


def _unknown_key(loc: Loc, model: type[Section]) -> tuple[str, str]:
    key, section = str(loc[-1]), section_at(loc[:-1], model)
    if key in section.reserved:
        return f"{show(key)} cannot be set here: {section.reserved[key]}", "remove the line"
    keys = [name for name, field in section.model_fields.items() if not field.exclude]
    close = get_close_matches(key.lower().replace("-", "_"), keys, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}?" if close else "known here: " + ", ".join(keys)
    return f"unknown key {show(key)}", hint


def _words(detail: ErrorDetails) -> tuple[str, str]:
    key = next((step for step in reversed(detail["loc"]) if isinstance(step, str)), "the file")
    value, context = detail["input"], detail.get("ctx", {})
    match detail["type"]:
        case "missing":
            return f"the key {key!r} is missing", "it has no default"
        case _ if value is None:
            return f"{key!r} has no value", "write one, or remove the line"
        case "config":
            return str(context["message"]), str(context["hint"])
        case "literal_error":
            expected = str(context["expected"]).replace("'", "")
            close = get_close_matches(str(value), expected.replace(" or ", ", ").split(", "), n=1)
            hint = f"did you mean {close[0]!r}?" if close else expected
            return f"{show(value)} is not a value of {key!r}", hint
        case "tuple_type":
            return f"{key!r} is a list", f"begin each entry with '- ', or write {key}: [...]"
        case "model_type":
            return f"{key!r} takes keys and values, not {show(value)}", "see docs/config.md"
    return f"{key!r}: {detail['msg']}", ""
