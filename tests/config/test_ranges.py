"""Ranges of ports in the config."""

import pytest

from pylb.config import ConfigErrors, parse
from pylb.core.address import Address, HostPort, Listen

RANGE = '{name: rtp, listen: "*:20000-20099", servers: ["198.51.100.7:30000-30099"]}'


def mistakes(*frontends: str, more: str = "") -> list[str]:
    text = "frontends:\n" + "".join(f"  - {one}\n" for one in frontends) + more
    with pytest.raises(ConfigErrors) as caught:
        parse(text, "pylb.yaml")
    return [str(problem) for problem in caught.value.problems]


def test_the_ports_of_a_range_go_to_as_many_or_to_one() -> None:
    one = '{name: all, listen: "*:21000-21009", servers: ["198.51.100.7:31000", "app.example.net:31000-31009"]}'
    rules = parse(f"frontends:\n  - {RANGE}\n  - {one}\n", "pylb.yaml").rules()
    assert [frontend.listen for frontend in rules.frontends] == [
        Listen("tcp", "*", 20000, 20099),
        Listen("tcp", "*", 21000, 21009),
    ]
    assert [server.address for frontend in rules.frontends for server in frontend.servers] == [
        Address("198.51.100.7", 30000, "tcp", 30099),
        Address("198.51.100.7", 31000),
        HostPort("app.example.net", 31000, 31009),
    ]


@pytest.mark.parametrize(
    ("frontend", "message"),
    [
        (
            '{name: a, listen: "*:1000-1009", servers: ["198.51.100.7:30000-30008"]}',
            "198.51.100.7:30000-30008 has 9 ports, and *:1000-1009 has 10 (30000-30009, or one port for all of them)",
        ),
        (
            '{name: a, listen: "*:1000", servers: ["198.51.100.7:30000-30008"]}',
            "198.51.100.7:30000-30008 has a range of ports, and *:1000 has one port (one port)",
        ),
        ('{name: a, listen: "*:1009-1000"}', "'1009-1000': a range begins below its end ("),
        ('{name: a, listen: "*:1000-70000"}', "'70000' is not a port (1-65535) ("),
        (
            '{name: a, listen: "*:1000-1009", servers: ["198.51.100.7:30000-30009"], health: {mode: active}}',
            "health has no effect on a range of ports: which are in use, only the app knows (a port in its check, as in ",
        ),
    ],
)
def test_a_range_that_cannot_work_is_refused_with_what_to_write(frontend: str, message: str) -> None:
    [found] = mistakes(frontend)
    assert found.startswith("pylb.yaml:2:")
    assert f": error: {message}" in found


@pytest.mark.parametrize(
    "health", ["{check: {port: 10256}}", "{check: {http: /healthz, port: 10256}, interval: 5s}", "{mode: none}"]
)
def test_a_range_is_checked_by_a_port_of_the_check(health: str) -> None:
    parse(f"frontends:\n  - {RANGE[:-1]}, health: {health}}}\n", "pylb.yaml")


def test_nobody_else_may_listen_inside_a_range_or_be_sent_there() -> None:
    [found] = mistakes(RANGE, '{name: web, listen: "192.0.2.1:20050"}')
    assert "frontend 'web' cannot listen on 192.0.2.1:20050: frontend 'rtp' does on *:20000-20099" in found
    [found] = mistakes(RANGE, more='admin: {listen: "127.0.0.1:20001"}\n')
    assert "pylb's admin cannot listen on 127.0.0.1:20001: frontend 'rtp' does on *:20000-20099" in found
    [found] = mistakes(RANGE, '{name: loop, listen: "*:443", servers: ["127.0.0.1:20099"]}')
    assert "127.0.0.1:20099 is frontend 'rtp' of pylb itself: a loop" in found


def test_pylb_s_own_listeners_have_one_port_each() -> None:
    [found] = mistakes(RANGE, more='admin: {listen: "127.0.0.1:8404-8405"}\n')
    assert "'8404-8405' is not a port (1-65535)" in found
