"""What the operator decided: policies of frontends, static frontends, tokens, bounds. Parsed once from the config."""

from dataclasses import dataclass, field, replace
from enum import StrEnum

from pylb.core.access import AccessList, Networks
from pylb.core.address import TCP, UDP, Address, HostPort, Listen


class Balance(StrEnum):
    LEASTCONN = "leastconn"
    ROUNDROBIN = "roundrobin"
    RANDOM = "random"
    SOURCE = "source"
    FIRST = "first"


class ProxyProtocol(StrEnum):
    """Which PROXY header a server is sent before the client's bytes (haproxy.org, proxy-protocol.txt)."""

    NONE = "none"
    V1 = "v1"
    V2 = "v2"


class HealthMode(StrEnum):
    PASSIVE = "passive"  # only servers that are out are probed
    ACTIVE = "active"  # all are
    NONE = "none"


class WhenAllDown(StrEnum):
    """What happens to clients when every server is down."""

    TRY = "try"  # servers that are down are tried
    REFUSE = "refuse"  # a server that has not passed its check is never used, not even as the last resort


class Backups(StrEnum):
    """Which backups serve while no other server is usable."""

    FIRST = "first"  # in their order: the first that is usable and has room
    ALL = "all"


class Family(StrEnum):
    """Which addresses of a host name are servers."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"
    ANY = "any"


class AdminState(StrEnum):
    """What the operator set for a server (`pylb ctl`)."""

    READY = "ready"
    DRAIN = "drain"  # no new sessions; live ones until timeouts.drain
    MAINT = "maint"  # no new sessions, no probes; live ones are not touched


class OnDown(StrEnum):
    """What happens to the live sessions of a server that is found down."""

    KEEP = "keep"
    CLOSE = "close"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds."""

    hello: float = 5.0  # for a TLS client's first message, where a port has routes
    connect: float = 5.0
    queue: float = 5.0
    idle: float = 3600.0
    udp_idle: float = 120.0  # of a flow; either direction counts
    half_close: float = 60.0
    flush: float = 30.0
    drain: float = 600.0
    shutdown: float = 5.0
    upgrade: float = 43200.0


class CheckKind(StrEnum):
    TCP = "tcp"  # a connect
    SEND = "send"  # bytes, and bytes that the answer must contain, once or several times
    HTTP = "http"  # a request, and the status that the answer must have


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a conversation: what is sent, and what must come back before the next step."""

    send: bytes = b""
    expect: bytes = b""  # b"": any answer, or none


@dataclass(frozen=True, slots=True)
class Check:
    """What a health check asks a server."""

    kind: CheckKind = CheckKind.TCP
    steps: tuple[Step, ...] = ()  # for SEND: at least one
    path: str = "/"
    method: str = "GET"
    host: str = ""  # for the Host header; "": the server's address
    status: tuple[int, int] = (200, 399)
    port: int = 0  # 0: the port of the traffic

    def protocol(self, of_traffic: str) -> str:
        """The protocol that it is asked over: texts go like the traffic, HTTP and a connect to a port of its own over TCP.

        A mere connect means for UDP that nobody refuses an empty datagram.
        """
        return of_traffic if self.kind is CheckKind.SEND or self == CONNECT else TCP

    @property
    def suits_udp(self) -> bool:
        """Does it say something of a UDP server? A connect or an HTTP request does on a TCP port of its own."""
        return self.kind is CheckKind.SEND or self.port != 0


CONNECT = Check()


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """Health settings of a frontend, or of one server where they differ."""

    wanted: HealthMode | None = None  # None: what the check requires, see `mode`
    check: Check = CONNECT
    timeout: float = 1.0  # seconds, for a whole check
    interval: float = 2.0  # seconds
    max_interval: float = 0.0  # seconds between probes of a server that says nothing at all; 0: the same as `interval`
    rise: int = 2
    fall: int = 3
    when_all_down: WhenAllDown = WhenAllDown.TRY

    @property
    def mode(self) -> HealthMode:
        """A check that is more than a connect is run on every server: clients' connects do not answer it."""
        if self.wanted is not None:
            return self.wanted
        return HealthMode.PASSIVE if self.check == CONNECT else HealthMode.ACTIVE

    @property
    def refuses(self) -> bool:
        """Is a server that has not passed its check never used? Without checks none could ever pass."""
        return self.when_all_down is WhenAllDown.REFUSE and self.mode is not HealthMode.NONE


@dataclass(frozen=True, slots=True)
class HealthOverride:
    """What one server specifies for its own health; None: as its frontend specifies."""

    check: Check | None = None
    port: int = 0  # of the check; 0: the check's own
    interval: float | None = None
    rise: int | None = None
    fall: int | None = None
    when_all_down: WhenAllDown | None = None

    def over(self, base: HealthPolicy) -> HealthPolicy | None:
        """`base` with these settings on top; None: there are none."""
        if self is UNSAID or self == UNSAID:
            return None
        check = base.check if self.check is None else self.check
        said = {key: getattr(self, key) for key in ("interval", "rise", "fall", "when_all_down")}
        return replace(
            base,
            check=replace(check, port=self.port) if self.port else check,
            **{key: value for key, value in said.items() if value is not None},
        )


UNSAID = HealthOverride()


@dataclass(frozen=True, slots=True)
class CallLimits:
    """What a webhook listener accepts. A flood by one caller must not cost another caller's heartbeat."""

    connections: int = 256
    per_address: int = 32
    burst: int = 100  # calls of one token from one address, at once
    rate: int = 20  # and per second
    lockout: int = 20  # calls without a valid token, per minute and address


@dataclass(frozen=True, slots=True)
class SourceLimits:
    """0: no limit (of `source_share` 100). A source is an IPv4 address, or an IPv6 network of `ipv6_prefix` bits."""

    rate: int = 0  # new connections per second of a frontend; more wait in its backlog
    per_source: int = 0  # connections at once
    per_source_rate: int = 0  # new connections per second, and as many at once
    ipv6_prefix: int = 64
    source_share: int = 100  # percent of all connections that one client may have once three quarters of them are in use

    @property
    def by_source(self) -> bool:
        return bool(self.per_source or self.per_source_rate)


EVERYBODY = AccessList()
NOBODY = Networks()


@dataclass(frozen=True, slots=True)
class ProxyAccept:
    """Which peers must send PROXY headers, and within how many seconds."""

    networks: Networks = NOBODY
    timeout: float = 5.0


@dataclass(frozen=True, slots=True)
class Policy:
    """How a frontend treats its sessions; `defaults:` of the config, with a static frontend's own settings on top."""

    balance: Balance = Balance.LEASTCONN
    timeouts: Timeouts = Timeouts()
    bind: str = "*"  # where registered ports listen: "*" or an IP
    freebind: bool = False  # listen also on an address that this machine does not have yet (VRRP)
    retries: int = 3  # other servers tried after the first
    max_connections: int = 0  # 0: only the process's own limit
    max_queue: int = 0  # clients that may wait while all servers are full; 0: as many as there are connections
    backups: Backups = Backups.FIRST
    slow_start: float = 0.0  # seconds until a server that joins an open frontend has its whole weight
    health: HealthPolicy = HealthPolicy()
    on_down: OnDown = OnDown.KEEP
    send_proxy: ProxyProtocol = ProxyProtocol.NONE
    send_proxy_each: bool = False  # in front of each datagram, not only the first of a flow
    send_crc32c: bool = False  # in v2 headers
    send_unique_id: bool = False
    pass_tlvs: bool = False  # pass the TLVs of incoming v2 headers on in those that are sent
    accept_proxy: ProxyAccept = ProxyAccept()
    access: AccessList = EVERYBODY
    limits: SourceLimits = SourceLimits()
    requests: int = 0  # datagrams of a client that make one flow; 0: any number
    responses: int | None = None  # answers to each of them, after which a flow ends; None: it ends when it is idle
    source_addresses: tuple[str, ...] = ()  # IPs that servers are dialled from; (): the kernel chooses

    def inherited_by(self, protocol: str) -> "Policy":
        """These defaults for a frontend of `protocol`: UDP has no use for some of them."""
        if protocol != UDP:
            return self
        health = self.health if self.health.check.suits_udp else replace(self.health, check=CONNECT)
        send = self.send_proxy if self.send_proxy is ProxyProtocol.V2 else ProxyProtocol.NONE
        return replace(self, health=health, send_proxy=send, accept_proxy=ProxyAccept(), max_queue=0)


@dataclass(frozen=True, slots=True)
class StaticServer:
    """A server from the config."""

    address: Address | HostPort  # in StaticRules: always an Address
    weight: int = 1
    backup: bool = False
    max_connections: int = 0  # 0: no limit
    name: str = ""  # its label; "": its address
    health: HealthOverride = UNSAID
    resolve: Family = Family.ANY  # of a host name
    of_host: str = ""  # in StaticRules: the host name and port that its address was resolved from


class JoinRule(StrEnum):
    """Which registrations may join a static frontend: `registrations` of the config."""

    NAME = "name"  # those with its name
    LEGACY = "legacy"  # these, and legacy calls whatever their name is
    ANY = "any"


@dataclass(frozen=True, slots=True)
class StaticFrontend:
    name: str
    listen: Listen
    servers: tuple[StaticServer, ...] = ()
    policy: Policy = Policy()
    joining: JoinRule = JoinRule.NAME
    allows_names: bool = False  # its clients may have to wait for their hello: it has routes, or registrations may add some


@dataclass(frozen=True, slots=True)
class LeaseBounds:
    """Seconds."""

    min_ttl: float = 10.0
    max_ttl: float = 86400.0
    keep_stale: float = 7 * 86400.0  # inf: for ever
    yield_after: float = 900.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds on all registrations together: one stolen token must not slow down everybody's calls and scrapes."""

    servers_per_frontend: int = 512
    ports_per_token: int = 4000  # over all its registrations; each counts for itself


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything that control needs from the config. A reload replaces it as a whole."""

    frontends: tuple[StaticFrontend, ...] = ()
    defaults: Policy = Policy()
    leases: LeaseBounds = LeaseBounds()
    bounds: Bounds = Bounds()
    reserved_ports: frozenset[int] = frozenset()  # pylb's own (webhook, admin, metrics): never a frontend of a registration
    own_ips: frozenset[str] = field(default_factory=frozenset)  # this machine's and `advertise`d addresses, for loops
    resolve_interval: float = 30.0  # seconds between two look-ups of a server's host name

    @property
    def hosts(self) -> frozenset[str]:
        """Host names of servers."""
        servers = (server.address for frontend in self.frontends for server in frontend.servers)
        return frozenset(address.host for address in servers if isinstance(address, HostPort))
