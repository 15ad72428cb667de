"""The keys of pylb.yaml: names, types, defaults and meanings. The reference in docs/ is generated from here.

Every key has an effect; a key that belongs to another section is refused with the reason in `reserved`. The defaults of
policies are those of `pylb.core.policy`.
"""

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from pylb.config import addresses as a
from pylb.config import values as v
from pylb.config.problems import wrong
from pylb.config.section import Section
from pylb.config.value_type import OneOrMore, one_or_more, show
from pylb.core import policy as core
from pylb.core.access import AccessList, Networks
from pylb.core.address import Listen, PortsOf
from pylb.core.auth import ANYWHERE, NODE_PORTS
from pylb.core.log import Format, Selection, Target

_TIMEOUTS, _HEALTH, _LEASES = core.Timeouts(), core.HealthPolicy(), core.LeaseBounds()
_BOUNDS = core.Bounds()
_ACCEPT, _LIMITS, _CALLS = core.ProxyAccept(), core.SourceLimits(), core.CallLimits()


class Tls(Section):
    """`self-signed`, or the certificate and key to use."""

    short: ClassVar[dict[str, Any] | None] = {"const": "self-signed"}
    self_signed: bool = Field(False, exclude=True)  # set by the short form, never a key
    certificate: v.FilePath | None = Field(None, description="PEM file: the certificate and its chain")
    key: v.FilePath | None = Field(None, description="PEM file: its private key")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, data: Any) -> Any:
        if data == "self-signed":
            return {"self_signed": True}
        if isinstance(data, dict) and "self_signed" not in data and {"certificate", "key"} <= data.keys():
            return data
        raise wrong(f"{show(data)} is not a TLS setting", "self-signed, or {certificate: FILE, key: FILE}")


class WebhookLimits(Section):
    connections: v.AtLeastOne = Field(
        _CALLS.connections,
        description="open at once; beyond that, the address with the most loses one that waits for a request",
    )
    per_address: v.AtLeastOne = Field(
        _CALLS.per_address,
        description="open at once from one IPv4 address or IPv6 /64; of more, those whose request is slow are closed",
    )
    burst: v.AtLeastOne = Field(
        _CALLS.burst,
        description="changes that a token may make at once from one address or /64; five times as many from all. "
        "Heartbeats that change nothing have their own limits: 1,000 at once, 200 a second",
    )
    rate: v.AtLeastOne = Field(_CALLS.rate, description="the same, per second in the long run; more get a 429 with Retry-After")
    lockout: v.AtLeastOne = Field(
        _CALLS.lockout,
        description="calls without a valid token per minute, from one address or /64; more get a 429. Valid calls are served",
    )

    def limits(self) -> core.CallLimits:
        return core.CallLimits(**{key: getattr(self, key) for key in WebhookLimits.model_fields})


class WebhookListener(Section):
    listen: a.ListenAt = Field(description="where phone-homes call")
    tls: Tls | None = Field(
        None, description="`self-signed`, or `{certificate: FILE, key: FILE}`; not needed on loopback or with `insecure`"
    )
    insecure: v.Flag = Field(
        False, description="allow plain HTTP beyond loopback, for old containers; others on the network can read the tokens"
    )
    legacy: v.LegacyFrom = Field(
        ANYWHERE, description="serve `POST /hooks/update-haproxy` too: `true`, `false`, or who may call it there"
    )
    limits: WebhookLimits = Field(default_factory=WebhookLimits)


class PeerEntry(Section):
    name: v.Name = Field(description="what the status page calls it")
    url: a.Url = Field(
        description="where pylb asks it for its health while somebody watches the page: its `metrics.listen`, which has a list "
        "of who may read there, or its `admin.listen`"
    )
    page: a.Url | None = Field(None, description="where your browser finds its status page; unset: at `url`")


class Admin(Section):
    listen: a.ListenAt = Field(
        Listen("tcp", "127.0.0.1", 8404),
        description="where the status page, `/metrics`, `/livez`, `/readyz`, `/activez` and `/v1/…` are served; read-only",
    )
    peers: Annotated[tuple[PeerEntry, ...], BeforeValidator(one_or_more), OneOrMore()] = Field(
        default_factory=tuple, description="other pylbs, at most 16: the status page links to them and shows their health"
    )


class Metrics(Section):
    listen: a.ListenAt | None = Field(
        None, description="a second listener with only `/metrics`, `/livez`, `/readyz`, `/activez`, `/v1/health`"
    )
    allow: a.Networks = Field((), description="who may read there; empty: nobody")
    compat: Literal["haproxy"] | None = Field(
        None, description="`haproxy`: also the names of HAProxy's exporter; unset: only with `/metrics?compat=haproxy`"
    )


class Log(Section):
    format: Format = Field(
        "tcplog", description="one line per session: HAProxy's tcplog, logfmt or JSON; `none`: only pylb's own messages"
    )
    target: v.LogTarget = Field(Target(), description="where session lines go; a file is opened again on SIGUSR1; see logs.md")
    sample: v.AtLeastOne = Field(1, description="100: a line for one in 100 sessions that ended normally, and for all others")
    dontlognull: v.Flag = Field(False, description="no line for a client that sent no byte, unless something else went wrong")
    facility: v.Facility = Field("local0", description="the facility of syslog messages")
    tag: v.Name = Field("pylb", description="the program's name in syslog messages; `haproxy` for rules made for HAProxy")
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="pylb's own messages: those of this level and above"
    )
    calls: Literal["all", "changes"] = Field(
        "changes", description="accepted calls of phone-homes: a line for each, or only for those that change something"
    )

    @property
    def selection(self) -> Selection:
        return Selection(self.sample, self.dontlognull)


class Recorder(Section):
    sessions: v.Recorded = Field(
        1000, description="ended sessions kept in memory for `pylb sessions --ended` and `pylb explain`; 0: none"
    )


class Leases(Section):
    min_ttl: v.LongerThanZero = Field(_LEASES.min_ttl, description="a shorter TTL is refused")
    max_ttl: v.LongerThanZero = Field(_LEASES.max_ttl, description="a longer one is refused")
    keep_stale: v.DurationOrNever = Field(
        _LEASES.keep_stale,
        description="how long a registration whose lease ended stays as the last resort; a port closes when its last "
        "registration is released. An alert fires after an hour, and another one a day before the end",
    )
    yield_after: v.LongerThanZero = Field(
        _LEASES.yield_after,
        description="another app may take a port if, for this long without a break, all its registrations were silent (or "
        "had said goodbye) and its servers accepted no connection",
    )


class Bounds(Section):
    servers_per_frontend: v.AtLeastOne = Field(
        _BOUNDS.servers_per_frontend,
        description="servers of one port, including static ones; a registration beyond that is refused (429)",
    )
    ports_per_token: v.AtLeastOne = Field(
        _BOUNDS.ports_per_token,
        description="ports of all registrations of one token together; a token may have 2,000 registrations",
    )

    def bounds(self) -> core.Bounds:
        return core.Bounds(self.servers_per_frontend, self.ports_per_token)


class TokenEntry(Section):
    name: v.Name = Field(description="the token's name; part of a registration's identity")
    secret: v.Secret | None = Field(
        None, repr=False, description="the token itself; `pylb check` warns, because a separate file is safer"
    )
    secret_file: v.FilePath | None = Field(
        None, description="file with the secret; several, one per line, while one replaces another; read again when it changes"
    )
    allow_weak: v.Flag = Field(
        False, description="accept fewer than 22 characters; such a token works on the legacy route only"
    )
    takeover: v.Flag = Field(False, description="may take ports that another token or name owns")
    names: v.Names | None = Field(None, description="names it may register; default: its own name; `*` for any")
    ports: a.PortRanges = Field(description='frontend ports it may open: `[443, "443/udp", "8883-8899"]`')
    server_names: a.ServerNameScopes = Field(
        (),
        description="server names for which it may register routes: `git.example.net`, `*.apps.example.net` (names with one "
        "more label), `**.example.net` (any number), `*` (any); default: none, only default routes",
    )
    targets: a.Networks = Field(
        (),
        description="addresses it may name as servers; default: only the one it calls from. A wide network like 0.0.0.0/0 does "
        "not include loopback or pylb's own addresses: name 127.0.0.0/8 (or a part of it), ::1, or that address itself",
    )
    target_ports: a.TargetRanges = Field(
        tuple(PortsOf(*one) for one in NODE_PORTS.ranges),
        description="server ports it may name, for traffic and for checks; default: NodePorts",
    )
    sources: a.Networks = Field(ANYWHERE, description="addresses from which it may be used")
    legacy: v.Flag = Field(True, description="whether it may be used on the legacy route")
    replaces: v.Names = Field(
        (),
        description="tokens whose registrations this one takes over, as far as its scope allows them: their ports go "
        "on serving, and calls with either secret count as this one's until the other token is removed. `generated`: the "
        "token that pylb made at its first run",
    )


class RouteTimeouts(Section):
    """What concerns the servers and their sessions."""

    connect: v.LongerThanZero = Field(
        _TIMEOUTS.connect, description="how long a connect to a server may take; then the next one is tried"
    )
    queue: v.LongerThanZero = Field(_TIMEOUTS.queue, description="how long a client waits for room while all servers are full")
    idle: v.ZeroIsNever = Field(_TIMEOUTS.idle, description="a session without a byte either way ends; `0`: never")
    half_close: v.Duration = Field(
        _TIMEOUTS.half_close, description="a session ends after this time without a byte, once one side has ended its stream"
    )
    flush: v.Duration = Field(_TIMEOUTS.flush, description="how long delivery of the bytes before a reset may stand still")
    drain: v.Duration = Field(_TIMEOUTS.drain, description="how long live sessions of a closed frontend may last")


class TimeoutsSection(RouteTimeouts):
    udp_idle: v.LongerThanZero = Field(
        _TIMEOUTS.udp_idle, description="UDP: a flow without a datagram either way ends; new ones at the latest after 30 s"
    )
    hello: v.LongerThanZero = Field(
        _TIMEOUTS.hello,
        description="on a port with routes: how long a client may take for its TLS ClientHello; one that says nothing by then "
        "gets the default route",
    )
    shutdown: v.Duration = Field(
        _TIMEOUTS.shutdown, description="how long live sessions last after SIGTERM; only in `defaults`"
    )
    upgrade: v.Duration = Field(
        _TIMEOUTS.upgrade,
        description="how long live sessions may last in a process that takes no new ones: after an upgrade, or when its main "
        "process died; only under `defaults`",
    )


class HealthSection(Section):
    mode: Literal["passive", "active", "none"] | None = Field(
        None,
        description="`passive`: only servers that are down are checked; `active`: all of them; `none`: no server is ever found "
        "down; unset: `active` where the check is more than a connect, else `passive`",
    )
    check: v.CheckSpec = Field(  # type: ignore[assignment]  # what the reference shows; only keys that are written count
        "tcp",
        description="what a server is asked: a connect, an HTTP request (GET) and its status (200-399), or text and what the "
        "answer contains, in one step or several",
    )
    timeout: v.LongerThanZero = Field(_HEALTH.timeout, description="how long a whole check may take")
    interval: v.ProbeInterval = Field(_HEALTH.interval, description="time between two checks of a server, up or down")
    max_interval: v.ProbeInterval | None = Field(
        None,
        description="for a server that is down and does not answer at all (a black hole) the interval doubles up to this; "
        "unset: it does not grow",
    )
    rise: v.SmallCount = Field(_HEALTH.rise, description="checks in a row that a server must pass to be up again")
    fall: v.SmallCount = Field(
        _HEALTH.fall, description="failed checks, or clients' failed connects, in a row after which a server is down"
    )
    when_all_down: Literal["try", "refuse"] = Field(
        _HEALTH.when_all_down.value,
        description="`try`: while all servers are down, they are tried all the same; `refuse`: a server serves only while it "
        "passes its check, and if none does, clients are reset",
    )

    def said(self) -> dict[str, Any]:
        """The fields of a HealthPolicy that are written in this section."""
        found = {key: getattr(self, key) for key in self.model_fields_set}
        if "mode" in found:
            mode = found.pop("mode")
            found["wanted"] = None if mode is None else core.HealthMode(mode)
        if "max_interval" in found:
            found["max_interval"] = found["max_interval"] or 0.0
        if "when_all_down" in found:
            found["when_all_down"] = core.WhenAllDown(self.when_all_down)
        return found


class ServerHealth(Section):
    check: v.CheckSpec | None = Field(None, description="what this server is asked, instead of the frontend's check")
    port: v.Port | None = Field(None, description="port that the check asks; default: the port in the check, else the server's")
    interval: v.ProbeInterval | None = Field(None, description="instead of the frontend's `interval`")
    rise: v.SmallCount | None = Field(None, description="instead of the frontend's `rise`")
    fall: v.SmallCount | None = Field(None, description="instead of the frontend's `fall`")

    def own(self) -> core.HealthOverride:
        return core.HealthOverride(self.check, self.port or 0, self.interval, self.rise, self.fall)


class ProxyProtocolSection(Section):
    send: Literal["none", "v1", "v2"] = Field("none", description="the PROXY header that servers get; UDP: `v2` or none")
    each: v.Flag = Field(False, description="UDP: the header is in front of each datagram, not only of a flow's first one")
    crc32c: v.Flag = Field(False, description="v2: send a checksum too")
    unique_id: v.Flag = Field(
        False, description="v2: send an ID of the session, which the JSON log has too; an ID that came in is passed on"
    )
    pass_tlvs: v.Flag = Field(
        False,
        description="v2: send on what came in a v2 header beside the addresses (a cloud's endpoint id, TLS, ALPN), 3 KiB at "
        "most; checksums are computed again",
    )
    accept_from: a.Networks = Field(
        (), description="proxies that must send a PROXY header; the client it names counts in log, limits and balance"
    )
    accept_timeout: v.LongerThanZero = Field(_ACCEPT.timeout, description="how long pylb waits for that header")


SOURCE_SHARE = 50  # without a setting; an engine without a config has no such limit


class LimitsSection(Section):
    rate: v.Rate = Field(0, description="new connections of the frontend per second; more wait in its backlog; 0: no limit")
    per_source: v.Connections = Field(0, description="connections of one client at once; 0: no limit")
    per_source_rate: v.Rate = Field(0, description="new connections of one client, and as many in one burst; 0: no limit")
    ipv6_prefix: v.Prefix = Field(
        _LIMITS.ipv6_prefix, description="IPv6 addresses that have this many first bits in common count as one client"
    )
    source_share: v.Percent = Field(
        SOURCE_SHARE,
        description="percent of the process's connections that one client may have once three quarters are in use; 100: "
        "no limit",
    )


class PolicySection(Section):
    """What `defaults` and a frontend have in common."""

    balance: v.BalanceName = Field(core.Balance.LEASTCONN, description="how a server is chosen")
    timeouts: TimeoutsSection = Field(default_factory=TimeoutsSection)
    retries: v.Retries = Field(3, description="how many other servers are tried when one does not answer")
    max_connections: v.Connections = Field(
        0, description="sessions at once; 0: only the process's own limit, from its open files"
    )
    max_queue: v.Connections = Field(0, description="clients that may wait while all servers are full; 0: no limit")
    backups: Literal["first", "all"] = Field(
        "first",
        description="while no other server is usable: `first`: the first backup in the order of the file; `all`: all of them",
    )
    slow_start: v.Duration = Field(
        0.0, description="a server that is back, or new in an open frontend, gets its whole share only after this time"
    )
    freebind: v.Flag = Field(False, description="listen also on an address that this machine does not have yet (VRRP)")
    on_down: Literal["keep", "close"] = Field(
        "keep", description="what happens to live sessions of a server that is found down: `close` resets them (code DD)"
    )
    access: v.AccessEntries = Field(
        (),
        description="who may connect: of the entries that match a client, the one with the longest prefix decides; if none "
        "matches, the client is refused if there is any `allow`",
    )
    source_addresses: a.Ips = Field((), description="addresses of this machine from which servers are dialled, in turn")
    requests: v.Connections = Field(
        0, description="UDP: after so many datagrams of a client the next one begins a new flow; 0: none does"
    )
    responses: v.Connections | None = Field(
        None,
        description="UDP: a flow ends after so many answers to each of its client's datagrams (DNS: 1); unset: when it is idle",
    )
    limits: LimitsSection = Field(default_factory=LimitsSection)
    health: HealthSection = Field(default_factory=HealthSection)
    proxy_protocol: ProxyProtocolSection = Field(default_factory=ProxyProtocolSection)

    def policy(self, base: core.Policy) -> core.Policy:
        """`base` with the keys that are written in this section on top."""
        written = self.model_fields_set
        plain = {key: getattr(self, key) for key in _PLAIN if key in written}
        timeouts = {key: getattr(self.timeouts, key) for key in self.timeouts.model_fields_set}
        limits = {key: getattr(self.limits, key) for key in self.limits.model_fields_set}
        if "on_down" in written:
            plain["on_down"] = core.OnDown(self.on_down)
        if "backups" in written:
            plain["backups"] = core.Backups(self.backups)
        if "access" in written:
            plain["access"] = AccessList(self.access)
        return replace(
            base,
            **plain,
            **self._proxy(base),
            timeouts=replace(base.timeouts, **timeouts),
            health=replace(base.health, **self.health.said()),
            limits=replace(base.limits, **limits),
        )

    def _proxy(self, base: core.Policy) -> dict[str, Any]:
        section = self.proxy_protocol
        accept: dict[str, Any] = {}
        written = section.model_fields_set
        if "accept_from" in written:
            accept["networks"] = Networks(section.accept_from)
        if "accept_timeout" in written:
            accept["timeout"] = section.accept_timeout
        changed: dict[str, Any] = {"accept_proxy": replace(base.accept_proxy, **accept)}
        if "send" in written:
            changed["send_proxy"] = core.ProxyProtocol(section.send)
        if "crc32c" in written:
            changed["send_crc32c"] = section.crc32c
        if "each" in written:
            changed["send_proxy_each"] = section.each
        if "unique_id" in written:
            changed["send_unique_id"] = section.unique_id
        if "pass_tlvs" in written:
            changed["pass_tlvs"] = section.pass_tlvs
        return changed


_PLAIN = (
    "balance",
    "retries",
    "max_connections",
    "max_queue",
    "freebind",
    "source_addresses",
    "slow_start",
    "requests",
    "responses",
)


class Defaults(PolicySection):
    bind: a.Bind = Field("*", description="where ports opened by registrations listen")
    resolve_interval: v.ResolveInterval = Field(
        30.0, description="time between two look-ups of a host name; the last good answer stays valid"
    )

    def policy(self, base: core.Policy) -> core.Policy:
        return replace(super().policy(base), bind=self.bind)
