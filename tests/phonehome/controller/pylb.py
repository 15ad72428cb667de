"""A pylb to call, as far as the controller sees it: it keeps whole sets, and who owns which port."""

from __future__ import annotations

import json
import threading
from typing import Any

from tests.phonehome.peer import Answer, Call, LoadBalancer, refused
from tests.support.waiting import eventually


class Pylb(LoadBalancer):
    """`registrations` is what it has, by name; `others` are ports that somebody else owns."""

    def __init__(self) -> None:
        super().__init__()
        self.registrations: dict[str, dict[str, Any]] = {}
        self.sequences: dict[str, str] = {}
        self.others: set[int] = set()
        self.ttl = 900  # of its leases, in seconds
        self.count = 0  # of PUT and DELETE
        self.most = 0.0  # the longest body in bytes
        self._lock = threading.Lock()
        self.answer = self._answer

    @property
    def ports(self) -> dict[int, str]:
        """Who has which port."""
        with self._lock:
            return {one["port"]: name for name, body in self.registrations.items() for one in body["frontends"]}

    def servers(self, name: str) -> dict[str, str]:
        with self._lock:
            return {one["instance"]: one["address"] for one in self.registrations.get(name, {}).get("servers", ())}

    def opens(self, port: int, name: str, *, within: float = 10.0) -> None:
        eventually(lambda: self.ports.get(port) == name, within=within, what=f"{name} has port {port}: {self.ports}")

    def closes(self, port: int, *, within: float = 10.0) -> None:
        eventually(lambda: port not in self.ports, within=within, what=f"nobody has port {port}: {self.ports}")

    def _answer(self, call: Call) -> Answer:
        with self._lock:
            if call.method == "GET":
                return Answer(200, {"registrations": [{"name": name, "instance": None} for name in self.registrations]})
            self.count += 1
            self.most = max(self.most, len(json.dumps(call.body)))
            name = call.path.rpartition("/")[2]
            if call.method == "DELETE":
                self.registrations.pop(name, None)
                return self._accepted("released")
            taken = {one["port"] for key, body in self.registrations.items() if key != name for one in body["frontends"]}
            if wrong := sorted({one["port"] for one in call.body["frontends"]} & (taken | self.others)):
                answer = refused(409, "port_owned", f"port {wrong[0]} is owned by somebody else")
                assert isinstance(answer.document, dict)
                return answer._replace(document={**answer.document, "port": str(wrong[0])})
            result = "unchanged" if self.registrations.get(name) == call.body else "updated"
            self.registrations[name] = call.body
            self.sequences[name] = call.headers.get("pylb-sequence", "")
            return self._accepted(result)

    def _accepted(self, result: str) -> Answer:
        return Answer(200, {"result": result, "generation": self.count, "durable": True, "lease": {"ttl": self.ttl}})
