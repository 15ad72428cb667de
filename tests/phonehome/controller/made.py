"""Services and Nodes as the API server writes them, for tables of tests."""

from __future__ import annotations

from typing import Any

from phonehome.controller import objects
from phonehome.controller.objects import Node, Service

Ports = tuple[tuple[int, int], ...]  # port, nodePort


def service(name: str, *ports: tuple[int, int], created: str = "2026-11-26T10:00:00Z", **more: Any) -> Service:
    """`more`: annotations, version, status and whatever goes into the spec."""
    meta = {
        "namespace": "default",
        "name": name,
        "uid": f"uid-{name}",
        "resourceVersion": more.pop("version", "1"),
        "creationTimestamp": created,
        "annotations": {f"pylb.io/{key}": value for key, value in more.pop("annotations", {}).items()},
    }
    if more.pop("deleting", False):
        meta["deletionTimestamp"] = created
    listed = [{"port": port, "nodePort": node_port, "protocol": "TCP"} for port, node_port in ports]
    status = {"loadBalancer": {"ingress": more.pop("ingress", [])}}
    spec = {"type": "LoadBalancer", "ports": listed, "loadBalancerClass": "pylb.io/pylb", "ipFamilies": ["IPv4"], **more}
    return objects.service({"metadata": meta, "spec": spec, "status": status})


def node(name: str, *addresses: str, **more: Any) -> Node:
    """`addresses`: "e:203.0.113.1" is an ExternalIP, "i:10.1.0.1" an InternalIP."""
    kinds = {"e": "ExternalIP", "i": "InternalIP", "h": "Hostname"}
    listed = [{"type": kinds[one[0]], "address": one[2:]} for one in addresses]
    annotations = {f"pylb.io/{key}": value for key, value in more.pop("annotations", {}).items()}
    meta = {"name": name, "resourceVersion": "1", "labels": more.pop("labels", {}), "annotations": annotations}
    return objects.node({"metadata": {**meta, **more.pop("meta", {})}, "spec": more, "status": {"addresses": listed}})
