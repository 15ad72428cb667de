"""The gate: which addresses and ports a call may make pylb dial."""

from dataclasses import fields, replace

import pytest

from pylb.control.new_registration import ImportedServer
from pylb.core.address import Network, parse_network, parse_ports
from pylb.core.announcement import AnnouncementBody, FrontendBody, MemberBody, SetBody
from pylb.core.auth import Caller, Token
from pylb.core.errors import Code, Refused
from pylb.core.legacy import LegacyCall
from pylb.core.policy import UNSAID, Check, CheckKind, HealthOverride, Step
from pylb.core.registration import SET, FrontendRequest, Key, Registration, legacy_key
from pylb.core.scope import check_dials, legacy_target, native_target, set_members
from pylb.core.server_set import Member

HERE = "203.0.113.7"  # where the callers are
OWN = frozenset({"198.51.100.1", "2001:db8::1"})  # pylb's own addresses


def token(*targets: str, ports: str = "30000-32767") -> Token:
    networks: tuple[Network, ...] = tuple(map(parse_network, targets))
    return Token("app", ("x" * 22,), parse_ports([443]), targets=networks, target_ports=parse_ports([ports]))


def wants(ip: str = HERE, port: int = 30443, health: HealthOverride = UNSAID) -> Registration:
    return Registration(Key("app", "web", "pod"), "web", ip, (FrontendRequest(443, port, health=health),))


def refusal(one: Registration, by: Token, ip: str = HERE) -> Refused:
    with pytest.raises(Refused) as caught:
        check_dials(one, Caller(ip, by), OWN)
    return caught.value


def passes(one: Registration, by: Token, ip: str = HERE) -> bool:
    check_dials(one, Caller(ip, by), OWN)
    return True


# ---------------------------------------------------------------- every field that reaches the network

# A new field is put into one of the two by whoever adds it. One that makes pylb dial belongs into `FrontendRequest.dialled`, or
# into `Registration.ip`, and gets an attack in tests/contract/test_scopes.py.
NO_REACH = {
    AnnouncementBody: {"frontends", "ttl", "state"},
    SetBody: {"frontends", "ttl", "state", "access", "idle_timeout"},
    MemberBody: {"instance", "weight"},
    Member: {"instance", "weight"},
    # `port` is listened on; a PROXY header is bytes; a server name is compared
    FrontendBody: {"port", "protocol", "proxy_protocol", "weight", "backup", "server_names", "names"},
    LegacyCall: {"action", "port", "name", "send_proxy", "address_note"},
    ImportedServer: {"port", "name", "send_proxy"},
    # `target_ports` of a token are numbers of both protocols; whether it may use UDP at all, its `ports` say
    FrontendRequest: {"port", "last", "send_proxy", "weight", "backup", "protocol", "server_name", "allows_names"},
    Check: {"kind", "steps", "path", "host", "method", "status"},  # bytes of the question, and what to make of the answer
    HealthOverride: {"interval", "rise", "fall", "when_all_down"},
    Registration: {"key", "name", "ttl", "state", "places", "since", "terms", "sequence", "hearer"},
}
REACHING = {
    AnnouncementBody: {"address"},
    SetBody: {"servers"},
    MemberBody: {"address"},
    Member: {"ip"},
    FrontendBody: {"target_port", "health"},
    LegacyCall: {"address", "target_port"},
    ImportedServer: {"address"},
    FrontendRequest: {"target_port", "target_last", "health"},
    HealthOverride: {"check", "port"},
    Check: {"port"},
    Registration: {"ip", "members", "wanted", "displaced"},  # displaced: what passed when it was registered, never from a call
}


@pytest.mark.parametrize("model", NO_REACH, ids=lambda model: model.__name__)
def test_every_field_of_a_call_is_known_to_reach_the_network_or_not(model: type) -> None:
    names = set(getattr(model, "model_fields", None) or getattr(model, "_fields", None) or {one.name for one in fields(model)})
    assert names == NO_REACH[model] | REACHING[model]


def test_all_ports_that_a_registration_makes_pylb_dial_are_listed() -> None:
    asked = FrontendRequest(443, 30443, health=HealthOverride(Check(CheckKind.TCP, port=30444)))
    assert dict(asked.dialled()) == {"target_port": 30443, "health.port": 30444}
    assert dict(FrontendRequest(443, 30443).dialled()) == {"target_port": 30443}
    assert dict(FrontendRequest(443, 30443).dialled(Check(port=8008))) == {"target_port": 30443, "health.port": 8008}
    assert dict(asked.dialled(Check(port=8008))) == {"target_port": 30443, "health.port": 30444}


# ---------------------------------------------------------------- ports


@pytest.mark.parametrize("port", [22, 443, 29999, 32768])
def test_a_token_aims_only_at_its_target_ports_also_with_its_check(port: int) -> None:
    assert passes(wants(port=30443), token())
    refused = refusal(wants(port=port), token())
    assert (refused.code, "frontends[0].target_port" in refused.detail) == (Code.TARGET_FORBIDDEN, True)
    refused = refusal(wants(health=HealthOverride(Check(CheckKind.SEND, (Step(b"x", b"SSH-2"),), port=port))), token())
    assert (refused.code, "frontends[0].health.port" in refused.detail) == (Code.TARGET_FORBIDDEN, True)
    assert passes(wants(health=HealthOverride(Check(CheckKind.SEND, (Step(b"x"),), port=30001))), token())


@pytest.mark.parametrize(("first", "last"), [(29999, 30002), (32765, 32768), (22, 25)])
def test_each_port_of_a_range_is_one_of_the_tokens_target_ports(first: int, last: int) -> None:
    in_range = FrontendRequest(8000, first, last=8003, target_last=last)
    refused = refusal(replace(wants(), wanted=(in_range,)), token())
    assert (refused.code, "frontends[0].target_port" in refused.detail) == (Code.TARGET_FORBIDDEN, True)
    assert passes(replace(wants(), wanted=(replace(in_range, target_port=30000, target_last=30003),)), token())


def test_a_legacy_call_is_refused_in_the_words_of_its_protocol() -> None:
    one = Registration(legacy_key("app", 443), "old", HERE, (FrontendRequest(443, 22),), None)
    assert "backend-port" in refusal(one, token()).detail


# ---------------------------------------------------------------- addresses


def test_without_an_address_the_caller_is_the_target() -> None:
    assert native_target(Caller(HERE, token()), None) == HERE
    assert passes(wants(HERE), token())


def test_an_address_may_be_named_if_targets_allow_it_or_it_is_the_callers_own() -> None:
    by = token("198.51.100.0/24")
    assert passes(wants("198.51.100.9"), by)
    assert passes(wants(native_target(Caller(HERE, by), f"::ffff:{HERE}")), token())
    assert refusal(wants("192.0.2.1"), by).code is Code.TARGET_FORBIDDEN
    with pytest.raises(Refused) as caught:
        native_target(Caller(HERE, by), "node-a")
    assert caught.value.code is Code.INVALID


def test_every_member_of_a_set_passes_the_same_gate() -> None:
    by = token("198.51.100.0/24")
    one = replace(wants(""), key=Key("app", "web", SET), members=(Member("a", "198.51.100.9"), Member("b", "192.0.2.1")))
    assert "192.0.2.1" in refusal(one, by).detail
    assert passes(replace(one, members=one.members[:1]), by)
    named = [("b", "198.51.100.8", None), ("a", "::ffff:198.51.100.9", 3)]
    assert set_members(named) == (Member("a", "198.51.100.9", 3), Member("b", "198.51.100.8"))
    with pytest.raises(Refused, match=r"servers\[2\]\.address: 'node-a' is not an IP address"):
        set_members([*named, ("c", "node-a", None)])


NOBODYS = (
    "169.254.169.254",
    "0.0.0.0",
    "0.1.2.3",
    "240.0.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "fe80::1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "fd00:ec2::254",
    "fd20:ce::254",
    "64:ff9b::6464:64c8",
    "2002:a83f:8110::1",
)


@pytest.mark.parametrize("ip", NOBODYS)
def test_some_addresses_are_nobodys_target_whatever_targets_say(ip: str) -> None:
    everything = token("0.0.0.0/0", "::/0", ip)
    assert refusal(wants(ip), everything).code is Code.TARGET_REFUSED
    assert refusal(wants(ip), everything, ip).code is Code.TARGET_REFUSED


@pytest.mark.parametrize("ip", ["127.0.0.1", "127.8.8.8", "::1"])
@pytest.mark.parametrize("wide", [(), ("0.0.0.0/0", "::/0"), ("126.0.0.0/7", "::/127"), ("0.0.0.0/1", "::/96")])
def test_loopback_is_in_no_wide_network(ip: str, wide: tuple[str, ...]) -> None:
    for caller in (HERE, ip):
        assert refusal(wants(ip), token(*wide), caller).code is Code.TARGET_REFUSED


def test_loopback_is_a_target_where_a_network_of_targets_lies_inside_it() -> None:
    for network, ip in (
        ("127.0.0.0/8", "127.0.0.1"),
        ("127.8.0.0/16", "127.8.8.8"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
    ):
        assert passes(wants(ip), token("0.0.0.0/0", network))
    assert refusal(wants("127.0.0.1"), token("127.8.0.0/16")).code is Code.TARGET_REFUSED


@pytest.mark.parametrize("ip", sorted(OWN))
def test_an_own_address_is_in_no_wide_network_but_may_be_named_as_it_is(ip: str) -> None:
    refused = refusal(wants(ip), token("0.0.0.0/0", "::/0", "198.51.100.0/24", "2001:db8::/64"))
    assert (refused.code, "pylb's own" in refused.detail) == (Code.TARGET_REFUSED, True)
    assert passes(wants(ip), token(ip))
    assert passes(wants(ip), token(), ip)  # who calls from this machine is where it says


# ---------------------------------------------------------------- the legacy fall-back


def test_a_legacy_address_outside_targets_falls_back_to_the_caller_and_says_so() -> None:
    caller = Caller(HERE, token("198.51.100.0/24"), "legacy")
    assert legacy_target(caller, None, OWN) == (HERE, "")
    assert legacy_target(caller, HERE, OWN) == (HERE, "")
    assert legacy_target(caller, "198.51.100.9", OWN) == ("198.51.100.9", "")
    for outside in ("192.0.2.1", "198.51.100.1"):  # the second is pylb's own
        ip, note = legacy_target(caller, outside, OWN)
        assert ip == HERE
        assert outside in note


@pytest.mark.parametrize("ip", ["127.0.0.1", "169.254.169.254", "100.100.100.200"])
def test_a_legacy_address_of_a_refused_class_does_not_fall_back(ip: str) -> None:
    caller = Caller(HERE, token("0.0.0.0/0"), "legacy")
    assert legacy_target(caller, ip, OWN) == (ip, "")
    one = Registration(legacy_key("app", 443), "old", ip, (FrontendRequest(443, 30443),), None)
    with pytest.raises(Refused) as caught:
        check_dials(one, caller, OWN)
    assert caught.value.code is Code.TARGET_REFUSED


def test_each_frontend_of_a_call_is_judged() -> None:
    one = wants()
    refused = refusal(replace(one, wanted=(*one.wanted, FrontendRequest(444, 22))), token())
    assert "frontends[1].target_port" in refused.detail


def test_a_refused_machine_of_a_set_is_named() -> None:
    members = (Member("node-1", "198.51.100.9"), Member("node-2", "192.0.2.9"))
    refused = refusal(replace(wants(), ip="", members=members), token("198.51.100.0/24"))
    assert refused.detail.endswith("may not name the address 192.0.2.9 (of node-2)")
    assert refused.hint == "add it to `targets` of the token"
