"""Allow and deny lists against a model that looks at every rule."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylb.core.access import AccessList, AccessRule, Networks, canonical
from pylb.core.address import Network


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
