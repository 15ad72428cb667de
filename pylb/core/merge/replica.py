"""One balancer's part of the cluster: each thing that can happen is a method. The rules are in the package's docstring."""

from collections import deque
from collections.abc import Container, Generator, Iterable, Mapping
from dataclasses import replace
from math import inf

from pylb.core.merge.knowledge import DEFAULT_TTL, Knowledge, owner_of
from pylb.core.merge.local import Answer, Conflict, Held, Memory, Merged, Own, Unsent, Verdict, includes, judge
from pylb.core.merge.mirror import STEP, Changes, Listing, Mirror
from pylb.core.merge.values import (
    ClusterKey,
    EntryKey,
    Member,
    MemberKey,
    PresenceKey,
    Slot,
    Tombstone,
    TombstoneKey,
    Transaction,
    Value,
    Wanted,
)
from pylb.core.merge.writing import Claim, Writing
from pylb.core.registration import Key, State

MASS = 3  # fewer ports than this are never a mass release
MASS_WINDOW = 60.0  # seconds


class Replica:
    """`needs` are the ones that this version knows, `reserved` its static and reserved ports. `now` is monotonic seconds."""

    def __init__(self, name: str, needs: frozenset[str], reserved: frozenset[Slot], memory: Memory) -> None:
        # When they were last called is unknown: the memory may be older than the last call.
        own = {key: replace(one, here=False, heard=memory.begun) for key, one in memory.own.items()}
        unsent = {key: replace(one, here=False) for key, one in memory.unsent.items()}
        self.name = name
        self.knowledge = Knowledge(name, needs, own, unsent, memory.mirror.copy(), dict(memory.held))
        deque(self.knowledge.index_all(), maxlen=0)  # at the start nobody waits
        self.linked = False  # from the list until the connection ends, or until only another list helps
        self.present_until = inf  # on the clock of `now`: whoever keeps its presence alive says how long it lasts at least
        self._own, self._unsent, self._mirror = own, unsent, self.knowledge.mirror
        self._processed = dict(memory.processed)
        self._writing = Writing(self.knowledge, reserved, memory)
        self._applied: dict[Key, Tombstone] = {}
        self._released: list[tuple[float, int]] = []  # when a foreign release closed how many ports

    @property
    def unwritten(self) -> int:
        """How much of what happened here the others do not know yet."""
        return len(self._writing.unwritten) + len(self._unsent)

    def memory(self) -> Memory:
        return self._writing.memory(self._processed)

    # ------------------------------------------------------------- what phone-homes, operators and leases say

    def announce(
        self, key: Key, wanted: Wanted, state: State = State.FRESH, *, takeover: bool = False, now: float = 0.0
    ) -> Answer | Conflict:
        """A call that registers, or a goodbye. A beat, a move and another instance of what this balancer wrote for the owner
        are in force first and written later, as long as the others know that it is there: after that they may have given a
        port away of which we have not read yet. All else is a claim. Without etcd, what anybody heard of the owner is
        enough."""
        known, slots = self.knowledge, wanted.slots
        if known.has_newer(key, wanted.sequence, linked=self.linked):
            return Answer.LATE
        rival = known.rival(key, slots)
        secured = known.is_secured(key, slots) and now < self.present_until if self.linked else self.is_known(key, slots)
        if rival is None and secured:
            self._hear(key, Own(wanted, state, self._writing.begun))
            return Answer.IN_FORCE
        if not self.linked:  # also with a rival, who may have left since
            return Answer.UNAVAILABLE
        if (conflict := (None if takeover else rival) or known.obstacle(key, slots, takeover=takeover)) is not None:
            return conflict
        self._writing.claiming[key] = Claim(wanted, state, self._writing.begun, takeover)
        return Answer.CLAIMING

    def assume(self, key: Key, wanted: Wanted, state: State) -> None:
        """It is in force here as this balancer's own, by whatever means. The others hear of it when it is written."""
        own = self._own.get(key)
        if own is None or (own.wanted, own.state) != (wanted, state):
            self._hear(key, Own(wanted, state, self._writing.begun))

    def reserve(self, reserved: frozenset[Slot]) -> None:
        """Its static and reserved ports are others now, which the next heartbeat says."""
        self._writing.reserved = reserved

    def is_known(self, key: Key, slots: Iterable[Slot]) -> bool:
        """Whether a call is answered without etcd. No release waits for a balancer that has never written: such a one goes by
        what it heard itself."""
        if self._writing.count:
            return self.knowledge.is_known_name(key, slots)
        return all(self.knowledge.hears(slot, owner_of(key)) for slot in slots)

    def is_claiming(self, key: Key) -> bool:
        """Whether the answer to its call is still open."""
        return key in self._writing.claiming

    def withdraw(self, key: Key) -> None:
        """Nobody waits for that claim any more, or it could not be made durable."""
        self._writing.claiming.pop(key, None)

    def _hear(self, key: Key, own: Own) -> None:
        before = self._own.get(key)
        self._own[key] = own
        self._unsent.pop(key, None)
        self.knowledge.index(key, own.wanted.slots)
        changed = before is None or (before.wanted, before.state) != (own.wanted, own.state)
        if changed or any(self.knowledge.claimant(slot) is None for slot in own.wanted.slots):
            self._writing.unwritten.add(key)
        if before is not None:
            self._writing.suspects |= set(before.wanted.slots) - set(own.wanted.slots)

    def release(self, key: Key, sequence: int = 0) -> Answer:
        """In force here at once, everywhere when it is written."""
        if self.knowledge.has_newer(key, sequence, linked=self.linked):
            return Answer.LATE
        one = self.knowledge.registration(key)
        self._leave(key)
        self._writing.claiming.pop(key, None)
        # Also if nothing is registered here: what another balancer was called a moment ago may be on its way.
        self._unsent[key] = Unsent({**self._processed, self.name: self._writing.begun}, sequence)
        self._writing.suspects |= set(one.wanted.slots if one is not None else ())
        return Answer.IN_FORCE

    def judged(self, key: Key, state: State) -> None:
        """Its lease says so. The end of the lease is the end of a registration on probation."""
        own = self._own.get(key)
        if own is None or own.state is state:
            return
        if own.on_probation and state is State.STALE:
            self._leave(key)
        else:
            self._own[key] = replace(own, state=state)
            self._writing.unwritten.add(key)

    def overstayed(self, key: Key) -> None:
        """It was stale for too long. This is not a release: whoever else hears it keeps it."""
        self._leave(key)

    def _leave(self, key: Key) -> None:
        own = self._own.pop(key, None)
        if own is not None:
            self._writing.unwritten.add(key)
            self._writing.suspects |= set(own.wanted.slots)

    def forget(self, balancer: str) -> None:
        """Remove a balancer for good, with what only it heard."""
        self._writing.forgetting.add(balancer)

    def accept(self) -> None:
        """The releases that were held back are right."""
        held = {key: one.tombstone for key, one in self.knowledge.held.items()}
        for key, one in self.knowledge.held.items():
            self._writing.suspects |= {*one.before.wanted.slots, *self.knowledge.slots(key)}
        self.knowledge.held.clear()
        self._apply(held)
        self._advance()

    # ------------------------------------------------------------- what etcd says

    def tick(self, seconds: float) -> set[Key]:
        """The leases of what others heard run only while we would hear of a change. Returns what may have become a last
        resort, or be one no longer."""
        gone, changed = self.knowledge.gone, set[Key]()
        for name, _ in list(self._mirror.members()) if self.linked else ():
            before = gone.pop(name, 0.0)
            if not self._mirror.is_present(name):
                gone[name] = before + seconds
            if before != (after := gone.get(name, 0.0)):
                low, high = sorted((before, after))
                entries = self._mirror.view(name).entries.items()
                changed |= {key for key, known in entries if low < (known.entry.wanted.ttl or DEFAULT_TTL) <= high}
        return changed

    def listed(self, revision: int, listing: Listing, now: float) -> Generator[None, None, None]:
        """Everything, at one revision: after each connection, and after what only a list can clear up.

        In steps, between which everything may be called but `watched` and `write`. If it is given up, another list follows.
        """
        made = yield from self._mirror.prepared(listing)
        self._take_over(revision, made, now)
        yield
        yield from self.knowledge.index_all()
        for number, (key, own) in enumerate(list(self._own.items()), 1):
            if any(self.knowledge.claimant(slot) is None for slot in own.wanted.slots):
                self._writing.unwritten.add(key)
            if number % STEP == 0:
                yield
        for number, slot in enumerate(self._mirror.claimed(), 1):
            owner = self.knowledge.claimant(slot)
            if owner is not None and not self.knowledge.has_holder(slot, owner):
                self._writing.suspects.add(slot)
            if number % STEP == 0:
                yield
        self.linked = True

    def _take_over(self, revision: int, made: Mirror, now: float) -> None:
        """In one step: half of it would be taken for something else by the next list."""
        tombstones = dict(self._mirror.tombstones)
        before = {key: self.knowledge.registration(key) for key in made.tombstones}
        older = self._mirror.replace(revision, made, self.name, self._writing.count)
        self._writing.gave_up()
        self._catch_up_with_ourselves()
        self._reconcile()
        if older:
            self._remember_what_is_lost(tombstones)
        self._process(dict(self._mirror.tombstones), before, now)

    def watched(self, revision: int, changes: Changes, now: float) -> None:
        """All changes of one revision."""
        before = {key.key: self.knowledge.registration(key.key) for key in changes if isinstance(key, TombstoneKey)}
        touched = {key.key for key in changes if isinstance(key, EntryKey | TombstoneKey)}
        if any(isinstance(key, PresenceKey) and value is None for key, value in changes.items()):
            touched |= self._mirror.tombstones.keys()  # they release at once what a balancer heard that is gone
        for key in touched:
            self._writing.suspects |= self.knowledge.slots(key)
        for where, value in changes.items():
            if isinstance(where, MemberKey) and isinstance(value, Member) and value.forgotten:
                for known in self._mirror.view(where.balancer).entries.values():
                    self._writing.suspects |= set(known.entry.wanted.slots)
        self._mirror.apply(revision, changes)
        self._mirror.revision = revision
        for key in touched:
            self.knowledge.index(key, self.knowledge.slots(key))
        if self._mirror.view(self.name).member.count > self._writing.begun:  # forgotten, or a second balancer of this name
            self.linked = False
        self._catch_up_with_ourselves()
        new = {
            key.key: value for key, value in changes.items() if isinstance(value, Tombstone) and isinstance(key, TombstoneKey)
        }
        self._process(new, before, now)

    def disconnected(self) -> set[Key]:
        """Returns the claims that nobody will answer."""
        self.linked = False
        return self._writing.gave_up()

    def _catch_up_with_ourselves(self) -> None:
        """Others have seen more of our writes than both we and etcd remember: continue behind those, or they would wait."""
        seen = max((member.processed.get(self.name, 0) for _, member in self._mirror.members()), default=0)
        if seen > max(self._writing.begun, self._mirror.view(self.name).member.count):
            self._writing.begun = seen
            self._writing.is_rewriting = True
            for key, own in self._own.items():
                self._own[key] = replace(own, heard=seen)

    def _reconcile(self) -> None:
        """What etcd has of ours, and what we remember: what is written later than we remember is newer."""
        member, entries = self._mirror.view(self.name).member, self._mirror.view(self.name).entries
        writing, remembered = self._writing, self._writing.begun
        forgot = member.count > remembered
        # Partial: it was being rewritten when an answer was lost, or this process followed another one.
        writing.is_rewriting = member.count < writing.count or member.partial
        if forgot:
            writing.begun = writing.count = member.count
            for name, count in member.processed.items():
                self._processed[name] = max(count, self._processed.get(name, 0))
        if member.forgotten:  # what of it is still there is nobody's: this balancer starts from what the others have
            writing.unwritten |= entries.keys()
            entries = {}
        for key, known in entries.items():
            own, release = self._own.get(key), self._unsent.get(key)
            later = known.entry.stamp > remembered
            if later and not (own is not None and own.is_certain) and not (release is not None and release.here):
                self._own[key] = Own(known.entry.wanted, known.entry.state, member.count, here=False)
                self._unsent.pop(key, None)
                writing.unwritten.discard(key)
            elif own is None or not own.same_as(known.entry):
                writing.unwritten.add(key)
        for key, own in [(key, own) for key, own in self._own.items() if key not in entries]:
            if not forgot or own.is_certain or member.partial:
                writing.unwritten.add(key)
            elif key in writing.unwritten and own.state is not State.STALE and not member.forgotten:
                self._own[key] = replace(own, heard=member.count, on_probation=True)
            else:
                del self._own[key]

    def _remember_what_is_lost(self, tombstones: Mapping[Key, Tombstone]) -> None:
        lost: dict[ClusterKey, Value] = {
            TombstoneKey(key): one for key, one in tombstones.items() if includes(one, self._mirror.tombstones.get(key))
        }
        lost |= {MemberKey(name): view.member for name, view in self._mirror.newer.items() if view.member.forgotten}
        self._writing.lost |= lost | dict(self._mirror.newer_blocks)

    # ------------------------------------------------------------- releases of other balancers

    def _process(self, tombstones: Mapping[Key, Tombstone], before: Mapping[Key, Merged | None], now: float) -> None:
        new = {key: one for key, one in tombstones.items() if self._is_new(key, one)}
        closing = {key: one for key in new if (one := before.get(key)) is not None}
        self._released = [(when, ports) for when, ports in self._released if now - when < MASS_WINDOW]
        ports = sum(len(one.wanted.slots) for one in closing.values())
        total = ports + sum(ports for _, ports in self._released)
        if ports and total >= MASS and not self._has_ports_besides(closing, total):
            self.knowledge.held |= {key: Held(new[key], one) for key, one in closing.items()}
        else:
            self._released.append((now, ports))
        for key in new.keys() & self.knowledge.held.keys():
            self.knowledge.held[key] = self.knowledge.held[key]._replace(tombstone=new[key])
        self._apply({key: one for key, one in new.items() if key not in self.knowledge.held})
        self._advance()

    def _has_ports_besides(self, closing: Container[Key], number: int) -> bool:
        """Looks at no more than it needs to know that."""
        found = 0
        for key in self.knowledge.registered():
            if key not in closing and (one := self.knowledge.registration(key)) is not None:
                found += len(one.wanted.slots)
                if found >= number:
                    return True
        return False

    def _is_new(self, key: Key, tombstone: Tombstone) -> bool:
        if tombstone.writer == self.name or self._applied.get(key) == tombstone:
            return False
        return tombstone.stamp > self._processed.get(tombstone.writer, 0)

    def _apply(self, tombstones: Mapping[Key, Tombstone]) -> None:
        for key, tombstone in tombstones.items():
            self._applied[key] = tombstone
            claim = self._writing.claiming.get(key)
            if claim is not None and not (claim.wanted.sequence > tombstone.sequence > 0):
                self.withdraw(key)  # perhaps called before the release: whoever waits for it calls again
            own = self._own.get(key)
            verdict = Verdict.NEWER if own is None else judge(own, tombstone, self.name)
            if own is not None and verdict is Verdict.UNKNOWN:
                self._own[key] = replace(own, on_probation=True)
            elif verdict is Verdict.OLDER:
                self._leave(key)

    def _advance(self) -> None:
        """All that the others wrote is in force here, except what is held back."""
        held = [one.tombstone for one in self.knowledge.held.values()]
        for name, member in self._mirror.members():
            limit = min((one.stamp - 1 for one in held if one.writer == name), default=member.count)
            # What follows from a partial rewriting is not all there: a tombstone of it may have a lower stamp than its count.
            if name != self.name and not member.partial and limit > self._processed.get(name, 0):
                self._processed[name] = limit

    # ------------------------------------------------------------- what is written

    def write(self, *, heartbeat: bool = False) -> tuple[Transaction | None, dict[Key, Conflict]]:
        """The transaction to try now, if any, and the claims that are refused. Only one is under way at a time."""
        if not self.linked:
            return None, {}
        return self._writing.next(self._processed, heartbeat=heartbeat)

    def wrote(self, revision: int) -> set[Key]:
        """It has happened. Returns the claims that are in force now."""
        granted = self._writing.happened(revision)
        for key, claim in granted.items():
            own = Own(claim.wanted, claim.state, claim.heard)
            self._hear(key, own)
            written = self._mirror.view(self.name).entries.get(key)
            if written is not None and own.same_as(written.entry):
                self._writing.unwritten.discard(key)
        return set(granted)

    def rejected(self) -> None:
        """etcd takes no writes: it has not happened. Only what is tried later changes that."""
        self._writing.rejected()

    def has_more_to_check(self) -> bool:
        """Whether claims wait to be checked though `write` had nothing to write."""
        return bool(self._writing.suspects)

    def is_behind(self) -> bool:
        """Whether nothing is written until the watch has reported what a transaction was refused for."""
        return self._writing.is_behind()

    def refused(self, revision: int) -> None:
        """A comparison failed, at that revision of etcd."""
        if not self._writing.failed(revision):
            self.linked = False
