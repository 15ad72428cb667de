"""Registrations: what a phone-home wants. announcement.py reads them from a call's body.

A set is one registration with servers on many machines, all replaced at once.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from pylb.core.address import TCP, Address, Listen, PortKey, port_text
from pylb.core.errors import Code, Refused
from pylb.core.policy import CONNECT, UNSAID, Check, HealthOverride, LeaseBounds, ProxyProtocol
from pylb.core.server_set import NO_TERMS, Member, Terms
from pylb.core.text import whole_number

# Host and pod names (RFC 1123), plus the underscore and capitals that are in use anyway. No slash, no `@`, no leading dot:
# a name is a path segment, a log field and a label.
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")


SET = ""  # the instance of a set


class Key(NamedTuple):
    """Identifies a registration. The legacy protocol has no instances: there the token and the port identify it.

    A set has no instance either, for its members have them: `name` has at most one.
    """

    token: str
    name: str
    instance: str
    legacy_port: int = 0

    @property
    def is_legacy(self) -> bool:
        return self.legacy_port != 0


def legacy_key(token: str, port: int) -> Key:
    return Key(token, "", "", port)


class State(StrEnum):
    FRESH = "fresh"
    STALE = "stale"  # its lease ended
    DRAINING = "draining"  # its phone-home announced a pause


@dataclass(frozen=True, slots=True)
class FrontendRequest:
    """One frontend that a registration asks for. `send_proxy` None: as the frontend's policy says.

    `server_name`: it wants only the clients that ask for this name; "": the default route, all that no route has. Then
    `allows_names` says whether others may have routes beside it, for which its own clients wait until their hello is there.
    """

    port: int
    target_port: int
    send_proxy: ProxyProtocol | None = None
    weight: int = 1
    backup: bool = False
    health: HealthOverride = UNSAID
    protocol: str = TCP
    last: int = 0  # the last port of a range; 0: it is one port
    target_last: int = 0  # of as many target ports, one for each; 0: all go to one
    server_name: str = ""
    allows_names: bool = False

    @property
    def port_key(self) -> PortKey:
        """Identifies the port; a range by its first one."""
        return self.protocol, self.port

    @property
    def ports(self) -> range:
        return range(self.port, (self.last or self.port) + 1)

    @property
    def port_text(self) -> str:
        """For people: `443`, `443/udp`, or `20000-20099`."""
        return port_text(self.port, self.protocol, self.last)

    def at(self, ip: str) -> Address:
        """The address of its server on that machine."""
        return Address(ip, self.target_port, self.protocol, self.target_last)

    @property
    def route_text(self) -> str:
        """`port_text`, and for a route the server name: `443 git.example.net`."""
        return f"{self.port_text} {self.server_name}" if self.server_name else self.port_text

    def dialled(self, configured: Check = CONNECT) -> Iterator[tuple[str, int]]:
        """(field, port) of everything that pylb sends to for it. `configured`: the check of the frontend's policy."""
        return ((field, port) for field, (_, port) in self.targets(configured))

    def targets(self, configured: Check = CONNECT) -> Iterator[tuple[str, PortKey]]:
        """Like `dialled`, with the protocol of each port."""
        for target_port in range(self.target_port, (self.target_last or self.target_port) + 1):
            yield "target_port", (self.protocol, target_port)
        check = self.health.check or configured
        port = self.health.port or check.port
        if port:
            yield "health.port", (check.protocol(self.protocol), port)


@dataclass(frozen=True, slots=True)
class DisplacedServer:
    """A proven server whose replacement is not proven yet: it stays in service until the new one has answered once."""

    listen: Listen
    server: str
    address: Address
    send_proxy: ProxyProtocol | None = None
    weight: int = 1
    health: HealthOverride = UNSAID


@dataclass(frozen=True, slots=True)
class Registration:
    key: Key
    name: str  # for a legacy one the name in its call, only a description
    ip: str  # where its servers are; "" of a set
    wanted: tuple[FrontendRequest, ...]
    ttl: float | None = 60.0  # seconds; None: never stale. A legacy registration's is learned, see lease.py
    state: State = State.FRESH
    places: tuple[Listen, ...] = ()  # where each of `wanted` listens, by the current rules
    displaced: tuple[DisplacedServer, ...] = ()
    since: float = field(default=0.0, compare=False)  # unix time at which it was first made, only shown; 0: unknown
    members: tuple[Member, ...] = ()  # of a set: where its servers are
    terms: Terms = NO_TERMS  # of a set
    sequence: int | None = None  # the caller's number of this state (Pylb-Sequence): a lower one is older
    hearer: str = ""  # the balancer that its phone-home calls, if it is another one: its lease runs there

    @property
    def machines(self) -> tuple[tuple[str, str, int | None], ...]:
        """Where its servers are, as the fields of a Member."""
        return self.members or ((self.key.instance or "legacy", self.ip, None),)

    @property
    def ips(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one.ip for one in self.members)) if self.members else (self.ip,)

    @property
    def owner(self) -> str:
        """Who has the port, for the text of a refusal."""
        kind = "legacy registration" if self.key.is_legacy else "registration"
        return f"{kind} {self.name!r} of token {self.key.token!r}"

    @property
    def asked(self) -> list[Address]:
        """The addresses of its servers that are dialled. Nobody asks a range: which of its ports is in use, only the app
        knows."""
        return [address for item in self.wanted if not item.target_last for address in self.addresses(item)]

    def addresses(self, wanted: FrontendRequest) -> tuple[Address, ...]:
        """The addresses of its servers for one of its frontends: at least one, all with the same port."""
        if self.members:
            return tuple(map(wanted.at, self.ips))
        return (Address(self.ip, wanted.target_port, wanted.protocol, wanted.target_last),)


@dataclass(frozen=True, slots=True)
class Announcement:
    """A parsed body. `address` is still text: the token decides whether it may be named."""

    frontends: tuple[FrontendRequest, ...]
    address: str | None = None
    ttl: float | None = 60.0
    draining: bool = False
    members: tuple[tuple[str, str, int | None], ...] = ()  # of a set: instance, address and weight
    terms: Terms = NO_TERMS
    sequence: int | None = None


SEQUENCE = "Pylb-Sequence"  # the header with a call's `sequence`
MOST_SEQUENCE = (1 << 63) - 1  # etcd's revisions, which Kubernetes shows as resourceVersion, are of 64 bits
MOST_TTL = 8784 * 3600  # seconds: the longest duration that the config accepts; `leases.max_ttl` may be shorter


def check_name(what: str, text: str) -> str:
    """Check a registration's name or instance. Raises Refused."""
    if not _NAME.fullmatch(text):
        shown = text[:40] + ("…" if len(text) > 40 else "")
        hint = "letters, digits, '.', '_' and '-', up to 253, first and last a letter or digit"
        raise Refused(Code.INVALID, f"{what} {shown!r} is not a valid name", hint)
    return text


def parse_sequence(text: str) -> int:
    """Raises Refused."""
    if (found := whole_number(text, MOST_SEQUENCE)) is None:
        raise Refused(Code.INVALID, f"{SEQUENCE}: {text[:40]!r} is not a whole number", f"0-{MOST_SEQUENCE}, growing")
    return found


def check_ttl(ttl: float | None, bounds: LeaseBounds) -> float | None:
    """Raises Refused."""
    if ttl is not None and not bounds.min_ttl <= ttl <= bounds.max_ttl:
        detail = f"ttl: {ttl:g} is not within {bounds.min_ttl:g}-{bounds.max_ttl:g} seconds"
        raise Refused(Code.INVALID, detail, "or null for a registration that never becomes stale")
    return ttl
