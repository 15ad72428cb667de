"""The native announcement: strict, and a refusal names the field."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylb.core.address import PortKey
from pylb.core.announcement import parse_native, ports_named
from pylb.core.checks import HINT as CHECK_HINT
from pylb.core.errors import Code, Refused
from pylb.core.policy import Check, CheckKind, HealthOverride, LeaseBounds, ProxyProtocol
from pylb.core.registration import Announcement, FrontendRequest, check_name, check_ttl
from pylb.core.strict_json import strict_json

ONE = {"port": 443, "target_port": 30443}


def body(**fields: object) -> bytes:
    return json.dumps({"frontends": [ONE]} | fields).encode()


def refused(text: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        parse_native(text)
    return caught.value


def test_only_frontends_are_required() -> None:
    assert parse_native(body()) == Announcement((FrontendRequest(443, 30443),), None, 60.0, False)


def test_everything_that_may_be_said_is_understood() -> None:
    frontend = ONE | {"proxy_protocol": "v2", "weight": 3, "backup": True, "health": {"http": "/up", "port": 30444}}
    check = Check(CheckKind.HTTP, path="/up", port=30444)
    said = parse_native(body(frontends=[frontend], address="203.0.113.7", ttl=None, state="draining"))
    assert said == Announcement(
        (FrontendRequest(443, 30443, ProxyProtocol.V2, 3, True, HealthOverride(check)),), "203.0.113.7", None, True
    )


@pytest.mark.parametrize(
    ("port", "says"),
    [("443", "integer"), (443.0, "integer"), (True, "integer"), (-1, "greater"), (0, "greater"), (65536, "less"), (None, "")],
)
def test_a_port_is_a_whole_number_between_1_and_65535(port: Any, says: str) -> None:
    found = refused(body(frontends=[ONE, {"port": port, "target_port": 30443}]))
    assert found.code is Code.INVALID
    assert found.detail.startswith("frontends[1].port: ")
    assert says in found.detail


@pytest.mark.parametrize(
    ("fields", "detail", "hint"),
    [
        ({"frontend": []}, "frontend: unknown key", "did you mean 'frontends'?"),
        ({"health": {}}, "health: unknown key", "known: frontends, address, ttl, state"),
        ({"frontends": [ONE | {"prot": 1}]}, "frontends[0].prot: unknown key", "did you mean 'port'?"),
        ({"frontends": [{"port": 443}]}, "frontends[0].target_port: missing", ""),
        ({"frontends": []}, "frontends: list should have at least 1 item", ""),
        ({"frontends": [{"port": p, "target_port": 1} for p in range(1, 66)]}, "frontends: list should have at most 64", ""),
        ({"frontends": [ONE, ONE]}, "frontends[1].port: 443 appears twice", "one entry per port"),
        ({"frontends": [ONE | {"weight": 0}]}, "frontends[0].weight: ", ""),
        ({"frontends": [ONE | {"proxy_protocol": "v3"}]}, "frontends[0].proxy_protocol: ", ""),
        (
            {"frontends": [ONE | {"health": {"htp": "/"}}]},
            "frontends[0].health: 'htp' is not a key of a check",
            f"{CHECK_HINT}; did you mean 'http'?",
        ),
        (
            {"frontends": [ONE | {"health": {"http": "/", "port": True}}]},
            "frontends[0].health: True is not a port",
            "1 to 65535",
        ),
        (
            {"frontends": [ONE | {"health": {"steps": [{"send": "x", "port": 30444}]}}]},
            "frontends[0].health: step 1 is not a mapping of send and expect",
            "{send: TEXT, expect: TEXT}, or one of them",
        ),
        ({"frontends": [ONE | {"health": []}]}, "frontends[0].health: a list is not a check", CHECK_HINT),
        (
            {"frontends": [ONE | {"health": {"check": [], "when_all_down": "try"}}]},
            "frontends[0].health: a list is not a check",
            CHECK_HINT,
        ),
        ({"state": "down" * 99}, "state: ", ""),
        ({"ttl": 60.5}, "ttl: ", ""),
        ({"address": 7}, "address: ", ""),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], detail: str, hint: str) -> None:
    found = refused(body(**fields))
    assert found.code is Code.INVALID
    assert found.detail.startswith(detail)
    assert found.hint == hint
    assert len(found.detail) < 300


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff\xfe{}",
        b'{"frontends":[],"frontends":[]}',
        b'{"frontends":[{"port":1,"port":2}]}',
        b'{"ttl":NaN}',
        b'{"ttl":' + b"1" * 5000 + b"}",
        b'{"ttl":-Infinity}',
        b"[" * 100_000,
    ],
)
def test_what_is_not_json_as_the_rfc_means_it_is_refused(text: bytes) -> None:
    assert refused(text).code is Code.INVALID_JSON


@pytest.mark.parametrize("text", [b"[]", b"null", b'"frontends"', b"7"])
def test_a_body_that_is_no_object_is_refused(text: bytes) -> None:
    assert refused(text).code is Code.INVALID


@given(st.binary(max_size=300))
def test_no_bytes_do_anything_but_parse_or_be_refused(text: bytes) -> None:
    try:
        parse_native(text)
    except Refused:
        pass


_json = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5), st.lists, max_leaves=5)


@given(st.dictionaries(st.sampled_from(["frontends", "address", "ttl", "state", "x"]), _json))
def test_no_json_does_anything_but_parse_or_be_refused(fields: dict[str, Any]) -> None:
    try:
        parse_native(json.dumps(fields).encode())
    except Refused:
        pass


@pytest.mark.parametrize("name", ["a", "mosquitto-6f7d9c", "node-a.example.net", "A_1", "x" * 253])
def test_names_are_those_of_hosts_and_pods(name: str) -> None:
    assert check_name("name", name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "-a", "a-", "a/b", "a b", "a\n", "ä", "x" * 254, "a@b"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(Refused, match="instance"):
        check_name("instance", name)


@pytest.mark.parametrize("ttl", [10**3000, -(10**3000), 0, 31_622_401])
def test_a_ttl_that_no_clock_can_count_is_refused(ttl: int) -> None:
    with pytest.raises(Refused, match="ttl") as caught:
        parse_native(body(frontends=[{"port": 443, "target_port": 30443}], ttl=ttl))
    assert caught.value.code is Code.INVALID
    assert len(caught.value.detail) < 200


@pytest.mark.parametrize("half", [r"\ud800", r"\udfff", r"a\udc00b"])
def test_half_of_a_surrogate_pair_is_refused_wherever_it_stands(half: str) -> None:
    for text in (f'{{"frontends":"{half}"}}', f'{{"{half}":1}}', f'{{"frontends":[{{"health":{{"send":"{half}"}}}}]}}'):
        with pytest.raises(Refused, match="surrogate") as caught:
            parse_native(text.encode())
        assert caught.value.code is Code.INVALID


def test_a_ttl_is_within_the_bounds_or_none() -> None:
    bounds = LeaseBounds()
    assert check_ttl(10.0, bounds) == 10.0
    assert check_ttl(None, bounds) is None
    for ttl in (9.0, 86401.0):
        with pytest.raises(Refused, match="ttl"):
            check_ttl(ttl, bounds)


def test_a_key_that_is_there_twice_is_found_in_one_pass() -> None:
    """Of a body of the control socket, which may have 4 MiB."""
    keys = ",".join(f'"k{number}":1' for number in range(100_000))
    with pytest.raises(Refused, match="'k99999' appears twice"):
        strict_json(f'{{{keys},"k99999":1}}'.encode())


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        (
            body(frontends=[{"port": 443, "target_port": 1}, {"port": 8883, "protocol": "udp"}, 7, {"port": "x"}]),
            [("tcp", 443), ("udp", 8883)],
        ),
        (b'{"frontend-port": "25", "dst-ip": "x"}', [("tcp", 25)]),
        (b'{"frontends": 1, "frontend-port": 70000}', []),
        (b"[1]", []),
        (b"not JSON", []),
        (b"[" * 100_000, []),
    ],
)
def test_a_refused_body_is_about_the_ports_that_can_be_read_in_it(text: bytes, ports: list[PortKey]) -> None:
    assert ports_named(text) == ports


# ---------------------------------------------------------------- server names


def test_each_server_name_is_a_request_of_its_own_beside_a_default_route_that_allows_them() -> None:
    named = ONE | {"server_names": ["Git.example.net", "*.apps.example.net"], "weight": 3}
    said = parse_native(body(frontends=[named, ONE | {"names": "allowed"}]))
    assert said.frontends == (
        FrontendRequest(443, 30443, weight=3, server_name="git.example.net"),
        FrontendRequest(443, 30443, weight=3, server_name="*.apps.example.net"),
        FrontendRequest(443, 30443, allows_names=True),
    )
    assert [item.route_text for item in said.frontends] == ["443 git.example.net", "443 *.apps.example.net", "443"]


@pytest.mark.parametrize(
    ("frontends", "detail", "hint"),
    [
        ([ONE | {"server_names": []}], "frontends[0].server_names: list should have at least 1 item", ""),
        (
            [ONE, {"port": 444, "target_port": 1, "server_names": ["a.net", "a..net"]}],
            "frontends[1].server_names[1]: 'a..net'",
            "",
        ),
        ([ONE | {"server_names": ["*"]}], "frontends[0].server_names[0]: '*' is every name", ""),
        (
            [ONE | {"server_names": ["a.net"], "names": "allowed"}],
            "frontends[0].names: it is about a default route",
            "leave one",
        ),
        ([ONE | {"names": "forbidden"}], "frontends[0].names: input should be 'allowed'", ""),
        (
            [ONE | {"server_names": ["a.net"]}, ONE | {"server_names": ["b.net", "A.net"]}],
            "frontends[1].server_names: a.net appears twice on port 443",
            "one entry per name",
        ),
        ([ONE, ONE | {"server_names": ["a.net"]}], "frontends: port 443 has server_names", '"names": "allowed"'),
    ],
)
def test_names_that_cannot_be_meant_are_refused(frontends: list[Any], detail: str, hint: str) -> None:
    found = refused(body(frontends=frontends))
    assert found.code is Code.INVALID
    assert found.detail.startswith(detail)
    assert hint in found.hint


def test_a_range_has_no_routes_and_a_call_at_most_64_ports_and_names() -> None:
    many = [f"a{number}.net" for number in range(65)]
    ranged = {"port": "440-450", "target_port": 30443}
    for frontends, detail in (
        ([ranged | {"server_names": ["a.net"]}], "frontends[0].server_names: a range of ports has no routes"),
        ([ranged | {"names": "allowed"}], "frontends[0].names: a range of ports has no routes"),
        ([ranged, ONE | {"server_names": ["a.net"]}], "frontends: port 440-450 has server_names"),
        (
            [ONE | {"server_names": many[:32]}, ONE | {"server_names": many[32:64]}, ONE | {"names": "allowed"}],
            "frontends: 65 ports and names in all, and a call may have 64",
        ),
    ):
        with pytest.raises(Refused) as refused:
            parse_native(body(frontends=frontends))
        assert refused.value.detail.startswith(detail)
