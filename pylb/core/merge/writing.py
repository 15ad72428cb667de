"""What a balancer has to write, and the transactions that write it, one after the other.

Each raises the count of its member key and is compared with it: after a restore, a forget or an attempt whose answer was lost,
it fails, and the list that follows says what is the case.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import islice
from typing import NamedTuple

from pylb.core.address import is_loopback
from pylb.core.claims import Owner
from pylb.core.merge.knowledge import Knowledge, owner_of
from pylb.core.merge.local import Conflict, Memory, Own, Unsent, includes
from pylb.core.merge.values import (
    BlockKey,
    ClusterKey,
    Counts,
    Entry,
    EntryKey,
    Member,
    MemberKey,
    Slot,
    Tombstone,
    TombstoneKey,
    Transaction,
    Value,
    Wanted,
    block_of,
)
from pylb.core.registration import Key, State

MOST = 60  # keys that a transaction starts with: an entry of 64 ports adds at most 64 blocks, and etcd takes 128 operations
LOOKED_AT = 250  # claims that are checked before a transaction, some 10 µs each


class Claim(NamedTuple):
    """A new name or port: in force once it is written. `heard` as in `Own`."""

    wanted: Wanted
    state: State
    heard: int
    takeover: bool


class _InFlight(NamedTuple):
    stamp: int
    revision: int  # what was known of etcd when it was made
    transaction: Transaction
    own: Mapping[Key, Own | None]
    unsent: Mapping[Key, Unsent]
    claims: Mapping[Key, Claim]


@dataclass(slots=True)
class _Draft:
    compares: dict[ClusterKey, int] = field(default_factory=dict)
    puts: dict[ClusterKey, Value] = field(default_factory=dict)
    deletes: set[ClusterKey] = field(default_factory=set)
    blocks: dict[BlockKey, dict[Slot, Owner]] = field(default_factory=dict)

    def is_full(self) -> bool:
        return max(len(self.compares), len(self.puts) + len(self.deletes) + len(self.blocks)) >= MOST


class Writing:
    def __init__(self, knowledge: Knowledge, reserved: frozenset[Slot], memory: Memory) -> None:
        self._knowledge = knowledge
        self._mirror = knowledge.mirror
        self._member_key = MemberKey(knowledge.name)
        self.reserved = reserved
        self._in_flight: _InFlight | None = None
        self._wait_for = 0  # the revision that has to be known before the next transaction has a chance
        self.begun = memory.begun  # the count of the newest transaction, whatever became of it
        self.count = memory.count  # of the newest that is known to have happened
        self.unwritten = set(memory.unwritten)  # registrations of which etcd has something else
        self.claiming: dict[Key, Claim] = {}
        self.suspects: set[Slot] = set()  # claims that may have lost their last registration
        self.lost = dict(memory.lost)  # what etcd lost in a restore and this balancer remembers
        self.forgetting: set[str] = set()
        self.is_rewriting = False  # etcd is older than what this balancer wrote

    def next(self, processed: Counts, *, heartbeat: bool) -> tuple[Transaction | None, dict[Key, Conflict]]:
        """The transaction to try now, if any, and the claims that are refused."""
        if self._in_flight is not None or self.is_behind():
            return None, {}
        draft, stamp = _Draft(), self.begun + 1
        self._clear_claims(draft)
        claims, refused = self._claims(draft, stamp)
        own = self._entries(draft, stamp)
        unsent = self._tombstones(draft, stamp)
        self._mend(draft)  # before tombstones are collected: one that is lost may include one that is there
        self._collect(draft, processed)
        complete = self.unwritten <= own.keys() and self.lost.keys() <= draft.puts.keys() | draft.blocks.keys()
        if not (draft.puts or draft.deletes or draft.blocks or heartbeat or self._owes(processed)):
            return None, refused
        for block, claimed in draft.blocks.items():
            if claimed:
                draft.puts[block] = claimed
            elif self._mirror.revision_of(block):
                draft.deletes.add(block)
            draft.compares[block] = self._mirror.revision_of(block)
        written = self._mirror.view(self._knowledge.name).member
        # A tombstone counts as processed with the last entry that follows from it.
        said = dict(processed) if complete else written.processed
        partial = self.is_rewriting and not complete
        draft.puts[self._member_key] = Member(stamp, said, self._knowledge.needs, self.reserved, partial)
        draft.compares[self._member_key] = self._mirror.revision_of(self._member_key)
        transaction = Transaction(draft.compares, draft.puts, frozenset(draft.deletes))
        self._in_flight = _InFlight(stamp, self._mirror.revision, transaction, own, unsent, claims)
        self.begun = stamp
        return transaction, refused

    def _owes(self, processed: Counts) -> bool:
        """Whether the others wait to hear that a tombstone was processed, that this balancer is there, or how much of theirs
        it has seen that they may have forgotten themselves."""
        written = self._mirror.view(self._knowledge.name).member
        if not self._mirror.revision_of(self._member_key) or written.forgotten or self.is_rewriting:
            return True
        said = written.processed
        if any(said.get(name, 0) < processed.get(name, 0) for name in self._mirror.newer):
            return True
        tombstones = self._mirror.tombstones.values()
        return any(processed.get(one.writer, 0) >= one.stamp > said.get(one.writer, 0) for one in tombstones)

    def _clear_claims(self, draft: _Draft) -> None:
        """Those that have a holder are no longer suspect: whatever takes it away names them again."""
        for slot in list(islice(self.suspects, LOOKED_AT)):
            owner = self._knowledge.claimant(slot)
            if owner is None or self._knowledge.has_holder(slot, owner):
                self.suspects.discard(slot)
            elif not draft.is_full():
                self._block(draft, slot).pop(slot)

    def _claims(self, draft: _Draft, stamp: int) -> tuple[dict[Key, Claim], dict[Key, Conflict]]:
        claims, refused = dict[Key, Claim](), dict[Key, Conflict]()
        for key, claim in self.claiming.items():
            slots = claim.wanted.slots
            conflict = self._knowledge.obstacle(key, slots, takeover=claim.takeover)
            conflict = conflict or self._taken(draft, key, slots)
            if conflict is not None:
                refused[key] = conflict
            elif not draft.is_full():
                draft.puts[EntryKey(self._knowledge.name, key)] = Entry(claim.wanted, claim.state, stamp)
                for slot in slots:
                    self._claim(draft, key, slot)
                claims[key] = claim
        for key in refused:
            del self.claiming[key]
        return claims, refused

    def _taken(self, draft: _Draft, key: Key, slots: Iterable[Slot]) -> Conflict | None:
        """The conflict with an earlier claim of this transaction that takes the same port; None: there is none."""
        new = [entry.key for entry in draft.puts if isinstance(entry, EntryKey) and owner_of(entry.key) != owner_of(key)]
        for slot in slots:
            for other in new:
                if any(slot.excludes(one) for one in self.claiming[other].wanted.slots):
                    return Conflict(slot, owner_of(other))
        return None

    def _entries(self, draft: _Draft, stamp: int) -> dict[Key, Own | None]:
        found: dict[Key, Own | None] = {}
        some = nsmallest(MOST, self.unwritten)
        # Else those of which there is nothing to write would stand before all others, until a heartbeat.
        while nothing := [key for key in some if self._has_nothing_to_write(key)]:
            self.unwritten.difference_update(nothing)
            some = nsmallest(MOST, self.unwritten)
        for key in some:
            if draft.is_full():
                break
            entry_key, own = EntryKey(self._knowledge.name, key), self._knowledge.own.get(key)
            if entry_key in draft.puts:  # a claim of the same name
                continue
            found[key] = own
            if own is not None and not is_loopback(own.wanted.address):
                draft.puts[entry_key] = Entry(own.wanted, own.state, stamp)
                for slot in own.wanted.slots:
                    if self._knowledge.rival(key, (slot,)) is None:
                        self._claim(draft, key, slot)
            else:
                draft.deletes.add(entry_key)
        return found

    def _has_nothing_to_write(self, key: Key) -> bool:
        """Neither has etcd an entry of it, nor is there to be one."""
        own = self._knowledge.own.get(key)
        shared = own is not None and not is_loopback(own.wanted.address)
        return not shared and not self._mirror.revision_of(EntryKey(self._knowledge.name, key))

    def _tombstones(self, draft: _Draft, stamp: int) -> dict[Key, Unsent]:
        """Behind the entries: none is written before our own entry is gone."""
        found: dict[Key, Unsent] = {}
        for key, release in self._knowledge.unsent.items():
            if draft.is_full():
                break
            before = self._mirror.tombstones.get(key)
            known, sequence = release.known, release.sequence
            if before is not None:  # whoever has not processed it has to process both
                known = {name: max(known.get(name, 0), before.known.get(name, 0)) for name in {*known, *before.known}}
                # A release without a sequence is not limited by the other's: then counts and leases decide about both.
                sequence = max(sequence, before.sequence) if sequence and before.sequence else 0
            where = TombstoneKey(key)
            draft.puts[where] = Tombstone(self._knowledge.name, stamp, known, sequence)
            draft.compares[where] = self._mirror.revision_of(where)
            found[key] = release
        return found

    def _collect(self, draft: _Draft, processed: Counts) -> None:
        """A tombstone goes when every member has processed it."""
        members = dict(self._mirror.members())
        for key, tombstone in self._mirror.tombstones.items():
            where = TombstoneKey(key)
            done = (
                (processed if name == self._knowledge.name else member.processed).get(tombstone.writer, 0) >= tombstone.stamp
                for name, member in members.items()
                if name != tombstone.writer
            )
            if where not in draft.puts and all(done) and not draft.is_full():
                draft.deletes.add(where)
                draft.compares[where] = self._mirror.revision_of(where)

    def _mend(self, draft: _Draft) -> None:
        for name in self.forgetting:
            if self._mirror.is_present(name):  # it has returned since
                continue
            member = self._mirror.view(name).member
            self.lost[MemberKey(name)] = Member(member.count + 1, {}, forgotten=True)
        self.forgetting.clear()
        self.lost = {key: value for key, value in self.lost.items() if self._is_still_lost(key, value)}
        for key, value in self.lost.items():
            if key in draft.puts or key in draft.deletes or draft.is_full():
                continue
            if isinstance(key, BlockKey) and isinstance(value, Mapping):
                draft.blocks.setdefault(key, dict(value))
                continue
            draft.puts[key] = value
            draft.compares[key] = self._mirror.revision_of(key)
        self._sweep(draft)

    def _sweep(self, draft: _Draft) -> None:
        """What forgotten balancers heard goes in as many transactions as it takes: nobody serves it any more. One that comes
        back writes its member key first, so nothing that it writes anew is removed."""
        for name, view in self._mirror.written.items():
            if view.member.forgotten and view.entries and not draft.is_full():
                draft.deletes |= {EntryKey(name, one) for one in islice(view.entries, MOST)}
                draft.compares[MemberKey(name)] = self._mirror.revision_of(MemberKey(name))

    def _is_still_lost(self, key: ClusterKey, value: Value) -> bool:
        if isinstance(key, MemberKey) and isinstance(value, Member) and key.balancer in self._mirror.written:
            return self._mirror.written[key.balancer].member.count < value.count
        if isinstance(key, BlockKey):
            return key in self._mirror.newer_blocks
        if isinstance(key, TombstoneKey) and isinstance(value, Tombstone):
            return includes(value, self._mirror.tombstones.get(key.key))
        return False

    def _block(self, draft: _Draft, slot: Slot) -> dict[Slot, Owner]:
        where = block_of(slot)
        return draft.blocks.setdefault(where, dict(self._mirror.block(where)))

    def _claim(self, draft: _Draft, key: Key, slot: Slot) -> None:
        """Claim the slot. One that is claimed already is compared, too, because its last holder may just be leaving."""
        block, owner = self._block(draft, slot), owner_of(key)
        for other in [one for one, by in block.items() if one.excludes(slot) and by != owner]:
            del block[other]
        block[slot] = owner

    # ------------------------------------------------------------- what became of it

    def happened(self, revision: int) -> dict[Key, Claim]:
        """The claims that are in force now."""
        done, self._in_flight = self._in_flight, None
        if done is None:
            raise ValueError("a transaction that nobody began cannot have happened")
        self.count = done.stamp
        if revision > self._mirror.revision:  # otherwise the watch has reported it, and perhaps what came after it
            self._mirror.apply(revision, {**done.transaction.puts, **dict.fromkeys(done.transaction.deletes)})
        for where in done.transaction.puts:  # once: what others remove after that is no longer lost
            self.lost.pop(where, None)
        self.unwritten -= {key for key, own in done.own.items() if self._knowledge.own.get(key) is own}
        for key, release in done.unsent.items():
            if self._knowledge.unsent.get(key) is release:
                del self._knowledge.unsent[key]
        # Called again meanwhile: what it asks for now is in force, as long as its ports are those that were claimed.
        called = {key: self.claiming[key] for key in done.claims if key in self.claiming}
        granted = {key: claim for key, claim in called.items() if claim.wanted.slots == done.claims[key].wanted.slots}
        for key in granted:
            del self.claiming[key]
        for key in done.claims.keys() - granted.keys():  # withdrawn since: its entry and its claim go again
            self.unwritten.add(key)
            self.suspects |= set(done.claims[key].wanted.slots)
        written = done.transaction.puts[self._member_key]
        self.is_rewriting = isinstance(written, Member) and written.partial
        return granted

    def failed(self, revision: int) -> bool:
        """Whether what stood in its way is on its way to us, or has come meanwhile. Otherwise only a list helps."""
        made, self._in_flight = self._in_flight, None
        self._wait_for = revision
        return made is not None and made.revision < revision

    def is_behind(self) -> bool:
        """Whether a transaction was refused for something that the watch has not reported yet."""
        return self._mirror.revision < self._wait_for

    def rejected(self) -> None:
        """It has not happened, for no reason that a list would clear up."""
        self._in_flight = None

    def gave_up(self) -> set[Key]:
        """The connection is gone, and whether the transaction happened is unknown. Returns the claims that nobody waits for."""
        self._in_flight = None
        self._wait_for = 0
        given_up = set(self.claiming)
        self.claiming.clear()
        return given_up

    def memory(self, processed: Counts) -> Memory:
        return Memory(
            self.begun,
            self.count,
            dict(self._knowledge.own),
            dict(self._knowledge.unsent),
            frozenset(self.unwritten),
            dict(processed),
            self._mirror.copy(),
            dict(self._knowledge.held),
            dict(self.lost),
        )
