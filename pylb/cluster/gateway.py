"""etcd's HTTP/JSON gateway: what it is asked, what it answers, and what its refusals mean. No I/O.

Tried with 3.4.23 and 3.5.16. Keys and values are base64; 64-bit integers are text; what is zero, empty or false is left out.
"""

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pylb.core.text import visible


class EtcdError(Exception):
    """The base of what a call to etcd may raise. Its text is for the operator."""


class Unreachable(EtcdError):  # noqa: N818 - a condition
    """No answer, or one that does not say what became of the call: it may have happened. Another endpoint may be better."""


class Compacted(EtcdError):  # noqa: N818 - a condition
    """etcd does not have that revision: only another list helps."""


class Full(EtcdError):  # noqa: N818 - a condition
    """etcd's database has reached its quota: it writes nothing and still answers. Another endpoint would say the same."""


class LeaseGone(EtcdError):  # noqa: N818 - a condition
    """The lease has ended."""


class Denied(EtcdError):  # noqa: N818 - a condition
    """Wrong credentials, or not enough rights. Another endpoint would say the same."""


class Unauthenticated(Denied):
    """The token is missing or no longer valid: authenticate again."""


class AuthIsOff(EtcdError):  # noqa: N818 - a condition
    """etcd wants no user names."""


class Item(NamedTuple):
    key: bytes
    value: bytes
    revision: int  # that wrote it


class Event(NamedTuple):
    key: bytes
    value: bytes | None  # None: it was deleted
    revision: int


class Page(NamedTuple):
    items: list[Item]
    revision: int  # of etcd as a whole
    more: bool


class Status(NamedTuple):
    """A member of etcd, as it sees itself."""

    version: str
    member: int
    cluster: int
    leader: int  # the member that leads; 0: it knows none
    database: int  # bytes on its disk
    errors: tuple[str, ...]  # alarms, also of the other members
    ahead: float | None = None  # seconds between its clock and this machine's; None: it did not say


class Outcome(NamedTuple):
    succeeded: bool
    revision: int


@dataclass(frozen=True, slots=True)
class Txn:
    """Happens as a whole, and only if all comparisons are true."""

    written_at: Mapping[bytes, int]  # 0: the key does not exist
    has_value: Mapping[bytes, bytes] = field(default_factory=dict)
    puts: Mapping[bytes, bytes] = field(default_factory=dict)
    leased: Mapping[bytes, tuple[bytes, int]] = field(default_factory=dict)  # puts that go with a lease
    deletes: frozenset[bytes] = frozenset()


def encode(data: bytes) -> str:
    return b64encode(data).decode()


def end_of(prefix: bytes) -> bytes:
    """The first key behind all that start with `prefix`, which does not end with 0xff."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


# ---------------------------------------------------------------- what it is asked


def range_body(start: bytes, end: bytes, revision: int, limit: int) -> dict[str, Any]:
    return {"key": encode(start), "range_end": encode(end), "revision": str(revision), "limit": str(limit)}


def txn_body(txn: Txn) -> dict[str, Any]:
    compare: list[dict[str, str]] = [
        {"key": encode(key), "target": "MOD", "mod_revision": str(revision)} for key, revision in txn.written_at.items()
    ]
    compare += [{"key": encode(key), "target": "VALUE", "value": encode(value)} for key, value in txn.has_value.items()]
    success: list[dict[str, dict[str, str]]] = [
        {"request_put": {"key": encode(key), "value": encode(value)}} for key, value in txn.puts.items()
    ]
    success += [
        {"request_put": {"key": encode(key), "value": encode(value), "lease": str(lease)}}
        for key, (value, lease) in txn.leased.items()
    ]
    success += [{"request_delete_range": {"key": encode(key)}} for key in sorted(txn.deletes)]
    return {"compare": compare, "success": success}


def watch_body(prefix: bytes, start_revision: int) -> dict[str, Any]:
    """`progress_notify`: now and then it says up to which revision there was nothing."""
    create = {"key": encode(prefix), "range_end": encode(end_of(prefix)), "start_revision": str(start_revision)}
    return {"create_request": {**create, "progress_notify": True}}


# ---------------------------------------------------------------- what it answers


def as_object(body: bytes) -> dict[str, Any]:
    """Raises Unreachable: this is not etcd."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise _not_etcd(body)
    return answer


def read_page(body: bytes) -> Page:
    """Raises Unreachable, as all that follow."""
    answer = as_object(body)
    with _StrictReading(body):
        items = [Item(_bytes(one, "key"), _bytes(one, "value"), _integer(one, "mod_revision")) for one in answer.get("kvs", ())]
        return Page(items, _integer(answer["header"], "revision"), answer.get("more", False) is True)


def read_outcome(body: bytes) -> Outcome:
    answer = as_object(body)
    with _StrictReading(body):
        return Outcome(answer.get("succeeded", False) is True, _integer(answer["header"], "revision"))


def read_grant(body: bytes) -> int:
    """The id of the new lease."""
    answer = as_object(body)
    with _StrictReading(body):
        if not (lease := _integer(answer, "ID")):
            raise ValueError(str(answer))
        return lease


def read_keepalive(body: bytes) -> int:
    """The seconds that the lease has. 0: it is gone."""
    answer = as_object(body)
    with _StrictReading(body):
        return _integer(answer["result"], "TTL")


def read_status(body: bytes) -> Status:
    answer = as_object(body)
    with _StrictReading(body):
        header, errors = answer["header"], answer.get("errors", [])
        if not isinstance(errors, list):
            raise TypeError("errors")
        return Status(
            visible(_text(answer, "version")[:40]),
            _unsigned(header, "member_id"),
            _unsigned(header, "cluster_id"),
            _unsigned(answer, "leader"),
            _integer(answer, "dbSize"),
            tuple(visible(str(one)[:200]) for one in errors[:10]),
        )


def read_token(body: bytes) -> str:
    answer = as_object(body)
    with _StrictReading(body):
        return _text(answer, "token")


class Watched(NamedTuple):
    """One line of a watch. `events`: those of each of its revisions are all here; they are read one after the other."""

    revision: int  # of etcd as a whole, when the line was made
    created: bool
    events: Iterator[Event]


def read_watched(line: bytes) -> Watched:
    """Raises also what ends the watch: the stream itself stays open."""
    # Thousands of events may be on one line, and one call of json.loads would hold the loop for all of them. They are its end.
    text = line.decode("latin-1")
    found = _EVENTS.search(text)
    answer = _without_events(text[: found.end()]) if found else None
    if found and answer:
        events = _split_events(text, found.end(), line)
    else:  # there are none, or they are not its end
        answer = as_object(line)
        events = _all_events(answer, line)
    if "error" in answer:
        raise failure(500, line)
    with _StrictReading(line):
        result = answer["result"]
        if result.get("canceled"):
            raise _end_of_watch(result)
        return Watched(_integer(result["header"], "revision"), result.get("created", False) is True, events)


def _end_of_watch(result: dict[str, Any]) -> EtcdError:
    compacted, reason = _integer(result, "compact_revision"), _text(result, "cancel_reason")
    if compacted:
        return Compacted(f"the watch is older than revision {compacted}, to which etcd has compacted its history")
    for word, kind in _CANCELED.items():
        if word in reason:
            return kind(f"etcd ended the watch: {visible(reason)}")
    return Unreachable(f"etcd ended the watch: {visible(reason) or 'without a reason'}")


def _without_events(head: str) -> dict[str, Any] | None:
    try:
        answer = json.loads(head + "]}}")
        return answer if "header" in answer["result"] else None
    except (ValueError, RecursionError, KeyError, TypeError):
        return None


def _split_events(text: str, position: int, line: bytes) -> Iterator[Event]:
    decoder = json.JSONDecoder()
    with _StrictReading(line):
        while text[position] != "]":
            one, position = decoder.raw_decode(text, position)
            between = _BETWEEN.match(text, position)
            position = between.end() if between else position
            yield _event(one)


def _all_events(answer: dict[str, Any], line: bytes) -> Iterator[Event]:
    with _StrictReading(line):
        for one in answer["result"].get("events", ()):
            yield _event(one)


def _event(one: dict[str, Any]) -> Event:
    kv = one["kv"]
    deleted = one.get("type") == "DELETE"
    return Event(_bytes(kv, "key"), None if deleted else _bytes(kv, "value"), _integer(kv, "mod_revision"))


class _StrictReading:
    """Inside, a field that is missing or has another type means that etcd did not answer this."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError)):
            raise _not_etcd(self._body) from None


def _not_etcd(body: bytes) -> Unreachable:
    return Unreachable(f"its answer is not etcd's: {visible(body[:200].decode('utf-8', 'replace'))!r}")


def _integer(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name, "0")
    if not isinstance(value, str) or not _INTEGER.fullmatch(value):
        raise ValueError(name)
    return int(value)


def _unsigned(fields: dict[str, Any], name: str) -> int:
    """The id of a member or a cluster: 64 bits without a sign."""
    value = fields.get(name, "0")
    if not isinstance(value, str) or not _UNSIGNED.fullmatch(value):
        raise ValueError(name)
    return int(value)


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise TypeError(name)
    return value


def _bytes(fields: dict[str, Any], name: str) -> bytes:
    return b64decode(_text(fields, name), validate=True)


# ---------------------------------------------------------------- what its refusals mean


def failure(status: int, body: bytes) -> EtcdError:
    """What an answer means that is not 200: by gRPC's code, and by etcd's text where one code has several meanings."""
    try:
        answer = json.loads(body)
        answer = answer.get("error", answer) if isinstance(answer.get("error"), dict) else answer  # as in a stream
        code, text = answer.get("code", answer.get("grpc_code")), str(answer.get("message", answer.get("error", "")))
    except (ValueError, RecursionError, AttributeError):
        return _no_gateway(status, body)
    text = visible(text[:500])
    for word, kind in _MEANINGS.items():
        if word in text:
            return kind(f"etcd says: {text}")
    kind = _BY_CODE.get(code, Unreachable) if isinstance(code, int) else Unreachable
    return kind(f"etcd says: {text or status}")


def _no_gateway(status: int, body: bytes) -> EtcdError:
    text = visible(body[:200].decode("utf-8", "replace").strip())
    if status == 404:
        return Unreachable(
            "it has no HTTP gateway (404): an etcd that is started by a config file needs `enable-grpc-gateway: true` in it"
        )
    if "CommonName" in text:
        return Denied(
            "etcd accepts no client certificate with a CommonName on its HTTP gateway while it has users: "
            "use a certificate without one, or no certificate"
        )
    return Unreachable(f"its answer is not etcd's: {status} {text!r}")


_EVENTS = re.compile(r'"events"\s*:\s*\[\s*')
_BETWEEN = re.compile(r"\s*,?\s*")
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_UNSIGNED = re.compile(r"[0-9]{1,20}")
# etcd's api/v3rpc/rpctypes: the same code stands for several of these.
_MEANINGS: dict[str, type[EtcdError]] = {
    "database space exceeded": Full,
    "requested lease not found": LeaseGone,
    "required revision": Compacted,  # has been compacted, or is a future one: of an etcd that is older than the list
    "user name is empty": Unauthenticated,
    "invalid auth token": Unauthenticated,
    "auth store is old": Unauthenticated,
    "authentication failed": Denied,
    "authentication is not enabled": AuthIsOff,
}
_CANCELED: dict[str, type[EtcdError]] = {**_MEANINGS, "permission denied": Denied}
_BY_CODE: dict[int, type[EtcdError]] = {7: Denied, 16: Unauthenticated}  # all others: busy, without a leader, stopping
