"""The maths of the bench: a wrong median here would be a wrong claim in the README."""

import pytest

from bench.figures import WARM_UP, Sample, Spread, percentile, ratio, rotated, spread, values


def test_the_median_of_an_even_number_of_values_lies_between_the_two_in_the_middle():
    assert spread([4.0, 1.0, 2.0, 3.0]) == Spread(median=2.5, low=1.0, high=4.0)


def test_no_values_have_no_spread_and_no_percentile():
    with pytest.raises(ValueError, match="no values"):
        spread([])
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (1, 1), (50, 50), (99, 99), (99.5, 100), (100, 100)])
def test_a_percentile_is_a_value_that_was_measured(percent, expected):
    assert percentile(list(range(100, 0, -1)), percent) == expected


def test_over_the_rounds_each_target_runs_in_every_place_of_the_order():
    orders = [rotated(["a", "b", "c"], turn) for turn in range(3)]

    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]
    assert rotated([], 5) == []


def test_ratios_are_taken_inside_a_round_so_a_slow_minute_of_the_machine_does_not_count():
    ours = {1: 90.0, 2: 9.0, 3: 80.0}  # round 2 was slow for everybody
    theirs = {1: 100.0, 2: 10.0, 3: 100.0}

    assert ratio(ours, theirs) == Spread(median=0.9, low=0.8, high=0.9)


def test_a_round_that_only_one_of_them_ran_gives_no_ratio():
    assert ratio({1: 3.0, 2: 5.0}, {2: 10.0, 3: 1.0}) == Spread(0.5, 0.5, 0.5)
    assert ratio({1: 3.0}, {2: 1.0}) is None
    assert ratio({1: 3.0}, {1: 0.0}) is None


def test_the_warm_up_round_and_other_targets_scenarios_and_metrics_are_left_out():
    samples = [
        Sample("bulk", "pylb", WARM_UP, {"rate": 1.0}),
        Sample("bulk", "pylb", 1, {"rate": 2.0}),
        Sample("bulk", "pylb", 2, {"cpu": 9.0}),
        Sample("bulk", "nginx", 1, {"rate": 3.0}),
        Sample("idle", "pylb", 1, {"rate": 4.0}),
    ]

    assert values(samples, "bulk", "pylb", "rate") == {1: 2.0}
