"""Families of metrics in Prometheus' text format 0.0.4, in pieces small enough to let a loop turn between them.

Written here rather than by a library: a thousand frontends are 50,000 lines, and general machinery takes 8 µs for each,
this takes one (python -m bench scrape). Tests read the result with Prometheus' own parsers.
https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import inf
from typing import NamedTuple, TypeVar

PIECE = 250  # lines, or items to look at: well below a millisecond
T = TypeVar("T")

Number = int | float
Row = tuple[Sequence[str], Number]  # label values and value
Buckets = tuple[Sequence[str], Sequence[tuple[float, int]], float]  # label values, cumulative counts by bound, sum


class Family(NamedTuple):
    name: str  # with _total, if it is a counter
    kind: str
    text: str
    labels: tuple[str, ...]

    @property
    def head(self) -> str:
        return f"# HELP {self.name} {self.text}\n# TYPE {self.name} {self.kind}\n"


class Piece(NamedTuple):
    """Some lines of a family; the first one of each begins with its head."""

    family: Family
    lines: str


Pieces = Iterator[Piece | None]  # None: nothing to say yet, but the loop wants its turn


def gauge(name: str, text: str, labels: Sequence[str] = (), rows: Iterable[Row] | None = None, *, value: Number = 0) -> Pieces:
    """Labels and rows, or one `value`."""
    return _written(Family(name, "gauge", text, tuple(labels)), [((), value)] if rows is None else rows)


def counter(
    name: str, text: str, labels: Sequence[str] = (), rows: Iterable[Row] | None = None, *, value: Number = 0
) -> Pieces:
    return _written(Family(name, "counter", text, tuple(labels)), [((), value)] if rows is None else rows)


def histogram(name: str, text: str, labels: Sequence[str], rows: Iterable[Buckets]) -> Pieces:
    family = Family(name, "histogram", text, tuple(labels))
    shape = _shape(labels)
    return _in_pieces(family, (_buckets(name, shape, *row) for row in rows))


def simple(values: Mapping[str, Number]) -> Iterator[Row]:
    """The rows of a family with one label."""
    return (((label,), value) for label, value in values.items())


def paused(items: Iterable[T]) -> Iterator[T | None]:
    """The items, with a None after every PIECE of them."""
    for number, item in enumerate(items, 1):
        yield item
        if number % PIECE == 0:
            yield None


def _written(family: Family, rows: Iterable[Row]) -> Pieces:
    places = _shape(family.labels)
    shape = f"{family.name}{{{places}}} %s\n" if places else f"{family.name} %s\n"
    return _in_pieces(family, ((shape % (*map(escaped, labels), _number(value)),) for labels, value in rows))


def _shape(labels: Iterable[str]) -> str:
    return ",".join(f'{label}="%s"' for label in labels)


def _buckets(name: str, shape: str, labels: Sequence[str], buckets: Sequence[tuple[float, int]], total: float) -> list[str]:
    place = shape % tuple(map(escaped, labels))
    lines = [f'{name}_bucket{{{place},le="{_number(bound)}"}} {_number(count)}\n' for bound, count in buckets]
    return [*lines, f"{name}_sum{{{place}}} {_number(total)}\n", f"{name}_count{{{place}}} {_number(buckets[-1][1])}\n"]


def _in_pieces(family: Family, groups: Iterable[Sequence[str]]) -> Pieces:
    """At least one, so that even a family without series is described."""
    lines = [family.head]
    for group in groups:
        lines += group
        if len(lines) >= PIECE:
            yield Piece(family, "".join(lines))
            lines = []
    yield Piece(family, "".join(lines))


def escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: Number) -> str:
    if value == inf:
        return "+Inf"
    return repr(float(value))
