"""The names of keys in etcd and the encoding of their values, which are those of core/merge. No I/O.

    members/{balancer}    presence/{balancer}    claims/{protocol}/{port >> 8}
    entries/{balancer}/{token}/{name}/{instance}    released/{token}/{name}/{instance}
    of the legacy protocol, in both: …/{token}/~legacy/tcp/{port}; of a set: …/{token}/{name}/~set

Values are JSON objects. Reading is strict: a field that is missing or of another type makes the value Unreadable, which is as
if the key were not there, except for its revision. A claim is one field of its block, and costs only itself. Fields that this
version does not know are ignored, and so are keys: what a newer version adds that changes how an entry is served is one of its
`needs`.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pylb.core.address import parse_ip
from pylb.core.claims import Owner
from pylb.core.errors import Refused
from pylb.core.merge.values import (
    Block,
    BlockKey,
    ClusterKey,
    Entry,
    EntryKey,
    Member,
    MemberKey,
    PresenceKey,
    Slot,
    Tombstone,
    TombstoneKey,
    Unreadable,
    Value,
    Wanted,
    block_of,
)
from pylb.core.registration import MOST_TTL, SET, Key, State, check_name, legacy_key
from pylb.core.text import whole_number

_WORD = re.compile(r"[a-z0-9_-]{1,32}")  # a protocol, a need
_SERVER_NAME = re.compile(r"[a-z0-9*._-]{0,253}")
_LEGACY, _SET = "~legacy", "~set"  # no name begins with a tilde
_MOST = 2**63 - 1  # etcd's and JSON's integers
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, Refused, RecursionError)


class Pair(NamedTuple):
    """One key and its value, as core/merge has them."""

    key: ClusterKey
    value: Value
    complaint: str = ""  # what of the value could not be read


# ---------------------------------------------------------------- keys


def key_name(key: ClusterKey) -> str:
    """Without the prefix."""
    match key:
        case MemberKey():
            return f"members/{key.balancer}"
        case PresenceKey():
            return f"presence/{key.balancer}"
        case BlockKey():
            return f"claims/{key.protocol}/{key.number}"
        case EntryKey():
            return f"entries/{key.balancer}/{_registration_name(key.key)}"
        case TombstoneKey():
            return f"released/{_registration_name(key.key)}"


def _registration_name(key: Key) -> str:
    if key.is_legacy:
        return f"{key.token}/{_LEGACY}/tcp/{key.legacy_port}"
    return f"{key.token}/{key.name}/{key.instance if key.instance != SET else _SET}"


def read_key(name: str) -> ClusterKey | None:
    """None: this version does not know such keys."""
    try:
        match name.split("/"):
            case ["members", balancer]:
                return MemberKey(check_name("balancer", balancer))
            case ["presence", balancer]:
                return PresenceKey(check_name("balancer", balancer))
            case ["claims", protocol, number]:
                return BlockKey(_word(protocol), _number(number, 255))
            case ["entries", balancer, *rest]:
                return EntryKey(check_name("balancer", balancer), _registration(rest))
            case ["released", *rest]:
                return TombstoneKey(_registration(rest))
    except (ValueError, Refused):
        pass
    return None


def _registration(parts: list[str]) -> Key:
    match parts:
        case [token, part, "tcp", port] if part == _LEGACY:
            return legacy_key(check_name("token", token), _port(_number(port, 65535)))
        case [token, name, part] if part == _SET:
            return Key(check_name("token", token), check_name("name", name), SET)
        case [token, name, instance]:
            return Key(check_name("token", token), check_name("name", name), check_name("instance", instance))
    raise ValueError("/".join(parts))


# ---------------------------------------------------------------- values


def write_value(value: Value) -> bytes:
    match value:
        case str():
            return value.encode()
        case Member():
            return _json(
                {
                    "count": value.count,
                    "processed": dict(value.processed),
                    "needs": sorted(value.needs),
                    "reserved": [_plain_slot(slot) for slot in sorted(value.reserved)],
                    "partial": value.partial,
                    "forgotten": value.forgotten,
                }
            )
        case Entry():
            return _json({**_plain_wanted(value.wanted), "state": str(value.state), "stamp": value.stamp})
        case Tombstone():
            known = dict(value.known)
            return _json({"writer": value.writer, "stamp": value.stamp, "known": known, "sequence": value.sequence})
        case Mapping():
            return _json({_slot_name(slot): list(owner) for slot, owner in value.items()})
    raise TypeError(f"nobody writes {value!r}")


def _json(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":"), sort_keys=True).encode()


def _plain_wanted(wanted: Wanted) -> dict[str, Any]:
    return {
        "address": wanted.address,
        "slots": [_plain_slot(slot) for slot in wanted.slots],
        "sequence": wanted.sequence,
        "ttl": wanted.ttl,
        "needs": sorted(wanted.needs),
        "details": wanted.details,
    }


def _plain_slot(slot: Slot) -> list[Any]:
    return [slot.protocol, slot.port, slot.server_name]


def _slot_name(slot: Slot) -> str:
    """In its block, whose key has the protocol."""
    return f"{slot.port}/{slot.server_name}" if slot.server_name else str(slot.port)


def read_pair(name: str, data: bytes) -> Pair | None:
    """None: this version does not know such keys. Never raises: what cannot be read is Unreadable."""
    key = read_key(name)
    if key is None:
        return None
    try:
        if isinstance(key, PresenceKey):
            return Pair(key, data.decode())
        fields = json.loads(data, parse_constant=_no_constant)
        if not isinstance(fields, dict):
            raise TypeError("it is not a JSON object")
        if isinstance(key, BlockKey):
            return _read_block(key, fields)
        return Pair(key, _READERS[type(key)](fields))
    except UNREADABLE as error:
        reason = f"{name} in etcd cannot be read: {reason_of(error)}"
        return Pair(key, Unreadable(reason), reason)


def reason_of(error: Exception) -> str:
    return f"the field {error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)[:200]


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _read_member(fields: dict[str, Any]) -> Member:
    return Member(
        read_count(fields["count"]),
        read_counts(fields["processed"]),
        _needs(fields["needs"]),
        frozenset(_slot(one) for one in typed(list, fields["reserved"])),
        typed(bool, fields["partial"]),
        typed(bool, fields["forgotten"]),
    )


def _read_entry(fields: dict[str, Any]) -> Entry:
    ttl = fields["ttl"]
    wanted = Wanted(
        parse_ip(typed(str, fields["address"])),
        tuple(_slot(one) for one in typed(list, fields["slots"])),
        read_count(fields["sequence"]),
        None if ttl is None else _seconds(ttl),
        _needs(fields["needs"]),
        typed(str, fields["details"]),
    )
    if not wanted.slots:
        raise ValueError("it has no ports")
    return Entry(wanted, State(typed(str, fields["state"])), read_count(fields["stamp"]))


def _read_tombstone(fields: dict[str, Any]) -> Tombstone:
    writer = check_name("writer", typed(str, fields["writer"]))
    return Tombstone(writer, read_count(fields["stamp"]), read_counts(fields["known"]), read_count(fields["sequence"]))


_READERS: dict[type[ClusterKey], Callable[[dict[str, Any]], Value]] = {
    MemberKey: _read_member,
    EntryKey: _read_entry,
    TombstoneKey: _read_tombstone,
}


def _read_block(key: BlockKey, fields: dict[str, Any]) -> Pair:
    block, complaints = dict[Slot, Owner](), list[str]()
    for name, owner in fields.items():
        try:
            port, _, server_name = name.partition("/")
            slot = _slot([key.protocol, _number(port, 65535), server_name])
            if block_of(slot) != key:
                raise ValueError("the port belongs to another key")
            block[slot] = _owner(owner)
        except UNREADABLE as error:
            complaints.append(f"the claim {name[:80]!r} of {key_name(key)} in etcd cannot be read: {reason_of(error)}")
    found: Block = block
    return Pair(key, found, "; ".join(complaints[:3]))


def _owner(value: Any) -> Owner:
    token, name, legacy = typed(list, value)
    legacy = typed(bool, legacy)
    name = typed(str, name)
    if legacy != (name == ""):
        raise ValueError("a legacy owner has no name, and every other one has")
    return check_name("token", typed(str, token)), name if legacy else check_name("name", name), legacy


def _slot(value: Any) -> Slot:
    protocol, port, server_name = typed(list, value)
    if not _SERVER_NAME.fullmatch(typed(str, server_name)):
        raise ValueError(f"{server_name[:80]!r} is not a server name")
    return Slot(_word(typed(str, protocol)), _port(typed(int, port)), server_name)


def _needs(value: Any) -> frozenset[str]:
    return frozenset(_word(typed(str, one)) for one in typed(list, value))


def read_counts(value: Any) -> dict[str, int]:
    return {check_name("balancer", name): read_count(count) for name, count in typed(dict, value).items()}


def typed(kind: type[Any], value: Any) -> Any:
    if type(value) is not kind:  # a bool is an int elsewhere
        raise TypeError(f"{str(value)[:80]!r} is not of type {kind.__name__}")
    return value


def read_count(value: Any) -> int:
    found: int = typed(int, value)
    if not 0 <= found <= _MOST:
        raise ValueError("a count is out of range")
    return found


def _number(text: str, most: int) -> int:
    """The number that a key names. Each number has one text; any other raises ValueError."""
    found = whole_number(text, most)
    if found is None or str(found) != text:
        raise ValueError(f"{text[:40]!r} is not a number up to {most}")
    return found


def _port(port: int) -> int:
    if not 1 <= port <= 65535:
        raise ValueError("a port is out of range")
    return port


def _seconds(value: Any) -> float:
    found = float(typed(int if type(value) is int else float, value))
    if not 0 < found <= MOST_TTL:
        raise ValueError("the ttl is out of range")
    return found


def _word(text: str) -> str:
    if not _WORD.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is not a word")
    return text
