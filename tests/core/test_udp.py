"""What UDP means for the core: registrations, checks, defaults and proof. The identity of ports is in test_protocols.py."""

import json

import pytest

from pylb.core.address import TCP, UDP, Listen, PortsOf, parse_listens_of, parse_ports, parse_ports_of
from pylb.core.announcement import parse_native
from pylb.core.errors import Refused
from pylb.core.health import NO_OBJECTION, PROVEN, YES, HealthStats, Reachability, checked, prove
from pylb.core.policy import CONNECT, Check, CheckKind, HealthPolicy, Policy, ProxyProtocol, Rules, Step
from pylb.core.static_rules import StaticRules

TEXT = Check(CheckKind.SEND, (Step(b"ping", b"pong"),))
HTTP = Check(CheckKind.HTTP)


def refused(text: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        parse_native(text)
    return caught.value


def body(**more: object) -> bytes:
    return json.dumps({"frontends": [{"port": 443, "target_port": 30443, **more}]}).encode()


def test_a_registration_says_udp_and_means_tcp_if_it_says_nothing() -> None:
    assert [parse_native(body(**more)).frontends[0].protocol for more in ({}, {"protocol": "udp"})] == [TCP, UDP]
    both = {"frontends": [{"port": 443, "target_port": 1}, {"port": 443, "target_port": 1, "protocol": "udp"}]}
    assert [item.port_text for item in parse_native(json.dumps(both).encode()).frontends] == ["443", "443/udp"]
    assert refused(body(protocol="sctp")).detail.startswith("frontends[0].protocol: ")


@pytest.mark.parametrize(
    ("more", "detail"),
    [
        ({"proxy_protocol": "v1"}, "frontends[0].proxy_protocol: version 1 cannot describe UDP"),
        ({"names": "allowed"}, "frontends[0].names: names are read from TLS over TCP"),
        ({"server_names": ["git.example.net"]}, "frontends[0].server_names: names are read from TLS over TCP"),
        ({"health": "tcp"}, "frontends[0].health: a connect or an HTTP request says nothing of a UDP port"),
        ({"health": {"http": "/up"}}, "frontends[0].health: a connect or an HTTP request says nothing of a UDP port"),
    ],
)
def test_what_means_nothing_for_udp_is_refused(more: dict[str, object], detail: str) -> None:
    assert refused(body(protocol="udp", **more)).detail == detail
    parse_native(body(**more))


@pytest.mark.parametrize(
    "health", [{"http": "/healthz", "port": 10256}, {"port": 53}, {"send": "a", "expect": "b"}, {"when_all_down": "refuse"}]
)
def test_other_checks_are_taken(health: dict[str, object]) -> None:
    [item] = parse_native(body(protocol="udp", proxy_protocol="v2", health=health)).frontends
    assert item.protocol == UDP


def test_a_check_is_asked_over_the_protocol_that_it_needs() -> None:
    checks = (CONNECT, TEXT, HTTP, Check(port=1), Check(CheckKind.HTTP, port=1))
    assert [check.protocol(UDP) for check in checks] == [UDP, UDP, TCP, TCP, TCP]
    assert {check.protocol(TCP) for check in checks} == {TCP}
    assert [check.suits_udp for check in checks] == [False, True, False, True, True]


def test_of_defaults_a_frontend_of_udp_inherits_what_means_something_there() -> None:
    defaults = Policy(retries=1, max_queue=9, send_proxy=ProxyProtocol.V1, health=HealthPolicy(check=HTTP, interval=9.0))
    assert defaults.inherited_by(TCP) is defaults
    udp = defaults.inherited_by(UDP)
    assert (udp.max_queue, udp.send_proxy, udp.health) == (0, ProxyProtocol.NONE, HealthPolicy(interval=9.0))
    v2 = Policy(send_proxy=ProxyProtocol.V2, health=HealthPolicy(check=TEXT)).inherited_by(UDP)
    assert (v2.send_proxy, v2.health.check) == (ProxyProtocol.V2, TEXT)
    rules = StaticRules(Rules(defaults=defaults))
    assert (rules.policy(Listen(TCP, "*", 1)), rules.policy(Listen(UDP, "*", 1))) == (defaults, udp)


def test_an_address_is_proven_unless_a_datagram_is_refused() -> None:
    policy, refusal = HealthPolicy(), Reachability("refused", 2.0, 3.0)
    assert prove(None, "refused", policy, 1.0, jitter=1.0) == refusal
    assert prove(refusal, NO_OBJECTION, policy, 5.0, jitter=1.0) == prove(refusal, YES, policy, 5.0, jitter=1.0) == PROVEN
    assert Reachability(NO_OBJECTION).reachable == "unknown"
    assert [checked(HealthStats(), found, 0.1).failures for found in (YES, NO_OBJECTION, "refused")] == [0, 0, 1]


def test_ports_are_written_as_they_are_read() -> None:
    texts = ["443", "443/udp", "10-20", "10-20/udp"]
    assert [str(parse_ports_of(text)) for text in texts] == texts
    assert parse_ports_of("443/tcp") == PortsOf(443, 443)
    assert str(parse_ports(["443/udp", 25, "10-20"])) == "10-20, 25, 443/udp"
    with pytest.raises(ValueError, match="ends before it starts"):
        parse_ports_of("20-10/udp")


def test_a_place_to_listen_may_have_its_protocol_behind_it() -> None:
    texts = ["*:443/udp", "192.0.2.1:10-20/udp", "[2001:db8::1]:443/udp", "*:443"]
    assert [str(parse_listens_of(text)) for text in texts] == texts
    assert parse_listens_of("*:443/tcp") == Listen(TCP, "*", 443)
    with pytest.raises(ValueError, match="sctp"):
        parse_listens_of("*:443/sctp")
