"""When the next call is due, for any clock and any randomness."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from phonehome.schedule import FIRST_BACKOFF, LEAST_BACKOFF, START_SPREAD, Schedule

NOW = 1000.0
draws = st.floats(0, 1)
ttls = st.integers(10, 86400)


def schedule(ttl: int | None, part: float) -> Schedule:
    return Schedule(ttl, lambda low, high: low + (high - low) * part)


@given(ttls, draws)
def test_three_beats_fit_into_a_lease(ttl: int, part: float) -> None:
    delay = schedule(ttl, part).succeeded(NOW) - NOW
    assert 0.8 * ttl / 3 - 1e-6 <= delay <= ttl / 3 + 1e-6


def test_beats_are_spread() -> None:
    assert schedule(60, 0.0).succeeded(NOW) == NOW + 16
    assert schedule(60, 1.0).succeeded(NOW) == NOW + 20


def test_a_shorter_lease_than_asked_for_sets_the_pace() -> None:
    assert schedule(600, 1.0).succeeded(NOW, 30) == NOW + 10
    assert schedule(60, 1.0).succeeded(NOW, 600) == NOW + 20


@given(ttls, draws, st.integers(1, 60))
def test_a_retry_never_waits_longer_than_a_third_of_the_lease(ttl: int, part: float, failures: int) -> None:
    tried = schedule(ttl, part)
    delays = [tried.failed(NOW) - NOW for _ in range(failures)]
    assert all(LEAST_BACKOFF - 1e-6 <= delay <= ttl / 3 + 1e-6 for delay in delays)


def test_retries_back_off_from_one_second_by_doubling() -> None:
    tried = schedule(60, 1.0)
    assert [tried.failed(NOW) - NOW for _ in range(7)] == [FIRST_BACKOFF, 2, 4, 8, 16, 20, 20]


def test_full_jitter_may_retry_almost_at_once() -> None:
    tried = schedule(60, 0.0)
    assert [tried.failed(NOW) for _ in range(3)] == [NOW + LEAST_BACKOFF] * 3


def test_a_success_starts_the_back_off_anew() -> None:
    tried = schedule(60, 1.0)
    for _ in range(5):
        tried.failed(NOW)
    tried.succeeded(NOW)
    assert tried.failed(NOW) == NOW + FIRST_BACKOFF


@given(ttls, draws, st.floats(0, 1e9))
def test_retry_after_is_waited_out_and_spread_up_to_a_third_of_the_lease(ttl: int, part: float, retry_after: float) -> None:
    delay = schedule(ttl, part).failed(NOW, retry_after) - NOW
    waited = min(retry_after, ttl / 3)
    assert waited + LEAST_BACKOFF - 1e-6 <= delay <= waited + FIRST_BACKOFF + 1e-6


@given(ttls, draws)
def test_first_calls_are_spread_over_two_seconds(ttl: int, part: float) -> None:
    delay = schedule(ttl, part).first(NOW) - NOW
    assert abs(delay - part * START_SPREAD) < 1e-6
    assert START_SPREAD <= 10 / 3  # the third of the shortest lease: a restart loses none


def test_a_lease_without_an_end_retries_like_one_of_a_minute() -> None:
    tried = schedule(None, 1.0)
    assert [tried.failed(NOW) for _ in range(10)][-1] == NOW + 20


@given(st.integers(), draws)
def test_no_lease_that_a_server_may_name_makes_a_hot_loop(granted: int, part: float) -> None:
    tried = schedule(60, part)
    assert tried.succeeded(NOW, granted) >= NOW + 0.8 - 1e-6
    assert tried.failed(NOW) >= NOW + LEAST_BACKOFF - 1e-6
