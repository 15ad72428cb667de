"""HAProxy's checks as pylb's: option httpchk and tcp-check, rules and timeouts."""

from typing import Any

import pytest

from tests.haproxy.test_translate import differences, one


@pytest.mark.parametrize(
    ("lines", "check"),
    [
        ("option httpchk", {"http": "/", "method": "OPTIONS", "expect": "200-399"}),
        ("option httpchk HEAD /up\nhttp-check expect rstatus ^2", {"http": "/up", "method": "HEAD", "expect": "200-299"}),
        ("option httpchk GET /health\nhttp-check expect status 200", {"http": "/health", "expect": "200"}),
        ("option httpchk GET /h\nhttp-check expect rstatus ^2", {"http": "/h", "expect": "200-299"}),
        ("option httpchk GET /h HTTP/1.1\\r\\nHost:\\ a.example", {"http": "/h", "expect": "200-399", "host": "a.example"}),
        (
            "option httpchk OPTIONS /primary\nhttp-check expect status 200",
            {"http": "/primary", "method": "OPTIONS", "expect": "200"},  # 200 anywhere in the answer is not enough
        ),
        (
            "option httpchk\nhttp-check send meth GET uri /x hdr A b\nhttp-check expect string OK",  # in the body
            {"steps": [{"send": "GET /x HTTP/1.0\r\nA: b\r\n\r\n", "expect": "\r\n\r\n"}, {"expect": "OK"}]},
        ),
        ("option httpchk GET /\nhttp-check expect rstatus 2..", {"http": "/", "expect": "200-299"}),
        ("option httpchk GET /\nhttp-check expect rstatus ^(2|3)", {"http": "/", "expect": "200-399"}),
        ("option tcp-check\ntcp-check send PING\\r\\n\ntcp-check expect string PONG", {"send": "PING\r\n", "expect": "PONG"}),
        (
            (
                "option tcp-check\ntcp-check connect port 7\ntcp-check send a\ntcp-check send b\ntcp-check expect string c\n"
                "tcp-check send-binary 65\ntcp-check expect comment x binary 64\ntcp-check send f"
            ),
            {"steps": [{"send": "ab", "expect": "c"}, {"send": "e", "expect": "d"}, {"send": "f"}], "port": 7},
        ),
        ("option redis-check", {"send": "*1\r\n$4\r\nPING\r\n", "expect": "+PONG\r\n"}),
        (
            "option smtpchk",
            {
                "steps": [
                    {"expect": "220"},
                    {"send": "HELO localhost\r\n", "expect": "250"},
                    {"send": "QUIT\r\n", "expect": "221"},
                ]
            },
        ),
        (
            "option pgsql-check user ab",
            {"send": "\0\0\0\x11\0\3\0\0user\0ab\0\0", "expect": "R\0\0\0"},
        ),
    ],
)
def test_checks(lines: str, check: dict[str, Any]) -> None:
    found = one(*lines.split("\n"), server="s1 192.0.2.7:30443 check")
    assert found["health"]["check"] == check
    assert differences(f"listen w\n bind *:1\n server s1 192.0.2.7:1 check\n {lines}\n".replace("\n", "\n ")) == []


def test_rules_of_tcp_check_without_its_option_count_for_nothing() -> None:
    assert "check" not in one("tcp-check send PING", server="s1 192.0.2.7:30443 check")["health"]


def test_rules_of_a_section_take_the_place_of_those_of_its_defaults() -> None:
    top = "defaults\n option tcp-check\n tcp-check send a\n"
    checked = "s1 192.0.2.7:30443 check"
    assert one(server=checked, top=top)["health"]["check"]["send"] == "a"
    assert one("tcp-check send b", server=checked, top=top)["health"]["check"]["send"] == "b"


def test_an_option_of_a_section_drops_the_rules_of_its_defaults_unless_both_say_tcp_check() -> None:
    checked = "s1 192.0.2.7:30443 check"
    top = "defaults\n option httpchk GET /a\n http-check expect status 404\n"
    assert one("option httpchk GET /b", server=checked, top=top)["health"]["check"] == {"http": "/b", "expect": "200-399"}
    top = "defaults\n option tcp-check\n tcp-check send a\n"
    assert one("option tcp-check", server=checked, top=top)["health"]["check"] == {"send": "a"}
    top = "defaults\n tcp-check send a\n"
    assert "check" not in one("option tcp-check", server=checked, top=top)["health"]


def test_the_port_of_tcp_check_connect_counts_for_all_servers() -> None:
    lines = ("option tcp-check", "tcp-check connect port 7", "tcp-check send a", "server s2 192.0.2.8:1 check")
    found = one(*lines, server="s1 192.0.2.7:1 check port 8")
    assert found["health"]["check"] == {"send": "a", "port": 7}
    assert not any("health" in server for server in found["servers"])


def test_each_server_has_its_own_check_where_they_differ() -> None:
    found = one("server s2 192.0.2.8:30443 check inter 1s rise 3", server="s1 192.0.2.7:30443 check port 80")
    assert found["health"]["check"] == {"port": 80}
    assert [server["health"] for server in found["servers"] if "health" in server] == [
        {"interval": "1s", "rise": 3, "port": 30443}
    ]


def test_timeout_check_is_for_the_answer_alone() -> None:
    checked = "s1 192.0.2.7:30443 check inter 3s"
    assert one("timeout check 5s", "timeout connect 1s", server=checked)["health"]["timeout"] == "1s"
    asked = one("timeout check 5s", "timeout connect 1s", "option redis-check", server=checked)
    assert asked["health"]["timeout"] == "6s"
