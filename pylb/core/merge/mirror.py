"""What is known of etcd's content, and of each balancer's entries the newest version that was ever seen.

After a restore etcd's content is older than what was seen before. Each balancer counts its own writes, and the count never goes
back: a balancer whose count in etcd is lower than the one that was seen keeps the entries that were seen, until it has written
all of them again.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

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
)
from pylb.core.registration import Key

Listing = Mapping[ClusterKey, tuple[Value, int]]  # the value, and the revision that wrote it
Changes = Mapping[ClusterKey, Value | None]  # of one revision; None: deleted


STEP = 100  # items between two turns of the loop, some 10 µs each


class Known(NamedTuple):
    entry: Entry
    revision: int


@dataclass(frozen=True, slots=True)
class View:
    """A balancer and its entries."""

    member: Member
    entries: dict[Key, Known]


UNSEEN = View(Member(0, {}), {})


@dataclass(slots=True)
class Mirror:
    revision: int = 0  # up to which everything is known
    values: dict[ClusterKey, tuple[Value, int]] = field(default_factory=dict)
    written: dict[str, View] = field(default_factory=dict)  # what etcd has
    newer: dict[str, View] = field(default_factory=dict)  # what was seen, where etcd has something older
    newer_blocks: dict[BlockKey, Block] = field(default_factory=dict)  # what was seen, until somebody has written it again
    tombstones: dict[Key, Tombstone] = field(default_factory=dict)
    hearers: dict[Key, set[str]] = field(
        default_factory=dict
    )  # who may have an entry; those that have none are found by looking

    def view(self, balancer: str) -> View:
        return self.newer.get(balancer) or self.written.get(balancer, UNSEEN)

    def members(self) -> Iterator[tuple[str, Member]]:
        """Without the forgotten ones."""
        for balancer in {**self.written, **self.newer}:
            member = self.view(balancer).member
            if not member.forgotten:
                yield balancer, member

    def is_present(self, balancer: str) -> bool:
        return PresenceKey(balancer) in self.values

    def block(self, key: BlockKey) -> Block:
        value = self.newer_blocks.get(key) or self.values.get(key, ({}, 0))[0]
        return value if isinstance(value, Mapping) else {}

    def claimed(self) -> set[Slot]:
        return {slot for value, _ in self.values.values() if isinstance(value, Mapping) for slot in value}

    def revision_of(self, key: ClusterKey) -> int:
        """At which it was last written. 0: it does not exist."""
        return self.values[key][1] if key in self.values else 0

    def prepared(self, listing: Listing) -> Generator[None, None, "Mirror"]:
        """What a list of everything means, by itself, in steps."""
        made = Mirror()
        for number, (key, (value, revision)) in enumerate(listing.items(), 1):
            made._put(key, value, revision)
            if number % STEP == 0:
                yield
        return made

    def replace(self, revision: int, made: "Mirror", name: str, count: int) -> bool:
        """Take over a list of everything, which was `prepared`. Returns whether it is older than what was seen of the others,
        or written by `name`, this balancer, as its `count` says."""
        before = {one: self.view(one) for one in {**self.written, **self.newer} if one != name}
        blocks = {key: self.block(key) for key in [*self.values, *self.newer_blocks] if isinstance(key, BlockKey)}
        self.revision, self.values, self.written, self.tombstones = revision, made.values, made.written, made.tombstones
        self.hearers, self.newer_blocks = made.hearers, {}
        self.newer = {
            one: view for one, view in before.items() if self._is_behind(one, view.member.count) or self._is_partial(one)
        }
        for one, view in self.newer.items():
            for key in view.entries:
                self.hearers.setdefault(key, set()).add(one)
        older = self._is_behind(name, count) or any(self._is_behind(one, view.member.count) for one, view in before.items())
        if older:
            self.newer_blocks = {key: block for key, block in blocks.items() if block and block != self.block(key)}
        return older

    def _is_behind(self, name: str, count: int) -> bool:
        return self.written.get(name, UNSEEN).member.count < count

    def apply(self, revision: int, changes: Changes) -> None:
        """Take over all changes of one revision. Those of our own transactions come twice."""
        for key, value in changes.items():
            if revision <= self.revision_of(key):
                continue
            if isinstance(key, BlockKey):
                self.newer_blocks.pop(key, None)
            if value is None:
                self._delete(key)
            else:
                self._put(key, value, revision)
        for name in [key.balancer for key in changes if isinstance(key, MemberKey) and key.balancer in self.newer]:
            if self.written[name].member.count >= self.newer[name].member.count and not self._is_partial(name):
                del self.newer[name]

    def copy(self) -> "Mirror":
        return replace(
            self,
            values=dict(self.values),
            written={name: View(view.member, dict(view.entries)) for name, view in self.written.items()},
            newer=dict(self.newer),  # never edited
            newer_blocks=dict(self.newer_blocks),
            tombstones=dict(self.tombstones),
            hearers={key: set(names) for key, names in self.hearers.items()},
        )

    def known_by_others(self, key: Key, but: str) -> Iterable[tuple[str, Known]]:
        """Without what a forgotten balancer heard, which others remove in their time."""
        for name in self.hearers.get(key, ()):
            view = self.view(name)
            if name != but and not view.member.forgotten and (known := view.entries.get(key)) is not None:
                yield name, known

    def _is_partial(self, name: str) -> bool:
        return name in self.written and self.written[name].member.partial

    def _put(self, key: ClusterKey, value: Value, revision: int) -> None:
        if isinstance(value, Unreadable):
            self._delete(key)
        self.values[key] = (value, revision)
        match key, value:
            case MemberKey(), Member():
                self.written[key.balancer] = View(value, self.written.get(key.balancer, View(value, {})).entries)
            case EntryKey(), Entry():
                view = self.written.setdefault(key.balancer, View(UNSEEN.member, {}))
                view.entries[key.key] = Known(value, revision)
                self.hearers.setdefault(key.key, set()).add(key.balancer)
            case TombstoneKey(), Tombstone():
                self.tombstones[key.key] = value

    def _delete(self, key: ClusterKey) -> None:
        self.values.pop(key, None)
        match key:
            case EntryKey() if key.balancer in self.written:
                self.written[key.balancer].entries.pop(key.key, None)
            case TombstoneKey():
                self.tombstones.pop(key.key, None)
