"""Text from outside drives no terminal, forges no line and hides nothing."""

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylb.core.text import ago, counted, span, visible, visible_lines, whole_number


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("a\r\nb", "a\\x0d\\x0ab"),
        ("abc\u202etxt.exe", "abc\\u202etxt.exe"),
        ("a\u200bb\ufeff", "a\\u200bb\\ufeff"),
        ("\U000e0041", "\\U000e0041"),
        ("a\U000e0100\ufe0f\u034f\u3164b", "a\\U000e0100\\ufe0f\\u034f\\u3164b"),  # a text can be hidden in selectors
        ("\udc9b", "\\udc9b"),
        ("Grüße, 世界 ☃ [a-b_c]", "Grüße, 世界 ☃ [a-b_c]"),
    ],
)
def test_what_drives_a_terminal_or_is_unseen_becomes_an_escape_and_the_rest_stays(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_lines_keep_their_breaks_and_nothing_else() -> None:
    assert visible_lines("a\nb\r\x1b") == "a\nb\\x0d\\x1b"


@given(st.text())
def test_no_character_of_a_kind_that_is_not_seen_is_left(text: str) -> None:
    """Whatever Unicode counts as control, surrogate, or separator of lines."""
    assert not {unicodedata.category(char) for char in visible(text)} & {"Cc", "Cs", "Zl", "Zp"}
    visible(text).encode()


def test_of_formats_those_are_left_that_are_seen() -> None:
    """All of this Python's Unicode: signs of Arabic, Syriac and Kaithi that stand around a number."""
    seen = "".join(map(chr, [*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD]))
    formats = [char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(char) == "Cf"]
    assert {char for char in formats if visible(char) == char} == set(seen)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (43_200, "12 h"),
        (600, "10 min"),
        (5, "5 s"),
        (0, "0 s"),
        (-3.0, "0 s"),
        (0.5, "500 ms"),
        (0.04, "40 ms"),
        (1.5, "1.5 s"),
        (9.996, "10 s"),
        (10.4, "10 s"),
        (90, "1 min 30 s"),
        (119.99, "2 min"),
        (3_605, "1 h"),
        (7_260, "2 h 1 min"),
        (86_400, "1 day"),
        (97_200, "1 day 3 h"),
        (604_800, "7 days"),
    ],
)
def test_a_duration_as_people_write_it(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_what_was_long_ago_is_not_told_in_milliseconds() -> None:
    assert [ago(seconds) for seconds in (-1.0, 0.4, 0.6, 7_260.3)] == ["0 s ago", "0 s ago", "1 s ago", "2 h 1 min ago"]


def test_one_is_no_plural() -> None:
    assert [counted(number, "session") for number in (0, 1, 2)] == ["0 sessions", "1 session", "2 sessions"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("0", 0), ("443", 443), ("65535", 65535), ("65536", None), ("00443", 443), ("000443", None)),
        *(("", None), ("-1", None), ("+1", None), ("1_0", None), (" 1", None), ("4.0", None), ("9" * 5000, None)),
        *(("\u00b2", None), ("\u0664\u0664", None)),  # a raised two is a digit for `isdigit` alone, Arabic ones for `int` too
    ],
)
def test_a_whole_number_is_plain_digits_up_to_the_most(text: str, number: int | None) -> None:
    assert whole_number(text, 65535) == number


@given(st.integers(0, 70000), st.integers(0, 70000))
def test_a_whole_number_is_what_int_says_up_to_the_most(number: int, most: int) -> None:
    assert whole_number(str(number), most) == (number if number <= most else None)
