"""The library's text in parts: nothing twice, nothing lost, and the loop has its turn between them."""

import asyncio
from math import inf

import pytest
from prometheus_client import Metric
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from pylb.metrics.exposition import OPENMETRICS, TEXT, Format, accepted, written
from pylb.metrics.families import PART, Scrape, counter, gauge, histogram, labelled, simple


async def scrape(*families: object) -> Scrape:
    return Scrape([part for family in families for part in family])  # type: ignore[attr-defined]


async def text(*families: object, form: Format = TEXT) -> str:
    return (await written([lambda: scrape(*families)], form)).decode()


async def test_a_family_is_its_head_and_its_lines() -> None:
    rows = [(("web", "in"), 3), (("web", "out"), 0.5)]
    assert await text(counter("x_total", "What.", ("frontend", "way"), rows)) == (
        "# HELP x_total What.\n# TYPE x_total counter\n"
        'x_total{frontend="web",way="in"} 3.0\nx_total{frontend="web",way="out"} 0.5\n'
    )
    assert (await text(gauge("y", "Why.", value=True))).splitlines()[-1] == "y 1.0"
    assert (await text(gauge("y", "Why.", value=inf))).splitlines()[-1] == "y +Inf"
    assert await text(gauge("z", "None yet.", ("server",), [])) == "# HELP z None yet.\n# TYPE z gauge\n"


@pytest.mark.parametrize("form", [TEXT, OPENMETRICS])
async def test_any_label_value_comes_back_as_it_was(form: Format) -> None:
    values = ['a"b', "c\\d", "e\nf", "\\n", 'g\\"h', "ü", "100%s", "{}"]
    parse = text_string_to_metric_families if form is TEXT else openmetrics_parser.text_string_to_metric_families
    [family] = parse(await text(gauge("x", "What.", ("name",), simple(dict.fromkeys(values, 1))), form=form))
    assert [sample.labels["name"] for sample in family.samples] == values


async def test_a_histogram_has_its_buckets_sum_and_count() -> None:
    rows = [(('we"b',), [("0.5", 1), ("10.0", 3), ("+Inf", 4)], 99.5)]
    [family] = text_string_to_metric_families(await text(histogram("x", "What.", ("frontend",), rows)))
    found = {(one.name, one.labels.get("le")): one.value for one in family.samples}
    buckets = {("x_bucket", "0.5"): 1, ("x_bucket", "10.0"): 3, ("x_bucket", "+Inf"): 4}
    assert found == buckets | {("x_sum", None): 99.5, ("x_count", None): 4}
    assert {one.labels["frontend"] for one in family.samples} == {'we"b'}


@pytest.mark.parametrize("form", [TEXT, OPENMETRICS])
@pytest.mark.parametrize("size", [3 * PART, 3 * PART + 1])
async def test_a_long_family_comes_in_parts_and_is_described_once(form: Format, size: int) -> None:
    parts = list(gauge("x", "What.", ("number",), (((str(number),), number) for number in range(size))))
    assert max(len(part.samples) for part in parts) == PART
    found = await text(parts, gauge("y", "Why.", value=1), form=form)
    assert found.count("# HELP x What.\n# TYPE x gauge\n") == found.count("# HELP x") == found.count("# TYPE x") == 1
    assert [line for line in found.splitlines() if line[0] == "x"] == [f'x{{number="{n}"}} {float(n)}' for n in range(size)]
    assert found.count("# EOF\n") == (form is OPENMETRICS)


async def test_the_loop_has_its_turn_between_two_parts() -> None:
    parts = gauge("x", "What.", ("number",), (((str(number),), number) for number in range(20 * PART)))
    turns, task = 0, asyncio.get_running_loop().create_task(written([lambda: scrape(parts)], TEXT))
    while not task.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns >= 20
    await task


async def test_a_gauge_and_a_counter_of_one_name_are_two_families() -> None:
    """OpenMetrics calls the family of x_total x, and has no room for a gauge x beside it."""

    async def found(form: Format) -> str:
        return await text(gauge("x", "Now.", value=1), counter("x_total", "Ever.", value=2), form=form)

    assert await found(TEXT) == (
        "# HELP x Now.\n# TYPE x gauge\nx 1.0\n# HELP x_total Ever.\n# TYPE x_total counter\nx_total 2.0\n"
    )
    families = list(openmetrics_parser.text_string_to_metric_families(await found(OPENMETRICS)))
    assert [(one.name, one.type, one.samples[0].name) for one in families] == [
        ("x", "gauge", "x"),
        ("x_total", "unknown", "x_total"),
    ]


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/plain;version=0.0.4", TEXT),
        ("application/openmetrics-text; version=x", OPENMETRICS),  # at which the library's own choice fails
        ("text/html, Application/OpenMetrics-Text", OPENMETRICS),
        # of Prometheus 2.42 and 3
        ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", OPENMETRICS),
        ("application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=1.0.0;q=0.4", OPENMETRICS),
        (";;,=", TEXT),
    ],
)
def test_openmetrics_is_for_those_who_ask_for_it(accept: str, form: Format) -> None:
    assert accepted(accept) is form


AWKWARD = ["a", 'x{name="a"} 1', "\nx{", "\\nx{", "\n# EOF", '"\n\\', *map(str, range(2 * PART))]


@pytest.mark.parametrize("form", [TEXT, OPENMETRICS])
async def test_lines_that_are_written_once_for_all_families_are_the_librarys(form: Format) -> None:
    """Families x, y_total and z have the same number for everybody, w another one for the last, v other labels."""
    shared = [{"name": name} for name in AWKWARD]
    columns = {
        "x": [(one, 0) for one in shared],
        "y_total": [(one, 0.0) for one in shared],
        "z": [({"name": name}, False) for name in AWKWARD],
        "w": [(one, int(one is shared[-1])) for one in shared],
        "v": [({"names": name}, 0) for name in AWKWARD],
        "u": [(one, 0) for one in reversed(shared)],
    }
    families, whole = list[object](), list[Metric]()
    for name, rows in columns.items():
        new = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
        families.append(labelled(new, name, "What.", rows))
        whole.append(new(name, "What."))
        whole[-1].samples = [Sample(name, labels, value) for labels, value in rows]
    assert await text(*families, form=form) == form.write(Scrape(whole)).decode()


async def test_what_is_the_same_number_for_everybody_is_written_once_for_all_families() -> None:
    lines = 0

    def write(registry: Collector) -> bytes:
        nonlocal lines
        lines += sum(len(part.samples) for part in registry.collect())
        return TEXT.write(registry)

    shared = [{"name": str(number)} for number in range(3 * PART)]
    families = [labelled(GaugeMetricFamily, f"x{number}", "What.", ((one, 7) for one in shared)) for number in range(10)]
    written_once = await text(*families, form=Format("", write, b""))
    assert written_once.count("\nx") == 30 * PART
    assert lines == 3 * PART
