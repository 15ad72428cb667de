"""`python -m bench udp`: its ends measure each other, and the table says how ours compares."""

from pathlib import Path

import pytest

from bench.datagrams import Run, _line, _table
from tests.support.ports import free_ports


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run("pylb", tmp_path, free_ports(3))


def test_round_trips_and_new_flows_are_counted_at_the_server_itself(run: Run) -> None:
    with run.peer("echo", run.server) as echo:
        assert _line(echo) == "ready"
        assert run.asked("ping", run.server, 4, 0.2) > 0
        assert run.asked("begin", run.server, 2, 0.2) > 0
        with run.peer("idle", run.server, 5, 5) as idle:
            assert _line(idle) == "ready"


def test_trains_arrive_at_the_rate_that_is_offered(run: Run) -> None:
    with run.peer("sink", run.server, 0, 0.3) as sink:
        assert _line(sink) == "ready"
        assert 0 < run.asked("blast", run.server, 5, 0.3) < 6
        assert 0 < float(_line(sink)) < 8


def test_the_table_has_medians_and_ratios_of_pairs() -> None:
    found = {"pylb": {"trips": [10.0, 20.0, 40.0]}, "nginx": {"trips": [10.0, 10.0, 10.0]}}
    assert list(_table(["pylb", "nginx"], found)) == [
        ["", "pylb", "nginx", "pylb x nginx"],
        ["trips", "20.0", "10.0", "2.00 (1.00..4.00)"],
    ]
