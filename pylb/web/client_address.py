"""Identifies a caller: its address behind trusted proxies, and the secret in its call."""

import re
from collections.abc import Mapping, Sequence
from socket import AF_INET, AF_INET6, inet_pton

from pylb.core.address import Network, in_networks, parse_ip
from pylb.core.errors import Code, Refused

# As in RFC 6750 2.1, with exactly one space, but with any visible ASCII, for secrets that people made up themselves. The
# values of a repeated header are joined by ", ", which does not match.
_BEARER = re.compile(r"[Bb]earer ([\x21-\x7e]+)")


def bearer(headers: Mapping[str, str]) -> str:
    """The secret of `Authorization: Bearer SECRET`; "" if there is none."""
    found = _BEARER.fullmatch(headers.get("authorization", ""))
    return found[1] if found else ""


def caller_ip(peer: str, headers: Mapping[str, str], trusted: Sequence[Network]) -> str:
    """The caller's address: the peer, or behind trusted proxies the rightmost address of X-Forwarded-For that is not theirs.

    A client may have written whatever is further left. Raises Refused if a proxy's entry is not an address: using the
    proxy's own address instead would direct the registration at the proxy.
    """
    forwarded = headers.get("x-forwarded-for", "")
    if not forwarded or not in_networks(peer, trusted):
        return peer
    ip = peer
    for entry in reversed(forwarded.split(",")):
        try:
            ip = parse_ip(entry.strip())
        except ValueError:
            raise Refused(Code.INVALID, f"X-Forwarded-For: {entry.strip()[:40]!r} is not an IP address") from None
        if not in_networks(ip, trusted):
            return ip
    return ip


def network_of(ip: str) -> bytes:
    """The network that counts as one caller: an IPv4 address, or an IPv6 /64, all of which usually has one owner."""
    return inet_pton(AF_INET6, ip)[:8] if ":" in ip else inet_pton(AF_INET, ip)
