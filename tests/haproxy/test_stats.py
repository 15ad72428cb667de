"""A registry's and an engine's state as HAProxy's rows."""

import csv
from dataclasses import replace
from typing import Any

import pytest

from pylb.control.views import STATIC, FrontendView, ServerView
from pylb.core.address import Address, Listen
from pylb.core.health import UP, Health, HealthStats
from pylb.core.policy import CheckKind, HealthMode, HealthPolicy, Policy, ProxyProtocol, SourceLimits
from pylb.core.table import BACKUP, DOWN, Frontend, Server
from pylb.forward.counters import Counters, FrontendCounters, ServerCounters
from pylb.haproxy.columns import COLUMNS, HEADER, csv_lines
from pylb.haproxy.rates import Rates
from pylb.haproxy.stats import Row, Statistics, check_status, status_of

WEB = Listen("tcp", "*", 443)
NOW = 1000.0


def view(label: str = "a", **given: Any) -> ServerView:
    one = ServerView(
        frontend="web",
        listen=WEB,
        server=label,
        address=Address("192.0.2.1", 30443),
        weight=4,
        send_proxy=ProxyProtocol.NONE,
        rank=0,
        state="up",
        tried=True,
        reachable="yes",
        hint="",
        reason="",
        held_by=(STATIC,),
        initial_weight=4,
        backup=False,
        health=UP,
        record=HealthStats(changed_at=NOW - 60, found="yes", seconds=0.003),
    )
    return replace(one, **given)


def rows(*views: ServerView, policy: Policy | None = None, counted: FrontendCounters | None = None, **given: Any) -> list[Row]:
    servers = tuple(Server(one.server, one.address, one.weight, one.rank, max_connections=50) for one in views)
    view = FrontendView(Frontend("web", WEB, policy or Policy(), servers), views, given.get("unbound"))
    counters = Counters(100)
    counters.frontends[WEB] = counted or FrontendCounters("web")
    counters.open_sessions = counters.frontends[WEB].sessions
    statistics = Statistics([view], counters, Rates(), NOW)
    [found] = statistics.proxies()
    return found


def test_counters_are_where_haproxy_has_them() -> None:
    counted = FrontendCounters("web")
    counted.sessions, counted.sessions_total, counted.connections, counted.queued = 3, 20, 26, 2
    counted.bytes_in, counted.bytes_out = 100, 2000
    counted.denied.update({"access": 4, "per_source_rate": 2, "queue": 9, "proxy_header": 1})
    one = counted.servers["a"] = ServerCounters()
    one.sessions, one.sessions_total, one.attempts, one.redispatches = 3, 15, 19, 2
    one.bytes_in, one.bytes_out, one.last_at = 90, 1900, NOW - 7
    one.failures.update({"refused": 3, "timeout": 1})
    one.closed.update({"--": 8, "CD": 2, "SD": 1, "ID": 1})
    one.longest_connect, one.longest_total, one.longest_queue = 0.25, 9.5, 1.0
    counted.servers[""] = ServerCounters()
    counted.servers[""].closed["CQ"] = 5
    policy = Policy(max_connections=80, limits=SourceLimits(rate=7))
    front, server, back = rows(view(), policy=policy, counted=counted)
    assert {
        key: front[key] for key in ("scur", "smax", "slim", "stot", "bin", "bout", "conn_tot", "dcon", "ereq", "rate_lim")
    } == {
        "scur": 3,
        "smax": 3,
        "slim": 80,
        "stot": 20,
        "bin": 100,
        "bout": 2000,
        "conn_tot": 26,
        "dcon": 6,
        "ereq": 1,
        "rate_lim": 7,
    }
    wanted = {"scur": 3, "slim": 50, "stot": 15, "lbtot": 19, "connect": 19, "econ": 4, "eresp": 1, "wretr": 2, "wredis": 2}
    assert {key: server[key] for key in wanted} == wanted
    assert [server[key] for key in ("cli_abrt", "srv_abrt", "eint", "lastsess")] == [2, 1, 1, 7]
    assert [server[key] for key in ("qtime_max", "ctime_max", "ttime_max")] == [1000, 250, 9500]
    assert [back[key] for key in ("qcur", "qmax", "cli_abrt", "econ", "wredis", "ttime_max", "lastsess")] == [
        2,
        2,
        7,
        4,
        2,
        9500,
        7,
    ]


ACTIVE = HealthPolicy(HealthMode.ACTIVE, fall=3, rise=2)


@pytest.mark.parametrize(
    ("given", "policy", "word"),
    [
        ({}, ACTIVE, "UP"),
        ({"health": Health(failures=1)}, ACTIVE, "UP 2/3"),
        ({"state": "down", "health": Health(down=True, failures=4)}, ACTIVE, "DOWN"),
        ({"state": "down", "health": Health(down=True, answers=1)}, ACTIVE, "DOWN 1/2"),
        ({"state": "unproven", "reachable": "unknown"}, ACTIVE, "UP"),
        ({"state": "unproven", "reachable": "refused"}, ACTIVE, "DOWN"),
        ({"state": "drain", "weight": 0}, ACTIVE, "DRAIN"),
        ({"state": "maint", "weight": 0}, HealthPolicy(HealthMode.NONE), "MAINT"),
        ({"state": "down"}, HealthPolicy(HealthMode.NONE), "no check"),
    ],
)
def test_the_status_is_haproxys_word(given: dict[str, Any], policy: HealthPolicy, word: str) -> None:
    assert status_of(view(**given), policy) == word


@pytest.mark.parametrize(
    ("found", "kind", "words"),
    [
        ("", CheckKind.TCP, ("INI", None)),
        ("yes", CheckKind.TCP, ("L4OK", None)),
        ("yes", CheckKind.HTTP, ("L7OK", None)),
        ("refused", CheckKind.HTTP, ("L4CON", None)),
        ("unreachable", CheckKind.TCP, ("L4CON", None)),
        ("timeout", CheckKind.TCP, ("L4TOUT", None)),
        ("timeout", CheckKind.SEND, ("L7TOUT", None)),
        ("resource", CheckKind.TCP, ("SOCKERR", None)),
        ("wrong answer: HTTP status 503", CheckKind.HTTP, ("L7STS", 503)),
        ("wrong answer: closed without an answer", CheckKind.HTTP, ("L7RSP", None)),
    ],
)
def test_a_check_is_told_in_haproxys_words(found: str, kind: CheckKind, words: tuple[str, int | None]) -> None:
    assert check_status(found, kind) == words


def test_a_backend_counts_the_servers_that_it_would_use() -> None:
    down = view("b", state="down", rank=DOWN, health=Health(down=True), record=HealthStats(NOW - 5, downs=1, down_seconds=10.0))
    backup = view("c", backup=True, rank=BACKUP, weight=9)
    *_, back = rows(view(), down, backup)
    assert [back[key] for key in ("status", "act", "bck", "weight", "uweight")] == ["UP", 1, 1, 4, 4]
    _, _, server, *_ = rows(view(), down, backup)
    assert [server[key] for key in ("status", "chkdown", "lastchg", "downtime")] == ["DOWN", 1, 5, 15]
    *_, back = rows(down, backup)
    assert [back[key] for key in ("status", "act", "bck", "weight")] == ["UP", 0, 1, 9]
    *_, back = rows(down)
    assert [back[key] for key in ("status", "act", "bck", "weight")] == ["DOWN", 0, 0, 0]
    front, back = rows()
    assert (front["status"], back["status"]) == ("OPEN", "DOWN")


def test_a_frontend_is_open_full_or_stopped() -> None:
    counted = FrontendCounters("web")
    counted.sessions = 2
    assert rows(policy=Policy(max_connections=2), counted=counted)[0]["status"] == "FULL"
    assert rows(unbound="taken")[0]["status"] == "STOP"


def test_two_frontends_of_one_name_have_two() -> None:
    other = Listen("tcp", "*", 444)
    views = [FrontendView(Frontend("web", listen, Policy(), ()), ()) for listen in (WEB, other)]
    statistics = Statistics(views, Counters(1), Rates(), NOW)
    assert [found[0]["pxname"] for found in statistics.proxies()] == ["web", "web@*:444"]
    assert [found[0]["iid"] for found in statistics.proxies()] == [443, 444]


def test_a_line_is_as_long_as_the_header_and_quotes_what_it_must() -> None:
    line = csv_lines([{"pxname": 'a,"b"', "scur": 0, "slim": None, "type": 2}])
    [cells] = csv.reader([line], strict=True)
    assert len(cells) == len(HEADER.split(",")) == len(COLUMNS) + 1
    assert cells[:8] == ['a,"b"', "", "", "", "0", "", "", ""]
    assert cells[COLUMNS.index("-")] == "-"


def test_a_route_by_server_name_is_a_backend_of_its_own_and_its_ports_frontend_counts_it() -> None:
    """As HAProxy's frontend with use_backend; without default_backend it has no row of its own behind it."""
    route = WEB._replace(server_name="git.example.net")
    server = Server("a", view().address, 4, 0)
    views = [
        FrontendView(Frontend("web", WEB, Policy(), ()), (), routes=1),
        FrontendView(Frontend("web:git.example.net", route, Policy(), (server,)), [view()]),
    ]
    counters = Counters(100)
    for listen, total in ((WEB, 2), (route, 5)):
        counters.frontends[listen] = counted = FrontendCounters("web")
        counted.sessions, counted.sessions_total, counted.bytes_in = 1, total, 10 * total
    counters.frontends[WEB].denied.update({"server_name": 1, "hello": 1})
    port, backend = Statistics(views, counters, Rates(), NOW).proxies()
    assert [(row["pxname"], row["svname"]) for row in port] == [("web", "FRONTEND")]
    assert [(row["pxname"], row["svname"]) for row in backend] == [
        ("web:git.example.net", "a"),
        ("web:git.example.net", "BACKEND"),
    ]
    assert {key: port[0][key] for key in ("scur", "stot", "bin", "dreq")} == {"scur": 1, "stot": 7, "bin": 70, "dreq": 2}
    assert {key: backend[1][key] for key in ("scur", "stot", "bin", "status")} == {
        "scur": 1,
        "stot": 5,
        "bin": 50,
        "status": "UP",
    }
