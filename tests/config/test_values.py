"""Durations and the other scalars."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from pylb.config.values import MAX_DURATION, duration_text, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("5s", 5.0), ("10m", 600.0), ("1h", 3600.0), ("0s", 0.0), (0, 0.0), ("0ms", 0.0)],
)
def test_the_documented_durations_are_read(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "value", ["5", "5 s", "1w", "367d", "1.5s", "-1s", "1h30m", "", "s", "٥s", 5, True, None, [], 1.5, "8785h", "9" * 20 + "s"]
)
def test_anything_else_is_no_duration(value: object) -> None:
    with pytest.raises(PydanticCustomError):
        parse_duration(value)


@given(st.integers(0, int(MAX_DURATION) * 1000))
def test_a_duration_written_and_read_again_is_the_same(milliseconds: int) -> None:
    assert parse_duration(duration_text(milliseconds / 1000)) == milliseconds / 1000
