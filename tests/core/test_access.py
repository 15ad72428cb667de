"""Allow and deny lists against a model that looks at every rule, and limits by source."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylb.core.access import AccessList, AccessRule, Networks, canonical
from pylb.core.address import Network
from pylb.core.policy import SourceLimits
from pylb.core.rate_limits import MOST_SOURCES, SourceLimiter


def at(text: str) -> bytes:
    return ip_address(text).packed


def rule(text: str) -> AccessRule:
    verb, _, network = text.partition(" ")
    return AccessRule(verb == "allow", ip_network(network))


def model(rules: list[AccessRule], address: IPv4Address | IPv6Address) -> bool:
    found = [(one.network.prefixlen, n, one.allow) for n, one in enumerate(rules) if address in one.network]
    return max(found)[2] if found else not any(one.allow for one in rules)


# Few bits, so that networks meet and nest.
V4 = st.builds(lambda bits, length: ip_network((bits << 24, length), strict=False), st.integers(0, 255), st.integers(0, 12))
V6 = st.builds(lambda bits, length: ip_network((bits << 120, length), strict=False), st.integers(0, 255), st.integers(1, 12))
RULES = st.lists(st.builds(AccessRule, st.booleans(), V4 | V6), max_size=20)
ADDRESSES = st.builds(
    lambda high, low: IPv4Address(high << 20 | low), st.integers(0, 4095), st.sampled_from([0, 1, (1 << 20) - 1])
) | st.builds(lambda high, low: IPv6Address(high << 116 | low), st.integers(1, 4095), st.sampled_from([0, 1, (1 << 116) - 1]))


@given(RULES, st.lists(ADDRESSES, min_size=1, max_size=10))
def test_the_longest_prefix_decides_and_of_the_same_the_last(
    rules: list[AccessRule], addresses: list[IPv4Address | IPv6Address]
) -> None:
    access = AccessList(rules)
    for address in addresses:
        assert access.allows(address.packed) == model(rules, address)


@pytest.mark.parametrize(
    ("rules", "allowed", "refused"),
    [
        ([], ["192.0.2.1", "2001:db8::1"], []),
        (["deny 192.0.2.0/24"], ["198.51.100.1", "2001:db8::1"], ["192.0.2.1"]),
        (["allow 192.0.2.0/24"], ["192.0.2.255"], ["192.0.3.0", "2001:db8::1"]),
        (
            ["allow 10.0.0.0/8", "deny 10.1.0.0/16", "allow 10.1.2.3/32"],
            ["10.0.0.1", "10.1.2.3", "10.2.0.0"],
            ["10.1.2.4", "11.0.0.0"],
        ),
        (["deny 0.0.0.0/0"], ["2001:db8::1"], ["0.0.0.0", "255.255.255.255"]),
        (["deny ::/0"], [], ["2001:db8::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]),
    ],
)
def test_lists_as_people_write_them(rules: list[str], allowed: list[str], refused: list[str]) -> None:
    access = AccessList([rule(text) for text in rules])
    assert all(access.allows(at(text)) for text in allowed)
    assert not any(access.allows(at(text)) for text in refused)


def test_an_ipv4_client_of_a_dual_stack_port_is_one_of_ipv4() -> None:
    assert canonical(at("::ffff:192.0.2.1")) == at("192.0.2.1")
    assert canonical(at("192.0.2.1")) == at("192.0.2.1")
    assert canonical(at("2001:db8::1")) == at("2001:db8::1")
    assert AccessList([rule("deny ::/0")]).allows(at("192.0.2.1"))


def test_lists_and_sets_are_equal_as_what_they_were_made_from() -> None:
    rules = [rule("allow 192.0.2.0/24")]
    assert AccessList(rules) == AccessList(list(rules))
    assert hash(AccessList(rules)) == hash(AccessList(list(rules)))
    assert AccessList(rules) != AccessList()
    assert AccessList() != "a list"
    networks: list[Network] = [ip_network("192.0.2.0/24")]
    assert Networks(networks) == Networks(list(networks))
    assert hash(Networks(networks)) == hash(Networks(list(networks)))
    assert Networks(networks) != Networks()
    assert Networks() != "a set"


def test_a_set_of_networks_holds_theirs_and_an_empty_one_nothing() -> None:
    assert at("192.0.2.9") in Networks([ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")])
    assert at("192.0.3.9") not in Networks([ip_network("192.0.2.0/24")])
    assert at("192.0.2.9") not in Networks()


# ---------------------------------------------------------------- limits by source


def test_connections_at_once_are_counted_down_again() -> None:
    sources, one = SourceLimiter(SourceLimits(per_source=2)), at("192.0.2.1")
    assert [sources.enter(one, 0.0) for _ in range(3)] == ["", "", "per_source"]
    assert sources.enter(at("192.0.2.2"), 0.0) == ""
    sources.leave(one)
    assert sources.enter(one, 0.0) == ""
    for source in (one, one, at("192.0.2.2")):
        sources.leave(source)
    assert len(sources) == 0


def test_a_source_may_make_a_seconds_worth_at_once_and_then_its_rate() -> None:
    sources, one = SourceLimiter(SourceLimits(per_source_rate=5)), at("192.0.2.1")
    assert [sources.enter(one, 10.0) for _ in range(6)] == [""] * 5 + ["per_source_rate"]
    assert [sources.enter(one, 10.2) for _ in range(2)] == ["", "per_source_rate"]
    assert [sources.enter(one, 20.0) for _ in range(6)] == [""] * 5 + ["per_source_rate"]


@given(st.integers(1, 50), st.lists(st.floats(0, 0.2), max_size=200))
def test_a_rate_is_kept_over_any_pattern(rate: int, gaps: list[float]) -> None:
    sources, now, let_in = SourceLimiter(SourceLimits(per_source_rate=rate)), 100.0, []
    for gap in gaps:
        now += gap
        if not sources.enter(b"x" * 16, now):
            let_in.append(now)
    for place, start in enumerate(let_in):
        for end in range(place, len(let_in)):
            assert end - place + 1 <= rate * (1 + let_in[end] - start) + 1e-6


def test_an_ipv6_source_is_a_network_and_an_ipv4_one_an_address() -> None:
    sources = SourceLimiter(SourceLimits(per_source=1, ipv6_prefix=56))
    assert sources.source(at("2001:db8:0:aa::1")) == sources.source(at("2001:db8:0:ff::2")) == at("2001:db8::")
    assert sources.source(at("2001:db8:0:100::1")) != sources.source(at("2001:db8:0:ff::2"))
    assert sources.source(at("192.0.2.1")) != sources.source(at("192.0.2.2"))


def test_a_flood_of_sources_does_not_fill_memory_and_quiet_ones_are_forgotten() -> None:
    sources = SourceLimiter(SourceLimits(per_source_rate=1))
    for number in range(MOST_SOURCES + 5000):
        source = number.to_bytes(16, "big")
        assert sources.enter(source, 1.0) == ""
        sources.leave(source)
    assert len(sources) <= MOST_SOURCES + 2
    for number in range(MOST_SOURCES):
        source = number.to_bytes(16, "big")
        if not sources.enter(source, 1000.0 + number):
            sources.leave(source)
    assert len(sources) < 5


def test_what_a_source_has_elsewhere_counts() -> None:
    sources, one = SourceLimiter(SourceLimits(per_source=3)), at("192.0.2.1")
    sources.elsewhere = [{one: 1}, {}, {one: 1}]
    assert [sources.enter(one, 0.0) for _ in range(2)] == ["", "per_source"]
    sources.elsewhere = [{one: 1}]
    assert [sources.enter(one, 0.0) for _ in range(2)] == ["", "per_source"]


def test_what_was_let_in_elsewhere_is_spent() -> None:
    sources, one = SourceLimiter(SourceLimits(per_source_rate=4)), at("192.0.2.1")
    sources.spend(one, 3, 100.0)
    assert [sources.enter(one, 100.0) for _ in range(2)] == ["", "per_source_rate"]
    unlimited = SourceLimiter(SourceLimits(per_source=1))
    unlimited.spend(one, 3, 100.0)
    assert len(unlimited) == 0


def test_changes_are_noted_once_somebody_asks_for_them() -> None:
    sources, one, two = SourceLimiter(SourceLimits(per_source=9)), at("192.0.2.1"), at("192.0.2.2")
    sources.enter(one, 0.0)
    sources.changed = {}
    for source in (one, two, two):
        sources.enter(source, 0.0)
    sources.leave(one)
    assert sources.changed == {one: 1, two: 2}
    sources.changed = {}
    sources.leave(two)
    assert sources.changed == {two: 0}
