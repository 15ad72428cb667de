"""Which sessions get a line, and what may stand for where it goes."""

import random

import pytest

from pylb.core.log import Selection, Target, parse_target, priority
from pylb.core.session import SessionRecord

RECORD = SessionRecord("web", "a", "203.0.113.7", 51234, 443, 0.0, 0, 1, 2, 10, 20, "--", 0, False, 1, 1, 0)
NULL = RECORD._replace(bytes_in=0)


def never() -> float:
    raise AssertionError("chance was asked")


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("stdout", Target("stdout")),
        ("file:/var/log/pylb.log", Target("file", "/var/log/pylb.log")),
        ("unix:/dev/log", Target("unix", "/dev/log")),
        ("udp:192.0.2.1:514", Target("udp", "192.0.2.1", 514)),
        ("udp:[2001:db8::1]:514", Target("udp", "2001:db8::1", 514)),
        ("udp:logs.example.net:1514", Target("udp", "logs.example.net", 1514)),
    ],
)
def test_a_target_is_read_and_written_alike(text: str, target: Target) -> None:
    assert parse_target(text) == target
    assert str(target) == text


@pytest.mark.parametrize(
    "text", ["", "stderr", "file:", "unix:", "udp:", "udp:514", "udp::514", "udp:2001:db8::1:514", "udp:a:0", "tcp:a:514"]
)
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"target|port"):
        parse_target(text)


def test_the_priority_is_that_of_haproxys_lines() -> None:
    assert (priority("local0"), priority("daemon"), priority("local7")) == (134, 30, 190)


def test_by_default_every_session_has_its_line() -> None:
    for record in (RECORD, NULL, NULL._replace(code="CD"), RECORD._replace(code="SC")):
        assert Selection().takes(record, never)


def test_of_those_that_ended_in_order_one_in_so_many_is_kept() -> None:
    draw = random.Random(1).random
    kept = sum(Selection(sample=10).takes(RECORD, draw) for _ in range(10_000))
    assert 900 < kept < 1100


@pytest.mark.parametrize("code", ["CC", "CD", "cD", "SC", "SD", "sQ", "PR", "KD", "ID"])
def test_whatever_else_happened_is_always_kept(code: str) -> None:
    assert Selection(sample=1_000_000).takes(RECORD._replace(code=code), never)


@pytest.mark.parametrize(
    ("code", "kept"), [("--", False), ("CC", False), ("CD", False), ("cD", False), ("SC", True), ("SD", True), ("PR", True)]
)
def test_a_client_without_a_byte_has_no_line_unless_something_else_went_wrong(code: str, kept: bool) -> None:
    assert Selection(dontlognull=True).takes(NULL._replace(code=code), never) is kept
    assert Selection(dontlognull=True).takes(RECORD._replace(code=code), never)
