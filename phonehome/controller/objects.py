"""Kubernetes objects, reduced to what the controller reads. Pure.

Objects are read leniently: a missing or strange field has its default, because one odd object must not stop the others.
Only the fields below are stored, so the memory of a large cluster is a few hundred bytes an object.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

PREFIX = "pylb.io/"  # of our annotations, and of the errors in a status
EXCLUDED = "node.kubernetes.io/exclude-from-external-load-balancers"  # a label; its value does not matter
AUTOSCALER_TAINT = "ToBeDeletedByClusterAutoscaler"


class Port(NamedTuple):
    protocol: str  # TCP | UDP | SCTP
    port: int
    node_port: int  # 0: none was allocated


class PortStatus(NamedTuple):
    port: int
    protocol: str
    error: str  # "" if the port is served


class Ingress(NamedTuple):
    """One address in `status.loadBalancer.ingress`."""

    address: str  # an IP address or a host name
    ip_mode: str  # Proxy | VIP | "" (API servers before 1.29 drop it)
    ports: tuple[PortStatus, ...]


class Service(NamedTuple):
    namespace: str
    name: str
    uid: str
    version: str  # resourceVersion
    created: str  # RFC 3339 in UTC, so texts compare like times
    type: str
    deleting: bool = False
    load_balancer_class: str | None = None
    ports: tuple[Port, ...] = ()
    local: bool = False  # externalTrafficPolicy: Local
    health_port: int = 0  # healthCheckNodePort
    families: tuple[str, ...] = ()  # IPv4, IPv6
    source_ranges: tuple[str, ...] = ()
    client_affinity: bool = False  # sessionAffinity: ClientIP
    annotations: tuple[tuple[str, str], ...] = ()  # ours, without their prefix, sorted
    ingress: tuple[Ingress, ...] = ()

    @property
    def key(self) -> str:
        """Its registration's name. Neither part can contain a dot (both are DNS labels)."""
        return f"{self.namespace}.{self.name}"

    @property
    def content(self) -> Service:
        """Without the version, which changes more often than what is read here."""
        return self._replace(version="")


class Node(NamedTuple):
    name: str
    version: str
    external: tuple[str, ...]  # ExternalIP addresses, in the order of the object
    internal: tuple[str, ...]
    out: str  # why it gets no connections; "" if it does
    labels: tuple[tuple[str, str], ...]  # sorted
    weight: str  # our annotation, as it is written

    @property
    def key(self) -> str:
        return self.name

    @property
    def content(self) -> Node:
        return self._replace(version="")


def service(found: Mapping[str, Any]) -> Service:
    meta, spec, status = _map(found.get("metadata")), _map(found.get("spec")), _map(found.get("status"))
    base = Service(
        namespace=_text(meta.get("namespace")),
        name=_text(meta.get("name")),
        uid=_text(meta.get("uid")),
        version=_text(meta.get("resourceVersion")),
        created=_text(meta.get("creationTimestamp")),
        type=_text(spec.get("type")),
        ingress=tuple(_ingress(one) for one in _maps(_map(status.get("loadBalancer")).get("ingress"))),
    )
    if base.type != "LoadBalancer":  # most Services of a cluster: only that they exist matters
        return base
    return base._replace(
        deleting="deletionTimestamp" in meta,
        load_balancer_class=_text(spec.get("loadBalancerClass")) or None,
        ports=tuple(_port(one) for one in _maps(spec.get("ports"))),
        local=spec.get("externalTrafficPolicy") == "Local",
        health_port=_number(spec.get("healthCheckNodePort")),
        families=_texts(spec.get("ipFamilies")),
        source_ranges=_texts(spec.get("loadBalancerSourceRanges")),
        client_affinity=spec.get("sessionAffinity") == "ClientIP",
        annotations=_ours(meta),
    )


def node(found: Mapping[str, Any]) -> Node:
    meta, spec, status = _map(found.get("metadata")), _map(found.get("spec")), _map(found.get("status"))
    labels = {key: _text(value) for key, value in _map(meta.get("labels")).items()}
    addresses = [(_text(one.get("type")), _text(one.get("address"))) for one in _maps(status.get("addresses"))]
    return Node(
        name=_text(meta.get("name")),
        version=_text(meta.get("resourceVersion")),
        external=tuple(address for kind, address in addresses if kind == "ExternalIP"),
        internal=tuple(address for kind, address in addresses if kind == "InternalIP"),
        out=_why_out(meta, spec, labels),
        labels=tuple(sorted(labels.items())),
        weight=dict(_ours(meta)).get("weight", ""),
    )


def _why_out(meta: Mapping[str, Any], spec: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """Not a node that is not Ready: that is the kubelet's word about itself, and pylb's own checks see whether the node
    still forwards (KEP-3458)."""
    if "deletionTimestamp" in meta:
        return "it is being deleted"
    if EXCLUDED in labels:
        return f"it has the label {EXCLUDED}"
    if any(one.get("key") == AUTOSCALER_TAINT for one in _maps(spec.get("taints"))):
        return f"it has the taint {AUTOSCALER_TAINT}"
    return ""


def _port(found: Mapping[str, Any]) -> Port:
    protocol = _text(found.get("protocol")) or "TCP"
    return Port(protocol, _number(found.get("port")), _number(found.get("nodePort")))


def _ingress(found: Mapping[str, Any]) -> Ingress:
    ports = tuple(
        PortStatus(_number(one.get("port")), _text(one.get("protocol")), _text(one.get("error")))
        for one in _maps(found.get("ports"))
    )
    return Ingress(_text(found.get("ip")) or _text(found.get("hostname")), _text(found.get("ipMode")), ports)


def _ours(meta: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    items = _map(meta.get("annotations")).items()
    return tuple(sorted((key[len(PREFIX) :], _text(value)) for key, value in items if key.startswith(PREFIX)))


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _maps(value: object) -> Iterator[Mapping[str, Any]]:
    return (one for one in (value if isinstance(value, list) else ()) if isinstance(one, dict))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _texts(value: object) -> tuple[str, ...]:
    return tuple(one for one in (value if isinstance(value, list) else ()) if isinstance(one, str))


def _number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 65535 else 0
