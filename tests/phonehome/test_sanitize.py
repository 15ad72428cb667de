"""Text of the other side in a log: on one line, in ASCII, and without the token in any usual form."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phonehome.sanitize import MOST, PIECE, WITHHELD, sanitized

TOKEN = "q7Zk-2vX_9Lm4Rt8Wn3Bc6Yd1Fg5Hj0P"  # as pylb makes them
HEADER = f"Authorization: Bearer {TOKEN}"


@pytest.mark.parametrize(
    "text",
    [
        TOKEN,
        f"no such token: {TOKEN}",
        f"x{TOKEN}x",  # no word of its own
        TOKEN.upper(),
        TOKEN[:14],  # an error page that cuts
        TOKEN[-14:],
        TOKEN[::-1],
        "\n".join(TOKEN),
        "\u200b".join(TOKEN),
        f"{TOKEN[:16]}\x1b[0m{TOKEN[16:]}",
        f"{TOKEN[:16]}<wbr>{TOKEN[16:]}",
        HEADER.encode().hex(),
        HEADER.encode().hex(":"),
        "".join(f"%{byte:02X}" for byte in HEADER.encode()),
        quote(HEADER),
        *(base64.b64encode(b"x" * before + HEADER.encode()).decode() for before in range(3)),
        base64.urlsafe_b64encode(TOKEN.encode()).decode().rstrip("="),
        base64.encodebytes(HEADER.encode() * 4).decode(),
    ],
)
def test_a_text_with_a_piece_of_the_token_is_withheld(text: str) -> None:
    assert sanitized(text, TOKEN) == sanitized("x" * 1000 + text, TOKEN) == WITHHELD


@given(st.text(), st.text(max_size=20))
def test_whatever_comes_is_one_short_line_of_ascii(text: str, token: str) -> None:
    found = sanitized(text, token)
    assert found.isascii()
    assert found.isprintable()
    assert len(found) <= MOST


@given(st.integers(0, 2), st.integers(0, 14), st.text("abc/+=- \n", max_size=40), st.booleans())
def test_no_cut_of_an_encoded_token_gets_through(before: int, start: int, beside: str, wrapped: bool) -> None:
    piece = base64.b64encode(b"x" * before + TOKEN.encode()).decode()[4:-4][start : start + PIECE + 8]
    assert sanitized(beside + ("\n".join(piece) if wrapped else piece), TOKEN) == WITHHELD


def test_what_says_nothing_of_the_token_is_shown() -> None:
    assert sanitized("443 is mqtt's (token mosquitto)", TOKEN) == "443 is mqtt's (token mosquitto)"
    assert sanitized(TOKEN[:8], TOKEN) == TOKEN[:8]
    assert sanitized(5, TOKEN) == sanitized(None, TOKEN) == sanitized(["x"], TOKEN) == ""


def test_a_short_token_is_hidden_where_it_is_a_word() -> None:
    assert sanitized("no token s here, as usual", "s") == "no token [token] here, as usual"
