"""Scrapes as text, written by prometheus-client: Prometheus' format 0.0.4, or OpenMetrics for a scraper that asks for it.

The library writes a whole registry at once. It gets one part of a family at a time instead, and the loop runs between two of
them. So a scrape is not one instant, but every number is right at its own.
https://prometheus.io/docs/instrumenting/exposition_formats/
"""

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
    """For a request's Accept. (The library's own choice fails at `version=x`, and would promise versions it is asked for.)"""
    kinds = (kind.partition(";") for kind in accept.lower().split(","))
    return OPENMETRICS if any(kind.strip() == "application/openmetrics-text" for kind, _, _ in kinds) else TEXT


async def written(scrapes: Iterable[Callable[[], Awaitable[Collector]]], form: Format) -> bytearray:
    """All of them, one after the other. Holds the loop for a few milliseconds at a time."""
    found, headed = bytearray(), set[tuple[str, str]]()
    for scrape in scrapes:
        async for part in in_turns((await scrape()).collect(), 1):
            family = (part.name, part.type)
            clashes = form is OPENMETRICS and part.type == "counter" and (part.name, "gauge") in headed
            text = form.write(Scrape([_untyped(part) if clashes else part])).removesuffix(form.end)
            # HELP and TYPE, which the library writes over each part, may be there only once.
            found += text if family not in headed else text.split(b"\n", 2)[2]
            headed.add(family)
    found += form.end
    return found


def _untyped(part: Metric) -> Metric:
    """For OpenMetrics the counter x_total is of a family x. Where a gauge has that name, only this may be called x_total."""
    found = Metric(f"{part.name}_total", part.documentation, "unknown")
    found.samples = part.samples
    return found
