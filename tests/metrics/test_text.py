"""The text format, written by hand: what stands there is what Prometheus' own parser reads."""

from math import inf

from prometheus_client.parser import text_string_to_metric_families

from pylb.metrics.text import PIECE, Pieces, counter, gauge, histogram, paused, simple


def text(pieces: Pieces) -> str:
    return "".join(piece.lines for piece in pieces if piece is not None)


def test_a_family_is_its_head_and_its_lines() -> None:
    rows = [(("web", "in"), 3), (("web", "out"), 0.5)]
    assert text(counter("x_total", "What.", ("frontend", "direction"), rows)) == (
        "# HELP x_total What.\n# TYPE x_total counter\n"
        'x_total{frontend="web",direction="in"} 3.0\nx_total{frontend="web",direction="out"} 0.5\n'
    )
    assert text(gauge("y", "Why.", value=True)).splitlines()[-1] == "y 1.0"
    assert text(gauge("y", "Why.", value=inf)).splitlines()[-1] == "y +Inf"
    assert text(gauge("z", "None yet.", ("server",), [])) == "# HELP z None yet.\n# TYPE z gauge\n"


def test_any_label_value_comes_back_as_it_was() -> None:
    values = ['a"b', "c\\d", "e\nf", "\\n", 'g\\"h', "ü", "100%s", "{}"]
    [family] = text_string_to_metric_families(text(gauge("x", "What.", ("name",), simple(dict.fromkeys(values, 1)))))
    assert [sample.labels["name"] for sample in family.samples] == values


def test_a_histogram_has_its_buckets_sum_and_count() -> None:
    rows = [(('we"b',), [(0.5, 1), (10.0, 3), (inf, 4)], 99.5)]
    [family] = text_string_to_metric_families(text(histogram("x", "What.", ("frontend",), rows)))
    found = {(one.name, one.labels.get("le")): one.value for one in family.samples}
    buckets = {("x_bucket", "0.5"): 1, ("x_bucket", "10.0"): 3, ("x_bucket", "+Inf"): 4}
    assert found == buckets | {("x_sum", None): 99.5, ("x_count", None): 4}
    assert {one.labels["frontend"] for one in family.samples} == {'we"b'}


def test_no_piece_is_long_and_only_the_first_has_the_head() -> None:
    rows = (((str(number),), number) for number in range(3 * PIECE))
    pieces = [piece for piece in gauge("x", "What.", ("number",), rows) if piece is not None]
    assert [piece.lines.count("# TYPE") for piece in pieces] == [1, 0, 0, 0]
    assert all(piece.lines.count("\n") <= PIECE + 1 for piece in pieces)
    assert (
        len(
            [sample for family in text_string_to_metric_families("".join(p.lines for p in pieces)) for sample in family.samples]
        )
        == 750
    )


def test_a_long_look_is_paused_every_now_and_then() -> None:
    assert [item is None for item in paused(range(2 * PIECE))].count(True) == 2
    assert [item for item in paused(range(600)) if item is not None] == list(range(600))
