"""Scrapes as text, written by prometheus-client: Prometheus' format 0.0.4, or OpenMetrics for a scraper that asks for it.

The library writes a whole registry at once. It gets one part of a family at a time instead, and the loop runs between two of
them. So a scrape is not one instant, but every number is right at its own.
https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import NamedTuple

from prometheus_client import exposition
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from pylb.control.steps import in_turns
from pylb.metrics.families import Scrape

_EOF = b"# EOF\n"  # the end of OpenMetrics, after the last family
FEW = 20  # samples that are not worth a look
FREED = 5  # parts whose labels are freed between two turns of the loop: 1 ms


class Format(NamedTuple):
    content_type: str
    write: Callable[[Collector], bytes]
    end: bytes


TEXT = Format(exposition.CONTENT_TYPE_PLAIN_0_0_4, exposition.generate_latest, b"")
# All our names are of the old character set, which no escaping changes: this one does not look at every character of each.
OPENMETRICS = Format(
    openmetrics.CONTENT_TYPE_LATEST, partial(openmetrics.generate_latest, escaping=openmetrics.ALLOWUTF8), _EOF
)


def accepted(accept: str) -> Format:
    """The format for a request's Accept. (The library's own choice fails at `version=x`, and would promise any version.)"""
    kinds = (kind.partition(";") for kind in accept.lower().split(","))
    return OPENMETRICS if any(kind.strip() == "application/openmetrics-text" for kind, _, _ in kinds) else TEXT


async def written(scrapes: Iterable[Callable[[], Awaitable[Collector]]], form: Format) -> bytes:
    """All parts as text, one after the other. Each takes a few milliseconds at most."""
    pieces, headed = list[bytes](), set[tuple[str, str]]()
    for scrape in scrapes:
        lines = _Lines(form)
        async for part in in_turns((await scrape()).collect(), 1):
            family = (part.name, part.type)
            clashes = form is OPENMETRICS and part.type == "counter" and (part.name, "gauge") in headed
            head, body = lines.of(_untyped(part) if clashes else part)
            # HELP and TYPE, which the library writes over each part, may be there only once.
            pieces += [body] if family in headed else [head, body]
            headed.add(family)
        async for _ in in_turns(range(len(lines.known)), FREED):
            lines.known.popitem()
    pieces.append(form.end)
    return await asyncio.to_thread(b"".join, pieces)  # 20 MB are some 10 ms, for which Python gives the loop its lock


class _Lines:
    """A part as the library writes it: its head, and its lines.

    Most families of many servers are 0, or another number, for all of them. Such a part has the same lines in each of these
    families but for the name, and the library, which needs 3 µs for a line, writes them once.
    """

    def __init__(self, form: Format) -> None:
        self._form = form
        self.known: dict[tuple[float, str], tuple[list[dict[str, str]], str, bytes]] = {}  # labels, name, lines

    def of(self, part: Metric) -> tuple[bytes, bytes]:
        if len(part.samples) < FEW or part.type not in ("gauge", "counter") or len({one.value for one in part.samples}) > 1:
            return self._written(part)
        labels, name, value = [one.labels for one in part.samples], part.samples[0].name, part.samples[0].value
        place = (value, ",".join(labels[0].values()))
        same, other, lines = self.known.get(place, ([], "", b""))
        if same != labels:
            head, lines = self._written(part)
            self.known[place] = (labels, name, lines)
            return head, lines
        head, _ = self._written(Metric(part.name, part.documentation, part.type))
        # Safe: the name is at the beginning of a line, and a label value has no line break that is not escaped.
        return head, (b"\n" + lines).replace(f"\n{other}{{".encode(), f"\n{name}{{".encode())[1:]

    def _written(self, part: Metric) -> tuple[bytes, bytes]:
        help_, type_, lines = self._form.write(Scrape([part])).removesuffix(self._form.end).split(b"\n", 2)
        return b"%b\n%b\n" % (help_, type_), lines


def _untyped(part: Metric) -> Metric:
    """For OpenMetrics the counter x_total is of a family x. Where a gauge has that name, only this may be called x_total."""
    found = Metric(f"{part.name}_total", part.documentation, "unknown")
    found.samples = part.samples
    return found
