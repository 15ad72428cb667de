"""Marks, charts and comparisons, from samples made up for it."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench import charts, compare, goals, report
from bench.figures import WARM_UP, Sample
from bench.processes import BenchError


def samples(ours: float, theirs: float = 100.0) -> list[Sample]:
    """Three rounds of `connections`; the warm-up is far off and must not count."""
    metric = "connections_per_second"
    return [
        *(Sample("connections", name, WARM_UP, {metric: 1.0}) for name in ("pylb", "haproxy")),
        *(Sample("connections", "pylb", turn, {metric: ours + turn}) for turn in (1, 2, 3)),
        *(Sample("connections", "haproxy", turn, {metric: theirs}) for turn in (1, 2, 3)),
        *(Sample("connections", "nginx", turn, {metric: 50.0}) for turn in (1, 2, 3)),
    ]


@pytest.mark.parametrize(("ours", "said"), [(88.0, "reached"), (80.0, "not reached")])
def test_a_mark_is_judged_by_the_median_and_shows_its_spread(ours: float, said: str) -> None:
    low, median, high = ((ours + turn) / 100 for turn in (1, 2, 3))
    assert goals.rows(samples(ours)) == [["new connections/s", "≥ 0.9x", f"{median:.2f}x ({low:.2f}..{high:.2f})", said]]


def test_a_mark_that_wants_little_is_not_reached_by_much() -> None:
    [row] = goals.rows([Sample("idle", "pylb", 1, {"kib_per_session": 1.6})])
    assert row[1:] == ["≤ 1.5 KiB", "1.60 KiB (1.60..1.60)", "not reached"]


def test_growth_is_pylb_against_itself_in_the_same_round() -> None:
    grown = Sample("frontends", "pylb", 1, {"requests_10": 100.0, "requests_1000": 95.0})
    assert [row[2] for row in goals.rows([grown])] == ["0.95x (0.95..0.95)"]


def test_a_chart_is_one_drawing_with_a_bar_and_a_figure_for_each_target() -> None:
    rows = charts.bars(samples(120.0), charts.MORE)
    drawing = ET.fromstring(charts.svg("a title & more", rows))
    texts = [element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert [label for label, _ in rows] == ["new connections/s"]
    assert {"a title & more", "new connections/s", "1.22", "0.50", "HAProxy = 1"} <= set(texts)


def test_the_charts_of_the_page_are_drawn_from_a_kept_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, page = charts.ROOT, charts.PAGE.read_text()
    (tmp_path / "performance.md").write_text(page)
    monkeypatch.setattr(charts, "FOLDER", tmp_path)
    monkeypatch.setattr(charts, "PAGE", tmp_path / "performance.md")
    assert charts.main([]) == 0
    assert (tmp_path / "performance.md").read_text() == page, "python -m bench charts"
    for name in ("more.svg", "less.svg"):
        committed = root / "docs" / "charts" / name
        assert (tmp_path / name).read_text() == committed.read_text()


def test_a_file_that_is_no_run_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(BenchError, match="no kept run"):
        charts.load(tmp_path / "x.json")


def test_a_comparison_shows_before_and_after_and_both_ratios(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / "old.json", tmp_path / "new.json"]
    for path, ours in zip(paths, (50.0, 90.0), strict=True):
        path.write_text(json.dumps({"samples": [vars(sample) for sample in samples(ours)]}))
    assert compare.main([str(path) for path in paths]) == 0
    shown = capsys.readouterr().out
    assert "connections, connections/s" in shown
    assert "0.52 (0.51..0.53)" in shown
    assert "0.92 (0.91..0.93)" in shown
    assert report.BASELINE in shown
