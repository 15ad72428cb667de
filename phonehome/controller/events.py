"""Events on Services: why one is pending is never silent. Pure: the clock is an argument.

An event is sent when something changed, and the same trouble again at most every ten minutes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from phonehome.controller.objects import Service

REPEAT = 600.0  # seconds
MOST_TEXT = 1000  # characters; the API server takes 1,024
COMPONENT = "pylb-controller"

ENSURED, FAILED = "EnsuredLoadBalancer", "SyncLoadBalancerFailed"  # the reasons that cloud controllers use


class Event(NamedTuple):
    reason: str
    text: str

    @property
    def type(self) -> str:
        return "Normal" if self.reason == ENSURED else "Warning"


class Events:
    """Which events are due. By the Service's uid."""

    def __init__(self) -> None:
        self._last: dict[str, dict[Event, float]] = {}  # what was said of the present state, and when
        self._known: set[str] = set()

    def known(self, uid: str) -> None:
        """Its status is already right when this process first looks at it: good news would be old news."""
        if uid not in self._last:
            self._known.add(uid)

    def due(self, uid: str, state: Collection[Event], now: float) -> list[Event]:
        """`state`: everything that is to be said about the Service as it is now. Good news is not repeated."""
        before = self._last.get(uid, {})
        if uid in self._known:
            self._known.discard(uid)
            before = {one: now for one in state if one.reason == ENSURED}
        found = [one for one in state if one not in before or (one.reason != ENSURED and now - before[one] >= REPEAT)]
        self._last[uid] = {one: now if one in found else before[one] for one in state}
        return found

    def not_sent(self, uid: str, event: Event) -> None:
        """The API server did not take it: it is due again."""
        self._last.get(uid, {}).pop(event, None)

    def forget_all_but(self, uids: Collection[str]) -> None:
        for uid in [uid for uid in self._last if uid not in uids]:
            del self._last[uid]
        self._known &= set(uids)


def document(service: Service, event: Event, stamp: str, unique: str) -> dict[str, Any]:
    """The body of a POST to /api/v1/namespaces/NS/events. `stamp` is RFC 3339; `unique` makes the name."""
    involved = {
        "apiVersion": "v1",
        "kind": "Service",
        "namespace": service.namespace,
        "name": service.name,
        "uid": service.uid,
        "resourceVersion": service.version,
    }
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{service.name}.{unique}", "namespace": service.namespace},
        "involvedObject": involved,
        "reason": event.reason,
        "message": event.text[:MOST_TEXT],
        "type": event.type,
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }
