"""The benchmark of probing runs, and says what one and a thousand servers cost."""

import pytest

from bench import probes


def test_the_table_has_a_line_for_each_pool(capsys: pytest.CaptureFixture[str]) -> None:
    assert probes.main(["--seconds", "0.3"]) == 0
    heading, one, thousand = capsys.readouterr().out.splitlines()
    assert "p99" in heading
    assert one.split()[:2] == ["1", "servers"]
    assert thousand.split()[:2] == ["1,000", "servers"]
    assert all(float(figure) >= 0 for line in (one, thousand) for figure in line.split()[2:])
