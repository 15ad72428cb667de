"""The benchmark of scrapes runs, with one process and with a worker."""

import re

import pytest

from bench import scrape


def test_the_table_has_a_line_for_each_way_to_run(capfd: pytest.CaptureFixture[str]) -> None:
    assert scrape.main(["--frontends", "3", "--rounds", "1"]) == 0
    heading, *rows = capfd.readouterr().out.splitlines()
    assert "3 frontends, 3 servers each" in heading
    cells = [re.split(r"\s{2,}", line.strip()) for line in rows]
    assert [what for what, *_ in cells] == ["workers 0", "workers 1", "workers 0, HAProxy's names"]
    assert all(len(figures) == 6 and all(float(figure) > 0 for figure in figures) for _, *figures in cells)
