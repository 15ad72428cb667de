"""PROXY headers against bytes written by hand from haproxy.org's proxy-protocol.txt."""

from ipaddress import IPv4Address, IPv6Address, ip_address
from socket import SOCK_STREAM

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxyprotocol.result import ProxyResultIPv4, ProxyResultIPv6
from proxyprotocol.tlv import ProxyProtocolTLV
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from pylb.core.address import Address, parse_ip
from pylb.core.policy import ProxyProtocol
from pylb.core.proxy_protocol import (
    MOST_HEADER,
    MOST_HOPS,
    MOST_PASSED_ON,
    PATH_ID,
    SIGNATURE,
    BadHeader,
    ParsedHeader,
    crc32c_of,
    goes_in_circles,
    header,
    local_header,
    parse,
)

V4, LOCAL4 = Address("192.0.2.1", 56324), Address("198.51.100.7", 443)
V6, LOCAL6 = Address("2001:db8::1", 65535), Address("2001:db8::2", 1)
PORTS = st.integers(1, 65535)
ADDRESSES4 = st.builds(Address, st.ip_addresses(v=4).map(str), PORTS, st.just("tcp"), st.just(0))
ADDRESSES6 = st.builds(Address, st.ip_addresses(v=6).map(str), PORTS, st.just("tcp"), st.just(0))


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


# ---------------------------------------------------------------- TLVs, and our own connections


def test_a_header_may_carry_a_unique_id_and_a_checksum() -> None:
    """The checksum was made by the package that is the oracle below."""
    made = header(ProxyProtocol.V2, V4, LOCAL4, crc32c=True, unique_id=b"\x01\x02")
    assert made[14:16] == (12 + 5 + 7).to_bytes(2, "big")
    assert made[28:] == bytes.fromhex("05 0002 0102 03 0004 ec77a8a2")
    assert header(ProxyProtocol.V1, V4, LOCAL4, crc32c=True, unique_id=b"\x01") == header(ProxyProtocol.V1, V4, LOCAL4)


def test_the_checksum_of_rfc_3720() -> None:
    assert crc32c_of(bytes(32)) == 0x8A9136AA
    assert crc32c_of(b"\xff" * 32) == 0x62A8AB43
    assert crc32c_of(b"123456789") == 0xE3069283


def test_a_unique_id_of_more_than_128_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="129 bytes"):
        header(ProxyProtocol.V2, V4, LOCAL4, unique_id=bytes(129))


def test_a_check_says_that_it_is_ours() -> None:
    assert local_header(ProxyProtocol.NONE) == b""
    assert local_header(ProxyProtocol.V1) == b"PROXY UNKNOWN\r\n"
    assert local_header(ProxyProtocol.V2) == SIGNATURE + b"\x20\x00\x00\x00"


# ---------------------------------------------------------------- reading

BOTH = st.sampled_from([ProxyProtocol.V1, ProxyProtocol.V2])
ENDS = st.tuples(ADDRESSES4, ADDRESSES4) | st.tuples(ADDRESSES6, ADDRESSES6)
IDS = st.binary(max_size=128)


def folded(address: Address) -> Address:
    return Address(parse_ip(address.ip), address.port)


@given(BOTH, ENDS, st.booleans(), IDS, st.binary(max_size=20))
def test_what_is_made_is_read_again_whatever_follows(
    version: ProxyProtocol, ends: tuple[Address, Address], crc32c: bool, unique_id: bytes, rest: bytes
) -> None:
    made = header(version, *ends, crc32c=crc32c, unique_id=unique_id)
    second = version is ProxyProtocol.V2
    expected = ParsedHeader(len(made), folded(ends[0]), folded(ends[1]), unique_id if second else b"", crc32c=second and crc32c)
    assert parse(made + rest) == expected


@given(BOTH, ENDS, st.booleans(), IDS, st.data())
def test_a_part_of_a_header_is_waited_for(
    version: ProxyProtocol, ends: tuple[Address, Address], crc32c: bool, unique_id: bytes, data: st.DataObject
) -> None:
    made = header(version, *ends, crc32c=crc32c, unique_id=unique_id)
    assert parse(made[: data.draw(st.integers(0, len(made) - 1))]) is None


def test_ours_are_read_as_the_connections_own_addresses() -> None:
    assert parse(local_header(ProxyProtocol.V1)) == ParsedHeader(15)
    assert parse(local_header(ProxyProtocol.V2)) == ParsedHeader(16)
    assert parse(b"PROXY UNKNOWN ffff::1 anything at all\r\nGET") == ParsedHeader(39)


def v2(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + bytes([command, family]) + len(body).to_bytes(2, "big") + body


ENDS4 = bytes.fromhex("c0000201 c6336407 dc04 01bb")


@pytest.mark.parametrize(
    "data",
    [
        v2(0x20, 0x11, ENDS4),  # LOCAL with addresses: they are to be ignored
        v2(0x20, 0x00, b"\x04\x00\x01"),  # LOCAL: whatever else is in there is skipped
        v2(0x21, 0x00, b""),
        v2(0x21, 0x00, b"whatever"),
        v2(0x21, 0x12, ENDS4),  # UDP
        v2(0x21, 0x31, bytes(216)),  # unix
        v2(0x21, 0x55, b""),  # no family of this version
    ],
)
def test_a_header_without_addresses_of_tcp_leaves_those_of_the_connection(data: bytes) -> None:
    assert parse(data + b"rest") == ParsedHeader(len(data))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\n", "neither"),
        (b"\r\n\r\nX", "neither"),
        (b"PROXY  TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "one space"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n", "two ports"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n", "one space"),
        (b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n", "TCP4 or TCP6"),
        (b"PROXY TCP4 ::1 ::2 1 2\r\n", "of the family"),
        (b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n", "of the family"),
        (b"PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n", "of the family"),
        (b"PROXY TCP4 192.0.2.\xe9 192.0.2.2 1 2\r\n", "of the family"),
        (b"PROXY TCP6 fe80::1%eth0 2001:db8::1 1 2\r\n", "of the family"),
        (b"PROXY TCP6 2001:db8::1 fe80::1%1 1 2\r\n", "of the family"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n", "not a port"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n", "not a port"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 -1 2\r\n", "not a port"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 123456 2\r\n", "not a port"),
        (b"PROXY " + b"x" * 101, "within 107"),
        (SIGNATURE + b"\x11", "not version 2"),
        (SIGNATURE + b"\x22", "nor PROXY"),
        (SIGNATURE + b"\x21\x11\xff\xff", "more than 4096"),
        (v2(0x21, 0x11, ENDS4[:-1]), "too short"),
        (v2(0x21, 0x12, ENDS4[:-1]), "too short"),
        (v2(0x21, 0x21, ENDS4), "too short"),
        (v2(0x21, 0x11, ENDS4 + b"\x04\x00"), "TLV"),
        (v2(0x21, 0x11, ENDS4 + b"\x04\x00\x02x"), "TLV"),
        (v2(0x21, 0x11, ENDS4 + b"\x03\x00\x04abcd"), "CRC32C"),
        (v2(0x21, 0x11, ENDS4 + b"\x03\x00\x02ab"), "CRC32C"),
        (v2(0x21, 0x11, ENDS4 + b"\x05\x00\x81" + bytes(129)), "unique ID"),
    ],
)
def test_what_is_no_header_is_refused_with_its_reason(data: bytes, why: str) -> None:
    with pytest.raises(BadHeader, match=why):
        parse(data)


def test_port_0_is_legal_on_the_wire_and_mapped_ipv4_is_folded() -> None:
    assert parse(b"PROXY TCP6 ::ffff:192.0.2.1 ::1 0 65535\r\n") == ParsedHeader(
        41, Address("192.0.2.1", 0), Address("::1", 65535)
    )


@pytest.mark.parametrize(
    ("line", "client", "local"),
    [
        (b"PROXY TCP6 2001:db8::1 127.0.0.1 4000 443\r\n", "2001:db8::1", "127.0.0.1"),  # nginx 1.22 on an IPv4 socket
        (b"PROXY TCP4 192.0.2.1 2001:db8::2 4000 443\r\n", "192.0.2.1", "2001:db8::2"),  # and on an IPv6 one
        (b"PROXY TCP6 ::ffff:192.0.2.1 192.0.2.2 4000 443\r\n", "192.0.2.1", "192.0.2.2"),
    ],
)
def test_a_client_of_the_other_family_than_where_it_connected_to_counts(line: bytes, client: str, local: str) -> None:
    assert parse(line) == ParsedHeader(len(line), Address(client, 4000), Address(local, 443))


def tlv(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + len(value).to_bytes(2, "big") + value


AWS, AZURE, GOOGLE = tlv(0xEA, b"\x01vpce-08d2bf15fac5001c9"), tlv(0xEE, b"\x01\x04\x03\x02\x01"), tlv(0xE0, bytes(8))


def test_the_tlvs_of_clouds_come_as_they_were_without_those_of_one_hop() -> None:
    mine = tlv(0x04, b"padding") + tlv(0x05, b"id") + tlv(0xE7, bytes(8))
    found = parse(v2(0x21, 0x11, ENDS4 + AWS + mine[:10] + AZURE + mine[10:] + GOOGLE + AWS))
    assert found is not None
    assert found.tlvs == AWS + AZURE + GOOGLE + AWS
    assert (found.unique_id, found.path, found.crc32c) == (b"id", bytes(8), False)
    sent = header(ProxyProtocol.V2, V6, LOCAL4, crc32c=True, unique_id=b"id", path=bytes(16), tlvs=found.tlvs)
    again = parse(sent)
    assert again is not None
    assert (again.tlvs, again.unique_id, again.path, again.crc32c) == (found.tlvs, b"id", bytes(16), True)
    assert AWS not in header(ProxyProtocol.V1, V4, LOCAL4, tlvs=AWS)


def test_what_is_passed_on_is_bounded_so_that_the_next_proxy_takes_it() -> None:
    small = tlv(0xEE, b"small")
    most = MOST_HEADER - 16 - len(ENDS4) - len(small)
    found = parse(v2(0x21, 0x11, ENDS4 + tlv(0x20, bytes(most - 3)) + small))
    assert found is not None
    assert found.tlvs == small  # the large one alone is over the bound
    full = parse(v2(0x21, 0x11, ENDS4 + tlv(0xEA, bytes(MOST_PASSED_ON - 3))))
    assert full is not None
    assert len(full.tlvs) == MOST_PASSED_ON
    longest = header(ProxyProtocol.V2, V6, LOCAL6, crc32c=True, unique_id=bytes(128), path=bytes(PATH_ID * 17), tlvs=full.tlvs)
    assert parse(longest) is not None


@given(BOTH, ENDS, st.booleans(), IDS, st.data())
def test_a_spoilt_header_is_refused_waited_for_or_read_and_nothing_else(
    version: ProxyProtocol, ends: tuple[Address, Address], crc32c: bool, unique_id: bytes, data: st.DataObject
) -> None:
    spoilt = bytearray(header(version, *ends, crc32c=crc32c, unique_id=unique_id))
    for _ in range(data.draw(st.integers(1, 4))):
        spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = parse(bytes(spoilt))
    except BadHeader:
        return
    assert found is None or found.size <= len(spoilt)


@given(st.binary(max_size=120).map(lambda data: SIGNATURE[: len(data) % 13] + data))
def test_garbage_never_breaks_the_reader(data: bytes) -> None:
    try:
        parse(data)
    except BadHeader:
        pass


# ---------------------------------------------------------------- the oracle: PyPI's proxy-protocol


def theirs(version: ProxyProtocol) -> ProxyProtocolV1 | ProxyProtocolV2:
    return ProxyProtocolV1() if version is ProxyProtocol.V1 else ProxyProtocolV2()


def their_result(ends: tuple[Address, Address], unique_id: bytes) -> ProxyResultIPv4 | ProxyResultIPv6:
    tlv = ProxyProtocolTLV(unique_id=unique_id) if unique_id else None
    (one, port), (two, other) = ((ip_address(end.ip), end.port) for end in ends)
    if isinstance(one, IPv4Address) and isinstance(two, IPv4Address):
        return ProxyResultIPv4((one, port), (two, other), protocol=SOCK_STREAM, tlv=tlv)
    assert isinstance(one, IPv6Address)
    assert isinstance(two, IPv6Address)
    return ProxyResultIPv6((one, port), (two, other), protocol=SOCK_STREAM, tlv=tlv)


@given(BOTH, ENDS, st.booleans(), IDS)
def test_the_oracle_reads_what_we_make(
    version: ProxyProtocol, ends: tuple[Address, Address], crc32c: bool, unique_id: bytes
) -> None:
    made = header(version, *ends, crc32c=crc32c, unique_id=unique_id)
    result = theirs(version).unpack(made)  # raises on a wrong checksum
    expected = their_result(ends, b"")
    assert isinstance(result, type(expected))
    assert (result.source, result.dest) == (expected.source, expected.dest)
    if version is ProxyProtocol.V2:
        assert (result.tlv.unique_id or b"") == unique_id
        assert (result.tlv.crc32c is not None) == crc32c


@given(BOTH, ENDS, IDS)
def test_we_read_what_the_oracle_makes(version: ProxyProtocol, ends: tuple[Address, Address], unique_id: bytes) -> None:
    made = theirs(version).pack(their_result(ends, unique_id))
    expected = unique_id if version is ProxyProtocol.V2 else b""
    assert parse(made) == ParsedHeader(len(made), folded(ends[0]), folded(ends[1]), expected)


def test_a_second_checksum_is_refused_before_it_is_computed() -> None:
    """CRC-32 is linear: whoever likes can make hundreds in one header that are all right, each a walk over 4 KiB."""
    empty = b"\x03\x00\x04" + bytes(4)
    right = b"\x03\x00\x04" + crc32c_of(v2(0x21, 0x11, ENDS4 + empty + empty)).to_bytes(4, "big")
    with pytest.raises(BadHeader, match="two CRC32C"):
        parse(v2(0x21, 0x11, ENDS4 + right + empty))


def test_a_path_that_was_here_before_or_has_no_end_goes_in_circles() -> None:
    own, other = b"o" * PATH_ID, b"x" * PATH_ID
    assert not goes_in_circles(b"", own)
    assert not goes_in_circles(other * MOST_HOPS, own)
    assert goes_in_circles(other + own, own)
    assert goes_in_circles(other * (MOST_HOPS + 1), own)
