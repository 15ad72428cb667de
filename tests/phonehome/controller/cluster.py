"""A small API server: it stores Services and Nodes, lists and watches them, takes PATCHes of a status, and events.

For what the API server of tests/kubernetes (1.20) does not know, loadBalancerClass and ipMode, and for its faults.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tests.phonehome.controller.scripted import Scripted, Step, event, gone, listing, status

SERVICE = re.compile(r"/api/v1/namespaces/([^/]+)/services/([^/]+?)(/status)?")
EVENTS = re.compile(r"/api/v1/namespaces/([^/]+)/events")

Refuse = Callable[[str, str], Step | None]  # method, path


class Cluster(Scripted):
    """`drops`: fields of an ingress that it does not know, and drops without a word as an API server of that age does."""

    def __init__(self, *, drops: Iterable[str] = ()) -> None:
        super().__init__()
        self.drops = frozenset(drops)
        self.refuse: Refuse = lambda _method, _path: None
        self.patches: list[tuple[str, Any]] = []  # (Service, ingress) as they were sent
        self.gets: list[str] = []  # single Services that were asked about
        self.forbidden: list[str] = []  # requests that the controller has no right to make
        self._said: list[tuple[str, str, str]] = []
        self._objects: dict[str, dict[str, Any]] = {"services": {}, "nodes": {}}
        self._log: list[tuple[str, int, bytes]] = []  # kind, version, line
        self._version = 10
        self._changed = threading.Condition()
        self._ended = False

    # ------------------------------------------------------------ for tests

    def service(self, name: str, *ports: int, namespace: str = "default", **spec: Any) -> None:
        """A new Service, or the same one with another spec. `cls` is its loadBalancerClass."""
        old = self._objects["services"].get(f"{namespace}/{name}", {})
        listed = [{"name": f"p{port}", "port": port, "nodePort": 30000 + port % 2768, "protocol": "TCP"} for port in ports]
        cls = spec.pop("cls", None)
        meta = {"namespace": namespace, "name": name, "uid": f"uid-{name}", "creationTimestamp": "2026-11-26T10:00:00Z"}
        made = {"type": "LoadBalancer", "ports": listed, **({"loadBalancerClass": cls} if cls else {}), **spec}
        self._put("services", f"{namespace}/{name}", {"metadata": meta, "spec": made, "status": old.get("status", {})})

    def node(self, name: str, address: str) -> None:
        found = {"metadata": {"name": name}, "status": {"addresses": [{"type": "InternalIP", "address": address}]}}
        self._put("nodes", name, found)

    def delete(self, kind: str, key: str) -> None:
        """With an event."""
        with self._changed:
            self._note(kind, "DELETED", self._objects[kind].pop(key))

    def lose(self, kind: str, *keys: str) -> None:
        """All at once, and without a word: the watch is too old (410), and the list that follows lacks them."""
        with self._changed:
            for key in keys:
                del self._objects[kind][key]
            self._version += 1
            self._log.append((kind, self._version, gone()))
            self._changed.notify_all()

    def shows(self, name: str, ingress: Any, namespace: str = "default") -> None:
        """Another controller writes this into its status."""
        found = self._objects["services"][f"{namespace}/{name}"]
        self._put("services", f"{namespace}/{name}", {**found, "status": {"loadBalancer": {"ingress": ingress}}})

    def shown(self, name: str, namespace: str = "default") -> Any:
        return self._objects["services"][f"{namespace}/{name}"]["status"].get("loadBalancer", {}).get("ingress")

    def version(self, name: str, namespace: str = "default") -> str:
        return str(self._objects["services"][f"{namespace}/{name}"]["metadata"]["resourceVersion"])

    def events(self) -> list[tuple[str, str, str]]:
        """(Service, reason, message)"""
        with self._changed:
            return list(self._said)

    def close(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        super().close()

    # ------------------------------------------------------------ the API

    def step(self, method: str, path: str, query: dict[str, str], body: dict[str, Any]) -> Step:
        refused = self.refuse(method, path)
        if refused is not None:
            return refused
        kind = path.removeprefix("/api/v1/")
        if method == "GET" and kind in self._objects:
            return self._list(kind) if "watch" not in query else self._watch(kind, int(query["resourceVersion"]))
        if method == "POST" and EVENTS.fullmatch(path):
            with self._changed:
                self._said.append((body["involvedObject"]["name"], body["reason"], body["message"]))
            return Step(201, [json.dumps(body).encode()])
        match = SERVICE.fullmatch(path)
        if not match or (method, match[3]) not in (("GET", None), ("PATCH", "/status")):
            self.forbidden.append(f"{method} {path}")
            return status(403, "the manifest does not allow that")
        return self._single(method, match[1], match[2], body)

    def _list(self, kind: str) -> Step:
        with self._changed:
            return listing(*self._objects[kind].values(), version=str(self._version))

    def _watch(self, kind: str, since: int) -> Step:
        def following() -> Iterator[bytes]:
            done = 0
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._ended or len(self._log) > done)  # noqa: B023  used at once
                    if self._ended:
                        return
                    lines, done = self._log[done:], len(self._log)
                yield from (line for of, version, line in lines if of == kind and version > since)

        return Step(chunks=following())

    def _single(self, method: str, namespace: str, name: str, body: dict[str, Any]) -> Step:
        with self._changed:
            found = self._objects["services"].get(f"{namespace}/{name}")
            if method == "GET":
                self.gets.append(name)
            else:
                self.patches.append((name, body["status"]["loadBalancer"]["ingress"]))
            if found is None:
                return status(404, f'services "{name}" not found')
        if method == "PATCH":
            # A merge patch (RFC 7386): null removes the key.
            ingress = body["status"]["loadBalancer"]["ingress"]
            stored = None if ingress is None else [self._known(one) for one in ingress]
            merged = {"loadBalancer": {} if stored is None else {"ingress": stored}}
            found = self._put("services", f"{namespace}/{name}", {**found, "status": merged})
        return Step(chunks=[json.dumps(found).encode()])

    def _known(self, ingress: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in ingress.items() if key not in self.drops}

    def _put(self, kind: str, key: str, found: dict[str, Any]) -> dict[str, Any]:
        with self._changed:
            word = "MODIFIED" if key in self._objects[kind] else "ADDED"
            return self._note(kind, word, found, key)

    def _note(self, kind: str, word: str, found: dict[str, Any], key: str = "") -> dict[str, Any]:
        self._version += 1
        made = {**found, "metadata": {**found["metadata"], "resourceVersion": str(self._version)}}
        if key:
            self._objects[kind][key] = made
        self._log.append((kind, self._version, event(word, made)))
        self._changed.notify_all()
        return made
