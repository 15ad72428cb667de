"""Registrations on their way to other balancers and back: nothing is lost, and nothing foreign is believed."""

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylb.cluster.keys import key_name, read_key
from pylb.cluster.registrations import (
    KNOWN,
    as_registration,
    as_wanted,
    changed_keys,
    check_scope,
    is_shared,
    refusal,
    reserved_slots,
    same_details,
)
from pylb.control.desired_state import DesiredState
from pylb.control.storage.needs import KNOWN_NEEDS
from pylb.core.address import Listen, parse_network, parse_ports
from pylb.core.auth import Keyring
from pylb.core.checks import parse_health
from pylb.core.claims import Claims
from pylb.core.errors import Code, Refused
from pylb.core.merge.local import Conflict
from pylb.core.merge.values import EntryKey, Slot, Wanted
from pylb.core.policy import JoinRule, Policy, ProxyProtocol, Rules, StaticFrontend
from pylb.core.registration import SET, FrontendRequest, Key, Registration, State, legacy_key
from pylb.core.server_set import Member
from pylb.core.static_rules import StaticRules
from tests.control.harness import token

WEB = Key("t", "web", "1")
ONE = Registration(
    WEB,
    "web",
    "192.0.2.1",
    (
        FrontendRequest(443, 30443, ProxyProtocol.V2, 5, backup=True, health=parse_health({"http": "/up"})),
        FrontendRequest(2000, 30000, last=2003, target_last=30003),
    ),
    ttl=30.0,
    since=7.0,
)
FREE = StaticRules(Rules())


def test_what_it_asks_for_arrives_as_it_was() -> None:
    wanted = as_wanted(replace(ONE, state=State.DRAINING, hearer="b"), FREE)
    assert as_registration(WEB, wanted) == replace(ONE, since=0.0)
    assert (wanted.address, wanted.ttl, wanted.needs) == ("192.0.2.1", 30.0, {"ranges"})
    assert wanted.slots == (Slot("tcp", 443), *(Slot("tcp", port) for port in range(2000, 2004)))
    old = Registration(legacy_key("t", 25), "mail", "192.0.2.1", (FrontendRequest(25, 30025),), None)
    assert as_registration(old.key, as_wanted(old, FREE)) == old


def test_a_set_travels_with_all_its_machines_and_its_sequence() -> None:
    members = (Member("a", "192.0.2.1", None), Member("b", "192.0.2.2", 7))
    one = Registration(Key("t", "web", SET), "web", "", (FrontendRequest(443, 30443),), members=members, sequence=12)
    wanted = as_wanted(one, FREE)
    assert as_registration(one.key, wanted) == one
    assert (wanted.address, wanted.sequence) == ("192.0.2.1", 12)
    assert read_key(key_name(EntryKey("lb-a", one.key))) == EntryKey("lb-a", one.key)
    check_scope(one, desired(targets=(parse_network("192.0.2.0/24"),)))
    with pytest.raises(Refused, match=r"may not name the address 192\.0\.2\.2"):
        check_scope(one, desired(targets=(parse_network("192.0.2.1"),)))
    assert not is_shared(replace(one, members=(*members, Member("c", "127.0.0.1", None))))


def test_the_needs_of_an_entry_are_words_that_etcds_keys_accept() -> None:
    assert len(KNOWN) == len(KNOWN_NEEDS)
    assert not any(" " in word for word in KNOWN)


def test_a_server_of_a_static_frontend_claims_nothing_from_others() -> None:
    """Its port belongs to the config: many owners may join one that lets them."""
    rules = Rules((StaticFrontend("shared", Listen("tcp", "*", 443), joining=JoinRule.ANY),))
    statics = StaticRules(rules)
    slots = [as_wanted(replace(ONE, key=Key("t", name, "1"), name=name), statics).slots for name in ("web", "other")]
    for found in slots:
        assert (found[0].protocol, found[0].port, found[1]) == ("join-tcp", 443, Slot("tcp", 2000))
    assert not slots[0][0].excludes(slots[1][0])
    assert reserved_slots(statics) == {Slot("tcp", 443)}


def details(**changes: Any) -> Wanted:
    wanted = as_wanted(ONE, FREE)
    return replace(wanted, details=json.dumps({**json.loads(wanted.details), **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"token": "other"},
        {"name": "other"},
        {"instance": "2"},
        {"legacy_port": 25},
        {"address": "192.0.2.2"},
        {"frontends": []},
        {"frontends": [{"port": 0, "target_port": 1}]},
        {"ttl": "soon"},
        {"address": None},
    ],
)
def test_an_entry_that_contradicts_itself_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="its entry in etcd"):
        as_registration(WEB, details(**changes))


def test_loopback_is_never_believed() -> None:
    wanted = details(address="127.0.0.1")
    with pytest.raises(Refused, match="contradicts"):
        as_registration(WEB, replace(wanted, address="127.0.0.1"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=20,
)
FIELDS = sorted(json.loads(as_wanted(ONE, FREE).details))


@given(text=st.text(max_size=200))
def test_any_text_is_an_entry_or_refused(text: str) -> None:
    with suppress(Refused):
        as_registration(WEB, replace(as_wanted(ONE, FREE), details=text))


@given(changes=st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1, max_size=3))
def test_any_fields_are_an_entry_or_refused(changes: dict[str, Any]) -> None:
    with suppress(Refused):
        found = as_registration(WEB, details(**changes))
        assert (found.key, found.ip) == (WEB, "192.0.2.1")


@given(changes=st.dictionaries(st.sampled_from(["port", "target_port", "health", "weight", "last"]), JSON, min_size=1))
def test_any_frontend_is_an_entry_or_refused(changes: dict[str, Any]) -> None:
    (first, *_) = json.loads(as_wanted(ONE, FREE).details)["frontends"]
    with suppress(Refused):
        as_registration(WEB, details(frontends=[{**first, **changes}]))


def test_what_another_version_writes_otherwise_is_the_same() -> None:
    """Else a balancer of version N would apply for ever what one of version N+1 hears."""
    plain = json.loads(as_wanted(ONE, FREE).details)
    newer = replace(as_wanted(ONE, FREE), details=json.dumps({**plain, "ttl": 30, "added_later": None}))
    assert same_details(newer, replace(ONE, hearer="b", since=9.0))
    assert not same_details(newer, replace(ONE, ttl=31.0))
    assert not same_details(replace(newer, address="192.0.2.9"), ONE)
    assert not same_details(replace(newer, details="{}"), ONE)


# ---------------------------------------------------------------- what is in the way


def test_a_default_route_beside_names_is_no_claim_of_the_whole_port() -> None:
    """Two owners may share a port as on one balancer; a server that may speak first has it alone."""
    routes = [
        as_wanted(replace(ONE, wanted=(item,)), FREE).slots[0]
        for item in (
            FrontendRequest(443, 1, allows_names=True),
            FrontendRequest(443, 1, server_name="git.example.net"),
            FrontendRequest(443, 1, server_name="*.example.net"),
        )
    ]
    assert not any(one.excludes(other) for one in routes for other in routes if one is not other)
    (alone,) = as_wanted(replace(ONE, wanted=(FrontendRequest(443, 1),)), FREE).slots
    assert all(alone.excludes(one) and one.excludes(one) for one in routes)


@pytest.mark.parametrize(
    ("wanted", "held", "said"),
    [
        ("", "", "port 443 is owned by registration 'web' of token 't', as the balancers"),
        ("", "*", "the default route of port 443 is owned by"),
        ("*", "*", "the default route of port 443 is owned by"),
        ("*", "", "port 443 is owned by"),
        (
            "",
            "git.example.net",
            "port 443 has routes, as git.example.net of registration 'web' of token 't': its default route",
        ),
        ("git.example.net", "git.example.net", "the name git.example.net on port 443 is owned by"),
        ("git.example.net", "", "which allows no names beside it: its server may speak first"),
    ],
)
def test_a_refusal_says_what_of_the_port_is_owned(wanted: str, held: str, said: str) -> None:
    conflict = Conflict(Slot("tcp", 443, wanted), ("t", "web", False), held=Slot("tcp", 443, held))
    assert said in refusal(conflict).detail


# ---------------------------------------------------------------- this balancer's own scope


def desired(own_ips: frozenset[str] = frozenset(), **scope: Any) -> DesiredState:
    rules = Rules(own_ips=own_ips, reserved_ports=frozenset({9000}), defaults=Policy())
    return DesiredState(Claims(), StaticRules(rules), Keyring((token(**scope),)))


@pytest.mark.parametrize(
    ("changes", "scope", "own_ips", "code"),
    [
        ({"key": Key("u", "web", "1")}, {}, (), Code.UNAUTHORIZED),
        ({}, {"names": ("mail",)}, (), Code.NAME_FORBIDDEN),
        ({}, {"ports": parse_ports(["443"])}, (), Code.PORT_FORBIDDEN),
        ({"wanted": (FrontendRequest(9000, 30000),)}, {}, (), Code.PORT_FORBIDDEN),
        ({"wanted": (FrontendRequest(443, 22),)}, {}, (), Code.TARGET_FORBIDDEN),
        ({"wanted": (FrontendRequest(443, 30443, server_name="git.example.org"),)}, {}, (), Code.NAME_FORBIDDEN),
        ({}, {"sources": (parse_network("10.0.0.0/8"),), "targets": ()}, (), Code.TARGET_FORBIDDEN),
        ({}, {"targets": ()}, ("192.0.2.1",), Code.TARGET_REFUSED),
        ({"ip": "169.254.169.254"}, {"targets": (parse_network("0.0.0.0/0"),)}, (), Code.TARGET_REFUSED),
        ({"key": legacy_key("t", 443)}, {"ports": parse_ports(["25"])}, (), Code.PORT_FORBIDDEN),
    ],
)
def test_what_the_own_tokens_do_not_allow_is_refused(
    changes: dict[str, Any], scope: dict[str, Any], own_ips: tuple[str, ...], code: Code
) -> None:
    check_scope(ONE, desired())
    with pytest.raises(Refused) as caught:
        check_scope(replace(ONE, **changes), desired(frozenset(own_ips), **scope))
    assert caught.value.code is code


def test_which_registrations_differ_between_two_claims() -> None:
    first = Claims().edited({Key("t", f"app{number}", "1"): ONE for number in range(100)})
    same = first.edited({})
    assert list(changed_keys(first, same)) == []
    changed = first.edited(
        {Key("t", "app7", "1"): None, Key("t", "new", "1"): ONE, Key("t", "app8", "1"): replace(ONE, ttl=1.0)}
    )
    assert set(changed_keys(first, changed)) == {Key("t", name, "1") for name in ("app7", "new", "app8")}
