"""Checks as people write them, and back."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylb.core.checks import MOST_STEPS, MOST_TEXT, BadCheck, parse_check, parse_health, written, written_health
from pylb.core.policy import CONNECT, UNSAID, Check, CheckKind, HealthOverride, Step, WhenAllDown


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("tcp", CONNECT),
        ({"port": 30026}, Check(port=30026)),
        ({"http": "/up"}, Check(CheckKind.HTTP, path="/up")),
        ({"http": "/", "method": "OPTIONS"}, Check(CheckKind.HTTP, method="OPTIONS")),
        ({"http": "/up", "expect": 200}, Check(CheckKind.HTTP, path="/up", status=(200, 200))),
        (
            {"http": "/up?a=b", "expect": "200-299", "host": "a.example", "port": 1},
            Check(CheckKind.HTTP, path="/up?a=b", host="a.example", status=(200, 299), port=1),
        ),
        ({"send": "PING\r\n", "expect": "PONG"}, Check(CheckKind.SEND, (Step(b"PING\r\n", b"PONG"),))),
        (
            {"steps": [{"expect": "220 "}, {"send": "QUIT\r\n"}], "port": 25},
            Check(CheckKind.SEND, (Step(expect=b"220 "), Step(b"QUIT\r\n")), port=25),
        ),
        ({"expect": "220 "}, Check(CheckKind.SEND, (Step(expect=b"220 "),))),
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
        ({"htp": "/"}, "'htp' is not a key"),
        ({"http": "up"}, "'up' is not a path"),
        ({"http": "/a\r\nX: y"}, "is not a path"),
        ({"http": 1}, "1 is not a path"),
        ({"http": "/", "method": "get"}, "'get' is not a method"),
        ({"http": "/", "method": "GET /\r\nX: y"}, "is not a method"),
        ({"http": "/", "method": 1}, "1 is not a method"),
        ({"send": "x", "method": "HEAD"}, "method without http"),
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
        ({"steps": []}, "1 to 16 steps"),
        ({"steps": [{"send": "x"}] * 17}, "1 to 16 steps"),
        ({"steps": ["PING"]}, "step 1 is not a mapping"),
        ({"steps": [{"send": "x"}, {"sent": "x"}]}, "step 2 is not a mapping"),
        ({"steps": [{"send": "x"}, {"send": ""}]}, "step 2 sends nothing"),
        ({"steps": [{"send": "x"}], "expect": "y"}, "belong into the steps"),
        ({"steps": [{"send": "x"}], "http": "/"}, "not both"),
        ({"steps": [{"send": 1}]}, "is not what to send"),
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
STEPS = st.lists(st.builds(Step, TEXTS, TEXTS), min_size=1, max_size=MOST_STEPS).map(tuple)
CHECKS = (
    st.builds(Check, port=PORTS)
    | st.builds(Check, st.just(CheckKind.SEND), STEPS, port=PORTS)
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


@pytest.mark.parametrize(
    ("text", "health"),
    [
        ("tcp", HealthOverride(CONNECT)),
        ({"http": "/up"}, HealthOverride(Check(CheckKind.HTTP, path="/up"))),
        ({"when_all_down": "refuse"}, HealthOverride(when_all_down=WhenAllDown.REFUSE)),
        ({"check": "tcp", "when_all_down": "refuse"}, HealthOverride(CONNECT, when_all_down=WhenAllDown.REFUSE)),
        (
            {"http": "/up", "when_all_down": "try"},
            HealthOverride(Check(CheckKind.HTTP, path="/up"), when_all_down=WhenAllDown.TRY),
        ),
    ],
)
def test_what_a_registration_says_of_its_health_is_read_and_written_again(text: Any, health: HealthOverride) -> None:
    assert parse_health(text) == health
    assert parse_health(written_health(health)) == health


@pytest.mark.parametrize("word", ["never", None, True, {}, ["try"]])
def test_when_all_down_is_try_or_refuse(word: Any) -> None:
    with pytest.raises(BadCheck, match="neither try nor refuse"):
        parse_health({"http": "/up", "when_all_down": word})


def test_who_says_nothing_of_its_health_writes_nothing() -> None:
    assert written_health(UNSAID) is None


@given(CHECKS | st.none(), st.sampled_from(WhenAllDown))
def test_what_is_said_of_health_survives_the_snapshot(check: Check | None, word: WhenAllDown) -> None:
    health = HealthOverride(check, when_all_down=word)
    assert parse_health(written_health(health)) == health
