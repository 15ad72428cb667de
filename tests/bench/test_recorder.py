"""The benchmark of the flight recorder runs, and says what a connection costs with and without it."""

import pytest

from bench import recorder
from tests.support.peers import need


def test_the_table_has_a_line_with_the_recorder_and_two_without(capsys: pytest.CaptureFixture[str]) -> None:
    need("wrk")
    need("nginx")
    assert recorder.main(["--seconds", "1"]) == 0
    heading, on, off, again = capsys.readouterr().out.splitlines()
    assert "CPU" in heading
    assert [line.split()[0] for line in (on, off, again)] == ["on", "off", "off"]
    assert float(on.split()[1]) > 0
