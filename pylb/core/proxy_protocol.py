"""The PROXY protocol's headers, versions 1 and 2 (haproxy.org, proxy-protocol.txt, sections 2.1 and 2.2).

A header is sent before the client's first byte and says who the client is. `header` makes what a server is sent, `local_header`
what our own checks send, and `parse` reads what a trusted proxy in front of us sent.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from pylb.core.address import UDP, Address, parse_ip
from pylb.core.policy import ProxyProtocol

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
MOST_HEADER = 4096  # bytes; the specification allows 64 KiB of TLVs, but nobody sends as many, and they would have to be stored
MOST_UNIQUE_ID = 128  # bytes (2.2.5)
MOST_PASSED_ON = 3072  # bytes of TLVs: with all that is added, the next proxy's header stays below MOST_HEADER
_LINE = 107  # the longest version 1 line, CRLF included (2.1)
_LOCAL, _PROXY = b"\x20", b"\x21"  # version 2 and the command
_UNSPEC, _TCP4, _TCP6 = b"\x00", b"\x11", b"\x21"  # family and STREAM
_UDP4, _UDP6 = b"\x12", b"\x22"  # family and DGRAM
_SIZES = {_TCP4: 12, _TCP6: 36, _UDP4: 12, _UDP6: 36, b"\x31": 216, b"\x32": 216}  # of the addresses; UDP, unix
_TYPE_CRC32C, _TYPE_NOOP, _TYPE_UNIQUE_ID = 0x03, 0x04, 0x05
# pylb's own type (0xE0 to 0xEF are for that, 2.2.8): the pylbs that a connection came through, PATH_ID bytes each. Without it,
# two that send to each other would count all of each other's sessions as one client's.
_TYPE_PATH = 0xE7
PATH_ID = 8
MOST_HOPS = 16
# Made anew for each header, or only meaningful for one hop. All others belong to whoever made them: ALPN and TLS of a proxy,
# 0xEA of AWS (the VPC endpoint), 0xEE of Azure (the private link), 0xE0 of Google Cloud (the connection's id).
_OF_ONE_HOP = frozenset({_TYPE_CRC32C, _TYPE_NOOP, _TYPE_UNIQUE_ID, _TYPE_PATH})


class BadHeader(ValueError):  # noqa: N818 - caused by the peer
    """It is not a header, and more bytes would not make it one. The text says why."""


@dataclass(frozen=True, slots=True)
class ParsedHeader:
    """A complete header. Without addresses (UNKNOWN, LOCAL, not TCP) those of the connection itself apply."""

    size: int  # bytes
    client: Address | None = None
    local: Address | None = None  # where the client had connected to
    unique_id: bytes = b""
    path: bytes = b""
    tlvs: bytes = b""  # all others, as they came: type, length, value; only whole ones, at most MOST_PASSED_ON bytes
    crc32c: bool = False  # it had a checksum, and the checksum was correct


def goes_in_circles(path: bytes, own_id: bytes) -> bool:
    """Has a connection with this `path` been here before, or come through more proxies than any real setup has?"""
    hops = [path[start : start + PATH_ID] for start in range(0, len(path), PATH_ID)]
    return own_id in hops or len(hops) > MOST_HOPS


def header(
    version: ProxyProtocol,
    client: Address,
    local: Address,
    *,
    crc32c: bool = False,
    unique_id: bytes = b"",
    path: bytes = b"",
    tlvs: bytes = b"",
) -> bytes:
    """The header for a connection, or a flow of UDP, from `client` to our address `local`; b"" for NONE.

    Mixed families (impossible for one TCP connection, but a mapped address can look so) are written as IPv6, IPv4 mapped.
    `crc32c`, `unique_id` and `path` are TLVs of version 2 (2.2.3, 2.2.5, 2.2.8), `tlvs` those of a received header.
    Raises ValueError: too long a unique ID.
    """
    if version is ProxyProtocol.NONE:
        return b""
    mixed = client.is_ipv6 != local.is_ipv6
    source, destination = (_mapped(client.ip), _mapped(local.ip)) if mixed else (client.ip, local.ip)
    wide = ":" in source
    if version is ProxyProtocol.V1:
        family = "TCP6" if wide else "TCP4"
        return f"PROXY {family} {source} {destination} {client.port} {local.port}\r\n".encode("ascii")
    ips = ip_address(source).packed + ip_address(destination).packed
    body = ips + client.port.to_bytes(2, "big") + local.port.to_bytes(2, "big") + tlvs
    if unique_id:
        if len(unique_id) > MOST_UNIQUE_ID:
            raise ValueError(f"a unique ID of {len(unique_id)} bytes: at most {MOST_UNIQUE_ID}")
        body += _tlv(_TYPE_UNIQUE_ID, unique_id)
    if path:
        body += _tlv(_TYPE_PATH, path)
    if crc32c:
        body += _tlv(_TYPE_CRC32C, bytes(4))
    four, six = (_UDP4, _UDP6) if client.protocol == UDP else (_TCP4, _TCP6)
    kind = six if wide else four
    head = SIGNATURE + _PROXY + kind + len(body).to_bytes(2, "big") + body
    return head[:-4] + crc32c_of(head).to_bytes(4, "big") if crc32c else head


def local_header(version: ProxyProtocol) -> bytes:
    """For our own connection, a check. It tells the server to use the connection's own addresses."""
    if version is ProxyProtocol.V2:
        return SIGNATURE + _LOCAL + _UNSPEC + bytes(2)
    return b"PROXY UNKNOWN\r\n" if version is ProxyProtocol.V1 else b""


def parse(data: bytes) -> ParsedHeader | None:
    """The header that `data` begins with; None while it is incomplete. Raises BadHeader as soon as it cannot be one."""
    if data[: len(SIGNATURE)] == SIGNATURE[: len(data)]:
        return _parse_v2(data)
    if data[:6] == b"PROXY "[: len(data)]:
        return _parse_v1(data)
    raise BadHeader("neither of the two signatures")


def _parse_v1(data: bytes) -> ParsedHeader | None:
    line, end, _ = data[:_LINE].partition(b"\r\n")
    if not end:
        if len(data) >= _LINE:
            raise BadHeader(f"no end of line within {_LINE} bytes")
        return None
    size = len(line) + 2
    words = line.split(b" ")
    if words[1:2] == [b"UNKNOWN"]:
        return ParsedHeader(size)  # the receiver must ignore the rest of the line (2.1)
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        raise BadHeader("not PROXY, TCP4 or TCP6, two addresses and two ports, one space between each")
    version = IPv4Address if words[1] == b"TCP4" else IPv6Address
    try:
        # The family is the client's. nginx on an IPv4 socket, with an IPv6 client from its own proxy's header, writes
        # "TCP6 2001:db8::1 127.0.0.1": then the address that the client had connected to is of the other family.
        client = parse_ip(str(version(words[2].decode("ascii"))))
        local = parse_ip(str(ip_address(words[3].decode("ascii"))))
    except ValueError:  # AddressValueError, UnicodeDecodeError, and parse_ip's for a zone ("fe80::1%eth0")
        raise BadHeader("not a client address of the family and the address that it connected to") from None
    return ParsedHeader(size, Address(client, _port(words[4])), Address(local, _port(words[5])))


def _port(word: bytes) -> int:
    """Decimal, without leading zeros (2.1). 0 is allowed there."""
    if not word.isdigit() or (word[:1] == b"0" and word != b"0") or len(word) > 5 or int(word) > 65535:
        raise BadHeader("not a port")
    return int(word)


def _parse_v2(data: bytes) -> ParsedHeader | None:
    command, family = data[12:13], data[13:14]
    if command not in (b"", _LOCAL, _PROXY):
        raise BadHeader("not version 2, or neither LOCAL nor PROXY")
    if len(data) < 16:
        return None
    size = 16 + int.from_bytes(data[14:16], "big")
    if size > MOST_HEADER:
        raise BadHeader(f"{size} bytes: more than {MOST_HEADER} are not accepted")
    if len(data) < size:
        return None
    body = data[16:size]
    addresses = _SIZES.get(family, 0)
    if command == _PROXY and len(body) < addresses:
        raise BadHeader("too short for its addresses")
    if command == _LOCAL or family not in (_TCP4, _TCP6):
        # LOCAL: skip the rest, whatever it is. Others: not TCP, the connection's own addresses apply (2.2).
        return ParsedHeader(size)
    tlvs, others = _tlvs(data[:size], 16 + addresses)
    width = 4 if family == _TCP4 else 16
    client, local = (parse_ip(str(ip_address(ip))) for ip in (body[:width], body[width : 2 * width]))
    ports = body[2 * width : addresses]
    return ParsedHeader(
        size,
        Address(client, int.from_bytes(ports[:2], "big")),
        Address(local, int.from_bytes(ports[2:], "big")),
        tlvs.get(_TYPE_UNIQUE_ID, b""),
        tlvs.get(_TYPE_PATH, b""),
        others,
        _TYPE_CRC32C in tlvs,
    )


def _tlvs(whole: bytes, start: int) -> tuple[dict[int, bytes], bytes]:
    """The TLVs of a header: those for one hop, by type, and the others as they came, up to MOST_PASSED_ON bytes.

    Raises BadHeader if they do not fill the header exactly, or if a CRC32C is wrong (2.2.3).
    """
    found: dict[int, bytes] = {}
    others: list[bytes] = []
    room = MOST_PASSED_ON
    place = start
    while place < len(whole):
        value = place + 3
        end = value + int.from_bytes(whole[place + 1 : value], "big")
        if value > len(whole) or end > len(whole):
            raise BadHeader("a TLV goes beyond the header")
        if whole[place] == _TYPE_CRC32C:
            if _TYPE_CRC32C in found:  # checking it costs a walk over the whole header
                raise BadHeader("two CRC32C")
            given = whole[value:end]
            if len(given) != 4 or crc32c_of(whole[:value] + bytes(4) + whole[end:]) != int.from_bytes(given, "big"):
                raise BadHeader("wrong CRC32C")
        if whole[place] in _OF_ONE_HOP:
            found[whole[place]] = whole[value:end]
        elif end - place <= room:
            others.append(whole[place:end])
            room -= end - place
        place = end
    if len(found.get(_TYPE_UNIQUE_ID, b"")) > MOST_UNIQUE_ID:
        raise BadHeader("a unique ID over 128 bytes")
    return found, b"".join(others)


def _tlv(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + len(value).to_bytes(2, "big") + value


def _mapped(ip: str) -> str:
    return ip if ":" in ip else f"::ffff:{ip}"


def _crc32c_table() -> tuple[int, ...]:
    """For the polynomial 0x1EDC6F41, reflected (RFC 3720, appendix B.4)."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)  # noqa: PLW2901 - it is the register
        table.append(byte)
    return tuple(table)


_CRC32C = _crc32c_table()


def crc32c_of(data: bytes) -> int:
    """CRC-32C (Castagnoli). A few dozen bytes per header are no reason for a compiled package."""
    register = 0xFFFFFFFF
    for byte in data:
        register = _CRC32C[(register ^ byte) & 0xFF] ^ register >> 8
    return register ^ 0xFFFFFFFF
