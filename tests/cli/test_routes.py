"""routes.py: the table that people read."""

import re
import time
from typing import Any

import pytest

from pylb.cli.routes import rejections
from pylb.cli.routes import table as parts
from pylb.cli.tables import written

ROW: dict[str, Any] = {
    "port": 443,
    "listen": "*:443",
    "frontend": "traefik-443",
    "unbound": None,
    "server": "pod-1",
    "address": "203.0.113.7:30443",
    "weight": 1,
    "state": "up",
    "held_by": ["apps/traefik/pod-1"],
    "lease_expires_in": 42.4,
    "reachable": "yes",
    "accepts": "yes",
    "check": "yes",
    "asked_ago": 3.2,
    "why": "",
}


def table(rows: list[dict[str, Any]]) -> str:
    return written([parts(rows)])


def cells(line: str) -> list[str]:
    return re.split(r"  +", line)


def test_each_server_is_a_line_under_its_headings() -> None:
    head, line = table([ROW]).splitlines()
    assert head.split() == [
        "PORT",
        "FRONTEND",
        "SERVER",
        "ADDRESS",
        "WEIGHT",
        "STATE",
        "REGISTERED",
        "BY",
        "LEASE",
        "ACCEPTS",
        "CHECK",
        "WHY",
    ]
    assert cells(line) == [
        "443",
        "traefik-443",
        "pod-1",
        "203.0.113.7:30443",
        "1",
        "up",
        "apps/traefik/pod-1",
        "42 s",
        "yes",
        "yes 3 s ago",
    ]
    assert line.index("traefik-443") == head.index("FRONTEND")


def test_who_hears_it_is_a_column_only_where_the_table_is_shared() -> None:
    head, line = table([ROW | {"heard_by": ["lb-a", "lb-b"]}]).splitlines()
    assert "  HEARD BY  " in head
    assert "  lb-a, lb-b  " in line
    assert cells(head)[:-1] == [
        *cells(table([ROW]).splitlines()[0])[:7],
        "HEARD BY",
        *cells(table([ROW]).splitlines()[0])[7:-1],
    ]


def test_nothing_at_all_is_said_in_words() -> None:
    assert table([]).startswith("no frontends")


def test_a_port_that_could_not_be_opened_says_so_before_anything_else() -> None:
    line = table([ROW | {"unbound": "Address already in use", "why": "a hint"}]).splitlines()[1]
    assert line.endswith("PORT NOT OPEN: Address already in use")


def test_what_is_unknown_is_a_dash() -> None:
    empty = {
        "server": None,
        "address": None,
        "weight": None,
        "state": "no server",
        "held_by": [],
        "lease_expires_in": None,
        "reachable": None,
        "accepts": None,
        "check": None,
    }
    line = table([ROW | empty | {"why": "because"}]).splitlines()[1]
    assert cells(line) == ["443", "traefik-443", "-", "-", "-", "no server", "-", "-", "-", "-", "because"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.4, "0 s"),
        (119.4, "1 min 59 s"),
        (120.0, "2 min"),
        (7199.0, "1 h 59 min"),
        (7200.0, "2 h"),
        (-30.0, "over for 30 s"),
        (-7200.0, "over for 2 h"),
    ],
)
def test_a_lease_is_shown_in_the_unit_that_fits(seconds: float | None, text: str) -> None:
    assert cells(table([ROW | {"lease_expires_in": seconds}]).splitlines()[1])[7].strip() == text


def test_refused_calls_are_told_with_their_time_and_reason() -> None:
    one = {
        "time": 1_700_000_000.0,
        "address": "203.0.113.7",
        "token": "apps",
        "what": "PUT a/b",
        "error": "port_owned",
        "detail": "taken",
    }
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["time"]))
    head, line = written([rejections([one])]).splitlines()
    assert head.split() == ["TIME", "FROM", "TOKEN", "CALL", "WHY"]
    assert cells(line) == [when, "203.0.113.7", "apps", "PUT a/b", "port_owned: taken"]
    assert rejections([]) == "no call was refused since pylb started"
