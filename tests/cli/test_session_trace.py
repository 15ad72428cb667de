"""The story of a session as a person reads it."""

from typing import Any

import pytest

from pylb.cli import session_trace
from pylb.cli.tables import written
from pylb.core.tcp_info import TcpInfo

CANDIDATES = [
    ("pod-1", "192.0.2.1:30443", 0, 1, "ready", 0),
    ("pod-2", "192.0.2.2:30443", 0, 2, "ready", 0),
    ("pod-3", "192.0.2.3:30443", 0, 1, "ready", 10),
    ("node-4", "192.0.2.4:30443", 4, 1, "ready", 0),
    ("node-5", "192.0.2.5:30443", 5, 0, "drain", 0),
    ("node-6", "192.0.2.6:30443", 5, 0, "ready", 0),
]
TCP = dict.fromkeys(TcpInfo._fields) | {"state": "CLOSE_WAIT", "retransmits": 0, "rtt": 3100, "total_retrans": 12}


def trace(**changed: Any) -> dict[str, Any]:
    names = ("server", "address", "rank", "weight", "admin", "max_connections")
    return {
        "id": "0x1000000001a2b",
        "client": "198.51.100.9:51000",
        "frontend": "web",
        "listen": "*:443",
        "server": "pod-2",
        "address": "192.0.2.2:30443",
        "state": "closed",
        "code": "SD",
        "reason": None,
        "accepted_at": 1_795_576_879.0,
        "ended_at": 1_795_576_999.0,
        "queue_ms": 40,
        "ahead": 3,
        "connect_ms": 7,
        "dial_ms": 2,
        "total_ms": 120_000,
        "bytes_in": 1_234,
        "bytes_out": 5_678_900,
        "closed_first": {"by": "server", "how": "reset", "ms": 119_990},
        "attempts": [
            {"server": None, "address": None, "result": "waited", "error": None, "ms": 40},
            {"server": "pod-1", "address": "192.0.2.1:30443", "result": "refused", "error": "ECONNREFUSED", "ms": 5},
        ],
        "generation": 7,
        "balance": "leastconn",
        "candidates": [dict(zip(names, values, strict=True)) for values in CANDIDATES],
        "client_tcp": TCP,
        "server_tcp": None,
    } | changed


def describe(one: dict[str, Any]) -> list[str]:
    return written(session_trace.describe(one)).splitlines()


def test_one_that_waits_in_the_queue_says_how_many_were_before_it() -> None:
    waiting = trace(state="queued", code=None, ended_at=None, attempts=[], dial_ms=-1, connect_ms=-1, queue_ms=-1)
    assert "attempts   1. waits in the queue, 3 before it when it came" in describe(waiting)


def test_one_that_was_refused_has_no_time_in_the_queue() -> None:
    refused = trace(code="PR", attempts=[], dial_ms=-1, connect_ms=-1, queue_ms=-1, ahead=0, total_ms=0)
    assert "time       less than 1 ms in all" in describe(refused)


def test_the_name_that_a_client_asked_for_stands_where_it_came() -> None:
    [came] = [line for line in describe(trace(server_name="git.example.net")) if line.startswith("came")]
    assert came.endswith("from 198.51.100.9:51000 to *:443, and asked for git.example.net")
    assert "asked for" not in "\n".join(describe(trace()))


def test_the_whole_way_of_a_session_is_told_in_order() -> None:
    text = "\n".join(describe(trace()))
    expected = [
        "session 0x1000000001a2b of 198.51.100.9:51000 ended at ",
        " with SD: the server reset",
        " from 198.51.100.9:51000 to *:443",
        "frontend   web, by the table of generation 7",
        "attempts   1. waited 40 ms in the queue, 3 before it",
        "           2. pod-1 192.0.2.1:30443: refused (ECONNREFUSED) after 5 ms",
        "           3. pod-2 192.0.2.2:30443: accepted after 2 ms",
        "time       40 ms in the queue, 7 ms until a server accepted, 2 min in all",
        "bytes      1,234 from the client, 5,678,900 from the server",
        "closed     first by the server (reset), 2 min after it came",
        "client     CLOSE_WAIT, rtt 3.1 ms, 12 retransmits",
        "server     no connection",
    ]
    places = [text.find(part) for part in expected]
    assert -1 not in places
    assert places == sorted(places)


def test_every_candidate_says_why_it_was_or_was_not_picked() -> None:
    assert [session_trace.why(one, trace()) for one in trace()["candidates"]] == [
        "tried: refused (ECONNREFUSED)",
        "picked (leastconn)",
        "leastconn chose another (or it was full: max_connections 10)",
        "only for when no better one is left",
        "the operator took it out (pylb ctl)",
        "its weight is 0",
    ]
    states = [line.split()[2:4] for line in describe(trace()) if line.lstrip().startswith("node-")]
    assert states == [["down", "1"], ["drain", "0"], ["taken", "out"]]


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (
            {"code": None, "state": "dialing", "dial_ms": -1, "attempts": [], "ahead": 0},
            "attempts   1. pod-2 192.0.2.2:30443: no answer yet",
        ),
        (
            {"code": None, "total_ms": 900, "state": "relaying"},
            "session 0x1000000001a2b of 198.51.100.9:51000 lives, for 900 ms now: relaying",
        ),
        ({"closed_first": None}, "closed     by nobody yet"),
        ({"closed_first": {"by": "pylb", "how": "killed", "ms": 5}}, "closed     first by pylb (killed), 5 ms after it came"),
        ({"candidates": []}, "servers    the frontend had none"),
        ({"queue_ms": 0, "connect_ms": -1}, "time       2 min in all"),
        ({"server": "192.0.2.2:30443"}, "           3. 192.0.2.2:30443: accepted after 2 ms"),
    ],
)
def test_what_is_not_there_is_not_told(changed: dict[str, Any], line: str) -> None:
    assert line in describe(trace(**changed))


def test_a_timeout_of_our_own_is_told_by_the_name_of_its_key() -> None:
    hole = {"server": "pod-1", "address": "192.0.2.1:30443", "result": "timeout", "error": None, "ms": 5000}
    assert "           1. pod-1" not in describe(trace())
    lines = describe(trace(attempts=[hole], ahead=0))
    assert "attempts   1. pod-1 192.0.2.1:30443: no answer within timeouts.connect after 5 s" in lines


def test_a_session_that_asked_for_no_server_says_so_of_each() -> None:
    refused = trace(server=None, address=None, attempts=[], ahead=0, dial_ms=-1, code="PR")
    assert session_trace.why(refused["candidates"][0], refused) == "not asked: the session ended before"


def test_a_session_on_one_line() -> None:
    assert session_trace.line(trace()).endswith(
        " 0x1000000001a2b 198.51.100.9:51000 to pod-2: SD after 2 min, the server reset"
    )
    head, row = written([session_trace.ended_table([trace(closed_first=None, server=None)])]).splitlines()
    assert head.split()[:3] == ["ENDED", "ID", "CLIENT"]
    assert row.split()[1:] == ["0x1000000001a2b", "198.51.100.9:51000", "web", "-", "SD", "40/7/120000", "1234", "5678900", "-"]
