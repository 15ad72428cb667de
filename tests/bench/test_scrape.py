"""The benchmark of scrapes runs, with one process and with a worker."""

import pytest

from bench import scrape


def test_the_table_has_a_line_for_each_way_to_run(capfd: pytest.CaptureFixture[str]) -> None:
    assert scrape.main(["--frontends", "3", "--rounds", "1"]) == 0
    heading, alone, beside = capfd.readouterr().out.splitlines()
    assert "3 frontends, 3 servers each" in heading
    assert [line.split()[:2] for line in (alone, beside)] == [["workers", "0"], ["workers", "1"]]
    assert all(float(figure) > 0 for line in (alone, beside) for figure in line.split()[2:])
