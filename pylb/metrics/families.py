"""Families of metrics as prometheus-client knows them, in parts small enough to let a loop turn between them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

PART = 250  # samples; the library needs some 5 µs to make and write one, so a part takes a millisecond or two

Number = int | float
Row = tuple[Sequence[str], Number]  # label values and value
Buckets = tuple[Sequence[str], Sequence[tuple[str, int]], float]  # label values, cumulative counts by bound, sum


class Scrape(Collector):
    """What one scrape exports, to be collected once. Parts of one family have its name and follow each other."""

    def __init__(self, parts: Iterable[Metric]) -> None:
        self._parts = parts

    def collect(self) -> Iterable[Metric]:
        return self._parts


def gauge(
    name: str, text: str, labels: Sequence[str] = (), rows: Iterable[Row] | None = None, *, value: Number = 0
) -> Iterator[Metric]:
    """Labels and rows, or one `value`."""
    return _parts(partial(GaugeMetricFamily, name, text, labels=labels), [((), value)] if rows is None else rows)


def counter(
    name: str, text: str, labels: Sequence[str] = (), rows: Iterable[Row] | None = None, *, value: Number = 0
) -> Iterator[Metric]:
    """As `gauge`. The name ends in _total."""
    return _parts(partial(CounterMetricFamily, name, text, labels=labels), [((), value)] if rows is None else rows)


def histogram(name: str, text: str, labels: Sequence[str], rows: Iterable[Buckets]) -> Iterator[Metric]:
    return _parts(partial(HistogramMetricFamily, name, text, labels=labels), rows)


def simple(values: Mapping[str, Number]) -> Iterator[Row]:
    """The rows of a family with one label."""
    return (((label,), value) for label, value in values.items())


def _parts(new: Callable[[], Any], rows: Iterable[Sequence[Any]]) -> Iterator[Metric]:
    """At least one, so that even a family without series is described. The samples of one row stay together."""
    part = new()
    for row in rows:
        part.add_metric(*row)
        if len(part.samples) >= PART:
            yield part
            part = new()
    yield part
