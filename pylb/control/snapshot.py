"""The payload of the snapshot: registrations, what was learned of their leases, and which servers had answered.

Unknown keys are ignored and missing ones have defaults, so one version back and one forth can read it. Times of leases
are not in it: they mean nothing after a restart; only for how long a stale one has been stale.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from pylb.core.address import Address, parse_address, parse_ip, parse_listen
from pylb.core.checks import parse_check, written
from pylb.core.overrides import NONE, Override, Overrides, Place
from pylb.core.policy import AdminState, Check, ProxyProtocol
from pylb.core.registration import Displaced, Key, Registration, State, Wanted


@dataclass(frozen=True, slots=True)
class Snapshot:
    generation: int = 0
    written_at: float = 0.0  # unix time, for humans
    registrations: tuple[Registration, ...] = ()
    learned: Mapping[Key, float] = field(default_factory=dict)  # legacy: the TTL in seconds
    stale_for: Mapping[Key, float] = field(default_factory=dict)  # seconds
    proven: AbstractSet[Address] = frozenset()
    overrides: Overrides = field(default_factory=lambda: NONE)
    resolved: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # addresses by host name


def encode(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "generation": snapshot.generation,
        "written_at": snapshot.written_at,
        "registrations": [_encode_one(snapshot, one) for one in snapshot.registrations],
        "proven": sorted(str(address) for address in snapshot.proven),
        "resolved": {host: list(ips) for host, ips in snapshot.resolved.items()},
        "overrides": [
            {"listen": str(listen), "address": str(address), "state": str(override.state), "weight": override.weight}
            for (listen, address), override in snapshot.overrides.items()
        ],
    }


def _encode_one(snapshot: Snapshot, one: Registration) -> dict[str, Any]:
    return {
        "token": one.key.token,
        "name": one.name,
        "instance": one.key.instance,
        "legacy_port": one.key.legacy_port,
        "address": one.ip,
        "ttl": one.ttl,
        "state": str(one.state),
        "frontends": [_encode_wanted(item) for item in one.wanted],
        "displaced": [_encode_displaced(old) for old in one.displaced],
        "learned_ttl": snapshot.learned.get(one.key),
        "stale_for": snapshot.stale_for.get(one.key, 0.0),
    }


def _encode_wanted(item: Wanted) -> dict[str, Any]:
    return {
        "port": item.port,
        "target_port": item.target_port,
        "proxy_protocol": None if item.send_proxy is None else str(item.send_proxy),
        "weight": item.weight,
        "backup": item.backup,
        "health": None if item.check is None else written(item.check),
    }


def _encode_displaced(old: Displaced) -> dict[str, Any]:
    return {
        "listen": str(old.listen),
        "server": old.server,
        "address": str(old.address),
        "proxy_protocol": None if old.send_proxy is None else str(old.send_proxy),
        "weight": old.weight,
        "health": None if old.check is None else written(old.check),
    }


def decode(payload: Mapping[str, Any]) -> tuple[Snapshot, list[str]]:
    """(the snapshot, what had to be left out of it). One bad entry does not cost the others."""
    registrations, learned, stale_for, complaints = [], {}, {}, []
    for index, item in enumerate(_list(payload.get("registrations"))):
        try:
            one = _decode_one(item)
            if item.get("learned_ttl") is not None:
                learned[one.key] = float(item["learned_ttl"])
            stale_for[one.key] = float(item.get("stale_for", 0.0))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            complaints.append(f"registration {index} of the snapshot is left out: {error}")
        else:
            registrations.append(one)
    proven = set()
    for text in _list(payload.get("proven")):
        try:
            proven.add(parse_address(str(text)))
        except ValueError as error:
            complaints.append(f"a proven address of the snapshot is left out: {error}")
    overrides = {}
    for item in _list(payload.get("overrides")):
        try:
            place, override = _decode_override(item)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            complaints.append(f"a word of the operator in the snapshot is left out: {error}")
        else:
            overrides[place] = override
    resolved = {}
    found = payload.get("resolved")
    for host, ips in found.items() if isinstance(found, dict) else ():
        try:
            resolved[host] = tuple(parse_ip(ip) for ip in ips)
        except (ValueError, TypeError) as error:
            complaints.append(f"the addresses of {host} in the snapshot are left out: {error}")
    generation = payload.get("generation")
    return Snapshot(
        generation if isinstance(generation, int) else 0,
        0.0,
        tuple(registrations),
        learned,
        stale_for,
        frozenset(proven),
        overrides or NONE,
        resolved,
    ), complaints


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _decode_one(item: Mapping[str, Any]) -> Registration:
    port = int(item.get("legacy_port", 0))
    name = str(item["name"])
    key = Key(str(item["token"]), "" if port else name, str(item.get("instance", "")), port)
    ttl = item.get("ttl")
    return Registration(
        key,
        name,
        parse_ip(item["address"]),
        tuple(_decode_wanted(wanted) for wanted in item["frontends"]),
        None if ttl is None else float(ttl),
        State(item.get("state", "fresh")),
        displaced=tuple(_decode_displaced(old) for old in _list(item.get("displaced"))),
    )


def _decode_override(item: Mapping[str, Any]) -> tuple[Place, Override]:
    weight = item.get("weight")
    if weight is not None and not (isinstance(weight, int) and 0 <= weight <= 256):
        raise ValueError(f"{weight!r} is not a weight")
    return (parse_listen(item["listen"]), parse_address(item["address"])), Override(AdminState(item["state"]), weight)


def _decode_wanted(item: Mapping[str, Any]) -> Wanted:
    return Wanted(
        _port(item["port"]),
        _port(item["target_port"]),
        _proxy(item.get("proxy_protocol")),
        int(item.get("weight", 1)),
        bool(item.get("backup", False)),
        _check(item.get("health")),
    )


def _decode_displaced(old: Mapping[str, Any]) -> Displaced:
    listen = parse_listen(old["listen"])
    address = parse_address(old["address"])
    send, weight, check = _proxy(old.get("proxy_protocol")), int(old.get("weight", 1)), _check(old.get("health"))
    return Displaced(listen, str(old["server"]), address, send, weight, check)


def _port(value: object) -> int:
    if not isinstance(value, int) or not 1 <= value <= 65535:
        raise ValueError(f"{value!r} is not a port")
    return value


def _check(value: object) -> Check | None:
    return None if value is None else parse_check(value)


def _proxy(value: object) -> ProxyProtocol | None:
    return None if value is None else ProxyProtocol(str(value))
