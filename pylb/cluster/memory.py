"""What a balancer remembers of the cluster over a restart, as JSON for its snapshot. No I/O.

Registrations and values are written as they are in etcd (keys.py) and read as strictly. Of a memory that cannot be read nothing
is used: a balancer without one takes what is its own from etcd, which is better than half of what it knew.
"""

from collections.abc import Mapping
from typing import Any

from pylb.cluster.keys import (
    UNREADABLE,
    key_name,
    read_count,
    read_counts,
    read_key,
    read_pair,
    reason_of,
    typed,
    write_value,
)
from pylb.core.merge.local import Held, Memory, Merged, Own, Unsent
from pylb.core.merge.mirror import Known, Listing, Mirror, View
from pylb.core.merge.values import BlockKey, ClusterKey, Entry, EntryKey, Member, MemberKey, Tombstone, TombstoneKey, Unreadable
from pylb.core.merge.values import Value as ClusterValue
from pylb.core.registration import Key, State

Plain = dict[str, Any]


class UnreadableMemory(ValueError):  # noqa: N818 - a condition
    """It is damaged, or of a version that writes it otherwise."""


def write_memory(memory: Memory) -> Plain:
    """Without `here`: at the next start nothing was called here yet."""
    mirror = memory.mirror
    return {
        "begun": memory.begun,
        "count": memory.count,
        "own": [[*_entry(key, own.wanted, own.state), own.heard, own.on_probation] for key, own in memory.own.items()],
        "unsent": [[_name(key), dict(one.known), one.sequence] for key, one in memory.unsent.items()],
        "unwritten": sorted(map(_name, memory.unwritten)),
        "processed": dict(memory.processed),
        "held": [
            [
                *_entry(key, one.before.wanted, one.before.state),
                one.before.hearer,
                sorted(one.before.lacking),
                _text(one.tombstone),
            ]
            for key, one in memory.held.items()
        ],
        "lost": [[key_name(key), _text(value)] for key, value in memory.lost.items()],
        "revision": mirror.revision,
        "values": [
            [key_name(key), _text(value), revision]
            for key, (value, revision) in mirror.values.items()
            if not isinstance(value, Unreadable)
        ],
        "newer": [
            [
                key_name(MemberKey(balancer)),
                _text(view.member),
                [[key_name(EntryKey(balancer, key)), _text(one.entry), one.revision] for key, one in view.entries.items()],
            ]
            for balancer, view in mirror.newer.items()
        ],
        "newer_blocks": [[key_name(key), _text(block)] for key, block in mirror.newer_blocks.items()],
    }


def read_memory(plain: object) -> Memory:
    """Raises UnreadableMemory."""
    try:
        return _read(typed(dict, plain))
    except UNREADABLE as error:
        raise UnreadableMemory(f"what this balancer knew of the others cannot be read: {reason_of(error)}") from None


def _read(plain: Plain) -> Memory:
    own, held = dict[Key, Own](), dict[Key, Held]()
    for name, entry, heard, on_probation in plain["own"]:
        key, one = _read_entry(name, entry)
        own[key] = Own(one.wanted, one.state, read_count(heard), here=False, on_probation=typed(bool, on_probation))
    for name, entry, hearer, lacking, tombstone in plain["held"]:
        key, one = _read_entry(name, entry)
        before = Merged(one.wanted, one.state, typed(str, hearer), frozenset(typed(list, lacking)))
        held[key] = Held(_as(Tombstone, key_name(TombstoneKey(key)), tombstone), before)
    return Memory(
        begun=read_count(plain["begun"]),
        count=read_count(plain["count"]),
        own=own,
        unsent={
            _key(name): Unsent(read_counts(known), read_count(sequence), here=False)
            for name, known, sequence in plain["unsent"]
        },
        unwritten=frozenset(map(_key, typed(list, plain["unwritten"]))),
        processed=read_counts(plain["processed"]),
        mirror=_read_mirror(plain),
        held=held,
        lost=dict(_pair(name, text) for name, text in plain["lost"]),
    )


def _read_mirror(plain: Plain) -> Mirror:
    listing = {}
    for name, text, revision in plain["values"]:
        key, value = _pair(name, text)
        listing[key] = value, read_count(revision)
    mirror = _mirror(listing)
    mirror.revision = read_count(plain["revision"])
    for name, text, entries in plain["newer"]:
        key, member = _pair(name, text)
        if not isinstance(key, MemberKey) or not isinstance(member, Member):
            raise TypeError(f"{name[:80]!r} is not a member")
        view = View(member, dict(_known(key.balancer, *one) for one in entries))
        mirror.newer[key.balancer] = view
        for one in view.entries:
            mirror.hearers.setdefault(one, set()).add(key.balancer)
    for name, text in plain["newer_blocks"]:
        key, block = _pair(name, text)
        if not isinstance(key, BlockKey) or not isinstance(block, Mapping):
            raise TypeError(f"{name[:80]!r} is not a block of claims")
        mirror.newer_blocks[key] = block
    return mirror


def _mirror(listing: Listing) -> Mirror:
    steps = Mirror().prepared(listing)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            made: Mirror = end.value
            return made


def _known(balancer: str, name: str, text: str, revision: int) -> tuple[Key, Known]:
    key, entry = _pair(name, text)
    if not isinstance(key, EntryKey) or key.balancer != balancer or not isinstance(entry, Entry):
        raise TypeError(f"{name[:80]!r} is not an entry of {balancer!r}")
    return key.key, Known(entry, read_count(revision))


# ---------------------------------------------------------------- registrations and values, as in etcd


def _name(key: Key) -> str:
    return key_name(TombstoneKey(key))


def _key(name: str) -> Key:
    found = read_key(typed(str, name))
    if not isinstance(found, TombstoneKey):
        raise TypeError(f"{name[:80]!r} is not the name of a registration")
    return found.key


def _entry(key: Key, wanted: Any, state: State) -> tuple[str, str]:
    return _name(key), _text(Entry(wanted, state, 0))


def _read_entry(name: str, text: str) -> tuple[Key, Entry]:
    key = _key(name)
    entry: Entry = _as(Entry, key_name(EntryKey("x", key)), text)  # whose it is does not matter here
    return key, entry


def _text(value: ClusterValue) -> str:
    return write_value(value).decode()


def _pair(name: str, text: str) -> tuple[ClusterKey, ClusterValue]:
    pair = read_pair(typed(str, name), typed(str, text).encode())
    if pair is None or pair.complaint:
        raise ValueError(pair.complaint if pair is not None else f"{name[:80]!r} is not a key")
    return pair.key, pair.value


def _as(kind: type[Any], name: str, text: str) -> Any:
    _, value = _pair(name, text)
    if not isinstance(value, kind):
        raise TypeError(f"{name[:80]!r} is not of type {kind.__name__}")
    return value
