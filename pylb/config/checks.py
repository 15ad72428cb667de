"""Mistakes that no single value shows: a port used twice, tokens with one name, loops, plain HTTP on the open network."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pylb.config import models as m
from pylb.config import values as v
from pylb.config.entries import Finding, Parts, ReadablePart
from pylb.config.etcd import etcd_findings
from pylb.config.frontends import FrontendEntry, ServerEntry
from pylb.config.health import health_findings
from pylb.config.value_type import show
from pylb.config.without_effect import without_effect
from pylb.config.yamlplace import Loc
from pylb.core.address import ANY, Address, HostPort, Listen, PortKey, is_loopback
from pylb.core.policy import CONNECT


def findings(parts: Parts) -> Iterator[Finding]:
    """Errors and warnings that depend on nothing but the config itself."""
    yield from _no_webhook(parts)
    for listener in parts.webhook:
        yield from _webhook(listener)
    yield from _faces(parts)
    if parts.cluster is not None and parts.cluster.etcd is not None:
        yield from etcd_findings(parts.cluster.etcd)
    yield from _tokens(parts)
    yield from _same_names(parts, "tokens", parts.tokens)
    yield from _same_names(parts, "frontends", parts.frontends)
    yield from _taken_ports(parts)
    for frontend in parts.frontends:
        yield from _frontend(frontend)
    yield from health_findings(parts)
    yield from without_effect(parts)
    yield from _loops(parts)


def _no_webhook(parts: Parts) -> Iterator[Finding]:
    data, hint = parts.document.data, 'webhook: {listen: "127.0.0.1:9000"}'
    if not isinstance(data, dict) or data.get("webhook") != []:
        return
    if not data.get("frontends"):
        yield Finding(("webhook",), "pylb needs at least one webhook listener, or frontends that need none", hint)
    elif data.get("tokens"):  # no mistake: `pylb import --token` needs one, too
        yield Finding(("tokens",), "without a webhook nobody can call with these tokens", hint, "warning")


def _webhook(part: ReadablePart[m.WebhookListener]) -> Iterator[Finding]:
    listener = part.entry
    if part.broken & {"tls", "insecure"}:
        return
    if listener.tls is not None and listener.insecure:
        yield Finding(part.at("insecure"), "insecure: true contradicts tls", "remove one of them")
    elif listener.tls is None and listener.insecure and not _on_loopback(listener.listen):
        message = f"plain HTTP on {listener.listen} shows every token to anyone on the path"
        yield Finding(part.at("listen"), message, "webhook: {listen: ADDRESS:PORT, tls: self-signed}", "warning")
    elif listener.tls is None and not _on_loopback(listener.listen):
        hint = "tls: self-signed, or listen on 127.0.0.1, or insecure: true for old containers without TLS"
        yield Finding(part.at("listen"), f"{listener.listen} is reachable from outside and has no tls", hint)


def _faces(parts: Parts) -> Iterator[Finding]:
    if parts.admin is not None and not _on_loopback(parts.admin.listen):
        message = f"anyone who can reach {parts.admin.listen} can read all routes and sessions"
        yield Finding(("admin", "listen"), message, "127.0.0.1:8404; metrics.listen is for a Prometheus elsewhere", "warning")
    if parts.admin is not None:
        yield from _peers(parts.admin)
    if (metrics := parts.metrics) is not None:
        if metrics.listen is None and metrics.allow:
            yield Finding(("metrics", "allow"), "metrics.allow without metrics.listen has no effect", 'listen: "*:9404"')
        elif metrics.listen is not None and not metrics.allow:
            hint = 'allow: ["192.0.2.3/32"]'
            yield Finding(("metrics", "listen"), f"nobody may read {metrics.listen}/metrics: allow is empty", hint, "warning")
    if (leases := parts.leases) is not None and leases.min_ttl > leases.max_ttl:
        yield Finding(("leases", "min_ttl"), "min_ttl is longer than max_ttl", f"{v.duration_text(leases.max_ttl)} or less")


MOST_PEERS = 16


def _peers(admin: m.Admin) -> Iterator[Finding]:
    """Two of one name or URL; and this pylb itself, which its page shows anyway."""
    if len(admin.peers) > MOST_PEERS:
        yield Finding(("admin", "peers"), f"{len(admin.peers)} peers are more than {MOST_PEERS}", "the page is made for fewer")
    for index, one in enumerate(admin.peers):
        for key in ("name", "url"):
            value = getattr(one, key)
            if value in (getattr(other, key) for other in admin.peers[:index]):
                yield Finding(("admin", "peers", index, key), f"two peers have the {key} {show(value)}", "remove one of them")
        if one.url == f"http://{admin.listen}":
            message = f"{one.name} has no effect: {one.url} is this pylb itself"
            yield Finding(("admin", "peers", index, "url"), message, "name the others only")


def _tokens(parts: Parts) -> Iterator[Finding]:
    for part in parts.tokens:
        entry = part.entry
        if not entry.ports:
            yield Finding(part.at("ports"), f"token {entry.name!r} may open no port", "ports: [443]")
        if part.broken & {"secret", "secret_file"}:
            continue
        if (entry.secret is None) == (entry.secret_file is None):
            what = "neither" if entry.secret is None else "both"
            message = f"token {entry.name!r} has {what} of secret_file and secret"
            yield Finding(part.at(), message, "exactly one; secret_file is better")
        elif entry.secret is not None:
            hint = "secret_file: FILE keeps it out of backups and screens"
            yield Finding(part.at("secret"), f"the secret of token {entry.name!r} is in the config", hint, "warning")


def _same_names(
    parts: Parts, what: str, entries: Sequence[ReadablePart[m.TokenEntry]] | Sequence[ReadablePart[FrontendEntry]]
) -> Iterator[Finding]:
    names: dict[str, Loc | None] = {}
    for part in entries:
        name, at = part.entry.name, part.at("name")
        first = names.setdefault(name, at)
        if first != at:
            yield Finding(at, f"two {what} are called {name!r}", f"the first is at {parts.where(first)}")


@dataclass(frozen=True, slots=True)
class _PortUser:
    what: str
    loc: Loc | None  # None: a default, not written in the file
    listen: Listen


def _port_users(parts: Parts) -> Iterator[_PortUser]:
    for webhook in parts.webhook:
        yield _PortUser("pylb's webhook", webhook.at("listen"), webhook.entry.listen)
    for what, face in (("admin", parts.admin), ("metrics", parts.metrics)):
        if face is not None and face.listen is not None:
            written = "listen" in face.model_fields_set
            yield _PortUser(f"pylb's {what}", (what, "listen") if written else None, face.listen)
    for frontend in parts.frontends:
        yield _PortUser(f"frontend {frontend.entry.name!r}", frontend.at("listen"), frontend.entry.listen)


def _taken_ports(parts: Parts) -> Iterator[Finding]:
    """Addresses that the kernel would not allow together: reported at the later one in the file, naming the earlier one."""
    # By port and ip: the first user of that address. "4", "6" and "any" in place of the ip: the first user of any such address.
    first_of: dict[tuple[PortKey, str], tuple[int, _PortUser]] = {}
    for number, taker in enumerate(sorted(_port_users(parts), key=lambda taker: parts.place(taker.loc))):
        ip, ports = taker.listen.ip, [(taker.listen.protocol, port) for port in taker.listen.ports]
        families = ("4", "6") if ip == ANY else ("6",) if ":" in ip else ("4",)
        wildcards = {"4": "0.0.0.0", "6": "::"}
        meets = ("any",) if ip == ANY else families if ip in wildcards.values() else (ip, wildcards[families[0]], ANY)
        found = [first_of[port, one] for port in ports for one in meets if (port, one) in first_of]
        if found:
            first = min(found, key=lambda one: one[0])[1]
            message = f"{taker.what} cannot listen on {taker.listen}: {first.what} does on {first.listen}"
            yield Finding(taker.loc, message, f"see {parts.where(first.loc)}")
        for port in ports:
            for one in (ip, "any", *families):
                first_of.setdefault((port, one), (number, taker))


def _frontend(part: ReadablePart[FrontendEntry]) -> Iterator[Finding]:
    entry = part.entry
    for key in ("shutdown", "upgrade"):
        if key in entry.timeouts.model_fields_set:
            message = f"timeouts.{key} belongs to the process, not to a frontend"
            yield Finding(part.at("timeouts", key), message, "move it to defaults")
    if any(server.address.last for server in entry.servers) and entry.health.model_fields_set and not _asks_ranges(entry):
        hint = "a port in its check, as in {http: /healthz, port: 10256}, or remove it"
        yield Finding(part.at("health"), "health has no effect on a range of ports: which are in use, only the app knows", hint)
    for place, servers in _server_lists(part):
        seen: set[Address | HostPort] = set()
        for index, server in enumerate(servers):
            at = part.at(*place, "servers", index, "address")
            if server.address in seen:
                yield Finding(at, f"{server.address} is in {'a route of ' if place else ''}frontend {entry.name!r} twice")
            seen.add(server.address)
            yield from _other_length(entry.listen, server.address, at)
    yield from _routes(part)


def _routes(part: ReadablePart[FrontendEntry]) -> Iterator[Finding]:
    entry = part.entry
    if entry.listen.last and (entry.routes or entry.names):
        at = part.at("routes" if entry.routes else "names")
        yield Finding(at, f"{entry.listen} is a range of ports, which has no routes", "a frontend for each port")
    names: set[str] = set()
    for number, route in enumerate(entry.routes):
        for index, name in enumerate(route.server_names):
            if name in names:
                at = part.at("routes", number, "server_names", index)
                yield Finding(at, f"{name} has two routes in frontend {entry.name!r}", "remove one of them")
            names.add(name)


def _server_lists(part: ReadablePart[FrontendEntry]) -> Iterator[tuple[tuple[str | int, ...], tuple[ServerEntry, ...]]]:
    """The servers of a frontend and of its routes, and where in the frontend they are."""
    yield (), part.entry.servers
    for number, route in enumerate(part.entry.routes):
        yield ("routes", number), route.servers


def _asks_ranges(entry: FrontendEntry) -> bool:
    return entry.health.mode == "none" or bool(entry.health.said().get("check", CONNECT).port)


def _other_length(listen: Listen, address: Address | HostPort, loc: Loc | None) -> Iterator[Finding]:
    """The ports of a range go to one port, or each to one of as many."""
    if not address.last or address.last - address.port == listen.last - listen.port:
        return
    if not listen.last:
        yield Finding(loc, f"{address} has a range of ports, and {listen} has one port", "one port")
        return
    hint = f"{address.port}-{address.port + listen.last - listen.port}, or one port for all of them"
    width = address.last - address.port + 1
    yield Finding(loc, f"{address} has {width} ports, and {listen} has {len(listen.ports)}", hint)


def _loops(parts: Parts) -> Iterator[Finding]:
    """A server that is one of pylb's own frontends would send sessions in a loop until no descriptor is left."""
    frontends: dict[tuple[PortKey, str], tuple[int, FrontendEntry]] = {}  # by listen port and ip, the first of them
    for number, part in enumerate(parts.frontends):
        for port in part.entry.listen.ports:
            frontends.setdefault(((part.entry.listen.protocol, port), part.entry.listen.ip), (number, part.entry))
    for part in parts.frontends:
        protocol = part.entry.listen.protocol
        for within, servers in _server_lists(part):
            for index, server in enumerate(servers):
                if isinstance(server.address, HostPort):
                    continue  # its addresses are checked once they are resolved
                reached = _reached(server.address.ip, parts)
                places = [((protocol, port), ip) for port in server.address.ports for ip in reached]
                looped = [frontends[place] for place in places if place in frontends]
                if looped:
                    first = min(looped, key=lambda one: one[0])[1]
                    message = f"{server.address} is frontend {first.name!r} of pylb itself: a loop"
                    yield Finding(part.at(*within, "servers", index, "address"), message)


def _reached(ip: str, parts: Parts) -> tuple[str, ...]:
    """The listen addresses of frontends that a connect to `ip` would reach."""
    local = ip in parts.own_addresses or is_loopback(ip)
    return (ip, ANY, "::" if ":" in ip else "0.0.0.0") if local else (ip,)


def _on_loopback(listen: Listen) -> bool:
    return listen.ip != ANY and is_loopback(listen.ip)
