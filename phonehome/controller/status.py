"""What `status.loadBalancer` of a Service should say, and whether it says so. Pure: the clock is an argument.

ipMode is Proxy (KEP-1860): without it kube-proxy sends connections from inside the cluster straight to the pods, past PROXY
headers and access lists. API servers before 1.29 drop the field without a word, and those before 1.20 `ports` too: what the
server has dropped is not compared, or each event would cause the next PATCH.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from phonehome.controller.desired import PortKey
from phonehome.controller.objects import PREFIX, Ingress, PortStatus, Service

MOST_REWRITES = 3  # by another controller, before the status is left to it
ASK_AGAIN = 3600.0  # seconds until a dropped field is tried again: the API server may be a newer one by then


class Address(NamedTuple):
    """One of PYLB_PUBLIC_ADDRESS. `balancer`: the label of the pylb that has it; None: they share it."""

    address: str
    balancer: str | None


def desired(
    addresses: Sequence[Address],
    opened: Mapping[str, Collection[PortKey] | None],
    ports: Sequence[tuple[PortKey, str]],
    shown: Sequence[Ingress] = (),
) -> tuple[Ingress, ...]:
    """An address is shown if at least one port is open there.

    `opened`: the ports of this Service that each pylb has open; None: it has not said yet, as after the controller's start,
    and then an address of it that is `shown` stays. `ports`: all that the Service asks for, each with the error to show where
    no pylb has it.
    """
    found: list[Ingress] = []
    for one in addresses:
        here = [keys for label, keys in opened.items() if one.balancer in (None, label)]
        there = frozenset(key for keys in here for key in keys or ())
        if there:
            listed = tuple(PortStatus(key[1], key[0], _error(key in there, error)) for key, error in ports)
            found.append(Ingress(one.address, "Proxy" if _is_ip(one.address) else "", listed))
        elif None in here:
            found += [old for old in shown if old.address == one.address]
    return tuple(found)


def patch(ingress: Collection[Ingress]) -> dict[str, Any]:
    """A merge patch. To clear the field it must be null: an absent one would stay as it is."""
    return {"status": {"loadBalancer": {"ingress": [_as_json(one) for one in ingress] or None}}}


def is_to_clear(service: Service, addresses: Sequence[Address]) -> bool:
    """Whether the status of a Service that is not ours (any more) still shows our addresses, and only those.

    The status of another class is never touched.
    """
    if not service.ingress or service.load_balancer_class is not None:
        return False
    return {one.address for one in service.ingress} <= {one.address for one in addresses}


class Server:
    """What one API server does with the fields of a status."""

    def __init__(self) -> None:
        self._dropped: frozenset[str] = frozenset()
        self._until = 0.0

    def stored(self, sent: Collection[Ingress], answer: Collection[Ingress], now: float) -> None:
        """Learn from the answer to a PATCH."""
        if [one.address for one in sent] != [one.address for one in answer]:
            return
        dropped = set()
        if any(one.ip_mode for one in sent) and not any(one.ip_mode for one in answer):
            dropped.add("ip_mode")
        if any(one.ports for one in sent) and not any(one.ports for one in answer):
            dropped.add("ports")
        self._dropped = frozenset(dropped)
        self._until = now + ASK_AGAIN

    def same(self, shown: Collection[Ingress], wanted: Collection[Ingress], now: float) -> bool:
        if now >= self._until:
            self._dropped = frozenset()
        return [self._comparable(one) for one in shown] == [self._comparable(one) for one in wanted]

    def _comparable(self, one: Ingress) -> Ingress:
        without = one._replace(ip_mode="") if "ip_mode" in self._dropped else one
        return without._replace(ports=()) if "ports" in self._dropped else without


class Rewrites:
    """Whether another controller replaces what we write. By the Service's uid."""

    def __init__(self) -> None:
        self._written: dict[str, tuple[Ingress, ...]] = {}
        self._count: dict[str, int] = {}

    def written(self, uid: str, stored: tuple[Ingress, ...]) -> None:
        self._written[uid] = stored

    def shown(self, service: Service) -> None:
        """Compare what a Service shows with what the API server stored for us."""
        stored = self._written.get(service.uid)
        if stored is not None and service.ingress != stored:
            self._count[service.uid] = self._count.get(service.uid, 0) + 1
            del self._written[service.uid]

    def has_given_up(self, uid: str) -> bool:
        return self._count.get(uid, 0) >= MOST_REWRITES

    def forget_all_but(self, uids: Collection[str]) -> None:
        for table in (self._written, self._count):
            for uid in [uid for uid in table if uid not in uids]:
                del table[uid]


def _error(is_open: bool, error: str) -> str:
    return "" if is_open else PREFIX + (error or "pending")


def _as_json(one: Ingress) -> dict[str, Any]:
    found: dict[str, Any] = {"ip" if _is_ip(one.address) else "hostname": one.address}
    if one.ip_mode:
        found["ipMode"] = one.ip_mode
    found["ports"] = [
        {"port": port.port, "protocol": port.protocol, **({"error": port.error} if port.error else {})} for port in one.ports
    ]
    return found


def _is_ip(address: str) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True
