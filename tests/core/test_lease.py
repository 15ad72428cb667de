"""Leases, given the clock."""

from collections.abc import Iterable, Mapping
from math import inf
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pylb.core.lease import (
    LEGACY_TTL,
    LapseVerdict,
    Lease,
    at_least_a_ttl,
    judge,
    lapsed_within_its_ttl,
    legacy_beat,
    legacy_lease,
    native_lease,
)


def beats(*times: float) -> Lease:
    lease = legacy_lease(times[0])
    for now in times[1:]:
        lease = legacy_beat(lease, now)
    return lease


def test_a_native_lease_lasts_its_ttl() -> None:
    lease = native_lease(60.0, 1000.0)
    assert not lease.is_over(1059.9)
    assert lease.is_over(1060.0)


def test_a_lease_without_ttl_never_ends() -> None:
    assert native_lease(None, 0.0).expires == inf


def test_a_legacy_call_made_once_or_twice_never_lapses() -> None:
    assert beats(0).expires == inf
    assert beats(0, 300).expires == inf


def test_a_third_beat_with_a_similar_gap_starts_the_lease() -> None:
    lease = beats(0, 600, 1210)
    assert lease.ttl == 3 * 610
    assert lease.expires == 1210 + 1830


def test_a_learned_lease_lasts_at_least_half_an_hour() -> None:
    assert beats(0, 0.2, 0.4).ttl == LEGACY_TTL


def test_a_restarted_once_pod_is_no_heartbeat() -> None:
    assert beats(0, 50, 4000, 4100, 90000).ttl is None


def test_what_was_learned_survives_an_odd_gap() -> None:
    lease = beats(0, 1000, 2000, 4000)
    assert lease.ttl == 3000
    assert lease.expires == 7000


def test_what_an_earlier_pylb_learned_counts_at_once() -> None:
    lease = legacy_lease(0.0, 3000.0)
    assert lease.expires == 3000
    assert legacy_beat(lease, 700.0).expires == 3700


def test_a_lease_gets_a_whole_ttl_when_nobody_could_call() -> None:
    assert at_least_a_ttl(native_lease(60.0, 0.0), 500.0).expires == 560
    assert at_least_a_ttl(native_lease(60.0, 0.0), -10.0).expires == 60
    assert at_least_a_ttl(native_lease(None, 0.0), 500.0).expires == inf


def leases(**ends: float) -> dict[str, Lease]:
    return {name: Lease(60.0, end - 60, end) for name, end in ends.items()}


def judged(leases: Mapping[Any, Lease], stale: Iterable[Any], now: float, *, preserving: bool) -> LapseVerdict[Any]:
    """`judge` on what a look at all leases finds."""
    known = [key for key in stale if key in leases]
    fresh = {key: lease for key, lease in leases.items() if lease.ttl is not None and key not in known}
    silent = [key for key, lease in fresh.items() if lease.is_over(now)]
    recent = [key for key in known if lapsed_within_its_ttl(leases[key], now)]
    return judge(silent, recent, len(fresh), preserving=preserving)


def test_a_silent_lease_lapses_alone() -> None:
    assert judged(leases(a=10, b=99), [], 20.0, preserving=False) == LapseVerdict(lapsed=("a",))


def test_two_of_two_lapse_because_two_are_no_mass() -> None:
    assert judged(leases(a=10, b=10), [], 20.0, preserving=False).lapsed == ("a", "b")


def test_when_more_than_half_and_at_least_three_fall_silent_none_is_demoted() -> None:
    verdict = judged(leases(a=10, b=11, c=12, d=99, e=99), [], 20.0, preserving=False)
    assert verdict == LapseVerdict(preserving=True)


def test_the_first_of_many_that_were_demoted_before_are_taken_back() -> None:
    verdict = judged(leases(a=10, b=11, c=20, d=99), ["a", "b", "unknown"], 20.0, preserving=False)
    assert verdict.preserving
    assert set(verdict.revived) == {"a", "b"}


def test_who_was_demoted_longer_than_its_ttl_ago_does_not_count() -> None:
    assert judged(leases(a=10, b=11, c=100), ["a", "b"], 100.0, preserving=False).lapsed == ("c",)


def test_half_is_no_mass() -> None:
    assert judged(leases(a=1, b=1, c=1, d=99, e=99, f=99), [], 2.0, preserving=False).lapsed == ("a", "b", "c")


def test_leases_without_end_neither_lapse_nor_count() -> None:
    eternal = {"x": native_lease(None, 0.0), "y": native_lease(None, 0.0)}
    assert judged(eternal | leases(a=1, b=1, c=1), ["y"], 2.0, preserving=False).preserving


def test_a_mass_lapse_lasts_until_half_of_them_call_and_the_rest_get_a_whole_ttl() -> None:
    long_after = 1e6
    silent = leases(a=1, b=1, c=1)
    assert judged(silent, [], long_after, preserving=True).preserving
    back = silent | leases(d=2e6, e=2e6, f=2e6)
    assert judged(back, [], long_after, preserving=True) == LapseVerdict(grace=("a", "b", "c"))


@given(
    st.dictionaries(st.integers(0, 9), st.floats(0, 200)),
    st.sets(st.integers(0, 9)),
    st.floats(0, 400),
    st.booleans(),
)
def test_nobody_whose_lease_runs_is_ever_demoted(ends: dict[int, float], stale: set[int], now: float, preserving: bool) -> None:
    held = {key: Lease(60.0, end - 60, end) for key, end in ends.items()}
    verdict = judged(held, stale, now, preserving=preserving)
    assert all(held[key].is_over(now) and key not in stale for key in verdict.lapsed)
    assert set(verdict.revived) <= stale
    assert not (verdict.preserving and verdict.lapsed)


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=20))
def test_a_learned_lease_always_outlasts_the_gap_that_taught_it(gaps: list[float]) -> None:
    lease, now = legacy_lease(0.0), 0.0
    for gap in gaps:
        now += gap
        lease = legacy_beat(lease, now)
        assert lease.ttl is None or lease.ttl >= LEGACY_TTL
