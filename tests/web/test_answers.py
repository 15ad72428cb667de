"""The one table from refusal to status, and the two shapes."""

import pytest

from pylb.core.errors import Code, Refused
from pylb.web.answers import STATUS, json_refusal, legacy_refusal, refusal

DESIGNED = {400, 401, 403, 404, 405, 408, 409, 411, 413, 415, 422, 429, 503}


@pytest.mark.parametrize("code", list(Code))
def test_every_code_has_a_status_of_the_design(code: Code) -> None:
    assert STATUS[code] in DESIGNED


def test_every_status_of_the_design_is_used_and_no_code_is_left_over() -> None:
    assert set(STATUS.values()) == DESIGNED
    assert set(STATUS) == set(Code)


def test_a_json_refusal_always_has_error_detail_and_hint() -> None:
    answer = json_refusal(Refused(Code.PORT_OWNED, "port 443 is owned", "use another"))
    assert (answer.status, answer.content_type) == (409, "application/json")
    assert answer.body == b'{"error":"port_owned","detail":"port 443 is owned","hint":"use another"}\n'
    assert json_refusal(Refused(Code.INVALID, "no")).body == b'{"error":"invalid","detail":"no","hint":""}\n'


def test_retry_after_is_whole_seconds_and_never_zero() -> None:
    assert json_refusal(Refused(Code.TOO_MANY, "x", retry_after=0.04)).headers == {"Retry-After": "1"}
    assert json_refusal(Refused(Code.UNAVAILABLE, "x", retry_after=4.2)).headers == {"Retry-After": "5"}


def test_a_401_names_its_scheme() -> None:
    assert json_refusal(Refused(Code.UNAUTHORIZED, "x")).headers == {"WWW-Authenticate": "Bearer"}


def test_a_legacy_refusal_is_one_line_and_a_bad_token_the_words_of_old() -> None:
    assert legacy_refusal(Refused(Code.PORT_OWNED, "a\nb", "c")).body == b"a b (c)\n"
    assert legacy_refusal(Refused(Code.UNAUTHORIZED, "anything", "else")).body == b"Hook rules were not satisfied."


def test_the_path_decides_the_shape() -> None:
    refused = Refused(Code.NOT_FOUND, "nothing here")
    assert refusal("/hooks/x", refused).content_type == "text/plain; charset=utf-8"
    assert refusal("/v1/x", refused).content_type == "application/json"
