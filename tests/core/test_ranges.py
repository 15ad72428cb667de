"""A range of ports is one frontend: opened, owned, moved and released as one, and nobody else gets a port inside it."""

import json
from dataclasses import replace

import pytest

from pylb.core.address import (
    Address,
    HostPort,
    Listen,
    Ports,
    parse_address,
    parse_listen,
    parse_listens,
    parse_port_range,
    written_address,
    written_listen,
)
from pylb.core.announcement import parse_native
from pylb.core.auth import Token, check_ports
from pylb.core.claims import Claims
from pylb.core.compose import ServerStates
from pylb.core.errors import Code, Refused
from pylb.core.loops import looping
from pylb.core.ownership import release
from pylb.core.policy import Check, HealthMode, HealthOverride, HealthPolicy, Policy, StaticFrontend, StaticServer
from pylb.core.registration import FrontendRequest, Registration
from pylb.core.static_rules import StaticRules
from tests.core.claiming import (
    FREE,
    A,
    B,
    compose,
    enter,
    finished,
    having,
    legacy,
    native,
    on,
    readmit,
    refused,
    static,
    static_rules,
)

RTP = Listen("tcp", "*", 20000, 20099)


def spread(
    name: str = "rtp", first: int = 20000, last: int = 20099, target: int = 30000, *, ip: str = A, instance: str = "pod-1"
) -> Registration:
    wanted = FrontendRequest(first, target, last=last, target_last=target + last - first)
    return replace(native(name, instance, ip=ip), wanted=(wanted,))


def static_range(name: str, listen: str, servers: Address) -> StaticFrontend:
    return StaticFrontend(name, written_listen(listen), (StaticServer(servers),))


# ---------------------------------------------------------------- texts


@pytest.mark.parametrize("text", ["*:20000-20099", "*:20000-20099/udp", "[2001:db8::1]:20000-20001"])
def test_a_range_is_read_from_the_text_that_it_is_written_as(text: str) -> None:
    assert str(written_listen(text)) == text
    address = text.replace("*", "192.0.2.7")
    assert str(written_address(address)) == address


def test_a_range_begins_below_its_end_and_stands_only_where_ranges_may() -> None:
    assert (parse_port_range("443"), parse_port_range("20000-20099")) == ((443, 0), (20000, 20099))
    for text in ("20099-20000", "443-443", "1-65536", "-5", "5-", "1-2-3"):
        with pytest.raises(ValueError, match=r"is not a port|begins below its end"):
            parse_port_range(text)
    with pytest.raises(ValueError, match="is not a port"):
        parse_listen("*:20000-20099")
    with pytest.raises(ValueError, match="is not a port"):
        parse_address("192.0.2.7:20000-20099")
    assert str(HostPort("a.example", 30000, 30099)) == "a.example:30000-30099"


def test_a_range_is_each_of_its_ports_and_overlaps_what_has_one_of_them() -> None:
    assert [str(one) for one in Listen("tcp", "*", 1, 3).each()] == ["*:1", "*:2", "*:3"]
    assert list(on(443).each()) == [on(443)]
    assert RTP.has(("tcp", 20099))
    assert not RTP.has(("udp", 20099))
    assert not RTP.has(("tcp", 20100))
    for other, expected in ((on(20050), True), (on(20100), False), (on(19999), False), (Listen("udp", "*", 20050), False)):
        assert RTP.overlaps(other) is other.overlaps(RTP) is expected
    assert not RTP._replace(ip="192.0.2.1").overlaps(Listen("tcp", "192.0.2.2", 20050))


# ---------------------------------------------------------------- who has it


def test_nobody_else_gets_a_port_of_it() -> None:
    claims = having(spread())
    assert set(claims.holders) == {RTP}
    for other in (
        native("x", ports={20050: 30443}),
        spread("x", 20090, 20110),
        spread("x", 19000, 21000),
        legacy(20050, token="u"),
    ):
        found = refused(lambda other=other: enter(claims, other))
        assert found.code is Code.PORT_OWNED
        assert found.detail.startswith("port 20000-20099 is owned by registration 'rtp'")
        assert "`pylb release 20000-20099`" in found.hint
    assert enter(claims, native("x", ports={20100: 30443})).result == "created"
    single = having(native("x", ports={20050: 30443}))
    assert refused(lambda: enter(single, spread())).detail.startswith("port 20050 is owned by")


def test_it_leaves_as_a_whole_whichever_of_its_ports_is_named() -> None:
    claims = having(spread(), native("x", ports={443: 30443}))
    assert [one.name for one in claims.on_port(20042)] == ["rtp"]
    for port in (20000, 20042):
        assert set(release(claims, list(claims.registrations), port).claims.holders) == {on(443)}
    assert claims.ports_of_token == {"t": 101}
    assert release(claims, list(claims.registrations)).claims == Claims()


def test_takeover_takes_all_of_it_and_the_table_closes_what_was_left() -> None:
    change = enter(having(spread(), native("y", ports={21000: 30443})), spread("x", 20090, 20110), takeover=True)
    assert set(change.claims.holders) == {Listen("tcp", "*", 20090, 20110), on(21000)}
    assert RTP in change.touched  # a frontend that nobody has any more
    assert [key.name for key in change.evicted] == ["rtp"]


def test_a_rolling_update_may_widen_it() -> None:
    """Two instances of one owner share a range; one that comes with another range takes the place of the old ones."""
    assert len(having(spread(), spread(instance="pod-2", ip=B)).holders[RTP]) == 2
    change = enter(having(spread()), spread(last=20199, instance="pod-2", ip=B))
    assert set(change.claims.holders) == {Listen("tcp", "*", 20000, 20199)}
    own = enter(having(spread()), spread(last=20199))
    assert (own.result, set(own.claims.holders)) == ("moved", {Listen("tcp", "*", 20000, 20199)})


def test_a_static_range_is_joined_as_a_whole_by_its_name() -> None:
    rules = static_rules(static_range("rtp", "*:20000-20099", Address(B, 30000, "tcp", 30099)))
    assert set(having(spread(), static_rules=rules).holders) == {RTP}
    for other in (spread(last=20098), native("rtp", ports={20050: 30443}), spread("x")):
        found = refused(lambda other=other: enter(Claims(), other, rules))
        assert "is the static frontend 'rtp'" in found.detail
    assert enter(Claims(), spread("x", 20100, 20110), rules).result == "created"
    _, refusals = readmit([spread("x")], rules)
    assert [one.code for one in refusals] == [Code.PORT_OWNED]


def test_pylb_s_own_ports_are_not_in_it() -> None:
    rules = static_rules(reserved_ports=frozenset({20050}))
    assert refused(lambda: enter(Claims(), spread(), rules)).code is Code.PORT_FORBIDDEN


def test_a_token_must_be_allowed_all_of_it() -> None:
    token = Token("t", ("s",), Ports(((20000, 20050),)))
    check_ports(token, range(20000, 20051), frozenset(), "tcp")
    with pytest.raises(Refused, match="may not open port 20051 "):
        check_ports(token, range(20000, 20100), frozenset(), "tcp")


# ---------------------------------------------------------------- loops


def test_a_range_that_contains_a_port_of_pylb_s_own_is_a_loop() -> None:
    rules = static_rules(static("s", "*:30050"), own_ips=frozenset({A}))
    assert "is pylb itself" in refused(lambda: enter(Claims(), spread(), rules)).detail
    here = static_rules(own_ips=frozenset({A}))
    claims = having(spread(), static_rules=here)
    wanted = native("x", ip=B, ports={30050: 31000})
    assert "a loop" in refused(lambda: enter(claims, wanted, here)).detail
    assert [key.name for key in finished(looping(having(spread(), wanted), here))] == ["rtp"]
    line = static_rules(static_range("s", "203.0.113.9:80-81", Address("127.0.0.1", 8080, "tcp", 8081)))
    assert "a loop" in refused(lambda: enter(Claims(), native(ports={8081: 30080}), line)).detail


def test_a_static_line_that_comes_back_by_one_port_is_left_out() -> None:
    line = Address("127.0.0.1", 30000, "tcp", 30099)
    frontends = static_range("s", "*:20000-20099", line), static("w", "*:30042", f"{B}:30443")
    table = compose(Claims(), static_rules(*frontends), ServerStates())
    assert table.frontends[RTP].servers == ()
    alone = static_rules(frontends[0])
    assert [server.address for server in compose(Claims(), alone, ServerStates()).frontends[RTP].servers] == [line]
    assert compose(having(native("x", ip=B, ports={30042: 30443})), alone, ServerStates()).frontends[RTP].servers == ()
    named = replace(frontends[0], servers=(StaticServer(HostPort("a.example", 30000, 30099)),))
    found = StaticRules(replace(alone.rules, frontends=(named, frontends[1])), {"a.example": ("127.0.0.1", "198.51.100.8")})
    assert [str(one.address) for one in found.frontends[RTP].servers] == ["198.51.100.8:30000-30099"]


# ---------------------------------------------------------------- proof and health


def test_it_is_never_dialled_to_be_proven_and_checked_only_by_a_port_of_the_check() -> None:
    [frontend] = compose(having(spread()), FREE, ServerStates()).frontends.values()
    [server] = frontend.servers
    assert (frontend.name, server.rank, str(server.address)) == ("rtp-20000-20099", 0, f"{A}:30000-30099")
    assert frontend.health(server).mode is HealthMode.NONE
    asked = spread()
    asked = replace(asked, wanted=(replace(asked.wanted[0], health=HealthOverride(Check(port=30443))),))
    [frontend] = compose(having(asked), FREE, ServerStates()).frontends.values()
    assert frontend.health(frontend.servers[0]).mode is HealthMode.ACTIVE
    defaults = static_rules(defaults=Policy(health=HealthPolicy(check=Check(port=30443))))
    [frontend] = compose(having(spread(), static_rules=defaults), defaults, ServerStates()).frontends.values()
    assert frontend.health(frontend.servers[0]).mode is HealthMode.ACTIVE


def test_all_ports_may_go_to_one_which_is_proven_like_any_other() -> None:
    one = replace(native("x"), wanted=(FrontendRequest(20000, 30443, last=20099),))
    [frontend] = compose(having(one), FREE, ServerStates()).frontends.values()
    assert [(str(server.address), server.rank) for server in frontend.servers] == [(f"{A}:30443", 1)]


# ---------------------------------------------------------------- calls


def body(**changes: object) -> bytes:
    return json.dumps({"frontends": [{"port": "20000-20099", "target_port": "30000-30099"} | changes]}).encode()


def invalid(text: bytes) -> str:
    with pytest.raises(Refused) as caught:
        parse_native(text)
    assert caught.value.code is Code.INVALID
    return caught.value.detail


def test_a_call_asks_for_a_range_by_its_ends() -> None:
    [item] = parse_native(body()).frontends
    assert item == FrontendRequest(20000, 30000, last=20099, target_last=30099)
    [item] = parse_native(body(target_port=30443)).frontends
    assert item == FrontendRequest(20000, 30443, last=20099)


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"target_port": "30000-30098"}, "frontends[0].target_port: not a range of the same length as port"),
        ({"port": 443}, "frontends[0].target_port: not a range of the same length as port"),
        (
            {"port": "20099-20000"},
            "frontends[0].port: value error, '20099-20000': a range begins below its end, not '20099-20000'",
        ),
        ({"port": "20000-99999"}, "frontends[0].port: value error, '99999' is not a port (1-65535), not '20000-99999'"),
        ({"port": "443"}, "frontends[0].port: input should be a valid integer, not '443'"),
        ({"port": 0}, "frontends[0].port: input should be greater than or equal to 1, not 0"),
        ({"port": 70000}, "frontends[0].port: input should be less than or equal to 65535, not 70000"),
        ({"port": True}, "frontends[0].port: input should be a valid integer, not True"),
        ({"port": "1000-2024", "target_port": 1}, "frontends: 1025 ports in all, and a call may have 1024"),
    ],
)
def test_a_range_that_cannot_be_is_refused_by_its_field(changes: dict[str, object], detail: str) -> None:
    assert invalid(body(**changes)) == detail


def test_a_call_may_have_1024_ports_in_all_and_each_once() -> None:
    [item] = parse_native(body(port="1000-2023", target_port=1)).frontends
    assert len(item.ports) == 1024
    twice = {"frontends": [{"port": "1000-1009", "target_port": 1}, {"port": 1005, "target_port": 1}]}
    assert invalid(json.dumps(twice).encode()) == "frontends[1].port: 1005 appears twice"


@pytest.mark.parametrize(
    ("listen", "meant", "not_meant"),
    [
        ("*:443", ["443", "*:443"], ["444", "443/udp", "web", "", "4430"]),
        (
            "*:20000-20099",
            ["20000", "20042", "20099", "20000-20099", "*:20000-20099"],
            ["19999", "20100", "20042/udp", "rtp", ""],
        ),
    ],
)
def test_a_port_of_a_range_names_the_range(listen: str, meant: list[str], not_meant: list[str]) -> None:
    place = parse_listens(listen)
    assert [one for one in (*meant, *not_meant) if place.is_named(one)] == meant
