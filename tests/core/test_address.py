"""Addresses as text: one canonical form, clear errors, and the classes nobody may aim at."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylb.core.address import (
    Address,
    Listen,
    Ports,
    in_networks,
    is_loopback,
    names_loopback,
    parse_address,
    parse_ip,
    parse_listen,
    parse_network,
    parse_port,
    parse_ports,
    refused_class,
    written_listen,
)

IPS = st.ip_addresses().map(lambda ip: parse_ip(str(ip)))
PORTS = st.integers(1, 65535)
# What people and attackers type: digits, separators, brackets, blanks, other alphabets' digits, zones.
ODD = st.text(alphabet="0123456789abcdefx:.[]*-/% \n٣²", max_size=24) | st.text(max_size=12)


@given(ODD)
def test_parsers_raise_nothing_but_value_error(text: str) -> None:
    for parser in (parse_ip, parse_port, parse_address, parse_listen, parse_network, lambda item: parse_ports([item])):
        try:
            parser(text)
        except ValueError:
            pass


@given(IPS, PORTS)
def test_an_address_survives_its_text(ip: str, port: int) -> None:
    address = Address(ip, port)
    assert parse_address(str(address)) == address
    assert address.is_ipv6 == (ip_address(ip).version == 6)


@given(IPS | st.just("*"), PORTS)
def test_a_listen_address_survives_its_text(ip: str, port: int) -> None:
    listen = Listen("tcp", ip, port)
    assert parse_listen(str(listen)) == listen


@given(st.lists(st.tuples(PORTS, PORTS).map(lambda pair: (min(pair), max(pair))), min_size=1, max_size=5))
def test_port_ranges_survive_their_text(ranges: list[tuple[int, int]]) -> None:
    ports = Ports(tuple(sorted(ranges)))
    assert parse_ports(str(ports).split(", ")) == ports
    assert all(low in ports and high in ports for low, high in ranges)


@given(st.ip_addresses())
def test_an_ip_has_one_canonical_text(ip: object) -> None:
    canonical = parse_ip(str(ip))
    assert parse_ip(canonical) == canonical
    assert parse_ip(str(ip).upper()) == canonical


def test_a_mapped_address_is_folded_so_that_no_rule_is_dodged() -> None:
    assert parse_ip("::ffff:169.254.169.254") == "169.254.169.254"
    assert parse_ip("::FFFF:CB00:7107") == "203.0.113.7"
    assert parse_address("[::ffff:127.0.0.1]:80") == Address("127.0.0.1", 80)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not HOST:PORT"),
        ("203.0.113.7", "not HOST:PORT"),
        ("203.0.113.7:", "not a port"),
        ("203.0.113.7:0", "not a port"),
        ("203.0.113.7:65536", "not a port"),
        ("203.0.113.7:+80", "not a port"),
        ("203.0.113.7:80 ", "not a port"),
        ("203.0.113.7:٣", "not a port"),
        ("node.example.net:80", "not an IP address"),
        ("*:80", "not an IP address"),
        ("[203.0.113.7:80", "not an IP address"),
        ("203.0.113.007:80", "not an IP address"),
        ("2001:db8::7:443", "in brackets"),
        ("[2001:db8::7]", r"has no port: \[2001:db8::7\]:443"),
        ("http://203.0.113.7:443/", "is a URL"),
        ("[fe80::1%eth0]:80", "write the address without %eth0"),
    ],
)
def test_a_wrong_address_is_told_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_address(text)


def test_a_range_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(ValueError, match="'90-80': the range ends before it starts"):
        parse_ports([1, "90-80"])


def test_ports_are_read_as_numbers_and_ranges() -> None:
    ports = parse_ports(["8883 - 8899", 8443])
    assert str(ports) == "8443, 8883-8899"
    assert [port in ports for port in (8442, 8443, 8883, 8890, 8899, 8900)] == [False, True, True, True, True, False]


def test_a_network_with_host_bits_is_refused_because_it_hides_a_typo() -> None:
    with pytest.raises(ValueError, match=r"'203\.0\.113\.7/24' is not a network"):
        parse_network("203.0.113.7/24")
    assert str(parse_network("203.0.113.7")) == "203.0.113.7/32"


@given(st.ip_addresses())
def test_an_address_is_in_its_own_network_and_in_none_of_the_other_family(ip: object) -> None:
    text = str(ip)
    assert in_networks(text, [ip_network(text)])
    assert not in_networks(text, [ip_network("::/0" if ":" not in text else "0.0.0.0/0")])
    assert not in_networks(text, [])


@pytest.mark.parametrize(
    ("ip", "reason"),
    [
        ("0.0.0.0", "the unspecified address"),
        ("::", "the unspecified address"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("169.254.169.254", "link-local"),
        ("fe80::1", "link-local"),
        ("255.255.255.255", "the broadcast address"),
        ("fd00:ec2::254", "a cloud's metadata address"),
        ("0.1.2.3", "a reserved range"),
        ("240.0.0.1", "a reserved range"),
        ("100.100.100.200", "a cloud's metadata address"),
        ("fd00:100::100:200", "a cloud's metadata address"),
        ("168.63.129.16", "a cloud's metadata address"),
        ("192.0.0.192", "a cloud's metadata address"),
        ("fd00:c1::a9fe:a9fe", "a cloud's metadata address"),
        ("fd00:ec2::23", "a cloud's metadata address"),
        ("fd20:ce::254", "a cloud's metadata address"),
        ("fd00:42::42", "a cloud's metadata address"),
        ("fd00:a9fe:a9fe::1", "a cloud's metadata address"),
        ("100.100.100.201", None),
        ("::ffff:100.100.100.200", "an IPv4 address written as an IPv6 address"),
        ("::ffff:0:168.63.129.16", "an IPv4 address written as an IPv6 address"),
        ("64:ff9b::a83f:8110", "an IPv4 address written as an IPv6 address"),
        ("2002:6464:64c8::1", "an IPv4 address written as an IPv6 address"),
        ("::7f00:1", "an IPv4 address written as an IPv6 address"),
        ("2002:a9fe:a9fe::1", "an IPv4 address written as an IPv6 address"),
        ("64:ff9b::a9fe:a9fe", "an IPv4 address written as an IPv6 address"),
        ("64:ff9b:1::a9fe:a9fe", "an IPv4 address written as an IPv6 address"),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", "an IPv4 address written as an IPv6 address"),
        ("203.0.113.7", None),
        ("127.0.0.1", None),
        ("::1", None),
        ("2001:db8::7", None),
        ("fd00::7", None),
        ("fec0::1", None),  # RFC 4291 2.5.7: site-local is deprecated, and new implementations treat it as global unicast
        ("10.0.0.1", None),
    ],
)
def test_some_classes_of_target_are_refused_for_everybody(ip: str, reason: str | None) -> None:
    assert refused_class(ip) == reason


def test_loopback_is_the_tokens_matter() -> None:
    assert [is_loopback(ip) for ip in ("127.0.0.1", "127.8.8.8", "::1", "10.0.0.1")] == [True, True, True, False]


def test_a_network_names_loopback_only_from_inside() -> None:
    inside = ("127.0.0.0/8", "127.0.0.1", "127.128.0.0/9", "::1")
    assert all(names_loopback(parse_network(text)) for text in inside)
    assert not any(names_loopback(parse_network(text)) for text in ("0.0.0.0/0", "126.0.0.0/7", "10.0.0.0/8", "::/0", "::/127"))


@given(IPS)
def test_loopback_is_known_by_its_text(ip: str) -> None:
    assert is_loopback(ip) is ip_address(ip).is_loopback


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("*:443", "*:443", True),
        ("*:443", "*:444", False),
        ("*:443", "203.0.113.9:443", True),
        ("[2001:db8::9]:443", "*:443", True),
        ("203.0.113.9:443", "203.0.113.8:443", False),
        ("203.0.113.9:443", "203.0.113.9:443", True),
        ("0.0.0.0:443", "203.0.113.9:443", True),
        ("0.0.0.0:443", "[2001:db8::9]:443", False),
        ("0.0.0.0:443", "*:443", True),
        ("[::]:443", "203.0.113.9:443", False),
        ("[::]:443", "0.0.0.0:443", False),
        ("[::]:443", "[2001:db8::9]:443", True),
    ],
)
def test_listen_addresses_overlap_where_the_kernel_would_refuse(one: str, other: str, overlap: bool) -> None:
    assert parse_listen(one).overlaps(parse_listen(other)) is overlap
    assert parse_listen(other).overlaps(parse_listen(one)) is overlap


def test_another_protocol_is_another_world() -> None:
    assert not parse_listen("*:53").overlaps(parse_listen("*:53", "udp"))


def test_a_route_is_a_place_beside_its_port() -> None:
    route = written_listen("*:443 Git.example.net")
    assert (str(route), route.port, route.default) == ("*:443 git.example.net", 443, parse_listen("*:443"))
    assert written_listen(str(route)) == route
    assert (list(route.each()), list(route.default.each())) == ([], [route.default])  # it has no socket of its own
    assert (route.is_named("443"), route.route_text, route.default.route_text) == (True, "443 git.example.net", "443")
    assert sorted([route, route.default]) == [route.default, route]
    for text in ("*:443 ", "*:443 a b", "git.example.net"):
        with pytest.raises(ValueError, match=r"."):
            written_listen(text)
