"""What a new connection costs: the arithmetic, and one short run with the floor."""

import pytest

from bench import profile_connection, targets
from bench.processes import BenchError
from bench.profile_connection import Cost, call_rows, cost_rows, parse_strace
from bench.scenarios import SCENARIOS
from tests.support.peers import need

STRACE = """% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 31.03    0.020117           5      4022      2011 connect
  8.58    0.005563           1      4022           close
  8.58    0.005563           1      2300       289 accept4
------ ----------- ----------- --------- --------- ----------------
100.00    0.064832           3     10344      2300 total
"""


def test_the_table_of_strace_is_read_with_and_without_errors() -> None:
    calls = parse_strace(STRACE)
    assert calls.by_name == {"connect": 4022, "close": 4022, "accept4": 2300}
    assert calls.per_connection()["close"] == 2.0  # of 2011 that were accepted
    with pytest.raises(BenchError, match="Operation not permitted"):
        parse_strace("strace: attach: Operation not permitted")
    with pytest.raises(BenchError, match="accepted"):
        parse_strace(STRACE.replace("accept4", "accept5")).per_connection()


def test_costs_are_compared_within_their_round_and_shown_in_both_parts() -> None:
    costs = {"haproxy": [Cost(10, 50), Cost(20, 100)], "pylb": [Cost(30, 60), Cost(50, 100)]}
    _heads, theirs, ours = cost_rows(costs)
    assert theirs == ["haproxy", "90.0", "15.0", "75.0", "1"]
    assert ours == ["pylb", "120.0", "40.0", "80.0", "1.38 (1.25..1.50)"]


def test_rare_calls_have_no_line_and_are_in_the_sum() -> None:
    rows = call_rows({"haproxy": {"connect": 1.0}, "pylb": {"connect": 1.0, "close": 2.0, "brk": 0.01}})
    assert rows[1:] == [["close", "0.00", "2.00"], ["connect", "1.00", "1.00"], ["all", "1.00", "3.01"]]


def test_the_floor_is_measured_where_new_connections_and_requests_are_and_nowhere_else() -> None:
    admitted = {name for name, scenario in SCENARIOS.items() if scenario.admits(targets.FLOOR)}
    assert admitted == {"connections", "keepalive-1", "keepalive-16", "keepalive", "keepalive-256"}


@pytest.mark.e2e
def test_a_short_run_says_what_the_floor_costs(capsys: pytest.CaptureFixture[str]) -> None:
    need("wrk")
    need("nginx")
    need("strace")
    assert profile_connection.main(["--rounds", "1", "--seconds", "1", "--targets", "floor"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    calls = {name: float(count) for name, count in rows[3:]}
    assert float(rows[1][1]) > 0
    assert 0.9 < calls["connect"] < 1.1
    assert calls["all"] > 10
