"""Values over the channel: what is sent is what arrives, and nothing else is taken for it."""

import json
import math
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any, Literal, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylb.core.access import AccessList, AccessRule, Networks
from pylb.core.address import Address, Listen
from pylb.core.codec import Malformed, from_plain, to_plain
from pylb.core.policy import (
    AdminState,
    Balance,
    Check,
    CheckKind,
    HealthMode,
    HealthPolicy,
    Policy,
    ProxyAccept,
    ProxyProtocol,
    SourceLimits,
    Step,
    Timeouts,
)
from pylb.core.session import SessionView
from pylb.core.table import Server


def over(value: Any) -> Any:
    """As JSON, and back."""
    return json.loads(json.dumps(to_plain(value)))


networks = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(ip_network)
policies = st.builds(
    Policy,
    balance=st.sampled_from(Balance),
    timeouts=st.builds(
        Timeouts, connect=st.floats(0.1, 60), idle=st.sampled_from([60.0, math.inf]), drain=st.integers(1, 9).map(float)
    ),
    bind=st.sampled_from(["*", "::1"]),
    freebind=st.booleans(),
    access=st.lists(st.builds(AccessRule, st.booleans(), networks), max_size=3).map(AccessList),
    accept_proxy=st.builds(ProxyAccept, st.lists(networks, max_size=2).map(Networks)),
    limits=st.builds(SourceLimits, rate=st.integers(0, 9)),
    source_addresses=st.lists(st.text(max_size=5), max_size=2).map(tuple),
)
steps = st.lists(st.builds(Step, st.binary(), st.binary()), max_size=2).map(tuple)
checks = st.builds(Check, st.sampled_from(CheckKind), steps, status=st.tuples(st.integers(), st.integers()))
servers = st.builds(
    Server,
    name=st.text(),
    address=st.builds(Address, st.text(), st.integers(0, 65535)),
    send_proxy=st.sampled_from(ProxyProtocol),
    admin=st.sampled_from(AdminState),
    backup=st.booleans(),
    health=st.none() | st.builds(HealthPolicy, st.none() | st.sampled_from(HealthMode), check=checks),
)
views = st.builds(
    SessionView,
    *[st.text(), st.integers(), st.text(), st.builds(Listen, st.text(), st.text(), st.integers()), st.text()],
    st.none() | st.builds(Address, st.text(), st.integers()),
    *[st.text(), st.floats(0, 1e9), st.integers(), st.integers()],
)


@given(policies)
def test_a_policy_arrives_as_it_was_sent(policy: Policy) -> None:
    assert from_plain(Policy, over(policy)) == policy


@given(servers)
def test_a_server_arrives_as_it_was_sent(server: Server) -> None:
    assert from_plain(Server, over(server)) == server


@given(st.lists(views).map(tuple))
def test_sessions_arrive_as_they_were_sent(sessions: tuple[SessionView, ...]) -> None:
    assert from_plain(tuple[SessionView, ...], over(sessions)) == sessions  # type: ignore[arg-type]


class Message(NamedTuple):
    words: dict[bytes, tuple[int, str]]
    choice: Literal["one", "two"]
    number: float
    flag: bool


@given(
    st.builds(
        Message,
        st.dictionaries(st.binary(), st.tuples(st.integers(), st.text())),
        st.sampled_from(["one", "two"]),
        st.floats(allow_nan=False),
        st.booleans(),
    )
)
def test_dicts_choices_and_numbers_arrive_as_they_were_sent(message: Message) -> None:
    assert from_plain(Message, over(message)) == message


@dataclass(frozen=True)
class Derived:
    number: int
    double: int = field(init=False, default=0)


def test_what_a_value_makes_of_itself_is_not_sent() -> None:
    assert to_plain(Derived(3)) == [3]
    assert from_plain(Derived, [3]) == Derived(3)


def test_a_whole_number_is_a_float_where_one_is_wanted() -> None:
    found = from_plain(float, 3)
    assert (found, type(found)) == (3.0, float)


@pytest.mark.parametrize(
    ("wanted", "value"),
    [
        (int, "1"),
        (int, True),
        (int, None),
        (bool, 1),
        (str, 1),
        (float, "1"),
        (float, True),
        (bytes, "\u0100"),
        (bytes, 1),
        (Address, ["1.2.3.4"]),
        (Address, ["1.2.3.4", 5, 6]),
        (Address, ["1.2.3.4", "5"]),
        (Address, {"ip": "1.2.3.4", "port": 5}),
        (Balance, "worst"),
        (Balance, []),
        (tuple[int, ...], 1),
        (tuple[int, str], [1]),
        (dict[str, int], {"a": 1}),
        (dict[str, int], [["a"]]),
        (Literal["one", "two"], "three"),
        (Literal["one", "two"], []),
        (AccessList, [[[True, "10.0.0.1/8"]], None]),
        (AccessList, [[[True, 8]], None]),
        (AccessList, [[], [[[True, 8]], None]]),
        (AccessList, [[]]),
        (Networks, "10.0.0.0/8"),
        (SessionView, []),
    ],
)
def test_anything_else_is_malformed(wanted: Any, value: Any) -> None:
    with pytest.raises(Malformed):
        from_plain(wanted, value)


def test_a_number_beyond_any_float_is_malformed() -> None:
    with pytest.raises(Malformed, match="308 digits"):
        from_plain(float, 10**400)


def test_a_tuple_of_an_older_pylb_lacks_what_came_later() -> None:
    """At an upgrade the old workers report to the new main: their Listen has no server name."""
    assert from_plain(Listen, ["tcp", "*", 443]) == Listen("tcp", "*", 443)
    for wrong in (["tcp", "*"], ["tcp", "*", 443, 0, "a.net", 1]):
        with pytest.raises(Malformed, match="is not of type Listen"):
            from_plain(Listen, wrong)
