"""Port 443 of TCP and port 443 of UDP are two ports: nothing that is decided about one is decided about the other."""

from dataclasses import replace

import pytest

from pylb.core.address import Address, Listen, Ports, parse_port_key, written_address, written_listen
from pylb.core.announcement import parse_native
from pylb.core.auth import Keyring, Token, check_port
from pylb.core.claims import Claims
from pylb.core.compose import ServerStates
from pylb.core.errors import Code, Refused
from pylb.core.loops import looping
from pylb.core.operator_overrides import find, is_server
from pylb.core.ownership import release
from pylb.core.policy import Check, CheckKind, HealthOverride, HealthPolicy, HostPort, Policy, StaticServer, Step
from pylb.core.registration import FrontendRequest, Registration
from pylb.core.static_rules import StaticRules
from pylb.core.table import Frontend, Table
from pylb.core.table_diff import lines
from tests.core.claiming import (
    FREE,
    A,
    B,
    adopt,
    at,
    compose,
    enter,
    finished,
    having,
    legacy,
    native,
    on,
    refused,
    static,
    static_rules,
)

UDP_443 = Listen("udp", "*", 443)
TEXT = Check(CheckKind.SEND, (Step(b"ping"),))


def datagrams(one: Registration) -> Registration:
    """The same, for UDP."""
    return replace(one, wanted=tuple(replace(item, protocol="udp") for item in one.wanted))


def both(name: str = "web", ip: str = A) -> Registration:
    """443 of TCP and of UDP, as HTTP/3 has it."""
    return replace(native(name, ip=ip), wanted=(FrontendRequest(443, 30443), FrontendRequest(443, 30444, protocol="udp")))


def static_udp(name: str, listen: str, *servers: str) -> StaticRules:
    one = static(name, listen, *servers)
    return static_rules(replace(one, listen=one.listen._replace(protocol="udp")))


# ---------------------------------------------------------------- texts


@pytest.mark.parametrize("text", ["*:443", "*:443/udp", "[2001:db8::1]:53/udp", "192.0.2.1:53"])
def test_a_listen_is_read_from_the_text_that_it_is_written_as(text: str) -> None:
    assert str(written_listen(text)) == text


@pytest.mark.parametrize("text", ["203.0.113.7:30443", "203.0.113.7:30443/udp", "[2001:db8::7]:30443/udp"])
def test_an_address_is_read_from_the_text_that_it_is_written_as(text: str) -> None:
    assert str(written_address(text)) == text


def test_a_number_alone_means_tcp() -> None:
    assert (parse_port_key("443"), parse_port_key("443/udp")) == (("tcp", 443), ("udp", 443))
    for text in ("443/sctp", "0/udp", "/udp", "443/", "x"):
        with pytest.raises(ValueError, match=r"is not a port|the protocol is neither"):
            parse_port_key(text)


# ---------------------------------------------------------------- who has which port


def test_two_owners_may_have_one_number() -> None:
    claims = having(native("web"), datagrams(native("vpn", ip=B)))
    assert set(claims.holders) == {on(443), UDP_443}
    assert refused(lambda: enter(claims, datagrams(native("other", ip=B)))).detail.startswith("port 443/udp is owned by")
    assert "`pylb release 443/udp`" in refused(lambda: enter(claims, datagrams(native("other", ip=B)))).hint
    assert [one.name for one in claims.on_port(443)] == ["web"]
    assert [one.name for one in claims.on_port(443, "udp")] == ["vpn"]


def test_one_registration_may_have_both_and_each_is_released_by_itself() -> None:
    claims = having(both())
    assert set(claims.holders) == {on(443), UDP_443}
    assert set(release(claims, list(claims.registrations), 443).claims.holders) == {UDP_443}
    assert set(release(claims, list(claims.registrations), 443, "udp").claims.holders) == {on(443)}
    assert release(claims, list(claims.registrations)).claims == Claims()


def test_a_legacy_call_is_about_tcp() -> None:
    """A native UDP registration of its token is no reason to leave the TCP port to it."""
    claims = having(datagrams(native("dns", token="t")))
    assert enter(claims, legacy(443, ip=B)).result == "created"


def test_a_port_that_pylb_itself_has_by_tcp_is_free_for_udp() -> None:
    rules = static_rules(reserved_ports=frozenset({9000}))
    assert refused(lambda: enter(Claims(), native(ports={9000: 30443}), rules)).code is Code.PORT_FORBIDDEN
    assert enter(Claims(), datagrams(native(ports={9000: 30443})), rules).result == "created"


def test_a_static_frontend_is_joined_over_its_own_protocol() -> None:
    rules = static_udp("web", "*:443")
    claims = having(native(), datagrams(native(instance="pod-2")), static_rules=rules)
    assert set(claims.holders) == {on(443), UDP_443}
    table = compose(claims, rules, ServerStates())
    assert {str(listen): one.name for listen, one in table.frontends.items()} == {"*:443/udp": "web", "*:443": "web-443"}


def test_a_reload_moves_displaced_servers_within_their_protocol() -> None:
    proven = frozenset({Address(A, 30443), Address(A, 30444, "udp")})
    claims = enter(having(both(), proven=proven), both(ip=B), proven=proven).claims
    rules = static_rules(static("web", "192.0.2.9:443"))
    [one] = adopt(claims, rules).claims.registrations.values()
    assert {(str(old.listen), str(old.address)) for old in one.displaced} == {
        ("192.0.2.9:443", f"{A}:30443"),
        ("*:443/udp", f"{A}:30444/udp"),
    }


# ---------------------------------------------------------------- labels and the table


def test_a_registered_frontend_is_labelled_with_its_protocol() -> None:
    table = compose(having(both()), FREE, ServerStates())
    assert {str(listen): one.name for listen, one in table.frontends.items()} == {
        "*:443": "web-443",
        "*:443/udp": "web-443-udp",
    }
    assert [line.text.split(" -> ")[0] for line in lines(Table(), table)] == [
        "port 443 (web-443) opened",
        "port 443/udp (web-443-udp) opened",
    ]


def test_what_tcp_has_answered_proves_nothing_for_udp() -> None:
    one = replace(native(), wanted=(FrontendRequest(443, 30443), FrontendRequest(443, 30443, protocol="udp")))
    table = compose(having(one), FREE, ServerStates(proven=frozenset({Address(A, 30443)})))
    assert [server.rank for frontend in table.frontends.values() for server in frontend.servers] == [0, 1]


def test_the_servers_of_a_static_udp_frontend_are_udp_addresses_with_their_usual_label() -> None:
    rules = static_udp("stun", "*:3478", "198.51.100.7:30478")
    [frontend] = compose(Claims(), rules, ServerStates()).frontends.values()
    [server] = frontend.servers
    assert (server.name, str(server.address), str(server)) == ("198.51.100.7:30478", "198.51.100.7:30478/udp", server.name)
    named = replace(rules.rules.frontends[0], servers=(StaticServer(HostPort("a.example", 30478)),))
    found = StaticRules(replace(rules.rules, frontends=(named,)), {"a.example": ("198.51.100.8",)})
    assert [str(line.address) for line in found.frontends[named.listen].servers] == ["198.51.100.8:30478/udp"]


@pytest.mark.parametrize(
    "target",
    ["443/udp/pod-1", "*:443/udp/pod-1", f"443/udp/{A}:30444", f"443/udp/{A}:30444/udp", "web-443-udp/pod-1"],
)
def test_the_operator_names_a_udp_server_by_its_port(target: str) -> None:
    table = compose(having(both()), FREE, ServerStates())
    [(frontend, server)] = finished(find(table, target))
    assert (frontend.listen, server.address) == (UDP_443, Address(A, 30444, "udp"))
    assert is_server(target, frontend.name, frontend.listen, server.name, server.address)
    [(frontend, _)] = finished(find(table, "443/pod-1"))
    assert frontend.listen == on(443)


# ---------------------------------------------------------------- loops


def test_a_loop_needs_one_protocol() -> None:
    rules = static_rules(own_ips=frozenset({A}))
    claims = having(native("dns", ip=B, ports={53: 30053}), static_rules=rules)
    assert enter(claims, datagrams(native(ip=A, ports={443: 53})), rules).result == "created"  # 53 is TCP's
    found = refused(lambda: enter(claims, native("x", ip=A, ports={443: 53}), rules))
    assert found.detail == f"{A}:53 (target_port) is pylb itself: port 443 would be sent in a loop"
    itself = refused(lambda: enter(claims, datagrams(native(ip=A, ports={443: 443})), rules))
    assert itself.detail == f"{A}:443/udp (target_port) is pylb itself: port 443/udp would be sent in a loop"


def test_a_port_is_not_opened_where_a_target_of_its_protocol_is() -> None:
    rules = static_rules(own_ips=frozenset({A}))
    claims = having(datagrams(native(ip=A, ports={53: 5353})), static_rules=rules)
    assert enter(claims, native("x", ip=B, ports={5353: 30053}), rules).result == "created"
    wanted = datagrams(native("x", ip=B, ports={5353: 30053}))
    assert "a loop" in refused(lambda: enter(claims, wanted, rules)).detail
    static_line = static_udp("s", "203.0.113.9:80", "127.0.0.1:8080")
    assert enter(Claims(), native(ports={8080: 30080}), static_line).result == "created"
    circle = refused(lambda: enter(Claims(), datagrams(native(ports={8080: 30080})), static_line))
    assert circle.detail == "port 8080/udp of this machine is where a static frontend is sent: a loop"


def test_loops_that_come_later_are_found_by_protocol() -> None:
    claims = having(datagrams(native(ip=A, ports={53: 80})), native("x", ip=B, ports={80: 30080}))
    here = static_rules(own_ips=frozenset({A}))
    assert finished(looping(claims, here)) == {}  # 80 is TCP's
    claims = enter(claims, datagrams(native("y", ip=B, ports={80: 30080}))).claims
    assert [key.name for key in finished(looping(claims, here))] == ["web"]


def test_a_check_by_text_goes_over_the_protocol_of_the_traffic_and_any_other_over_tcp() -> None:
    asked = {"tcp": Check(port=53), "http": Check(CheckKind.HTTP, port=53), "send": replace(TEXT, port=53)}
    rules = static_rules(static("s", "*:53"), own_ips=frozenset({A}))
    for name, check in asked.items():
        one = datagrams(native(ip=A))
        one = replace(one, wanted=tuple(replace(item, health=HealthOverride(check)) for item in one.wanted))
        if name == "send":
            assert enter(Claims(), one, rules).result == "created"  # UDP's 53 is somebody else's
        else:
            assert "health.port" in refused(lambda one=one: enter(Claims(), one, rules)).detail
    inherited = static_rules(
        static("s", "*:53"), own_ips=frozenset({A}), defaults=Policy(health=HealthPolicy(check=asked["send"]))
    )
    assert inherited.check_ports == {("tcp", 53), ("udp", 53)}
    assert enter(Claims(), datagrams(native(ip=A)), inherited).result == "created"


def test_a_static_line_that_comes_back_is_left_out_over_its_own_protocol_alone() -> None:
    """127.0.0.1:443 over UDP is somebody else's as long as the frontend there is one of TCP."""
    stun, web = static("stun", "*:3478", "127.0.0.1:443"), static("web", "*:443", "198.51.100.7:30443")
    stun = replace(stun, listen=stun.listen._replace(protocol="udp"))

    def servers(table: Table) -> list[str]:
        frontend: Frontend = table.frontends[stun.listen]
        return [str(server.address) for server in frontend.servers]

    assert servers(compose(Claims(), static_rules(stun, web), ServerStates())) == ["127.0.0.1:443/udp"]
    quic = replace(web, listen=web.listen._replace(protocol="udp"))
    assert servers(compose(Claims(), static_rules(stun, quic), ServerStates())) == []


# ---------------------------------------------------------------- tokens


def test_a_token_may_open_the_ports_of_each_protocol_that_it_names() -> None:
    token = Token("t", ("s",), Ports(((443, 443),), udp=((443, 443), (10000, 20000))))
    assert str(token.ports) == "443, 443/udp, 10000-20000/udp"
    check_port(token, 443, frozenset())
    check_port(token, 10005, frozenset({10005}), "udp")  # reserved ports are TCP's
    with pytest.raises(Refused, match="may not open port 10005 "):
        check_port(token, 10005, frozenset())
    with pytest.raises(Refused, match="may not open port 53/udp "):
        check_port(token, 53, frozenset(), "udp")


def test_an_heir_takes_over_what_it_could_have_opened_over_the_same_protocol() -> None:
    new = Token("new", ("n" * 22,), Ports(((443, 443),), udp=((53, 53),)), names=("*",), replaces=("old",))
    keyring = Keyring([new])
    assert keyring.heir("old", "dns", [443], legacy=False, udp=[53]) == "new"
    assert keyring.heir("old", "dns", [53], legacy=False) == "old"
    assert keyring.heir("old", "dns", [], legacy=False, udp=[443]) == "old"


def test_a_body_of_today_still_means_tcp() -> None:
    [item] = parse_native(b'{"frontends": [{"port": 443, "target_port": 30443}]}').frontends
    assert (item.protocol, item.port_text, item.port_key) == ("tcp", "443", ("tcp", 443))
    assert at("203.0.113.7:30443").protocol == "tcp"
