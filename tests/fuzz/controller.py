"""Parsers of the phone-home controller: what an API server, whoever may write a Service, and a pylb say."""

import json
from typing import Any

from phonehome.controller import objects, service_annotations, sets
from phonehome.controller.kube import decoded
from phonehome.message import Reply
from tests.fuzz.inputs import Parser


def service(data: bytes) -> object:
    """A Service that the API server gave, and what its annotations ask for."""
    found = decoded(data)
    return None if found is None else service_annotations.read(objects.service(found))


def _is_said(found: Any) -> None:
    if found is not None:
        assert all(0 <= port <= 65535 for port in (*found.proxy_protocol, *found.health))


def node(data: bytes) -> object:
    found = decoded(data)
    return None if found is None else objects.node(found)


def sets_of(data: bytes) -> object:
    """The names that a pylb says it holds for a token."""
    return sets.names(Reply(200, {}, data))


_META: dict[str, Any] = {"name": "web", "namespace": "apps", "uid": "u-1", "resourceVersion": "7", "managedFields": [{"a": 1}]}
_NOTES = {"pylb.io/proxy-protocol": "25=v1 443=v2", "pylb.io/health": '{"http": "/ready"}', "pylb.io/idle-timeout": "1h"}
_PORTS = [{"name": "https", "port": 443, "protocol": "TCP", "nodePort": 30443}]
_SERVICE = {"metadata": _META | {"annotations": _NOTES}, "spec": {"type": "LoadBalancer", "ports": _PORTS}, "status": {}}
_READY = [{"type": "Ready", "status": "True"}]
_NODE = {
    "metadata": _META | {"labels": {"topology.kubernetes.io/zone": "a"}},
    "spec": {"taints": [{"key": "x", "effect": "NoSchedule"}]},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.7"}], "conditions": _READY, "images": [{}]},
}
_WORDS = (b'{"metadata":', b'"annotations":', b'"spec":', b'"ports":[', b'"status":', b'{"ingress":[{"ip":')

CONTROLLER = (
    Parser("API server's Service", service, (), (json.dumps(_SERVICE).encode(),), _WORDS, _is_said, memory=2000),
    Parser("API server's Node", node, (), (json.dumps(_NODE).encode(),), _WORDS, memory=2000),
    Parser("pylb's registrations", sets_of, (), (b'{"registrations":[{"name":"web"},{"name":"apps.web"}]}',), memory=2000),
)
