"""What control shows of itself: answers to calls, and read-only views for the status page, the metrics and the CLI."""

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pylb.control.health.records import HealthRecords
from pylb.core.address import TCP, Address, Listen
from pylb.core.claims import Claims
from pylb.core.health import REMEMBERED, UNRECORDED, UP, WRONG, YES, Health, HealthStats
from pylb.core.lease import Lease
from pylb.core.policy import AdminState, HealthPolicy, ProxyProtocol
from pylb.core.registration import FrontendRequest, Key, Registration, State, legacy_key
from pylb.core.server_set import Member
from pylb.core.static_rules import StaticRules
from pylb.core.table import DOWN, Frontend, Server, Table


@dataclass(frozen=True, slots=True)
class FrontendOutcome:
    port: int
    address: str
    target_port: int
    reachable: str  # yes, refused, timeout; unknown if it was never dialled
    hint: str = ""
    protocol: str = TCP
    last: int = 0  # of a range
    server_name: str = ""  # of a route
    # Of a set, in place of address and reachable: how many there are, and how many answer (None: nobody asks a range)
    servers: tuple[int, int | None] | None = None


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


class RecordedSince(NamedTuple):
    """Unix times: everything later than each is in its list."""

    events: float
    rejected: float
    history: float | None  # None: nothing has changed yet


@dataclass(frozen=True, slots=True)
class RegistrationView:
    token: str
    name: str
    instance: str
    state: str  # fresh, stale, draining
    address: str
    frontends: tuple[FrontendRequest, ...]
    ttl: float | None  # seconds; a legacy one's is learned
    expires_in: float | None  # seconds, negative once it is over; None: it has no end
    expires_at_wall: float | None  # unix time
    last_seen_ago: float | None  # seconds; None: not since pylb started
    legacy: bool
    seen_at: float | None = None  # on the registry's clock, like the next: they stand still between heartbeats
    ends_at: float | None = None
    goodbye: bool = False  # its last call said goodbye
    members: tuple[Member, ...] = ()  # of a set, in place of address and instance
    sequence: int | None = None

    @property
    def key(self) -> Key:
        return legacy_key(self.token, self.frontends[0].port) if self.legacy else Key(self.token, self.name, self.instance)


@dataclass(frozen=True, slots=True)
class LegacyUse:
    """The use of the legacy route by a token since the start."""

    calls: int
    last_at: float  # unix time
    last_ip: str
    last_name: str


class Holder(NamedTuple):
    """What a server belongs to: a registration, or a line of the config."""

    key: Key | None  # None: a line of the config
    name: str = ""  # the registration's own name: that of a legacy one is not in its key
    displaced: bool = False  # only until the registration's new address has answered

    @property
    def note(self) -> str:
        return "until its new address has answered" if self.displaced else ""

    def __str__(self) -> str:
        """`static`, or the registration's title and its note."""
        if self.key is None:
            return "static"
        return title_of(self.key, self.name) + (f" ({self.note})" if self.displaced else "")


STATIC = Holder(None)
ASKED_BY_DEFAULT = HealthPolicy()


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
    tried: bool  # false: not known yet whether it is up
    reachable: str
    hint: str
    reason: str  # of its last failure in a row
    held_by: tuple[Holder, ...]
    initial_weight: int = 1  # as configured or registered, without the operator's override
    backup: bool = False
    health: Health = UP
    record: HealthStats = UNRECORDED  # of its checks
    asked_at: float | None = None  # time of `reachable`, on the registry's clock; None: before this pylb started
    policy: HealthPolicy = ASKED_BY_DEFAULT  # its own health policy, or its frontend's
    not_missed: bool = False  # its registrations have all said goodbye, or other addresses of its host name answer

    @property
    def accepts(self) -> str:
        """Whether it accepts connections: the result of the last connect, "yes" or a failure; "unknown": there was none. A
        check at another port says nothing of that."""
        if self.policy.check.port:
            return self.reachable
        if self._last == YES or self._last.startswith(WRONG):  # an answer, also a wrong one, came over a connection
            return YES
        return self._last or self.reachable

    @property
    def passes(self) -> str:
        """Whether it passes its check: "yes" or the failure; "unknown": it was not checked since its last failure, or never."""
        return self._last or "unknown"

    @property
    def silent(self) -> bool:
        """It has been asked, and has never accepted a connection so far."""
        return self.state == "unproven" and self.reachable in ("refused", "timeout")

    @property
    def is_up(self) -> bool:
        """It is in service, and accepted its last connection or was never asked."""
        return self.state in ("up", "unproven") and not self.silent

    @property
    def _last(self) -> str:
        """The result of the last check, or of a later connect of a client; "": there was neither."""
        return self.health.reason if self.health.failures and self.health.reason != REMEMBERED else self.record.found


class FrontendView(NamedTuple):
    """A frontend of the table and its servers, as of now: what the pages, `pylb status` and HAProxy's rows are made of."""

    frontend: Frontend
    servers: Sequence[ServerView]
    unbound: str | None = None  # why its port is not open
    closes: float | None = None  # unix time, if none of its registrations calls any more
    unresolved: tuple[str, ...] = ()  # host names of its servers that have no address yet
    routes: int = 0  # by server name, on its port; then having no servers only means that there is no default route

    @property
    def has_no_default_route(self) -> bool:
        return self.routes > 0 and not (self.servers or self.unresolved)

    @property
    def name(self) -> str:
        return self.frontend.name

    @property
    def listen(self) -> Listen:
        return self.frontend.listen


class ServerHolders(NamedTuple):
    """The holders of a server, and the settings of the first one; None: only a displaced registration holds it."""

    by: tuple[Holder, ...]
    weight: int | None
    backup: bool
    not_missed: bool


def registration_view(
    one: Registration, lease: Lease | None, now: float, wall: float, *, said_goodbye: bool = False
) -> RegistrationView:
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
        one.state is State.DRAINING or said_goodbye,
        one.members,
        one.sequence,
    )


def server_views(
    table: Table, claims: Claims, static_rules: StaticRules, health_records: HealthRecords, said_goodbye: Callable[[Key], bool]
) -> Iterator[ServerView]:
    """In the order of the ports. Each is made when it is asked for: 6 µs, and a frontend's holders are looked at once."""
    for frontend in by_port(table):
        holders = _holders(claims, static_rules, frontend.listen, said_goodbye, health_records.proven)
        for server in frontend.servers:
            yield _server_view(frontend, server, holders.get(server.address, _DISPLACED), health_records)


def frontend_views(
    table: Table,
    servers: Iterator[ServerView],
    unbound: Mapping[Listen, str],
    closes_at: Callable[[Listen], float | None],
    unresolved: Mapping[Listen, tuple[str, ...]],
) -> Iterator[FrontendView]:
    """The views of all frontends, in the order of their ports, as are `servers`.

    They are made one by one, so that a caller need not hold all of them and free them at once. `closes_at`: when a
    frontend closes for which no registration calls any more.
    """
    routes = routes_of_ports(table)
    for one in by_port(table):
        views, listen = [next(servers) for _ in one.servers], one.listen
        closes, names = closes_at(listen), unresolved.get(listen, ())
        yield FrontendView(one, views, unbound.get(listen), closes, names, routes[listen])


def routes_of_ports(table: Table) -> Counter[Listen]:
    """How many routes by server name each port has."""
    listens = (listen for bucket in table.frontends.buckets for listen in bucket)  # in any order: sorting takes longer
    return Counter(listen.default for listen in listens if listen.server_name)


def by_port(table: Table) -> list[Frontend]:
    return sorted(table.frontends.values(), key=_place)


def _place(one: Frontend) -> tuple[int, str, str, str]:
    """A port comes right before its routes."""
    return one.listen.port, one.listen.protocol, one.listen.ip, one.listen.server_name


def _server_view(frontend: Frontend, server: Server, holders: ServerHolders, health_records: HealthRecords) -> ServerView:
    name, listen = frontend.name, frontend.listen
    proof, health = health_records.proof(server.address), health_records.health(listen, server.address)
    known = proof is not None and proof.found != "unknown"
    proven = server.address.last != 0 or server.address in health_records.proven  # a range is never asked for its proof
    reachable, hint, asked_at = health_records.reachable(server.address)
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
        reachable,
        hint,
        health.reason if health else "",
        holders.by,
        server.weight if holders.weight is None else holders.weight,
        holders.backup,
        health or UP,
        health_records.checks(listen, server.address),
        asked_at,
        frontend.health(server),
        holders.not_missed,
    )


def _state(server: Server, *, proven: bool) -> Literal["up", "down", "unproven", "drain", "maint"]:
    if server.admin is AdminState.DRAIN:
        return "drain"
    if server.admin is AdminState.MAINT:
        return "maint"
    if server.rank == DOWN:
        return "down"
    return "up" if proven else "unproven"


def _holders(
    claims: Claims, static_rules: StaticRules, listen: Listen, said_goodbye: Callable[[Key], bool], proven: Container[Address]
) -> dict[Address, ServerHolders]:
    """The holders of each of its servers."""
    found: dict[Address, list[Holder]] = {}
    stay: set[Address] = set()  # of somebody who has not said goodbye
    said: dict[Address, tuple[int, bool]] = {}  # by the first of them
    static = static_rules.frontends.get(listen)
    lines = static.servers if static else ()
    # Host names of which an address has answered: another that never did (an AAAA record that nobody serves) was not lost.
    answering = {line.of_host for line in lines if line.of_host and line.address in proven}
    for line in lines:
        if isinstance(line.address, Address):  # those of StaticRules always are
            found[line.address] = [STATIC]
            if line.address in proven or line.of_host not in answering:
                stay.add(line.address)
            said.setdefault(line.address, (line.weight, line.backup))
    for key in claims.holders.get(listen, ()):
        one = claims.registrations[key]
        wanted = one.wanted[one.places.index(listen)]
        addresses, holder = one.addresses(wanted), Holder(key, one.name)
        for _, ip, weight in one.machines:
            found.setdefault(address := wanted.at(ip), []).append(holder)
            if one.state is not State.DRAINING and not said_goodbye(key):
                stay.add(address)
            said.setdefault(address, (weight or wanted.weight, wanted.backup))
        for old in {old.address: old for old in one.displaced if old.listen == listen}.values():
            if old.address not in addresses:
                found.setdefault(old.address, []).append(holder._replace(displaced=True))
                stay.add(old.address)
    nothing: tuple[int | None, bool] = (None, False)
    return {at: ServerHolders(tuple(by), *said.get(at, nothing), at not in stay) for at, by in found.items()}


_DISPLACED = ServerHolders((), None, backup=False, not_missed=False)


def title(one: Registration) -> str:
    return title_of(one.key, one.name)


def title_of(key: Key, name: str) -> str:
    """`token/name/instance`, `token/name` of a set, or `token/name (legacy)`."""
    return f"{key.token}/{name}" + (" (legacy)" if key.is_legacy else f"/{key.instance}" if key.instance else "")
