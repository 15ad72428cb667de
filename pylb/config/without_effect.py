"""Settings without effect, because another one is missing: each is an error that names the other one.

A line that repeats the default is not a mistake: people write down whole sections.
"""

from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, NamedTuple

from pylb.config import models as m
from pylb.config.entries import Finding, Parts, ReadablePart
from pylb.config.frontends import FrontendEntry
from pylb.config.section import Section
from pylb.core.address import ANY, TCP, UDP, Address, HostPort, Listen
from pylb.core.announcement import CONNECT_TO_UDP, UDP_CHECKS
from pylb.core.policy import CONNECT, UNSAID, Balance, HealthMode, Policy, ProxyProtocol, StaticFrontend


class _Need(NamedTuple):
    """What a frontend's key needs to have an effect."""

    key: str
    met: Callable[[StaticFrontend], bool]
    why: str
    hint: str


def _sends_v2(frontend: StaticFrontend) -> bool:
    """Always possible with registrations: each says what its own server is sent."""
    return frontend.policy.send_proxy is ProxyProtocol.V2 or not frontend.servers


def _accepts_proxy(frontend: StaticFrontend) -> bool:
    return bool(frontend.policy.accept_proxy.networks)


def _has_limited_servers(frontend: StaticFrontend) -> bool:
    return any(server.max_connections for server in frontend.servers)


def _asks(frontend: StaticFrontend) -> bool:
    return frontend.policy.health.mode is not HealthMode.NONE


_NO_V2 = ("servers are not sent a PROXY header of version 2", "send: v2")
_NO_PROXIES = ("no proxy is named from which a header is accepted", 'accept_from: ["192.0.2.0/24"]')
_NO_FULL = ("no server has max_connections, so none is ever full", "{address: …, max_connections: 100} at a server")
_NO_CHECKS = ("the mode is none, so there are no checks", "mode: active or passive, or leave both out")

_NEEDS = (
    _Need("proxy_protocol.crc32c", _sends_v2, *_NO_V2),
    _Need("proxy_protocol.unique_id", _sends_v2, *_NO_V2),
    _Need("proxy_protocol.pass_tlvs", _accepts_proxy, *_NO_PROXIES),
    _Need("proxy_protocol.pass_tlvs", _sends_v2, *_NO_V2),
    _Need("proxy_protocol.accept_timeout", _accepts_proxy, *_NO_PROXIES),
    _Need("max_queue", _has_limited_servers, *_NO_FULL),
    _Need("timeouts.queue", _has_limited_servers, *_NO_FULL),
    _Need(
        "limits.ipv6_prefix",
        lambda one: one.policy.limits.by_source,
        "neither limits.per_source nor limits.per_source_rate is set",
        "per_source: 100",
    ),
    _Need(
        "timeouts.hello",
        lambda one: one.allows_names,
        "it has no routes, and registrations may not add any",
        "routes, names: allowed, or remove the line",
    ),
    _Need(
        "slow_start",
        lambda one: one.policy.balance is not Balance.FIRST,
        "with balance: first there are no shares",
        "balance: leastconn, or remove the line",
    ),
    _Need(
        "freebind",
        lambda one: one.listen.ip not in (ANY, "0.0.0.0", "::"),
        "it listens on all addresses, including future ones",
        "remove the line, or name the address",
    ),
    _Need("on_down", _asks, "health.mode is none, so no server is ever found down", _NO_CHECKS[1]),
    *(_Need(f"health.{key}", _asks, *_NO_CHECKS) for key in m.HealthSection.model_fields if key != "mode"),
)


_UDP_KEYS = ("timeouts.udp_idle", "proxy_protocol.each", "requests", "responses")
# Of each: what UDP has instead, or why it has nothing of the kind.
_TCP_KEYS = {
    "retries": "a datagram is not sent to several servers: a server that refuses it loses the flow to another one",
    "max_queue": "nothing waits for a server: an unsettled flow makes room, or the datagram is dropped",
    "timeouts.connect": "there are no connections",
    "timeouts.queue": "nothing waits for a server",
    "timeouts.idle": "flows have a time of their own, timeouts.udp_idle",
    "timeouts.half_close": "a flow has no end in the data that could travel",
    "timeouts.flush": "nothing is buffered: what a full buffer does not take is dropped and counted",
    "limits.source_share": "flows take none of the places of sessions; limits.per_source is for them",
    "proxy_protocol.accept_from": "a flow is the client that the kernel names",
    "proxy_protocol.accept_timeout": "a flow is the client that the kernel names",
    "proxy_protocol.pass_tlvs": "no header comes in",
    "proxy_protocol.unique_id": "a flow's header has no ID",
    "routes": "names are read from TLS over TCP",
    "names": "names are read from TLS over TCP",
    "timeouts.hello": "names are read from TLS over TCP",
}


_PLAIN = m.PolicySection()


def without_effect(parts: Parts) -> Iterator[Finding]:
    yield from _log(parts.log)
    yield from _tokens(parts)
    if parts.defaults is None:
        return
    defaults = parts.defaults.policy(Policy())
    readable = [part for part in parts.frontends if not part.broken]
    for part in readable:
        frontend = part.entry.frontend(defaults)
        wrong = list(_other_protocol(part))
        yield from wrong
        named = {finding.loc for finding in wrong}
        for need in _NEEDS:
            if _says(part.entry, need.key) and not need.met(frontend) and part.at(*need.key.split(".")) not in named:
                yield _finding(part, need)
        yield from _servers(part, frontend)
        if frontend.listen.protocol == UDP:
            yield from _datagrams(part, frontend, defaults)
    if len(readable) == parts.written_frontends:  # a frontend with mistakes may need the value
        yield from _defaults(parts.defaults, defaults, [part.entry for part in readable])


def _other_protocol(part: ReadablePart[FrontendEntry]) -> Iterator[Finding]:
    """Keys of TCP in a frontend of UDP, and the other way round: also if they repeat a default, which does not count there."""
    if part.entry.listen.protocol == TCP:
        for key in _UDP_KEYS:
            if _value(part.entry, key) is not None:
                yield Finding(part.at(*key.split(".")), f"{key} has no effect: the frontend is of TCP", "protocol: udp")
        return
    for key, why in _TCP_KEYS.items():
        if _value(part.entry, key) is not None:
            yield Finding(part.at(*key.split(".")), f"{key} has no effect for UDP: {why}", "remove the line")


def _datagrams(part: ReadablePart[FrontendEntry], frontend: StaticFrontend, defaults: Policy) -> Iterator[Finding]:
    """What a frontend of UDP says, or inherits, that means something for TCP only."""
    entry, policy = part.entry, frontend.policy
    said = _value(entry, "proxy_protocol.send")
    if said == "v1" or (said is None and defaults.send_proxy is ProxyProtocol.V1):
        message = "proxy_protocol.send: v1 cannot describe UDP" + ("" if said else ", and `defaults` says it for all frontends")
        at = part.at("proxy_protocol", "send") if said else part.at()
        yield Finding(at, message, "proxy_protocol: {send: v2}, if the servers read it, or {send: none}")
    if policy.send_proxy_each and policy.send_proxy is ProxyProtocol.NONE and not _sends_v2(frontend):
        yield Finding(part.at("proxy_protocol", "each"), f"proxy_protocol.each has no effect: {_NO_V2[0]}", _NO_V2[1])
    if _value(entry, "health.check") is not None and not policy.health.check.suits_udp:
        yield Finding(part.at("health", "check"), CONNECT_TO_UDP, UDP_CHECKS)
    blind = []
    for index, server in enumerate(frontend.servers):
        own = server.health.over(policy.health) or policy.health
        if server.health.check is not None and not own.check.suits_udp:
            yield Finding(part.at("servers", index, "health", "check"), CONNECT_TO_UDP, UDP_CHECKS)
        elif own.check == CONNECT or not _asks(frontend):
            blind.append(str(server.address))
    if blind:
        message = f"without a check nobody sees that {', '.join(blind[:3])}{' …' if blind[3:] else ''} died silently"
        yield Finding(part.at("servers"), message, f"health: {{check: …}}: {UDP_CHECKS}", "warning")


def _finding(part: ReadablePart[Any], need: _Need, severity: str = "error") -> Finding:
    return Finding(part.at(*need.key.split(".")), f"{need.key} has no effect: {need.why}", need.hint, severity)


def _value(section: Section, key: str) -> Any:
    """None: it is not written."""
    value: Any = section
    for step in key.split("."):
        value = getattr(value, step) if step in value.model_fields_set else None
        if value is None:
            break
    return value


def _says(section: Section, key: str) -> bool:
    """Is it written, with another value than the default?"""
    value, default = _value(section, key), attrgetter(key)(_PLAIN)
    return value is not None and value != default


def _defaults(section: m.Defaults, defaults: Policy, frontends: list[FrontendEntry]) -> Iterator[Finding]:
    """A default has an effect on ports opened by registrations, or on a frontend that does not set the key itself.

    A frontend added later may need the value, so it is only a warning; a switch that is turned on is meant for now.
    """
    part = ReadablePart(("defaults",), section)
    registered = StaticFrontend("", Listen("tcp", defaults.bind, 1), (), defaults, allows_names=True)
    static = [(entry, entry.frontend(defaults)) for entry in frontends]
    for need in _NEEDS:
        heirs = [registered, *(one for entry, one in static if _value(entry, need.key) is None)]
        if _says(section, need.key) and not any(map(need.met, heirs)):
            yield _finding(part, need, "error" if _value(section, need.key) is True else "warning")
    if "resolve_interval" in section.model_fields_set:
        servers = (server.address for entry in frontends for server in entry.servers)
        if not any(isinstance(address, HostPort) for address in servers):
            message = "resolve_interval has no effect: no server is a host name"
            yield Finding(part.at("resolve_interval"), message, "remove the line", "warning")


def _servers(part: ReadablePart[FrontendEntry], frontend: StaticFrontend) -> Iterator[Finding]:
    for index, (entry, server) in enumerate(zip(part.entry.servers, frontend.servers, strict=True)):
        if entry.weight > 1 and frontend.policy.balance is Balance.FIRST:
            message = f"weight of {server.address} has no effect: with balance: first there are no shares"
            yield Finding(part.at("servers", index, "weight"), message, "balance: leastconn, or remove the line")
        if entry.health.check is not None and entry.health.check.port and entry.health.port:
            message = f"the port of {server.address}'s check is given twice: {entry.health.check.port} and {entry.health.port}"
            yield Finding(part.at("servers", index, "health", "port"), message, "remove one of them")
        if server.health != UNSAID and not _asks(frontend):
            message = f"health of {server.address} has no effect: the frontend's mode is none, so there are no checks"
            yield Finding(part.at("servers", index, "health"), message, "mode: active or passive, for the frontend")
        if entry.resolve != "any" and isinstance(server.address, Address):
            message = f"resolve has no effect: {server.address} is an address, not a host name"
            yield Finding(part.at("servers", index, "resolve"), message, "remove the line")


def _log(log: m.Log | None) -> Iterator[Finding]:
    if log is None:
        return
    plain, lines = m.Log(), ("target", "sample", "dontlognull")
    for key in (*lines, "facility", "tag"):
        if getattr(log, key) == getattr(plain, key):
            continue
        if log.format == "none":
            why, hint = "the format is none, so no session gets a line", "format: tcplog"
        elif key not in lines and log.target.kind not in ("udp", "unix"):
            why, hint = f"{log.target} is not a syslog", "target: udp:192.0.2.1:514, or unix:/dev/log"
        else:
            continue
        yield Finding(("log", key), f"log.{key} has no effect: {why}", hint)


def _tokens(parts: Parts) -> Iterator[Finding]:
    for part in parts.tokens:
        if part.entry.allow_weak and not part.entry.legacy:
            message = f"allow_weak of token {part.entry.name!r} has no effect: weak secrets work on the legacy route only"
            yield Finding(part.at("allow_weak"), message, "legacy: true, or a secret from: pylb token")
        elif part.entry.allow_weak and not any(listener.entry.legacy for listener in parts.webhook):
            message = f"allow_weak of token {part.entry.name!r} has no effect: no webhook serves the legacy route"
            yield Finding(part.at("allow_weak"), message, "a secret from: pylb token, or legacy: true at a webhook", "warning")
        if part.entry.name in part.entry.replaces:
            message = "replaces has no effect for the token itself"
            yield Finding(part.at("replaces"), message, "the name of another token", "warning")
