"""Translates `bind` to `listen`. `*` means IPv4 in HAProxy and both families in pylb; HAProxy's `:::80` means both."""

import re
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Any

from pylb.haproxy.config_parser import Line, Notes, word_set

LAST_PORT = 65535
_EVERY = "*"
_V4, _V6 = "0.0.0.0", "[::]"
_FLAGS = word_set(
    """
    defer-accept tfo v4v6 v6only transparent accept-proxy
    """
)
_WITH_VALUE = word_set(
    """
    name id backlog mss nice process thread shards user group uid gid level mode severity-output tcp-ut expose-fd cc
    tcp-md5sig tls-ticket-keys quic-cc-algo maxconn interface namespace alpn npn proto
    """
)
_OPEN = {
    "interface": "HAProxy would listen on that interface only; pylb would listen on all. Bind its address",
    "namespace": "HAProxy would listen in that network namespace; pylb would listen in its own",
    "maxconn": "HAProxy would count the connections of this place; pylb counts those of the frontend: `max_connections`",
    "tcp-md5sig": "HAProxy would require signed TCP segments; pylb would not",
}


@dataclass(slots=True)
class ListenAddress:
    """One address and port where a frontend listens."""

    line: Line
    host: str  # in pylb's notation
    port: int
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def listen(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(slots=True)
class Bind:
    """One `bind`, with its range of ports."""

    line: Line
    host: str
    first: int
    last: int
    settings: dict[str, Any]


def bind_of(line: Line, where: str, options: list[str], notes: Notes) -> Bind | None:
    """The bind of a line; None, with a difference noted: pylb would not listen there."""
    settings: dict[str, Any] = {}
    rest = iter(options)
    for option in rest:
        if option in ("ssl", "accept-netscaler-cip"):
            closed = "HAProxy would decrypt TLS there; pylb passes TLS on to the server, and would not listen there"
            other = "pylb does not know that header, and would not listen there"
            notes.differs(line, f"bind {where} {option}: {closed if option == 'ssl' else other}")
            return None
        if option in _OPEN:
            notes.differs(line, f"bind {where} {option} {next(rest, '')}: {_OPEN[option]}")
        elif option in _WITH_VALUE:
            next(rest, None)
        elif option == "accept-proxy":
            settings["proxy_protocol"] = {"accept_from": ["0.0.0.0/0", "::/0"]}
            notes.note(line, "accept-proxy: accept_from is everybody, as in HAProxy; it is better to list your proxies")
        elif option == "transparent":
            settings["freebind"] = True
        elif option not in _FLAGS:
            notes.differs(line, f"bind {where} {option}: pylb has nothing like it, and would ignore it")
    host, _, ports = where.rpartition(":")
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", ports)
    address = _host(host, v6only="v6only" in options)
    if address in (_EVERY, _V4, _V6) and settings.pop("freebind", None):
        what = "HAProxy would also take connections to other machines' addresses that are routed here; pylb would not"
        notes.differs(line, f"bind {where} transparent: {what}")
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if address is None or not 1 <= first <= last <= LAST_PORT:
        notes.differs(line, f"bind {where}: HAProxy would listen there; pylb would not: it listens on IP:PORT")
        return None
    return Bind(line, address, first, last, settings)


def _host(host: str, *, v6only: bool) -> str | None:
    family, _, address = host.rpartition("@")
    if family not in ("", "ipv4", "ipv6", "tcp", "tcp4", "tcp6"):
        return None
    if address in ("", "*"):
        return (_V6 if v6only else _EVERY) if family in ("ipv6", "tcp6") else _V4
    bare = address[1:-1] if address.startswith("[") and address.endswith("]") else address
    try:
        return str(IPv4Address(bare))
    except AddressValueError:
        pass
    try:
        found = IPv6Address(bare)
    except AddressValueError:
        return None
    if found == IPv6Address("::"):
        return _V6 if v6only else _EVERY  # net.ipv6.bindv6only is 0 on Linux
    return None if found.scope_id else f"[{found}]"


def listen_addresses(binds: list[Bind]) -> list[ListenAddress]:
    """The addresses of several binds, each port once. IPv4 and IPv6 of one port become `*`, which is one frontend."""
    found: dict[tuple[str, int], ListenAddress] = {}
    for bind in binds:
        for port in range(bind.first, bind.last + 1):
            found.setdefault((bind.host, port), ListenAddress(bind.line, bind.host, port, bind.settings))
    for host, port in list(found):
        both = found.get((_V4, port)), found.get((_V6, port))
        if host == _EVERY:
            found.pop((_V4, port), None)
            found.pop((_V6, port), None)
        elif host == _V4 and both[0] and both[1] and both[0].settings == both[1].settings:
            both[0].host = _EVERY
            del found[_V6, port]
    return list(found.values())
