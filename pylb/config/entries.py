"""The readable parts of a file, entry by entry, so that one mistake does not hide another."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from pylb.config import models as m
from pylb.config.cluster import Cluster
from pylb.config.frontends import FrontendEntry
from pylb.config.problems import Position
from pylb.config.root import default_webhook
from pylb.config.section import Section
from pylb.config.value_type import one_or_more
from pylb.config.yamlplace import Document, Loc

_S = TypeVar("_S", bound=Section)
_SOME_PORTS: Mapping[str, Any] = MappingProxyType({"ports": [1]})


@dataclass(frozen=True, slots=True)
class Finding:
    """`loc` None: about the file as a whole."""

    loc: Loc | None
    message: str
    hint: str = ""
    severity: str = "error"


@dataclass(frozen=True, slots=True)
class ReadablePart(Generic[_S]):
    """One entry. `broken` are the keys that do not validate: they hold stand-ins, from which nothing may be concluded."""

    loc: Loc | None  # None: the default, not written in the file
    entry: _S
    broken: frozenset[str] = frozenset()

    def at(self, *steps: int | str) -> Loc | None:
        return None if self.loc is None else (*self.loc, *steps)


@dataclass(slots=True)
class Parts:
    """The readable parts of a file."""

    document: Document
    webhook: list[ReadablePart[m.WebhookListener]] = field(default_factory=list)
    admin: m.Admin | None = None
    metrics: m.Metrics | None = None
    leases: m.Leases | None = None
    log: m.Log | None = None
    cluster: Cluster | None = None
    defaults: m.Defaults | None = None
    tokens: list[ReadablePart[m.TokenEntry]] = field(default_factory=list)
    frontends: list[ReadablePart[FrontendEntry]] = field(default_factory=list)
    written_frontends: int = 0  # includes those that cannot be read at all
    own_addresses: frozenset[str] = frozenset()  # those that no interface has, or not always

    def place(self, loc: Loc | None) -> Position:
        return Position() if loc is None else self.document.place(loc)

    def where(self, loc: Loc | None) -> str:
        place = self.place(loc)
        return f"{self.document.filename}:{place.line}:{place.col}" if loc is not None else "the default"


def readable_parts(document: Document, base: Path) -> Parts:
    """The parts of each entry that can be read; the validation of the whole file reports the errors in the rest."""
    data = document.data if isinstance(document.data, dict) else {}
    webhook = list(_entries(m.WebhookListener, "webhook", data.get("webhook"), base))
    if data.get("webhook") is None:
        webhook = [ReadablePart(None, listener) for listener in default_webhook()]
    return Parts(
        document,
        webhook,
        admin=_section(m.Admin, data.get("admin"), base),
        metrics=_section(m.Metrics, data.get("metrics"), base),
        leases=_section(m.Leases, data.get("leases"), base),
        log=_section(m.Log, data.get("log"), base),
        cluster=_section(Cluster, data.get("cluster"), base),
        defaults=_section(m.Defaults, data.get("defaults"), base),
        tokens=list(_entries(m.TokenEntry, "tokens", data.get("tokens"), base, _SOME_PORTS)),
        frontends=list(_entries(FrontendEntry, "frontends", data.get("frontends"), base)),
        written_frontends=len(one_or_more(data.get("frontends")) or ()),
    )


def _entries(
    model: type[_S], key: str, items: object, base: Path, stand_ins: Mapping[str, Any] = MappingProxyType({})
) -> Iterator[ReadablePart[_S]]:
    for index, item in enumerate(one_or_more(items) or []):
        try:
            yield ReadablePart((key, index), model.model_validate(item, context=base))
        except ValidationError as error:
            broken = frozenset(str(detail["loc"][0]) for detail in error.errors() if detail["loc"])
            rest = {name: value for name, value in item.items() if name not in broken} if isinstance(item, dict) else {}
            try:
                yield ReadablePart((key, index), model.model_validate({**stand_ins, **rest}, context=base), broken)
            except ValidationError:
                pass  # without a name or an address there is nothing to compare


def _section(model: type[_S], item: object, base: Path) -> _S | None:
    try:
        return model.model_validate(item or {}, context=base)
    except ValidationError:
        return None
