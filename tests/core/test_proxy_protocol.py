"""PROXY headers against bytes written by hand from haproxy.org's proxy-protocol.txt."""

from ipaddress import IPv4Address, IPv6Address, ip_address

from hypothesis import given
from hypothesis import strategies as st

from pylb.core.address import Address
from pylb.core.policy import ProxyProtocol
from pylb.core.proxy_protocol import header

V4, LOCAL4 = Address("192.0.2.1", 56324), Address("198.51.100.7", 443)
V6, LOCAL6 = Address("2001:db8::1", 65535), Address("2001:db8::2", 1)
PORTS = st.integers(1, 65535)
ADDRESSES4 = st.builds(Address, st.ip_addresses(v=4).map(str), PORTS)
ADDRESSES6 = st.builds(Address, st.ip_addresses(v=6).map(str), PORTS)


def test_none_is_no_header() -> None:
    assert header(ProxyProtocol.NONE, V4, LOCAL4) == b""


def test_version_1_over_ipv4() -> None:
    assert header(ProxyProtocol.V1, V4, LOCAL4) == b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n"


def test_version_1_over_ipv6() -> None:
    assert header(ProxyProtocol.V1, V6, LOCAL6) == b"PROXY TCP6 2001:db8::1 2001:db8::2 65535 1\r\n"


def test_version_2_over_ipv4() -> None:
    expected = bytes.fromhex("0d0a0d0a000d0a515549540a 21 11 000c c0000201 c6336407 dc04 01bb")
    assert header(ProxyProtocol.V2, V4, LOCAL4) == expected


def test_version_2_over_ipv6() -> None:
    expected = bytes.fromhex(
        "0d0a0d0a000d0a515549540a 21 21 002420010db8000000000000000000000001 20010db8000000000000000000000002 ffff 0001"
    )
    assert header(ProxyProtocol.V2, V6, LOCAL6) == expected


def test_mixed_families_are_written_as_ipv6_with_the_ipv4_one_mapped() -> None:
    assert header(ProxyProtocol.V1, V4, LOCAL6) == b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 56324 1\r\n"
    assert header(ProxyProtocol.V2, V6, LOCAL4)[13:16] == b"\x21\x00\x24"
    assert header(ProxyProtocol.V2, V6, LOCAL4)[32:48] == bytes.fromhex("00000000000000000000ffff c6336407")


@given(st.tuples(ADDRESSES4, ADDRESSES4) | st.tuples(ADDRESSES6, ADDRESSES6))
def test_version_1_is_one_line_of_at_most_107_bytes_that_says_it_all(ends: tuple[Address, Address]) -> None:
    line = header(ProxyProtocol.V1, *ends)
    assert line.endswith(b"\r\n")
    assert line.count(b"\r") == line.count(b"\n") == 1
    assert len(line) <= 107
    _, _, source, destination, source_port, destination_port = line.decode().split()
    assert (Address(source, int(source_port)), Address(destination, int(destination_port))) == ends


@given(st.tuples(ADDRESSES4, ADDRESSES4) | st.tuples(ADDRESSES6, ADDRESSES6))
def test_version_2_states_its_own_length_and_says_it_all(ends: tuple[Address, Address]) -> None:
    data = header(ProxyProtocol.V2, *ends)
    length = int.from_bytes(data[14:16], "big")
    body = data[16:]
    assert len(body) == length == (36 if ends[0].is_ipv6 else 12)
    size, kind = (16, IPv6Address) if ends[0].is_ipv6 else (4, IPv4Address)
    source, destination = kind(body[:size]), kind(body[size : 2 * size])
    assert (source, destination) == (ip_address(ends[0].ip), ip_address(ends[1].ip))
    assert (int.from_bytes(body[-4:-2], "big"), int.from_bytes(body[-2:], "big")) == (ends[0].port, ends[1].port)
