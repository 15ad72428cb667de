"""Which session `pylb ctl shutdown session` means: one, or it asks which."""

import pytest

from pylb.api.verbs import the_session
from pylb.core.address import Listen
from pylb.core.errors import Code, Refused
from pylb.core.session import SessionView


def view(number: int, port: int, client: str = "192.0.2.7") -> SessionView:
    listen = Listen("tcp", "*", 443 + number)
    return SessionView(client, port, "web", listen, "a", None, "relaying", 1.0, 0, 0, f"0x{number:x}")


VIEWS = [view(10, 5000), view(11, 5000), view(12, 5001), view(13, 5001, "2001:db8::1")]


@pytest.mark.parametrize(("text", "meant"), [("0xa", 0), ("0xb", 1), ("192.0.2.7:5001", 2), ("[2001:db8::1]:5001", 3)])
def test_a_session_is_named_by_its_id_or_by_an_address_that_has_one(text: str, meant: int) -> None:
    assert the_session(text, VIEWS) is VIEWS[meant]


def test_an_address_with_two_sessions_ends_neither_and_names_both() -> None:
    with pytest.raises(Refused, match="has 2 sessions") as refused:
        the_session("192.0.2.7:5000", VIEWS)
    assert "0xa, 0xb" in refused.value.hint


@pytest.mark.parametrize(("text", "code"), [("0xff", Code.NOT_FOUND), ("192.0.2.9:1", Code.NOT_FOUND), ("web", Code.INVALID)])
def test_what_is_no_session_is_said(text: str, code: Code) -> None:
    with pytest.raises(Refused) as refused:
        the_session(text, VIEWS)
    assert refused.value.code is code
