"""What a balancer knows by itself: what it heard, what it has to write, what outlives a restart, what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from pylb.core.claims import Owner
from pylb.core.merge.mirror import Mirror
from pylb.core.merge.values import ClusterKey, Counts, Entry, Slot, Tombstone, Value, Wanted
from pylb.core.registration import Key, State


class Answer(Enum):
    IN_FORCE = "in force"
    CLAIMING = "claiming"  # in force once its transaction has succeeded
    LATE = "late"  # the phone-home has said something newer since
    UNAVAILABLE = "unavailable"  # a claim needs etcd


@dataclass(frozen=True, slots=True)
class Conflict:
    """`owner` None: a static or reserved port of that balancer. `held`: what of the port the owner has, if not the same."""

    slot: Slot
    owner: Owner | None
    balancer: str = ""
    held: Slot | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Own:
    """A registration that this balancer heard."""

    wanted: Wanted
    state: State
    heard: int  # the count of the last transaction that had begun when it was last called
    here: bool = True  # called since this process started
    on_probation: bool = False  # perhaps released since: unless it is called again, it leaves when its lease ends

    @property
    def is_certain(self) -> bool:
        """Called here, within its lease."""
        return self.here and self.state is not State.STALE

    def same_as(self, entry: Entry) -> bool:
        return self.wanted == entry.wanted and self.state is entry.state


@dataclass(frozen=True, slots=True)
class Unsent:
    """A release that is not written yet. `known` and `sequence` as in the tombstone."""

    known: Counts
    sequence: int = 0
    here: bool = True  # called since this process started


class Merged(NamedTuple):
    """A registration as it is served here."""

    wanted: Wanted
    state: State
    hearer: str
    lacking: frozenset[str] = frozenset()  # what a pylb must know to serve it, and this one does not


class Held(NamedTuple):
    """A release of another balancer that is without effect here until an operator accepts it."""

    tombstone: Tombstone
    before: Merged


@dataclass(frozen=True, slots=True)
class Memory:
    """What outlives a restart."""

    begun: int = 0
    count: int = 0
    own: Mapping[Key, Own] = field(default_factory=dict)
    unsent: Mapping[Key, Unsent] = field(default_factory=dict)
    unwritten: frozenset[Key] = frozenset()
    processed: Counts = field(default_factory=dict)
    mirror: Mirror = field(default_factory=Mirror)
    held: Mapping[Key, Held] = field(default_factory=dict)
    lost: Mapping[ClusterKey, Value] = field(default_factory=dict)  # by etcd, in a restore


class Verdict(Enum):
    """What a tombstone means for a registration that this balancer heard itself."""

    OLDER = "older"  # the registration is: it leaves
    NEWER = "newer"
    UNKNOWN = "unknown"


def judge(own: Own, tombstone: Tombstone, name: str) -> Verdict:
    """Whether this balancer, `name`, heard the registration before the release was called.

    With sequences the phone-home itself has said so. Without them it is certain if whoever wrote the tombstone knew a
    transaction of ours that began after the last call. Otherwise the lease decides, and a lease that is over has decided.
    """
    if own.wanted.sequence and tombstone.sequence:
        return Verdict.NEWER if own.wanted.sequence > tombstone.sequence else Verdict.OLDER
    if own.heard < tombstone.known.get(name, 0) or own.state is State.STALE:
        return Verdict.OLDER
    return Verdict.UNKNOWN


def covers(release: Tombstone | Unsent, balancer: str, entry: Entry) -> bool:
    """Whether the release was called after another balancer had written this entry."""
    if entry.wanted.sequence and release.sequence:
        return entry.wanted.sequence <= release.sequence
    return entry.stamp <= release.known.get(balancer, 0)


def includes(tombstone: Tombstone, other: Tombstone | None) -> bool:
    """Whether everything that the other one releases is released by this one, which is another."""
    if other is None:
        return True
    return tombstone != other and all(tombstone.known.get(name, 0) >= count for name, count in other.known.items())
