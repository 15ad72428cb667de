"""Token buckets, with a clock turned by hand."""

from hypothesis import given
from hypothesis import strategies as st

from pylb.core.token_buckets import TokenBuckets


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_is_allowed_then_the_rate() -> None:
    clock = Clock()
    buckets = TokenBuckets(3, 2.0, clock)
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    clock.now += 0.5
    assert [buckets.take("a") for _ in range(2)] == [0, 0.5]


def test_one_key_does_not_pay_for_another() -> None:
    buckets = TokenBuckets(1, 1.0, Clock())
    assert [buckets.take("loop") for _ in range(50)][-1] > 0
    assert buckets.take("honest") == 0


def test_the_key_unused_for_longest_is_forgotten() -> None:
    buckets = TokenBuckets(1, 1.0, Clock(), most_keys=2)
    assert [buckets.take(key) for key in ("a", "b", "a", "c")] == [0, 0, 1, 0]
    assert buckets.take("a") > 0
    assert buckets.take("b") == 0


@given(st.lists(st.floats(0, 3), max_size=60), st.integers(1, 5), st.floats(0.1, 10))
def test_never_more_than_burst_plus_rate_times_time(waits: list[float], burst: int, rate: float) -> None:
    clock = Clock()
    buckets = TokenBuckets(burst, rate, clock)
    allowed = 0
    for wait in waits:
        clock.now += wait
        allowed += buckets.take("a") == 0
    assert allowed <= burst + rate * (clock.now - 100) + 1e-6


def test_a_look_takes_nothing() -> None:
    buckets = TokenBuckets(1, 2.0, Clock())
    assert [buckets.wait("a") for _ in range(3)] == [0, 0, 0]
    buckets.take("a")
    assert buckets.wait("a") == 0.5
