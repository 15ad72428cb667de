"""Fifteen minutes of the machine: rates from counters, quantiles from buckets, marks from events."""

from collections.abc import Mapping
from math import isnan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylb.control.event_log import Event
from pylb.core.address import Listen
from pylb.core.policy import Policy
from pylb.core.table import Frontend, make_table
from pylb.forward.counters import CONNECT_BOUNDS, Histogram
from pylb.statuspage.timeseries import LATELY, MARKS, Point, Rate, TimeSeries, quantile, rate
from pylb.workers.sampler import FrontendSum, Moment, ServerSum

A, B = Listen("tcp", "*", 443), Listen("tcp", "*", 25)
BUCKETS = len(CONNECT_BOUNDS) + 1


def counts(total: int, connects: tuple[int, ...] = (0,) * BUCKETS, sessions: int = 0) -> FrontendSum:
    return FrontendSum(sessions, total, 100 * total, 200 * total, connects, servers={"pod": ServerSum(sessions, total)})


def look(history: TimeSeries, wall: float, clock: float, found: Mapping[Listen, FrontendSum]) -> Point | None:
    """As the sampler does. The point of this look, if it made one."""
    frontends = {listen: Frontend("web", listen, Policy(), ()) for listen in found}
    history.point = None
    history.begin(Moment(clock, wall), make_table(1, frontends))
    for listen, one in found.items():
        history.add(frontends[listen], one)
    history.end()
    return history.point


def test_a_rate_is_a_difference_by_its_seconds() -> None:
    history = TimeSeries()
    assert look(history, 1000.0, 50.0, {A: counts(10), B: counts(5)}) is None  # nothing to be compared with
    point = look(history, 1001.0, 51.0, {A: counts(16, sessions=4), B: counts(5, sessions=1)})
    assert point is not None
    assert (point.time, point.connections, point.active) == (1001.0, 6.0, 5.0)
    assert (point.bytes_in, point.bytes_out) == (600.0, 1200.0)
    assert isnan(point.p50)  # nobody has connected
    assert history.rate(A) == Rate(6.0, 600.0, 1200.0)
    assert history.server_rates(A) == {"pod": 6.0}
    assert history.count(A).sessions == 4
    late = look(history, 1003.0, 53.0, {A: counts(16), B: counts(9)})
    assert late is not None
    assert late.connections == 2.0


def test_a_window_of_samples_evens_out_reports_that_come_at_moments_of_their_own() -> None:
    history = TimeSeries(window=3)
    points = [look(history, float(at), float(at), {A: counts(total)}) for at, total in enumerate((0, 0, 20, 20, 40, 40, 60))]
    assert [point.connections for point in points[4:] if point is not None] == pytest.approx([40 / 3, 20 / 3, 40 / 3])


def test_what_has_left_makes_no_negative_rate_and_what_is_new_starts_at_nothing() -> None:
    assert rate(counts(3), counts(10), 1.0) == Rate(0.0, 0.0, 0.0)
    history = TimeSeries()
    look(history, 0.0, 0.0, {A: counts(1_000_000)})
    point = look(history, 1.0, 1.0, {B: counts(2)})
    assert point is not None
    assert point.connections == 2.0
    assert (history.rate(A), history.rate(B)) == (Rate(), Rate(2.0, 200.0, 400.0))


def test_quantiles_come_from_the_buckets_of_the_last_seconds_alone() -> None:
    old = [0] * BUCKETS
    old[0] = 1_000_000
    new = list(old)
    new[CONNECT_BOUNDS.index(0.01)] += 98
    new[CONNECT_BOUNDS.index(1.0)] += 2
    history = TimeSeries()
    look(history, 0.0, 0.0, {A: counts(0, tuple(old))})
    point = look(history, 1.0, 1.0, {A: counts(1, tuple(new))})
    assert point is not None
    assert 0.005 < point.p50 <= 0.01
    assert 0.5 < point.p99 <= 1.0
    for at in range(2, 2 + LATELY):
        point = look(history, float(at), float(at), {A: counts(1, tuple(new))})
    assert point is not None
    assert isnan(point.p99)  # nobody has connected for a while


@given(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_lies_in_the_bucket_of_the_value_it_stands_for(values: list[float], share: float) -> None:
    histogram = Histogram(CONNECT_BOUNDS)
    for value in values:
        histogram.add(value)
    exact = sorted(values)[max(0, -(-len(values) * int(share * 100) // 100) - 1)]
    low = max((bound for bound in CONNECT_BOUNDS if bound < exact), default=0.0)
    high = min((bound for bound in CONNECT_BOUNDS if bound >= exact), default=CONNECT_BOUNDS[-1])
    assert low - 1e-9 <= quantile(histogram.counts, share) <= high + 1e-9


def test_it_holds_fifteen_minutes_and_no_more() -> None:
    history = TimeSeries(points=10)
    for at in range(100):
        look(history, float(at), float(at), {A: counts(at)})
        assert len(history._columns[0]) <= 20
    columns = history.columns()
    assert columns["time"] == [float(at) for at in range(90, 100)]
    assert columns["connections"] == [1.0] * 10
    assert columns["p99"] == [None] * 10  # JSON knows no NaN


def test_a_flood_of_refused_calls_does_not_push_out_the_marks() -> None:
    history = TimeSeries()
    history.note(Event(5.0, "moved", "moved app: 443 -> 10.0.0.8:30443"))
    for _ in range(5000):
        history.note(Event(6.0, "refused", "refused PUT app"))
    assert [(mark.time, mark.kind) for mark in history.marks(0.0)] == [(5.0, "moved")]
    assert history.marks(5.5) == []
    for at in range(2 * MARKS):
        history.note(Event(float(at), "server_down", ""))
    assert len(history.marks(0.0)) == MARKS
