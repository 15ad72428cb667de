"""What is served, and who owns which port: what this balancer heard and what the others wrote, put together."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from math import inf
from typing import NamedTuple

from pylb.core.claims import Owner
from pylb.core.merge.local import Conflict, Held, Merged, Own, Unsent, covers
from pylb.core.merge.mirror import STEP, Mirror
from pylb.core.merge.values import Entry, Member, Slot, Tombstone, Wanted, block_of
from pylb.core.registration import Key, State

DEFAULT_TTL = 60.0  # seconds after which the entries of a balancer that is gone are a last resort, if they state no TTL


def owner_of(key: Key) -> Owner:
    return key.token, key.name, key.is_legacy


class _Voice(NamedTuple):
    """What one balancer says about a registration."""

    balancer: str
    wanted: Wanted
    state: State
    revision: float


@dataclass(slots=True)
class Knowledge:
    name: str  # of this balancer
    needs: frozenset[str]  # those that this version knows
    own: dict[Key, Own]
    unsent: dict[Key, Unsent]
    mirror: Mirror
    held: dict[Key, Held]
    gone: dict[str, float] = field(default_factory=dict)  # for how many seconds of our connection a balancer has been away
    # By port, for each slot of it: who may hold it. Those that do not are found by looking.
    _keys_of: dict[tuple[str, int], dict[Slot, set[Key]]] = field(default_factory=dict)

    def registered(self) -> Iterator[Key]:
        for key in {*self.own, *self.mirror.hearers, *self.held}:
            if self.registration(key) is not None:
                yield key

    def registration(self, key: Key) -> Merged | None:
        """The registration as it is served here. Among what is heard within a lease the newest sequence counts; any fresh
        hearer makes it fresh; its address is the one heard here, else the newest."""
        voices = list(self._voices(key))
        if not voices:
            return None
        heard = [one for one in voices if one.state is not State.STALE] or voices
        newest = max(one.wanted.sequence for one in heard)
        heard = [one for one in heard if one.wanted.sequence in (0, newest)]
        state = State.FRESH if any(one.state is State.FRESH for one in heard) else heard[0].state
        best = max(
            (one for one in heard if one.state is state),
            key=lambda one: (
                one.balancer == self.name and state is not State.STALE,
                one.wanted.sequence,
                one.revision,
                one.balancer,
            ),
        )
        return Merged(best.wanted, state, best.balancer, best.wanted.needs - self.needs)

    def _voices(self, key: Key) -> Iterator[_Voice]:
        if (own := self.own.get(key)) is not None:
            written = self.mirror.view(self.name).entries.get(key)
            revision = written.revision if written is not None and own.same_as(written.entry) else inf
            yield _Voice(self.name, own.wanted, own.state, revision)
        for balancer, known in self.mirror.known_by_others(key, self.name):
            if not self._is_hidden(balancer, key, known.entry):
                wanted, state = known.entry.wanted, known.entry.state
                lost = self.gone.get(balancer, 0.0) >= (wanted.ttl or DEFAULT_TTL)
                yield _Voice(balancer, wanted, State.STALE if lost else state, known.revision)

        if (held := self.held.get(key)) is not None:
            yield _Voice(held.before.hearer, held.before.wanted, State.STALE, 0)

    def _is_hidden(self, balancer: str, key: Key, entry: Entry) -> bool:
        """A release that was called here needs no waiting."""
        if (unsent := self.unsent.get(key)) is not None:
            return covers(unsent, balancer, entry)
        tombstone = self.mirror.tombstones.get(key)
        if tombstone is not None and tombstone.writer == self.name and not self._has_decided(balancer, tombstone):
            return covers(tombstone, balancer, entry)
        return self._is_released(balancer, key, entry)

    def _is_released(self, balancer: str, key: Key, entry: Entry) -> bool:
        """By a tombstone that its hearer has not processed. One that is present will do so within moments, and decides better:
        only it knows of calls since its entry. Once it has decided, its entries say what it decided."""
        tombstone = self.mirror.tombstones.get(key)
        if tombstone is None or key in self.held or self.mirror.is_present(balancer):
            return False
        return not self._has_decided(balancer, tombstone) and covers(tombstone, balancer, entry)

    def _has_decided(self, balancer: str, tombstone: Tombstone) -> bool:
        return self.mirror.view(balancer).member.processed.get(tombstone.writer, 0) >= tombstone.stamp

    def hearers(self, key: Key) -> dict[str, State]:
        """What each balancer that has an entry of it says; one that is gone for a TTL says nothing more than "stale"."""
        return {one.balancer: one.state for one in self._voices(key)}

    def is_fresh_elsewhere(self, key: Key) -> bool:
        """Whether another balancer hears it within its lease."""
        return any(one.balancer != self.name and one.state is not State.STALE for one in self._voices(key))

    def has_newer(self, key: Key, sequence: int, *, linked: bool) -> bool:
        """Whether the phone-home has said something newer, and its lease is not over. What the others heard says so only
        while their leases run."""
        if not sequence:
            return False
        voices = [one for one in self._voices(key) if one.balancer == self.name or linked]
        return any(one.wanted.sequence > sequence and one.state is not State.STALE for one in voices)

    # ------------------------------------------------------------- who owns a port

    def index(self, key: Key, slots: Iterable[Slot]) -> None:
        for slot in slots:
            self._keys_of.setdefault((slot.protocol, slot.port), {}).setdefault(slot, set()).add(key)

    def index_all(self) -> Iterator[None]:
        """In steps. What is no longer true is found by looking."""
        heard = ((key, own.wanted.slots) for key, own in list(self.own.items()))
        views = [list(self.mirror.view(name).entries.items()) for name in {*self.mirror.written, *self.mirror.newer}]
        read = ((key, known.entry.wanted.slots) for view in views for key, known in view)
        for number, (key, slots) in enumerate(chain(heard, read), 1):
            self.index(key, slots)
            if number % STEP == 0:
                yield

    def slots(self, key: Key) -> set[Slot]:
        """All that anybody heard it ask for."""
        own = self.own.get(key)
        others = (slot for _, known in self.mirror.known_by_others(key, self.name) for slot in known.entry.wanted.slots)
        return {*(own.wanted.slots if own is not None else ()), *others}

    def holders(self, slot: Slot) -> Iterator[Key]:
        keys = self._keys_at(slot)
        for key in list(keys):
            one = self.registration(key)
            if one is None and key not in self.own and not any(self.mirror.known_by_others(key, self.name)):
                keys.discard(key)
            elif one is not None and slot in one.wanted.slots:
                yield key

    def has_holder(self, slot: Slot, owner: Owner) -> bool:
        """Whether the owner holds it. A registration that was released here counts until all balancers that hear it have
        agreed, because it may still be alive there."""
        if self.hears(slot, owner):
            return True
        for key in list(self._keys_at(slot)):
            if owner_of(key) == owner:
                for balancer, known in self.mirror.known_by_others(key, self.name):
                    if slot in known.entry.wanted.slots and not self._is_released(balancer, key, known.entry):
                        return True
        return any(owner_of(key) == owner for key, one in self.held.items() if slot in one.before.wanted.slots)

    def hears(self, slot: Slot, owner: Owner) -> bool:
        """Whether this balancer itself does."""
        found = ((key, self.own.get(key)) for key in self._keys_at(slot))
        return any(own is not None and slot in own.wanted.slots and owner_of(key) == owner for key, own in found)

    def _keys_at(self, slot: Slot) -> set[Key]:
        return self._keys_of.get((slot.protocol, slot.port), {}).get(slot, set())

    def on_port(self, protocol: str, port: int) -> tuple[set[Key], dict[Slot, Owner]]:
        """The registrations that anybody heard with that port, and the claims on it."""
        slots = self._keys_of.get((protocol, port), {})
        claims = {slot: owner for slot, owner in self.mirror.block(block_of(Slot(protocol, port))).items() if slot.port == port}
        return {key for keys in slots.values() for key in keys if self.registration(key) is not None}, claims

    def claimant(self, slot: Slot) -> Owner | None:
        return self.mirror.block(block_of(slot)).get(slot)

    def rival(self, key: Key, slots: Iterable[Slot]) -> Conflict | None:
        """The first of the slots that somebody else has claimed and still holds."""
        mine = owner_of(key)
        for slot in slots:
            for other, owner in self.mirror.block(block_of(slot)).items():
                if owner != mine and slot.excludes(other) and self.has_holder(other, owner):
                    return Conflict(slot, owner, held=other)
        return None

    def obstacle(self, key: Key, slots: Iterable[Slot], *, takeover: bool = False) -> Conflict | None:
        """Why a slot cannot be claimed: besides a rival, one that holds it without a claim, or a port that is not for
        registrations on some balancer, which no `takeover` changes."""
        mine = owner_of(key)
        for slot in slots:
            known = () if takeover else self._keys_of.get((slot.protocol, slot.port), ())
            for other in [one for one in known if slot.excludes(one)]:
                for holder in self.holders(other):
                    if owner_of(holder) != mine and self.claimant(slot) != mine:
                        return Conflict(slot, owner_of(holder), held=other)
            for name, member in self.mirror.members():
                if self._reserves(name, member, slot):
                    return Conflict(slot, None, name)
        return None if takeover else self.rival(key, slots)

    def _reserves(self, name: str, member: Member, slot: Slot) -> bool:
        present = name == self.name or self.mirror.is_present(name)
        return present and any(slot.excludes(one) for one in member.reserved)

    def is_known_name(self, key: Key, slots: Iterable[Slot]) -> bool:
        """Whether the owner has all these slots. A claim alone does not count: it may be on its way out."""
        return all(self.has_holder(slot, owner_of(key)) for slot in slots)

    def is_secured(self, key: Key, slots: Iterable[Slot]) -> bool:
        """Whether the owner has all these slots by what this balancer has written: nobody can claim them meanwhile. What only
        others wrote may be on its way out."""
        mine = owner_of(key)
        return all(
            self.claimant(slot) == mine
            and any(owner_of(one) == mine and one in self.own and self._has_secured(one, slot) for one in self.holders(slot))
            for slot in slots
        )

    def _has_secured(self, key: Key, slot: Slot) -> bool:
        """Not by an entry that a tombstone releases: as long as this balancer was away, others may have given its port away."""
        written, tombstone = self.mirror.view(self.name).entries.get(key), self.mirror.tombstones.get(key)
        if written is None or slot not in written.entry.wanted.slots:
            return False
        return tombstone is None or self._has_decided(self.name, tombstone) or not covers(tombstone, self.name, written.entry)
