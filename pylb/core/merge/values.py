"""What the balancers of a cluster write for each other, as values. What etcd's bytes look like is not known here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pylb.core.claims import Owner
from pylb.core.registration import Key, State

Counts = Mapping[str, int]  # for each balancer: a write count


BESIDE_NAMES = "*"  # in place of a server name, none of which is this one


class Slot(NamedTuple):
    """What an owner claims: a port as a whole, one TLS server name on it, or its default route beside such names."""

    protocol: str
    port: int
    server_name: str = ""  # "": the port as a whole; BESIDE_NAMES: the default route, where its owner allows names of others

    def excludes(self, other: "Slot") -> bool:
        """Whether the two cannot have different owners."""
        same_port = self.protocol == other.protocol and self.port == other.port
        return same_port and (self.server_name == other.server_name or not self.server_name or not other.server_name)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a phone-home asked for. `details` is whatever else is needed to serve it; it is compared, never read."""

    address: str
    slots: tuple[Slot, ...]
    sequence: int = 0  # its Pylb-Sequence, raised with each change of what it asks for and at its start; 0: it sends none
    ttl: float | None = 60.0
    needs: frozenset[str] = frozenset()
    details: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """What one balancer heard. `stamp`: the writer's count in the transaction that wrote it."""

    wanted: Wanted
    state: State
    stamp: int


@dataclass(frozen=True, slots=True)
class Member:
    count: int
    processed: Counts  # how much of what the others wrote is in force here
    needs: frozenset[str] = frozenset()  # those that it knows
    reserved: frozenset[Slot] = frozenset()  # its static and reserved ports
    partial: bool = False  # its entries are being written anew: they are not complete yet
    forgotten: bool = False  # removed for good; the key remains, so that its count never goes back


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A release. `known`: how much of what each balancer wrote was known to the writer when the release was called."""

    writer: str
    stamp: int
    known: Counts
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What this version cannot read: as if the key were not there, except for its revision, with which it is compared."""

    reason: str


@dataclass(frozen=True, slots=True)
class MemberKey:
    balancer: str


@dataclass(frozen=True, slots=True)
class PresenceKey:
    balancer: str


@dataclass(frozen=True, slots=True)
class EntryKey:
    balancer: str
    key: Key


@dataclass(frozen=True, slots=True)
class TombstoneKey:
    key: Key


@dataclass(frozen=True, slots=True)
class BlockKey:
    """256 ports whose claims are one value."""

    protocol: str
    number: int


Block = Mapping[Slot, Owner]
ClusterKey = MemberKey | PresenceKey | EntryKey | TombstoneKey | BlockKey
Value = Member | Entry | Tombstone | Block | Unreadable | str  # a presence's value is the nonce of its start


def block_of(slot: Slot) -> BlockKey:
    return BlockKey(slot.protocol, slot.port >> 8)


@dataclass(frozen=True, slots=True)
class Transaction:
    """Happens as a whole, and only if each key of `compares` was last written at that revision (0: it does not exist)."""

    compares: Mapping[ClusterKey, int]
    puts: Mapping[ClusterKey, Value]
    deletes: frozenset[ClusterKey] = field(default_factory=frozenset)
