"""Families of metrics as prometheus-client knows them, in parts small enough to let a loop turn between them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

PART = 250  # samples; the library needs some 3 µs to write one, so a part takes a millisecond

Number = int | float
Row = tuple[Sequence[str], Number]  # label values and value
Labelled = tuple[dict[str, str], Number]  # labels, which many samples may share, and value
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
    return labelled(
        partial(GaugeMetricFamily, labels=labels), name, text, _labelled(labels, [((), value)] if rows is None else rows)
    )


def counter(
    name: str, text: str, labels: Sequence[str] = (), rows: Iterable[Row] | None = None, *, value: Number = 0
) -> Iterator[Metric]:
    """Like `gauge`. The name ends in _total."""
    return labelled(
        partial(CounterMetricFamily, labels=labels), name, text, _labelled(labels, [((), value)] if rows is None else rows)
    )


def _labelled(labels: Sequence[str], rows: Iterable[Row]) -> Iterator[Labelled]:
    return ((dict(zip(labels, values, strict=True)), value) for values, value in rows)


def labelled(new: Callable[[str, str], Metric], name: str, text: str, rows: Iterable[Labelled]) -> Iterator[Metric]:
    """At least one part, so that even a family without series is described. A counter's `name` ends in _total.

    The samples are made here: add_metric makes a dict for each, which with labels that many families share is a third of all.
    """
    rows = iter(rows)
    while True:
        part = new(name, text)
        part.samples = [Sample(name, labels, value) for labels, value in islice(rows, PART)]
        yield part
        if len(part.samples) < PART:
            return


def histogram(name: str, text: str, labels: Sequence[str], rows: Iterable[Buckets]) -> Iterator[Metric]:
    """Like `gauge`; the samples of one row stay together."""
    new = partial(HistogramMetricFamily, name, text, labels=labels)
    part = new()
    for row in rows:
        part.add_metric(*row)
        if len(part.samples) >= PART:
            yield part
            part = new()
    yield part


def simple(values: Mapping[str, Number]) -> Iterator[Row]:
    """The rows of a family with one label."""
    return (((label,), value) for label, value in values.items())
