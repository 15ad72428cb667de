"""What pylb should have, computed from Services and Nodes. Pure: the same objects give the same answer.

One Service is one registration, named NAMESPACE.SERVICE: its ports with their NodePorts, and all usable nodes as servers.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from phonehome.controller.objects import PREFIX, Node, Port, Service
from phonehome.controller.service_annotations import ALLOWED, Said, parse_weight, read

CLASS = "pylb.io/pylb"
MOST_PORTS = 64  # of a registration: the server's rule
KUBE_PROXY_HEALTH = 10256  # kube-proxy's healthz, which says whether the node forwards and is to stay (KEP-3836)

TCP, UDP = "TCP", "UDP"
PortKey = tuple[str, int]  # ("TCP", 443)


class Rules(NamedTuple):
    """What the operator decides for the whole cluster."""

    default_class: bool = False  # Services without a class are ours, too
    node_selector: tuple[tuple[str, str], ...] = ()  # labels that a node must have
    external: bool = True  # prefer ExternalIP addresses; False: only InternalIP


class Frontend(NamedTuple):
    port: int
    protocol: str  # TCP | UDP
    target_port: int
    proxy_protocol: str | None
    health: object  # as JSON has it
    server_names: tuple[str, ...] = ()  # it is for TLS clients that ask for one of them; (): for all others
    allows_names: bool = False  # other Services may have names on this port

    @property
    def routes(self) -> tuple[str, ...]:
        """What it holds of its port: names, or the default route (""), which is for all other clients."""
        return self.server_names or ("",)

    @property
    def key(self) -> PortKey:
        return self.protocol, self.port


Owner = tuple[Service, Frontend]


class Server(NamedTuple):
    instance: str
    address: str
    weight: int


class Problem(NamedTuple):
    """Why a Service is not served as it asks. `port` None: it is about the whole Service."""

    reason: str  # as pylb's own error codes; with pylb.io/ in front it is the error in a port's status
    text: str
    port: PortKey | None = None


class Wanted(NamedTuple):
    """One registration, the same for every pylb."""

    name: str
    sequence: str  # the Service's resourceVersion
    frontends: tuple[Frontend, ...]
    servers: tuple[Server, ...]  # none: nothing can be said now, so whatever pylb has stays as it is
    allow: tuple[str, ...] = ()  # networks that may connect; empty: anybody
    idle_timeout: int | None = None  # seconds

    @property
    def ports(self) -> frozenset[PortKey]:
        return frozenset(one.key for one in self.frontends)


class Plan(NamedTuple):
    """`wanted` has only Services with at least one port to serve; `ours` are all that we answer for."""

    ours: Mapping[str, Service]
    wanted: Mapping[str, Wanted]
    problems: Mapping[str, tuple[Problem, ...]]


def is_ours(service: Service, rules: Rules) -> bool:
    if service.type != "LoadBalancer" or service.deleting:
        return False
    if service.load_balancer_class is None:
        return rules.default_class
    return service.load_balancer_class == CLASS


def plan(services: Iterable[Service], nodes: Iterable[Node], rules: Rules) -> Plan:
    """A port, or a server name on it, that several Services ask for goes to the oldest of them; the others are never sent with
    it."""
    chosen = sorted((one for one in services if is_ours(one, rules)), key=lambda one: (one.created, one.uid))
    usable = [one for one in nodes if is_usable(one, rules)]
    owners: dict[PortKey, dict[str, Owner]] = {}
    wanted: dict[str, Wanted] = {}
    problems: dict[str, tuple[Problem, ...]] = {}
    pools: dict[tuple[str, ...], tuple[Server, ...]] = {}  # by IP families: hundreds of Services share a few
    for service in chosen:
        if service.families not in pools:
            pools[service.families] = servers(usable, service.families, rules)
        said = read(service)
        found = [Problem("invalid_annotation", text) for text in said.problems]
        found += _about_the_service(service, pools[service.families])
        frontends: list[Frontend] = []
        for port in service.ports:
            frontend = _frontend(port, service, said)
            held = owners.setdefault(frontend.key, {})
            problem = _about_the_port(frontend, held, sum(len(one.routes) for one in frontends))
            if problem is None:
                held.update(dict.fromkeys(frontend.routes, (service, frontend)))
                frontends.append(frontend)
            else:
                found.append(problem)
        if frontends:
            wanted[service.key] = Wanted(
                service.key,
                service.version,
                tuple(frontends),
                pools[service.families] if said.server_names is not None else (),
                tuple(_network(one) for one in service.source_ranges),
                said.idle_timeout,
            )
        problems[service.key] = tuple(found)
    return Plan({one.key: one for one in chosen}, wanted, problems)


def is_usable(node: Node, rules: Rules) -> bool:
    labels = dict(node.labels)
    return not node.out and all(labels.get(key) == value for key, value in rules.node_selector)


def servers(nodes: Iterable[Node], families: tuple[str, ...], rules: Rules) -> tuple[Server, ...]:
    """Sorted by name. A node without a usable address of the first possible family is left out.

    A server is one address: a node of a dual-stack Service has two, and the Service's first family, which its owner
    prefers, decides which.
    """
    found: list[Server] = []
    for node in sorted(nodes):
        candidates = (*node.external, *node.internal) if rules.external else node.internal
        address = next((one for family in families or ("",) for one in candidates if _is_of(one, family)), None)
        if address is not None:
            found.append(Server(node.name, address, parse_weight(node.weight) or 1))
    return tuple(found)


def body(wanted: Wanted, ttl: int, without: Iterable[PortKey] = ()) -> bytes:
    """The body of `PUT /v1/registrations/{name}`, without ports that pylb has refused."""
    left_out = set(without)
    document: dict[str, object] = {
        "frontends": [_frontend_json(one) for one in wanted.frontends if one.key not in left_out],
        "servers": [
            {"instance": one.instance, "address": one.address, **({"weight": one.weight} if one.weight != 1 else {})}
            for one in wanted.servers
        ],
        "ttl": ttl,
    }
    if wanted.allow:
        document["access"] = [{"allow": network} for network in wanted.allow]
    if wanted.idle_timeout is not None:
        document["idle_timeout"] = wanted.idle_timeout
    return json.dumps(document, separators=(",", ":")).encode()


def _about_the_service(service: Service, pool: tuple[Server, ...]) -> list[Problem]:
    found: list[Problem] = []
    if not pool:
        text = "no node is usable for it: look at the nodes' addresses, ipFamilies, PYLB_NODE_SELECTOR and exclusion labels"
        found.append(Problem("no_nodes", text))
    if service.client_affinity:
        text = (
            "sessionAffinity: ClientIP selects the pod by the packet's source, which is pylb for every client: all of them go "
            "to one pod; use externalTrafficPolicy: Local"
        )
        found.append(Problem("session_affinity", text))
    if service.local and not service.health_port:
        text = "externalTrafficPolicy: Local without a healthCheckNodePort: pylb cannot ask which nodes have a pod"
        found.append(Problem("no_health_port", text))
    return found


def _about_the_port(port: Frontend, held: Mapping[str, Owner], count: int) -> Problem | None:
    """`held`: what older Services have of that port, by server name. `count`: how many routes this one has already."""
    key = port.key
    if port.protocol not in (TCP, UDP):
        return Problem("unsupported_protocol", f"port {port.port}: pylb does not forward {port.protocol}", key)
    if not port.target_port:
        text = f"port {port.port}: it has no nodePort; is allocateLoadBalancerNodePorts false?"
        return Problem("no_node_port", text, key)
    if count + len(port.routes) > MOST_PORTS:
        text = f"port {port.port}: a Service can have {MOST_PORTS} ports and server names here; split it"
        return Problem("too_many_ports", text, key)
    return _owned(port, held)


def _owned(port: Frontend, held: Mapping[str, Owner]) -> Problem | None:
    """What an older Service has of the port, and excludes this one. pylb has the same rule."""
    where = f"port {port.port}/{port.protocol}"
    for name in port.routes:
        if name in held:
            what = f"{name} on {where}" if name else where
            return Problem("port_owned", f"{what} belongs to the older Service {_title(held[name][0])}", port.key)
    if port.server_names and "" in held and not held[""][1].allows_names:
        text = f"{where} belongs to the older Service {_title(held[''][0])}, whose {PREFIX}server-names does not say {ALLOWED}"
        return Problem("port_owned", text, port.key)
    if not port.server_names and not port.allows_names and held:
        name, (service, _) = next(iter(held.items()))
        text = (
            f"{where}: {name} belongs to the older Service {_title(service)}; {PREFIX}server-names: {ALLOWED} makes room for it"
        )
        return Problem("port_owned", text, port.key)
    return None


def _title(service: Service) -> str:
    return f"{service.namespace}/{service.name}"


def _frontend(port: Port, service: Service, said: Said) -> Frontend:
    check = said.health.get(port.port, said.health.get(0))
    health = check or _health(service)
    proxy = said.proxy_protocol.get(port.port, said.proxy_protocol.get(0))
    names = (said.server_names or {}).get(port.port, ())
    if port.protocol == UDP:  # what is said of a number is for TCP, too, and UDP has no use for some of it
        proxy, names = (None if proxy == "v1" else proxy), ()
        health = check if _suits_udp(check) else None if check == "tcp" else _health(service)
    allowed = names == (ALLOWED,)
    return Frontend(
        port.port,
        port.protocol,
        port.node_port,
        proxy,
        health,
        () if allowed else tuple(dict.fromkeys(names)),
        allowed,
    )


def _suits_udp(check: object) -> bool:
    """Does it say something of a UDP port? A connect or an HTTP request does at a TCP port of its own."""
    return isinstance(check, dict) and ("port" in check or "http" not in check)


def _health(service: Service) -> object:
    """With policy Local the healthCheckNodePort says which nodes have a pod; with Cluster every node forwards to every pod,
    and kube-proxy says whether it works and the node is to stay."""
    port = service.health_port if service.local else KUBE_PROXY_HEALTH
    return {"http": "/healthz", "port": port} if port else None


def _frontend_json(one: Frontend) -> dict[str, object]:
    found: dict[str, object] = {"port": one.port, "target_port": one.target_port}
    optional: tuple[tuple[str, object], ...] = (
        ("protocol", UDP.lower() if one.protocol == UDP else None),
        ("proxy_protocol", one.proxy_protocol),
        ("health", one.health),
        ("server_names", one.server_names or None),
        ("names", ALLOWED if one.allows_names else None),
    )
    found.update((key, value) for key, value in optional if value is not None)
    return found


def _network(text: str) -> str:
    """Kubernetes allows spaces and host bits. What is not a network at all stays as it is, for pylb to refuse."""
    try:
        return str(ipaddress.ip_network(text.strip(), strict=False))
    except ValueError:
        return text


def _is_of(address: str, family: str) -> bool:
    try:
        version = ipaddress.ip_address(address).version
    except ValueError:
        return False  # a Hostname, or nothing that pylb could dial
    return family in ("", f"IPv{version}")
