"""Who calls: the address behind trusted proxies, and the secret a call carries."""

import re
from collections.abc import Mapping, Sequence
from socket import AF_INET, AF_INET6, inet_pton

from pylb.core.address import Network, in_networks, parse_ip
from pylb.core.errors import Code, Refused

# RFC 6750 2.1, strictly one space; but any visible ASCII, for secrets people made up themselves. A repeated header
# arrives joined by ", " and does not match.
_BEARER = re.compile(r"[Bb]earer ([\x21-\x7e]+)")


def bearer(headers: Mapping[str, str]) -> str:
    """The secret of `Authorization: Bearer SECRET`; "" if there is none."""
    found = _BEARER.fullmatch(headers.get("authorization", ""))
    return found[1] if found else ""


def caller_ip(peer: str, headers: Mapping[str, str], trusted: Sequence[Network]) -> str:
    """The peer, or what trusted proxies say stands behind them: the rightmost address of X-Forwarded-For not theirs.

    Further left is what a client may have written itself. Raises Refused if a proxy's entry is no address: to take the
    proxy's own for it would aim a registration at the proxy.
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
    """What counts as one caller: an IPv4 address, or an IPv6 /64, for whoever has one address there has all of them."""
    return inet_pton(AF_INET6, ip)[:8] if ":" in ip else inet_pton(AF_INET, ip)
