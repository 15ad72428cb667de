"""The gate: every address and port that a call makes pylb dial is checked here, before anything is dialled.

These parts of a call reach the network: the address it names or comes from, each `target_port`, and each `health.port`
(`registration.FrontendRequest.dialled`). The rest are bytes sent there: PROXY headers, paths, host names of HTTP checks.
Whether a target is pylb itself depends on the other registrations, so it is checked with the claims.

A wide network in `targets` includes neither loopback nor pylb's own addresses: whoever wrote 0.0.0.0/0 thought of nodes.
"""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from ipaddress import ip_network

from pylb.core.address import in_networks, is_loopback, names_loopback, parse_ip, refused_class
from pylb.core.auth import Caller, Token
from pylb.core.errors import Code, Refused
from pylb.core.registration import Registration
from pylb.core.server_set import Member

OwnIps = AbstractSet[str]


def check_dials(one: Registration, caller: Caller, own_ips: OwnIps) -> None:
    """May the caller make pylb dial all that the registration asks for? Raises Refused."""
    for label, ip, _ in one.machines:
        _check_ip(ip, caller, own_ips, label if one.members else "")
    for index, item in enumerate(one.wanted):
        for field, port in item.dialled():
            if port not in caller.token.target_ports:
                where = f"frontends[{index}].{field}" if not one.key.is_legacy else "backend-port"
                raise Refused(
                    Code.TARGET_FORBIDDEN,
                    f"{where}: token {caller.token.name!r} may not aim at port {port} (it may: {caller.token.target_ports})",
                    "use the Service's NodePort, or widen `target_ports` of the token",
                )


def native_target(caller: Caller, address: str | None) -> str:
    """The canonical IP that a native call aims at: the address it names, by default the one it comes from. Raises Refused."""
    return caller.ip if address is None else _named(address, "address", "an IP address, or null for the calling one")


def set_members(named: Iterable[tuple[str, str, int | None]]) -> tuple[Member, ...]:
    """The members of a set from the instances, addresses and weights that a call names, in the order of their names.

    Raises Refused.
    """
    hint = "the IP address of a machine"
    found = (
        Member(instance, _named(address, f"servers[{index}].address", hint), weight)
        for index, (instance, address, weight) in enumerate(named)
    )
    return tuple(sorted(found))


def _named(address: str, field: str, hint: str) -> str:
    try:
        return parse_ip(address)
    except ValueError as error:
        raise Refused(Code.INVALID, f"{field}: {error}", hint) from None


def legacy_target(caller: Caller, address: str | None, own_ips: OwnIps) -> tuple[str, str]:
    """The IP that a legacy call aims at, and a note for its answer. An address that it may not name falls back to the caller's.

    An address that is never a target does not fall back: `check_dials` refuses it.
    """
    if address is None or address == caller.ip:
        return caller.ip, ""
    if _never(address, caller.token) or covers(caller.token, address, own_ips):
        return address, ""
    return caller.ip, f"dst-ip {address} is outside the targets of token {caller.token.name!r}: {caller.ip} is used"


def covers(token: Token, ip: str, own_ips: OwnIps) -> bool:
    """May the token name the address? Loopback and pylb's own only where `targets` names them specifically."""
    if is_loopback(ip):
        return in_networks(ip, (network for network in token.targets if names_loopback(network)))
    if ip in own_ips:
        return ip_network(ip) in token.targets
    return in_networks(ip, token.targets)


def _check_ip(ip: str, caller: Caller, own_ips: OwnIps, member: str) -> None:
    """`member`: of a set, the label of the machine with that address."""
    name, where = caller.token.name, f"{ip} (of {member})" if member else ip
    if why := _never(ip, caller.token):
        raise Refused(Code.TARGET_REFUSED, f"{where} cannot be a target: {why[0]}", why[1])
    if ip == caller.ip or covers(caller.token, ip, own_ips):
        return
    if ip in own_ips:
        what = "it is an address of pylb's own machine, and `targets` does not name it by itself"
        hint = f"aim at the node, or add {ip} to `targets` of token {name!r}: a network around it does not count"
        raise Refused(Code.TARGET_REFUSED, f"{where} cannot be a target: {what}", hint)
    hint = "add it to `targets` of the token"
    raise Refused(
        Code.TARGET_FORBIDDEN,
        f"token {name!r} may not name the address {where}",
        hint if member else f"leave `address` out to use the calling address, or {hint}",
    )


def _never(ip: str, token: Token) -> tuple[str, str] | None:
    """Why it can never be a target, whatever the caller's address, and what to do instead."""
    if (kind := refused_class(ip)) is not None:
        return f"it is {kind}", "call from, or name, an address that pylb's machine can reach"
    if is_loopback(ip) and not covers(token, ip, frozenset()):
        what = "it is loopback, pylb's own machine, and no network of `targets` lies inside 127.0.0.0/8 or is ::1"
        return what, f"call from the node, or name loopback in `targets` of token {token.name!r}"
    return None
