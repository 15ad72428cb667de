"""The entry of a registration in the snapshot, and in etcd for other balancers."""

from collections.abc import Mapping
from typing import Any

from pylb.control.storage.needs import needs_of
from pylb.core.address import TCP, UDP, parse_ip, written_address, written_listen
from pylb.core.checks import parse_health, written_health
from pylb.core.errors import Refused
from pylb.core.policy import UNSAID, HealthOverride, ProxyProtocol
from pylb.core.registration import (
    SET,
    DisplacedServer,
    FrontendRequest,
    Key,
    Registration,
    State,
    check_name,
    legacy_key,
    parse_sequence,
)
from pylb.core.server_names import parse_server_name
from pylb.core.server_set import NO_TERMS, Member, Terms, parse_access, written_access

UNUSABLE = (Refused, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
_MOST_SECONDS = 1e9
_MOST_MOMENT = 1e11  # unix time: 3,000 years


def written_entry(place: int, _key: Key, one: Registration) -> dict[str, Any]:
    """The entry as JSON; `read_registration` reads it. `place`: in the order in which registrations came."""
    return {
        "order": place,
        "needs": needs_of(one),
        "token": one.key.token,
        "name": one.name,
        "instance": one.key.instance,
        "legacy_port": one.key.legacy_port,
        "address": one.ip,
        "ttl": one.ttl,
        "state": str(one.state),
        "since": one.since,
        "frontends": [_encode_wanted(item) for item in one.wanted],
        "displaced": [_encode_displaced(old) for old in one.displaced],
        **({} if one.sequence is None else {"sequence": one.sequence}),
        **(_encode_set(one) if one.members else {}),
        **({"hearer": one.hearer} if one.hearer else {}),
    }


def _encode_set(one: Registration) -> dict[str, Any]:
    return {
        "members": [list(member) for member in one.members],
        "access": written_access(one.terms.access),
        "idle": one.terms.idle,
    }


def _encode_wanted(item: FrontendRequest) -> dict[str, Any]:
    return {
        "port": item.port,
        "target_port": item.target_port,
        "proxy_protocol": None if item.send_proxy is None else str(item.send_proxy),
        "weight": item.weight,
        "backup": item.backup,
        "health": written_health(item.health),
        **({} if item.protocol == TCP else {"protocol": item.protocol}),
        **({"last": item.last} if item.last else {}),
        **({"target_last": item.target_last} if item.target_last else {}),
        **({"server_name": item.server_name} if item.server_name else {}),
        **({"names": "allowed"} if item.allows_names else {}),
    }


def _encode_displaced(old: DisplacedServer) -> dict[str, Any]:
    return {
        "listen": str(old.listen),
        "server": old.server,
        "address": str(old.address),
        "proxy_protocol": None if old.send_proxy is None else str(old.send_proxy),
        "weight": old.weight,
        "health": written_health(old.health),
    }


_LOCAL = frozenset({"order", "needs", "state", "since", "displaced", "hearer"})


def written_registration(one: Registration) -> dict[str, Any]:
    """The registration as other balancers get it, without what only this one knows about it."""
    return {key: value for key, value in written_entry(0, one.key, one).items() if key not in _LOCAL}


def read_registration(item: Mapping[str, Any]) -> Registration:
    """From an entry. Raises one of UNUSABLE."""
    port = int(item.get("legacy_port", 0))
    name, token = check_name("name", str(item["name"])), check_name("token", str(item["token"]))
    members = tuple(_decode_member(*one) for one in read_list(item.get("members")))
    instance = SET if members else str(item["instance"])
    key = legacy_key(token, port) if port else Key(token, name, instance if members else check_name("instance", instance))
    ttl, sequence = item.get("ttl"), item.get("sequence")
    return Registration(
        key,
        name,
        "" if members else parse_ip(item["address"]),
        tuple(_decode_wanted(wanted) for wanted in item["frontends"]),
        None if ttl is None else read_seconds(ttl),
        State(item.get("state", "fresh")),
        displaced=tuple(_decode_displaced(old) for old in read_list(item.get("displaced"))),
        since=read_moment(item.get("since", 0.0)),
        members=members,
        terms=_decode_terms(item),
        sequence=None if sequence is None else parse_sequence(str(sequence)),
        hearer=check_name("hearer", str(item["hearer"])) if item.get("hearer") else "",
    )


def _decode_member(instance: object, ip: Any, weight: object) -> Member:
    return Member(check_name("instance", str(instance)), parse_ip(ip), None if weight is None else _weight({"weight": weight}))


def _decode_terms(item: Mapping[str, Any]) -> Terms:
    idle = item.get("idle")
    terms = Terms(parse_access(read_list(item.get("access"))), None if idle is None else read_seconds(idle))
    return NO_TERMS if terms == NO_TERMS else terms


def _decode_wanted(item: Mapping[str, Any]) -> FrontendRequest:
    return FrontendRequest(
        _port(item["port"]),
        _port(item["target_port"]),
        _proxy(item.get("proxy_protocol")),
        _weight(item),
        bool(item.get("backup", False)),
        _health(item.get("health")),
        _protocol(item.get("protocol", TCP)),
        *_lasts(item),
        parse_server_name(name) if (name := str(item.get("server_name", ""))) else "",
        item.get("names") == "allowed",
    )


def _decode_displaced(old: Mapping[str, Any]) -> DisplacedServer:
    listen = written_listen(old["listen"])
    address = written_address(old["address"])
    send, weight, health = _proxy(old.get("proxy_protocol")), _weight(old), _health(old.get("health"))
    return DisplacedServer(listen, check_name("server", str(old["server"])), address, send, weight, health)


def _lasts(item: Mapping[str, Any]) -> tuple[int, int]:
    """The last ports of a range and of its targets; 0: there is none."""
    last, target_last = (_port(item[key]) if item.get(key) else 0 for key in ("last", "target_last"))
    if (last and last <= item["port"]) or (target_last and target_last - item["target_port"] != last - item["port"]):
        raise ValueError(f"{item['port']}-{last} to {item['target_port']}-{target_last}: no ranges of one length")
    return last, target_last


def _protocol(value: object) -> str:
    if value not in (TCP, UDP):
        raise ValueError(f"{value!r:.40} is not a protocol")
    return str(value)


def _port(value: object) -> int:
    if not isinstance(value, int) or not 1 <= value <= 65535:
        raise ValueError(f"{value!r} is not a port")
    return value


def _weight(item: Mapping[str, Any]) -> int:
    found = item.get("weight", 1)
    if not isinstance(found, int) or not 1 <= found <= 256:
        raise ValueError(f"{found!r:.40} is not a weight")
    return found


def _health(value: object) -> HealthOverride:
    return UNSAID if value is None else parse_health(value)


def _proxy(value: object) -> ProxyProtocol | None:
    return None if value is None else ProxyProtocol(str(value))


def read_seconds(value: object) -> float:
    """Raises ValueError, TypeError, OverflowError."""
    found = float(value)  # type: ignore[arg-type]
    if not 0 <= found <= _MOST_SECONDS:  # NaN is neither
        raise ValueError(f"{value!r:.40} is not a time in seconds")
    return found


def read_moment(value: object) -> float:
    """A unix time. Raises as `read_seconds`."""
    found = float(value)  # type: ignore[arg-type]
    if not 0 <= found <= _MOST_MOMENT:
        raise ValueError(f"{value!r:.40} is not a unix time")
    return found


def read_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
