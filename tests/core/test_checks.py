"""Checks as people write them, and back."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylb.core.checks import MOST_TEXT, BadCheck, parse_check, written
from pylb.core.policy import CONNECT, Check, CheckKind


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("tcp", CONNECT),
        ({"port": 30026}, Check(port=30026)),
        ({"http": "/up"}, Check(CheckKind.HTTP, path="/up")),
        ({"http": "/up", "expect": 200}, Check(CheckKind.HTTP, path="/up", status=(200, 200))),
        (
            {"http": "/up?a=b", "expect": "200-299", "host": "a.example", "port": 1},
            Check(CheckKind.HTTP, path="/up?a=b", host="a.example", status=(200, 299), port=1),
        ),
        ({"send": "PING\r\n", "expect": "PONG"}, Check(CheckKind.SEND, send=b"PING\r\n", expect=b"PONG")),
        ({"expect": "220 "}, Check(CheckKind.SEND, expect=b"220 ")),
    ],
)
def test_a_check_is_read_and_written_again(text: Any, check: Check) -> None:
    assert parse_check(text) == check
    assert parse_check(written(check)) == check


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "None is not a check"),
        ("http", "'http' is not a check"),
        ([], "a list is not a check"),
        ({}, "a mapping is not a check"),
        ({"htp": "/"}, "'htp' is no key"),
        ({"http": "up"}, "'up' is not a path"),
        ({"http": "/a\r\nX: y"}, "is not a path"),
        ({"http": 1}, "1 is not a path"),
        ({"http": "/", "host": "a b"}, "'a b' is not a host name"),
        ({"http": "/", "send": "x"}, "not both"),
        ({"http": "/", "expect": 99}, "99 is not an HTTP status"),
        ({"http": "/", "expect": True}, "True is not an HTTP status"),
        ({"http": "/", "expect": "300-200"}, "is not an HTTP status"),
        ({"http": "/", "port": "1"}, "'1' is not a port"),
        ({"http": "/", "port": True}, "True is not a port"),
        ({"port": 65536}, "65536 is not a port"),
        ({"send": ""}, "sends nothing and expects nothing"),
        ({"send": "x", "host": "y"}, "host without http"),
        ({"send": 5}, "5 is not what to send"),
        ({"send": "x" * (MOST_TEXT + 1)}, "is not what to send"),
        ({"send": "\ud800"}, "half of a surrogate pair"),
        ({"http": "/", "host": "\udfff"}, "half of a surrogate pair"),
    ],
)
def test_a_mistake_is_told(text: Any, why: str) -> None:
    with pytest.raises(BadCheck, match=why) as bad:
        parse_check(text)
    assert bad.value.hint
    assert len(str(bad.value)) < 200


PORTS = st.just(0) | st.integers(1, 65535)
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).map(str.encode)
STATUS = st.tuples(st.integers(100, 599), st.integers(100, 599)).map(lambda pair: (min(pair), max(pair)))
CHECKS = (
    st.builds(Check, port=PORTS)
    | st.builds(Check, st.just(CheckKind.SEND), TEXTS, TEXTS, port=PORTS)
    | st.builds(
        Check,
        st.just(CheckKind.HTTP),
        path=st.from_regex(r"/[!-~]{0,20}", fullmatch=True),
        host=st.from_regex(r"[!-~]{0,20}", fullmatch=True),
        status=STATUS,
        port=PORTS,
    )
)


@given(CHECKS)
def test_every_check_survives_the_snapshot(check: Check) -> None:
    assert parse_check(written(check)) == check
