"""A balancer's part of the cluster: between control and core/merge, with the session to etcd as one of its tasks.

Control is the truth about what this balancer hears, and core/merge about everything else. What is committed here is assumed
there; what changes there is looked at again here, key by key, until both agree. Nothing is waited for except a claim.
"""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pylb.cluster.disk import Diary, Remembered
from pylb.cluster.etcd import NO_CREDENTIALS, Credentials, Etcd
from pylb.cluster.gateway import EtcdError
from pylb.cluster.overview import check_forget, difference, members, planned, port_view
from pylb.cluster.registrations import (
    KNOWN,
    as_registration,
    as_wanted,
    changed_keys,
    check_scope,
    is_shared,
    refusal,
    reserved_slots,
    same_details,
    with_own,
)
from pylb.cluster.sync import Presence, Sync
from pylb.control.desired_state import DesiredState
from pylb.control.event_texts import key_title
from pylb.control.sharing import Apply, ClusterView, Merged, PortView
from pylb.control.steps import in_turns
from pylb.core.address import PortKey
from pylb.core.errors import Code, Refused
from pylb.core.merge.knowledge import owner_of
from pylb.core.merge.local import Answer, Conflict, Memory
from pylb.core.merge.replica import Replica
from pylb.core.merge.values import Wanted
from pylb.core.registration import Key, Registration, State

LEAVE = 1.0  # seconds, for the last word to etcd
SAVE_EVERY = 1.0  # seconds between two writes of the memory, at least
SAY_AGAIN = 600.0  # seconds
STEP = 50  # keys between two turns of the loop
NAMED = 5  # in the text of an event
NOTED = 50  # different sentences about entries that cannot be served


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    name: str
    prefix: str
    state_dir: Path
    claim: float  # seconds that a call waits for its claim


class Shared:
    """Implements Sharing and Picture of control/sharing.py. `etcd`: makes a client for each run."""

    def __init__(
        self,
        settings: ClusterSettings,
        etcd: Callable[[Credentials], Etcd],
        report: Callable[[str, str, bool], None],  # kind, text, alarm
        clock: Callable[[], float] = time.monotonic,
        credentials: Credentials = NO_CREDENTIALS,
    ) -> None:
        self._settings = settings
        self._credentials = credentials
        self._make_etcd = etcd
        self._report = report
        self._clock = clock
        self._diary = Diary(settings.state_dir)
        self._replica = Replica(settings.name, KNOWN, frozenset(), Memory())
        self._presence = Presence(secrets.token_hex(16))
        self._sync: Sync | None = None  # while `run` runs
        self._etcd: Etcd | None = None
        self._desired: Callable[[], DesiredState] = _not_begun
        self._apply_keys: Apply | None = None
        self._wanted: dict[Key, tuple[Registration, Wanted]] = {}  # of registrations in force, by their identity
        self._pending = Counter[Key]()  # claimed by calls that are not decided yet
        self._dirty = set[Key]()  # to be compared with what is in force
        self._all_dirty = False
        self._woken = asyncio.Event()
        self._unserved: dict[Key, Refused] = {}
        self._held = frozenset[Key]()
        self._said: dict[str, float] = {}  # until when a sentence is not repeated
        self._unsaved = asyncio.Event()
        self._written = 0  # how often its memory was written
        self._trouble_since = clock()
        self._trouble = "it has not been reached yet"
        self._session: asyncio.Task[None] | None = None
        self._may_run = asyncio.Event()
        self._may_run.set()

    # ------------------------------------------------------------- life

    async def begin(self, desired: Callable[[], DesiredState], apply: Apply) -> None:
        self._desired, self._apply_keys = desired, apply
        remembered, complaint = await asyncio.to_thread(self._diary.read)
        if complaint:
            self._report("cluster", complaint, True)
        self._presence = remembered.presence or self._presence
        memory = with_own(remembered.memory, desired(), self._wanted_of)
        self._replica = Replica(self._settings.name, KNOWN, reserved_slots(desired().static_rules), memory)

    async def run(self) -> None:
        """Until cancelled. May be run again after a failure."""
        while True:
            await self._may_run.wait()
            self._session = session = asyncio.get_running_loop().create_task(self._run_once())
            try:
                await asyncio.wait([session])
            finally:
                session.cancel()
                await asyncio.wait([session])
            if not session.cancelled():  # `pause` cancels it
                session.result()

    async def _run_once(self) -> None:
        async with self._make_etcd(self._credentials) as etcd:
            self._etcd = etcd
            self._sync = Sync(
                etcd,
                self._replica,
                self._settings.prefix,
                self._presence,
                changed=self._on_change,
                report=self._say,
                claim=self._settings.claim,
            )
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._sync.run())
                    tasks.create_task(self._apply())
                    tasks.create_task(self._save())
            finally:
                self._sync = self._etcd = None

    async def pause(self) -> None:
        await self._stop()
        await self._save_now()

    async def _stop(self) -> None:
        self._may_run.clear()
        if self._session is not None:
            self._session.cancel()
            await asyncio.wait([self._session])

    def resume(self) -> None:
        self._may_run.set()

    async def leave(self) -> None:
        """The end of this balancer, as far as the others are concerned."""
        await self._stop()
        if self._presence.lease:
            with suppress(EtcdError, TimeoutError):  # else it ends by itself
                async with asyncio.timeout(LEAVE), self._make_etcd(self._credentials) as etcd:
                    await etcd.revoke(self._presence.lease)
            self._presence.lease = 0
        await self._save_now()

    def use(self, credentials: Credentials) -> None:
        """From the next question to etcd on."""
        self._credentials = credentials
        if self._etcd is not None:
            self._etcd.use(credentials)

    # ------------------------------------------------------------- calls

    def repeats(self, one: Registration) -> bool:
        if not is_shared(one):
            return True
        if one.hearer or self._pending[one.key] or one.key not in self._replica.knowledge.own:
            return False
        answer = self._replica.announce(one.key, self._wanted_of(one), one.state, now=self._now())
        if answer is Answer.CLAIMING:  # the call that follows waits for it
            self._replica.withdraw(one.key)
        if self._replica.unwritten:  # a beat alone is not worth a write
            self._changed_here()
        return answer in (Answer.IN_FORCE, Answer.LATE)

    async def claim(self, wanted: Registration, *, takeover: bool) -> None:
        self._pending[wanted.key] += 1
        try:
            answer = await self._answer(wanted, takeover=takeover)
        except BaseException:
            self._give_up(wanted.key)
            raise
        if answer is not Answer.IN_FORCE:
            self._give_up(wanted.key)
            raise refusal(answer, self.trouble())

    async def _answer(self, wanted: Registration, *, takeover: bool) -> Answer | Conflict:
        """Raises Refused."""
        if not is_shared(wanted):
            return Answer.IN_FORCE
        asked = as_wanted(wanted, self._desired().static_rules)
        answer = self._replica.announce(wanted.key, asked, wanted.state, takeover=takeover, now=self._now())
        if answer is Answer.CLAIMING:
            answer = await self._sync.claimed(wanted.key) if self._sync is not None else Answer.UNAVAILABLE
        self._changed_here()
        return answer

    def _give_up(self, key: Key) -> None:
        if self._pending[key] == 1:  # else another call waits for it
            self._replica.withdraw(key)
        self.claimed(key)

    def claimed(self, key: Key) -> None:
        self._pending[key] -= 1
        if self._pending[key] > 0:
            return
        del self._pending[key]
        self._follow(key, self._desired().claims.registrations.get(key))
        self._look_at(key)

    # ------------------------------------------------------------- what control does

    def committed(self, before: DesiredState, after: DesiredState) -> Generator[None, None, None]:
        if after.static_rules is not before.static_rules:
            self._replica.reserve(reserved_slots(after.static_rules))
        for number, key in enumerate(changed_keys(before.claims, after.claims), 1):
            if not self._pending[key]:
                self._follow(key, after.claims.registrations.get(key))
            self._look_at(key)
            if number % STEP == 0:
                yield

    def _follow(self, key: Key, one: Registration | None) -> None:
        """What is in force here is what this balancer hears of it."""
        replica = self._replica
        own = replica.knowledge.own.get(key)
        if one is None or one.hearer or not is_shared(one):
            self._wanted.pop(key, None)
            if own is not None:
                replica.overstayed(key)
        elif own is not None and own.wanted == self._wanted_of(one):
            replica.judged(key, one.state)
        else:
            replica.assume(key, self._wanted_of(one), one.state)
        self._changed_here()

    def released(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._replica.release(key)
            self._look_at(key)
        self._changed_here()

    def is_fresh_elsewhere(self, key: Key) -> bool:
        return self._replica.linked and self._replica.knowledge.is_fresh_elsewhere(key)

    def leave_to_others(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._replica.overstayed(key)
            self._look_at(key)
        self._changed_here()

    def _wanted_of(self, one: Registration) -> Wanted:
        known = self._wanted.get(one.key)
        if known is None or known[0] is not one:
            known = self._wanted[one.key] = one, as_wanted(one, self._desired().static_rules)
        return known[1]

    # ------------------------------------------------------------- what the others say

    def agrees(self, key: Key, there: Registration | None) -> bool:
        if self._pending[key] or (there is not None and not is_shared(there)):
            return True
        merged, own = self._replica.knowledge.registration(key), self._replica.knowledge.own.get(key)
        if merged is None:  # without etcd what the snapshot has of others is all that is known of it
            return there is None or (bool(there.hearer) and not self._replica.linked)
        if own is not None and (merged.hearer == self._settings.name or merged.state is State.STALE):
            return there is not None and not there.hearer
        if there is None or there.hearer != merged.hearer or there.state is not merged.state:
            return False
        return same_details(merged.wanted, replace(there, displaced=()))

    def of(self, key: Key) -> Merged | None:
        knowledge = self._replica.knowledge
        merged, own = knowledge.registration(key), knowledge.own.get(key)
        if merged is None:
            return None
        if own is not None and (merged.hearer == self._settings.name or merged.state is State.STALE):
            return Merged(replace(as_registration(key, own.wanted), state=own.state), self._has_claim(key, own.wanted))
        if merged.lacking:
            words = ", ".join(sorted(merged.lacking))
            raise Refused(Code.INVALID, f"it needs {words}, which this version of pylb does not know", "upgrade this balancer")
        if (rival := knowledge.rival(key, merged.wanted.slots)) is not None:
            raise refusal(rival)
        one = replace(as_registration(key, merged.wanted), state=merged.state, hearer=merged.hearer)
        check_scope(one, self._desired())
        return Merged(one, self._has_claim(key, merged.wanted))

    def _has_claim(self, key: Key, wanted: Wanted) -> bool:
        return all(self._replica.knowledge.claimant(slot) == owner_of(key) for slot in wanted.slots)

    def _on_change(self, keys: Collection[Key] | None) -> None:
        if keys is None:
            self._all_dirty = True
        else:
            self._dirty.update(keys)
        self._woken.set()
        self._unsaved.set()

    def _look_at(self, key: Key) -> None:
        self._dirty.add(key)
        self._woken.set()

    async def _apply(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            keys, self._dirty = self._dirty, set()
            try:
                if self._all_dirty and self._replica.linked:
                    self._all_dirty = False
                    keys |= {key async for key in in_turns(self._replica.knowledge.registered(), STEP)}
                    keys |= {*self._desired().claims.registrations}
                self._note_held()
                if self._apply_keys is not None and keys:
                    self._note_unserved(keys, await self._apply_keys(keys, self))
            except BaseException:
                self._on_change(keys)  # else nobody would look again
                raise

    def _note_held(self) -> None:
        held = frozenset(self._replica.knowledge.held)
        if new := held - self._held:
            named = ", ".join(sorted(map(key_title, new))[:NAMED])
            more = f", and {len(new) - NAMED} more" if len(new) > NAMED else ""
            text = f"another balancer released most ports, and nothing closes here until `pylb cluster accept`: {named}{more}"
            self._report("held", text, True)
        self._held = held

    def _note_unserved(self, keys: Iterable[Key], refused: Mapping[Key, Refused]) -> None:
        for key in keys:
            if key not in refused:
                self._unserved.pop(key, None)
        for number, (key, why) in enumerate(refused.items()):
            if str(self._unserved.get(key)) != str(why) and number < NOTED:
                self._report("not_shared", f"{key_title(key)}, which another balancer hears, is not served here: {why}", True)
            self._unserved[key] = why

    # ------------------------------------------------------------- what is remembered

    def _changed_here(self) -> None:
        if self._sync is not None:
            self._sync.wake()
        self._unsaved.set()

    async def _save(self) -> None:
        while True:
            await self._unsaved.wait()
            began = self._clock()
            await self._save_now()
            await asyncio.sleep(max(SAVE_EVERY, 20 * (self._clock() - began)))

    async def _save_now(self) -> None:
        self._unsaved.clear()
        remembered = Remembered(self._replica.memory(), replace(self._presence))
        self._written += 1
        if complaint := await asyncio.to_thread(self._diary.write, remembered, self._written):
            self._unsaved.set()
            self._report("cluster", complaint, True)

    # ------------------------------------------------------------- what an operator sees

    def _say(self, text: str, alarm: bool) -> None:
        """Each endpoint has its own way to say that it is away, every second: once in a while is enough."""
        if not alarm:
            self._said.clear()
        elif self._clock() < self._said.get(text, 0.0):
            return
        else:
            self._said[text] = self._clock() + SAY_AGAIN
        self._report("cluster", text, alarm)

    def trouble(self) -> str:
        trouble = self._sync.trouble if self._sync is not None else self._trouble
        if bool(trouble) != bool(self._trouble):
            self._trouble_since = self._clock()
        self._trouble = trouble
        return trouble

    @property
    def name(self) -> str:
        return self._settings.name

    def hearers(self, key: Key) -> Mapping[str, State]:
        return self._replica.knowledge.hearers(key)

    def plan(self, wanted: Registration, *, takeover: bool) -> list[str]:
        asked = as_wanted(wanted, self._desired().static_rules)
        return planned(self._replica, wanted, asked, self.trouble(), takeover=takeover)

    def port(self, port: PortKey) -> PortView:
        return port_view(self._replica, port, self._unserved)

    def view(self) -> ClusterView:
        trouble, claims = self.trouble(), self._desired().claims
        return ClusterView(
            self._settings.name,
            trouble,
            self._etcd.endpoint if self._etcd is not None else "",
            self._clock() - self._trouble_since if trouble else 0.0,
            len(self._replica.knowledge.own),
            sum(bool(one.hearer) for one in claims.registrations.in_any_order()),
            self._replica.unwritten,
            tuple(sorted(map(key_title, self._replica.knowledge.held))),
            tuple(sorted(f"{key_title(key)}: {why}" for key, why in self._unserved.items())),
            tuple(members(self._replica)),
        )

    async def differences(self) -> list[dict[str, str]]:
        known = {key async for key in in_turns(self._replica.knowledge.registered(), STEP)}
        found = list[dict[str, str]]()
        async for key in in_turns(sorted({*known, *self._desired().claims.registrations}), STEP):
            there = self._desired().claims.registrations.get(key)
            if not self.agrees(key, there):
                found.append(difference(self._replica, key, there, self._unserved.get(key)))
        return found

    def forget(self, balancer: str) -> None:
        check_forget(self._replica, balancer, self.trouble())
        self._replica.forget(balancer)
        self._changed_here()

    def accept(self) -> list[str]:
        held = list(self._replica.knowledge.held)
        self._replica.accept()
        for key in held:
            self._look_at(key)
        self._changed_here()
        return sorted(map(key_title, held))

    def resync(self) -> None:
        if self._sync is not None:
            self._sync.list_again()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _not_begun() -> DesiredState:
    raise RuntimeError("nothing is in force yet")
