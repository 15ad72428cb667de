"""The PROXY protocol's headers, versions 1 and 2 (haproxy.org, proxy-protocol.txt, sections 2.1 and 2.2).

A header is sent to a server before the client's first byte, so that the server sees who the client is.
"""

from ipaddress import ip_address

from pylb.core.address import Address
from pylb.core.policy import ProxyProtocol

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_PROXY = b"\x21"  # version 2, command PROXY
_TCP4, _TCP6 = b"\x11", b"\x21"  # AF_INET or AF_INET6, STREAM


def header(version: ProxyProtocol, client: Address, local: Address) -> bytes:
    """The header for a connection from `client` to our address `local`; b"" for NONE.

    Mixed families (cannot be one TCP connection, but a mapped address can look so) are written as IPv6, IPv4 mapped.
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
    body = ips + client.port.to_bytes(2, "big") + local.port.to_bytes(2, "big")
    return SIGNATURE + _PROXY + (_TCP6 if wide else _TCP4) + len(body).to_bytes(2, "big") + body


def _mapped(ip: str) -> str:
    return ip if ":" in ip else f"::ffff:{ip}"
