"""Refused: one closed list of codes, and what is shown of them."""

import pytest

from pylb.core.errors import Code, Refused, break_cycles


def test_codes_are_lower_case_words_because_they_are_part_of_the_api() -> None:
    assert all(code.replace("_", "").isalpha() and code == code.lower() for code in Code)
    assert len(set(Code)) == len(Code)


def test_a_refusal_shows_what_and_the_hint_if_there_is_one() -> None:
    plain = Refused(Code.INVALID, "ttl: 5 is below 10")
    assert str(plain) == "invalid: ttl: 5 is below 10"
    assert (plain.code, plain.hint, plain.retry_after) == (Code.INVALID, "", None)
    hinted = Refused(Code.TOO_MANY, "slow down", "once per second", retry_after=1.5)
    assert str(hinted) == "too_many_requests: slow down (once per second)"
    assert hinted.retry_after == 1.5


def test_an_error_without_its_cycles_holds_nothing_of_where_it_came_from() -> None:
    def refuse() -> None:
        try:
            int("x")
        except ValueError as error:
            refused = Refused(Code.INVALID, "what")
            raise refused from error

    with pytest.raises(Refused) as caught:
        refuse()
    break_cycles(caught.value)
    assert (caught.value.__traceback__, caught.value.__context__, caught.value.__cause__) == (None, None, None)
