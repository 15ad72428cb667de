"""What control shows of itself: answers to calls, and read-only pictures for the status page, the metrics and the CLI."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pylb.control.checker import Checker
from pylb.core.address import Address, Listen
from pylb.core.claims import Claims
from pylb.core.health import UNRECORDED, UP, Health, Record
from pylb.core.layout import Layout
from pylb.core.lease import Lease
from pylb.core.policy import AdminState, ProxyProtocol
from pylb.core.registration import Registration, Wanted
from pylb.core.table import DOWN, Server, Table


@dataclass(frozen=True, slots=True)
class FrontendOutcome:
    port: int
    address: str
    target_port: int
    reachable: str  # yes, refused, timeout; unknown if it was never dialled
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to a call that was not refused: it is in force."""

    result: str  # created, unchanged, moved, updated, superseded, released
    generation: int
    durable: bool
    ttl: float | None = None
    expires_in: float | None = None  # seconds; None: never
    frontends: tuple[FrontendOutcome, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class RegistrationView:
    token: str
    name: str
    instance: str
    state: str  # fresh, stale, draining
    address: str
    frontends: tuple[Wanted, ...]
    ttl: float | None  # seconds; a legacy one's is learned
    expires_in: float | None  # seconds, negative once it is over; None: it has no end
    expires_at_wall: float | None  # unix time
    last_seen_ago: float | None  # seconds; None: not since pylb started
    legacy: bool
    seen_at: float | None = None  # on the registry's clock, as the next: they stand still from one beat to the next
    ends_at: float | None = None


@dataclass(frozen=True, slots=True)
class LegacyUse:
    """What a token did on the legacy route since the start."""

    calls: int
    last_at: float  # unix time
    last_ip: str
    last_name: str


@dataclass(frozen=True, slots=True)
class ServerView:
    frontend: str
    listen: Listen
    server: str
    address: Address
    weight: int
    send_proxy: ProxyProtocol
    rank: int
    state: Literal["up", "down", "unproven", "drain", "maint"]
    tried: bool  # false: nobody knows yet whether it is up
    reachable: str
    hint: str
    reason: str  # of its last failure in a row
    held_by: tuple[str, ...]  # "static", "token/name/instance"
    initial_weight: int = 1  # as configured or registered, whatever the operator says of it now
    backup: bool = False
    health: Health = UP
    record: Record = UNRECORDED  # of its checks


class Held(NamedTuple):
    """Who holds a server, and what the first of them says of it; None: only what it was displaced by."""

    by: tuple[str, ...]
    weight: int | None
    backup: bool


def registration_view(one: Registration, lease: Lease | None, now: float, wall: float) -> RegistrationView:
    ends = lease is not None and lease.ttl is not None
    left = lease.expires - now if lease is not None and ends else None
    return RegistrationView(
        one.key.token,
        one.name,
        one.key.instance,
        str(one.state),
        one.ip,
        one.wanted,
        lease.ttl if lease else one.ttl,
        left,
        None if left is None else wall + left,
        None if lease is None or lease.last_beat < 0 else now - lease.last_beat,
        one.key.is_legacy,
        None if lease is None or lease.last_beat < 0 else lease.last_beat,
        lease.expires if lease is not None and ends else None,
    )


def server_views(table: Table, claims: Claims, layout: Layout, checker: Checker) -> Iterator[ServerView]:
    """In the order of the ports. Each is made when it is asked for: 6 µs."""
    for listen, frontend in sorted(table.frontends.items(), key=lambda item: (item[0].port, item[0].ip)):
        for server in frontend.servers:
            yield _server_view(frontend.name, listen, server, _holders(claims, layout, listen, server.address), checker)


def _server_view(name: str, listen: Listen, server: Server, held: Held, checker: Checker) -> ServerView:
    proof, health = checker.proof(server.address), checker.health(listen, server.address)
    known = proof is not None and proof.found != "unknown"
    proven = server.address in checker.sight.proven
    return ServerView(
        name,
        listen,
        server.name,
        server.address,
        server.weight,
        server.send_proxy,
        server.rank,
        _state(server, proven=proven),
        known or health is not None,
        proof.reachable if proof else "unknown",
        proof.hint if proof else "",
        health.reason if health else "",
        held.by,
        server.weight if held.weight is None else held.weight,
        held.backup,
        health or UP,
        checker.record(listen, server.address),
    )


def _state(server: Server, *, proven: bool) -> Literal["up", "down", "unproven", "drain", "maint"]:
    if server.admin is AdminState.DRAIN:
        return "drain"
    if server.admin is AdminState.MAINT:
        return "maint"
    if server.rank == DOWN:
        return "down"
    return "up" if proven else "unproven"


def _holders(claims: Claims, layout: Layout, listen: Listen, address: Address) -> Held:
    static = layout.statics.get(listen)
    held: list[str] = []
    said: list[tuple[int, bool]] = []
    for line in static.servers if static else ():
        if line.address == address:
            held[:] = ["static"]
            said.append((line.weight, line.backup))
    for key in claims.holders.get(listen, ()):
        one = claims.registrations[key]
        wanted = one.wanted[one.places.index(listen)]
        if one.address(wanted) == address:
            held.append(title(one))
            said.append((wanted.weight, wanted.backup))
        elif any(old.address == address and old.listen == listen for old in one.displaced):
            held.append(f"{title(one)} (until its new address has answered)")
    weight, backup = said[0] if said else (None, False)
    return Held(tuple(held), weight, backup)


def title(one: Registration) -> str:
    """`token/name/instance`, or `token/name (legacy)`."""
    return f"{one.key.token}/{one.name}" + (" (legacy)" if one.key.is_legacy else f"/{one.key.instance}")
