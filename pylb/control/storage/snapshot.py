"""The payload of the snapshot: registrations, what was learned of their leases, and which servers had answered.

Unknown keys are ignored and missing ones have defaults, so one version back and one forth can read it. A word in the
`needs` of an entry must not be ignored: a version that does not know it keeps the entry as it is and does not serve it.
Times of leases are not in it: they mean nothing after a restart; only for how long a stale one has been stale.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice, starmap
from operator import itemgetter
from typing import Any, TypeVar

from pylb.control.desired_state import UnsupportedEntry
from pylb.control.leases import LeaseRecord
from pylb.control.storage.entries import UNUSABLE, read_list, read_moment, read_registration, read_seconds, written_entry
from pylb.control.storage.needs import KNOWN_NEEDS
from pylb.control.storage.store import Json, canonical
from pylb.core.address import TCP, Address, parse_ip, written_address, written_listen
from pylb.core.operator_overrides import NONE, Override, Overrides, OverrideTarget, ServerKey
from pylb.core.persistent_map import Bucket, PersistentMap, frozen_set
from pylb.core.policy import AdminState
from pylb.core.registration import Key, Registration
from pylb.core.text import visible

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")

ENTRIES = 40  # of a list without buckets, in a text: half a millisecond at most
PIECE = 12_000  # bytes of text that are encoded without a pause: half a millisecond at most, whatever they say
PAUSE = 0.0001  # seconds; the thread lets go of the GIL for as long
_MOST_GENERATION = 1 << 53  # a float has each of them, and so has JSON


@dataclass(frozen=True, slots=True)
class Snapshot:
    generation: int = 0
    written_at: float = 0.0  # unix time, for humans
    registrations: PersistentMap[Key, Registration] = field(default_factory=PersistentMap)
    leases: Mapping[Key, LeaseRecord] = field(default_factory=dict)  # of those with something to be remembered
    proven: PersistentMap[Address, bool] = field(default_factory=PersistentMap)
    down: PersistentMap[ServerKey, bool] = field(default_factory=PersistentMap)
    # Their check, and serve where only that lets them
    passed: PersistentMap[ServerKey, bool] = field(default_factory=PersistentMap)
    overrides: Overrides = field(default_factory=lambda: NONE)
    resolved: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # addresses by host name
    unserved: Mapping[Key, UnsupportedEntry] = field(default_factory=dict)
    reserved: int = 0  # the first generation that a start after this one may use
    # TTLs to be written; `leases` has them when they are read
    learned: PersistentMap[Key, float] = field(default_factory=PersistentMap)


class Encoder:
    """Snapshots as JSON, in the store's thread.

    It remembers the text of every bucket of the large mappings (persistent_map.py): only buckets that changed since the last
    snapshot are encoded again. It pauses after every few kilobytes, because a thread that computes without a break delays every
    system call of the other threads by up to 5 ms, the time until they get the GIL back. It may wait as long itself after each
    pause, so they are counted by what was encoded: an address takes a thirtieth of the time of a registration.
    """

    def __init__(self) -> None:
        self._registrations: _Texts = {}
        self._learned: _Texts = {}
        self._proven: _Texts = {}
        self._down: _Texts = {}
        self._passed: _Texts = {}
        self._since = 0  # bytes encoded since the last pause

    def encode(self, snapshot: Snapshot, leases: Iterable[tuple[Key, LeaseRecord]] = ()) -> dict[str, Any]:
        """`leases`: more of `snapshot.leases`, which are made while they are encoded: there may be thousands."""
        self._registrations, registrations = self._by_bucket(snapshot.registrations, self._registrations, written_entry)
        self._learned, learned = self._by_bucket(snapshot.learned, self._learned, _encode_learned)
        self._proven, proven = self._by_bucket(snapshot.proven, self._proven, lambda _place, address, _: f"{address}")
        self._down, down = self._by_bucket(snapshot.down, self._down, _encode_server_key)
        self._passed, passed = self._by_bucket(snapshot.passed, self._passed, _encode_server_key)
        unserved, overrides = snapshot.unserved.values(), snapshot.overrides.items()
        return {
            "generation": snapshot.generation,
            "reserved": snapshot.reserved,
            "written_at": snapshot.written_at,
            "registrations": Json([*registrations.pieces, *self._pieces(one.entry for one in unserved)]),
            "leases": Json(  # of two entries about one the later counts
                [
                    *learned.pieces,
                    *self._pieces(starmap(_encode_lease, chain(snapshot.leases.items(), leases))),
                    *self._pieces(one.lease for one in unserved if one.lease is not None),
                ]
            ),
            "proven": proven,
            "down": down,
            "passed": passed,
            "resolved": {host: list(ips) for host, ips in snapshot.resolved.items()},
            "overrides": self._listed(
                {"listen": str(one[0]), "address": str(one[1]), **_encode_word(word)}
                for one, word in overrides
                if not isinstance(one, str)
            ),
            "node_overrides": self._listed(
                {"node": one, **_encode_word(word)} for one, word in overrides if isinstance(one, str)
            ),
        }

    def _by_bucket(
        self, entries: PersistentMap[K, V], known: "_Texts", encoded: Callable[[int, K, V], Any]
    ) -> tuple["_Texts", Json]:
        texts: _Texts = {}
        for bucket in entries.buckets:
            texts[id(bucket)] = known.get(id(bucket)) or (
                bucket,
                self._text([encoded(place, key, value) for key, (place, value) in bucket.items()]),
            )
        return texts, Json([text for _, text in texts.values()])

    def _listed(self, values: Iterable[Any]) -> Json:
        return Json(list(self._pieces(values)))

    def _pieces(self, values: Iterable[Any]) -> Iterator[bytes]:
        rest = iter(values)
        while some := list(islice(rest, ENTRIES)):
            yield self._text(some)

    def _text(self, values: list[Any]) -> bytes:
        text = canonical(values)[1:-1].encode()  # all at once: calling the encoder takes longer than an address
        self._since += len(text)
        if self._since >= PIECE:
            self._since = 0
            time.sleep(PAUSE)  # noqa: TID251 - in the store's thread, never on the loop
        return text


_Texts = dict[int, tuple[Bucket[Any, Any], bytes]]  # by the identity of the bucket, which is held so that it stays its own


def _encode_server_key(_order: int, key: ServerKey, _: bool) -> list[str]:
    listen, address = key
    return [str(listen), str(address)]


def _encode_learned(_order: int, key: Key, ttl: float) -> dict[str, Any]:
    return _encode_lease(key, LeaseRecord(ttl))


def _encode_lease(key: Key, lease: LeaseRecord) -> dict[str, Any]:
    return {
        **key._asdict(),
        "learned_ttl": lease.learned,
        "stale_for": lease.stale_for,
        "displaced_for": lease.displaced_for,
        "goodbye": lease.goodbye,
    }


def decode(payload: Mapping[str, Any]) -> tuple[Snapshot, list[str]]:
    """(the snapshot, what had to be left out of it). One bad entry does not cost the others."""
    complaints: list[str] = []

    def each(key: str, what: str, decoded: Callable[[int, Any], T]) -> Iterator[T]:
        for index, item in enumerate(read_list(payload.get(key))):
            try:
                yield decoded(index, item)
            except UNUSABLE as error:
                complaints.append(f"{what.format(index)} of the snapshot is left out: {error}")

    entries, unserved = list[tuple[int, Registration, LeaseRecord]](), dict[Key, UnsupportedEntry]()
    for found_one in each("registrations", "registration {}", _decode_or_keep):
        if isinstance(found_one, UnsupportedEntry):
            unserved[_key(found_one.entry)] = found_one
        else:
            entries.append(found_one)
    for item in read_list(payload.get("leases")):  # as they came, too
        if isinstance(item, dict) and (one := unserved.get(_key(item))) is not None:
            unserved[_key(item)] = replace(one, lease=item)
    leases = {one.key: lease for _, one, lease in entries} | dict(each("leases", "lease {}", _decode_lease))
    proven = frozen_set(each("proven", "proven address {}", lambda _, text: written_address(str(text))))
    down = frozen_set(each("down", "server {} that was down", _decode_server_key))
    passed = frozen_set(each("passed", "server {} that had passed its check", _decode_server_key))
    overrides: dict[OverrideTarget, Override] = dict(each("overrides", "the operator's word {}", _decode_override))
    overrides |= dict(each("node_overrides", "the operator's word {} about a node", _decode_node))
    resolved = {}
    found = payload.get("resolved")
    for host, ips in found.items() if isinstance(found, dict) else ():
        try:
            resolved[host] = tuple(parse_ip(ip) for ip in ips)
        except UNUSABLE as error:
            complaints.append(f"the addresses of {host} in the snapshot are left out: {error}")
    return Snapshot(
        _generation(payload.get("generation")),
        0.0,
        PersistentMap({one.key: one for _, one, _ in sorted(entries, key=itemgetter(0))}),
        {key: lease for key, lease in leases.items() if key not in unserved and lease != LeaseRecord()},
        proven,
        down,
        passed,
        overrides or NONE,
        resolved,
        unserved,
        _generation(payload.get("reserved")),
    ), complaints


def _generation(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value <= _MOST_GENERATION else 0


def _decode_or_keep(index: int, item: Mapping[str, Any]) -> tuple[int, Registration, LeaseRecord] | UnsupportedEntry:
    needs = tuple(visible(str(word)) for word in read_list(item.get("needs")) if word not in KNOWN_NEEDS)
    if not needs:
        return _decode_entry(index, item)
    frontends = [one for one in read_list(item.get("frontends")) if isinstance(one, dict)]
    numbered = (one for one in frontends if isinstance(one.get("port"), int))
    ports = tuple((visible(str(one.get("protocol", TCP))), one["port"]) for one in numbered)
    return UnsupportedEntry(item, None, needs, visible(str(item.get("name", ""))), ports)


def _key(item: Mapping[str, Any]) -> Key:
    """The registration's key in an entry or a lease. A legacy registration has a port in place of a name."""
    port = item.get("legacy_port", 0)
    port = port if isinstance(port, int) else 0
    return Key(str(item.get("token", "")), "" if port else str(item.get("name", "")), str(item.get("instance", "")), port)


def _decode_entry(index: int, item: Mapping[str, Any]) -> tuple[int, Registration, LeaseRecord]:
    """Its place in the order, and its lease: where the pylb before had that."""
    return int(item.get("order", index)), read_registration(item), _read_lease(item)


def _decode_lease(_index: int, item: Mapping[str, Any]) -> tuple[Key, LeaseRecord]:
    key = Key(str(item["token"]), str(item["name"]), str(item["instance"]), int(item["legacy_port"]))
    return key, _read_lease(item)


def _read_lease(item: Mapping[str, Any]) -> LeaseRecord:
    learned = item.get("learned_ttl")
    return LeaseRecord(
        None if learned is None else read_seconds(learned),
        read_seconds(item.get("stale_for", 0.0)),
        read_seconds(item.get("displaced_for", 0.0)),
        bool(item.get("goodbye", False)),
    )


def _decode_server_key(_index: int, pair: object) -> ServerKey:
    listen, address = read_list(pair)
    return written_listen(listen), written_address(address)


def _encode_word(word: Override) -> dict[str, Any]:
    return {"state": str(word.state), "weight": word.weight, "until": word.until, "exempt": word.exempt}


def _decode_node(_index: int, item: Mapping[str, Any]) -> tuple[OverrideTarget, Override]:
    return parse_ip(item["node"]), _decode_word(item)


def _decode_override(_index: int, item: Mapping[str, Any]) -> tuple[OverrideTarget, Override]:
    return (written_listen(item["listen"]), written_address(item["address"])), _decode_word(item)


def _decode_word(item: Mapping[str, Any]) -> Override:
    weight = item.get("weight")
    if weight is not None and not (isinstance(weight, int) and 0 <= weight <= 256):
        raise ValueError(f"{weight!r} is not a weight")
    until = item.get("until")
    return Override(
        AdminState(item["state"]), weight, None if until is None else read_moment(until), bool(item.get("exempt", False))
    )
