"""The loop between core/merge and etcd: list, then watch from there, and write. One list after each lost connection.

Whatever goes wrong ends the session: the replica is disconnected, all else goes on with what is known, and the next session
begins with a list, at the next endpoint if this one did not answer. Nothing is deleted because etcd lacks it, and no write is
tried again as it was: a transaction whose answer is lost is cleared up by the list, and what it was for is compared and written
anew, with whatever is newest by then.

    start → join (presence) → list → in force → watch, write, count seconds → anything ends → start
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from pylb.cluster.etcd import Etcd
from pylb.cluster.gateway import Compacted, EtcdError, Event, Full, Item, LeaseGone, Txn, Unreachable
from pylb.cluster.keys import key_name, read_key, read_pair, write_value
from pylb.control.steps import in_turns, stepwise
from pylb.core.merge.local import Answer, Conflict
from pylb.core.merge.replica import Replica
from pylb.core.merge.values import (
    BlockKey,
    ClusterKey,
    EntryKey,
    Member,
    MemberKey,
    PresenceKey,
    TombstoneKey,
    Transaction,
    Value,
)
from pylb.core.registration import Key

LEASE = 30  # seconds: how long a balancer that says nothing counts as present
HEARTBEAT = 10.0  # seconds
CLAIM = 3.0  # seconds that a call waits for its claim
PAUSE = 1.0  # seconds, once every endpoint was tried
LONG_PAUSE = 5.0  # seconds, after what only an operator can repair
BEHIND = 1.0  # seconds without a word of the watch, while etcd is known to have more: what it had to say may be lost
CHECK = 0.02  # seconds between two looks at claims of which there are too many for one
READ = 50  # values between two turns of the loop: some 20 µs each


class TwoOfOneName(EtcdError):  # noqa: N818 - a condition
    """Another process has this balancer's name."""


class _ListAgain(EtcdError):  # noqa: N818 - a condition
    """Only a new list of all keys helps. The endpoint is not to blame."""


@dataclass(slots=True)
class Presence:
    """`nonce` is this start's; a successor in an upgrade takes over both."""

    nonce: str
    lease: int = 0  # 0: none yet


class Sync:
    """`changed` hears which registrations may be served differently now (None: any), `report` a sentence for the
    operator, and whether somebody should look."""

    def __init__(
        self,
        etcd: Etcd,
        replica: Replica,
        prefix: str,
        presence: Presence,
        *,
        changed: Callable[[Collection[Key] | None], None],
        report: Callable[[str, bool], None],
        heartbeat: float = HEARTBEAT,
        claim: float = CLAIM,
        pause: float = PAUSE,
    ) -> None:
        self.trouble = "it has not been reached yet"  # "": connected, and etcd takes writes
        self._etcd, self._replica, self._presence = etcd, replica, presence
        self._prefix = prefix.rstrip("/").encode() + b"/"
        self._presence_key = self._name(PresenceKey(replica.name))
        self._changed, self._report = changed, report
        self._heartbeat, self._claim, self._pause = heartbeat, claim, pause
        self._woken = asyncio.Event()
        self._claims = dict[Key, asyncio.Future[Answer | Conflict]]()
        self._beat_at = 0.0  # the loop's time
        self._heard_at = 0.0  # when the watch last said something
        self._refused_at = 0.0  # the last transaction
        self._is_to_list = False
        self._complaints = dict[ClusterKey, str]()  # each is reported once

    # ------------------------------------------------------------- for whoever tells the replica something

    def wake(self) -> None:
        """The replica may have something to write."""
        self._woken.set()

    def list_again(self) -> None:
        """Compare everything with etcd once more."""
        self._is_to_list = True
        self.wake()

    async def claimed(self, key: Key) -> Answer | Conflict:
        """What becomes of a claim that the replica has begun: IN_FORCE, UNAVAILABLE, or who has the port."""
        answer = self._claims.setdefault(key, asyncio.get_running_loop().create_future())
        self.wake()
        try:
            async with asyncio.timeout(self._claim):
                return await asyncio.shield(answer)  # others may wait for the same claim
        except TimeoutError:
            self._replica.withdraw(key)
            self._answer(key, Answer.UNAVAILABLE)
            return Answer.UNAVAILABLE

    def _answer(self, key: Key, answer: Answer | Conflict) -> None:
        if (waiting := self._claims.pop(key, None)) is not None and not waiting.done():
            waiting.set_result(answer)

    def _answer_withdrawn(self) -> None:
        for key in [key for key in self._claims if not self._replica.is_claiming(key)]:
            self._answer(key, Answer.UNAVAILABLE)

    # ------------------------------------------------------------- sessions

    async def run(self) -> NoReturn:
        """Until it is cancelled."""
        tries = 0
        while True:
            try:
                await self._session()
            except EtcdError as error:
                tries = 0 if not self.trouble else tries + 1
                self._say(str(error))
                wait = self._wait(error, tries)
            finally:
                self._replica.disconnected()
                self._answer_withdrawn()
            await asyncio.sleep(wait)

    def _wait(self, error: EtcdError, tries: int) -> float:
        if isinstance(error, (Unreachable, Compacted, LeaseGone, _ListAgain)):
            return self._pause if tries >= self._etcd.endpoints else 0.0
        return self._pause * LONG_PAUSE

    def _say(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            self._report(f"etcd: {trouble}" if trouble else f"etcd: connected to {self._etcd.endpoint}", bool(trouble))

    async def _session(self) -> NoReturn:
        await self._join()  # first: what the others release while they take us for gone is in the list then
        revision, items = await self._etcd.list(self._prefix)
        listing = await self._read(items)
        await stepwise(self._replica.listed(revision, listing, self._now()))
        self._changed(None)
        self._beat_at = self._now()
        ended: EtcdError | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch(revision))
                tasks.create_task(self._write())
                tasks.create_task(self._count_seconds())
        except* EtcdError as errors:
            ended = _first(errors)  # raised below: Python before 3.11.4 puts what is raised here into another group
        if ended is None:
            raise AssertionError("its tasks never end by themselves")
        raise ended

    async def _read(self, items: Collection[Item]) -> dict[ClusterKey, tuple[Value, int]]:
        listing = dict[ClusterKey, tuple[Value, int]]()
        async for item in in_turns(items, READ):
            pair = self._pair(item.key, item.value)
            if pair is not None:
                listing[pair[0]] = (pair[1], item.revision)
        return listing

    def _pair(self, name: bytes, value: bytes) -> tuple[ClusterKey, Value] | None:
        pair = read_pair(self._key(name), value)
        if pair is None:
            return None
        if not pair.complaint:
            self._complaints.pop(pair.key, None)
        elif self._complaints.get(pair.key) != pair.complaint:
            self._complaints[pair.key] = pair.complaint
            self._report(pair.complaint, True)
        return pair.key, pair.value

    def _key(self, name: bytes) -> str:
        return name.removeprefix(self._prefix).decode("utf-8", "replace")

    async def _join(self) -> None:
        """Make or take over this balancer's presence."""
        _, items = await self._etcd.list(self._presence_key)
        there = next((item for item in items if item.key == self._presence_key), None)  # others may begin with our name
        if there is not None and there.value != self._presence.nonce.encode():
            raise TwoOfOneName(
                f"another pylb is there as {self._replica.name!r}, or was until a moment ago: "
                "each needs a cluster.name of its own. This one serves what it knows and tries again"
            )
        until = self._now() + LEASE
        try:
            if self._presence.lease:
                await self._etcd.keepalive(self._presence.lease)
        except LeaseGone:
            self._presence.lease = 0
        self._presence.lease = self._presence.lease or await self._etcd.grant(LEASE)
        put = {self._presence_key: (self._presence.nonce.encode(), self._presence.lease)}
        before = {self._presence_key: 0 if there is None else there.revision}
        if not (await self._etcd.txn(Txn(before, leased=put))).succeeded:
            raise _ListAgain("its presence was written by another process at this moment")
        self._replica.present_until = until

    async def leave(self) -> None:
        """The others need not wait for the end of the lease. Not before an upgrade: the successor takes it over."""
        if self._presence.lease:
            lease, self._presence.lease = self._presence.lease, 0
            try:
                await self._etcd.revoke(lease)
            except EtcdError:
                pass  # it ends by itself

    # ------------------------------------------------------------- watch

    async def _watch(self, revision: int) -> NoReturn:
        await self._etcd.watch(self._prefix, revision, self._see)

    def _see(self, revision: int, events: Sequence[Event]) -> None:
        self._heard_at = self._now()
        changes = dict[ClusterKey, Value | None]()
        for event in events:
            if event.value is None:
                if (key := read_key(self._key(event.key))) is not None:
                    changes[key] = None
            elif (pair := self._pair(event.key, event.value)) is not None:
                changes[pair[0]] = pair[1]
        touched = self._touched(changes)
        self._replica.watched(revision, changes, self._now())
        if touched is None or touched:
            self._changed(touched)
        self._answer_withdrawn()
        self.wake()

    def _touched(self, changes: Mapping[ClusterKey, Value | None]) -> set[Key] | None:
        """The registrations whose claims these changes may affect; None: any. To be called before the changes are in force."""
        knowledge = self._replica.knowledge
        if any(isinstance(key, MemberKey) and key.balancer in knowledge.mirror.newer for key in changes):
            return None
        found = {key.key for key in changes if isinstance(key, EntryKey | TombstoneKey)}
        if any(isinstance(key, MemberKey | PresenceKey) for key in changes):
            found |= knowledge.mirror.tombstones.keys()  # what they release depends on who is there, and what they decided
        for key, value in changes.items():
            if isinstance(key, MemberKey) and isinstance(value, Member) and value.forgotten:
                found |= knowledge.mirror.view(key.balancer).entries.keys()
        for key, value in changes.items():
            if isinstance(key, BlockKey):
                before, after = knowledge.mirror.block(key), value if isinstance(value, Mapping) else {}
                for slot in before.keys() | after.keys():
                    if before.get(slot) != after.get(slot):
                        found |= set(knowledge.holders(slot))
        return found

    # ------------------------------------------------------------- write

    async def _write(self) -> NoReturn:
        while True:
            self._woken.clear()
            heartbeat = self._now() >= self._beat_at
            transaction, refused = self._replica.write(heartbeat=heartbeat)
            for key, conflict in refused.items():
                self._answer(key, conflict)
            if not self._replica.linked:
                raise _ListAgain("what it has is not what this balancer knows")
            if self._is_to_list:
                self._is_to_list = False
                raise _ListAgain("everything is listed again, as it was asked for")
            if transaction is None:
                await self._until_woken(self._idle_for())
            else:
                await self._try(transaction, heartbeat=heartbeat)

    def _idle_for(self) -> float:
        """Seconds, while nothing is written. Raises _ListAgain."""
        if self._replica.is_behind():  # a watch is silent for as long as TCP takes to ask again: up to the seconds of an outage
            silent = self._now() - max(self._heard_at, self._refused_at)
            if silent >= BEHIND:
                raise _ListAgain("its watch does not report what etcd has")
            return BEHIND - silent
        return CHECK if self._replica.has_more_to_check() else self._beat_at - self._now()

    async def _until_woken(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds if seconds > 0 else self._pause):  # due, and something is still on its way to us
                await self._woken.wait()
        except TimeoutError:
            pass

    async def _try(self, transaction: Transaction, *, heartbeat: bool) -> None:
        try:
            until = self._now() + LEASE
            if heartbeat:
                await self._etcd.keepalive(self._presence.lease)
            succeeded, revision = await self._etcd.txn(self._encoded(transaction, heartbeat=heartbeat))
        except Full as error:
            self._replica.rejected()
            for key in list(self._claims):
                self._replica.withdraw(key)
            self._answer_withdrawn()
            self._say(str(error))
            await asyncio.sleep(self._pause * LONG_PAUSE)
            return
        if not succeeded:
            self._replica.refused(revision)
            self._refused_at = self._now()
            return
        if heartbeat:
            self._beat_at = self._now() + self._heartbeat
            self._replica.present_until = until
        granted = self._replica.wrote(revision)
        for key in granted:
            self._answer(key, Answer.IN_FORCE)
        if granted:
            self._changed(granted)
        self._say("")

    def _encoded(self, transaction: Transaction, *, heartbeat: bool) -> Txn:
        """A heartbeat renews the presence in the same transaction: only one process of this name can succeed."""
        nonce = self._presence.nonce.encode()
        return Txn(
            {self._name(key): revision for key, revision in transaction.compares.items()},
            {self._presence_key: nonce} if heartbeat else {},
            {self._name(key): write_value(value) for key, value in transaction.puts.items()},
            {self._presence_key: (nonce, self._presence.lease)} if heartbeat else {},
            frozenset(self._name(key) for key in transaction.deletes),
        )

    def _name(self, key: ClusterKey) -> bytes:
        return self._prefix + key_name(key).encode()

    # ------------------------------------------------------------- time

    async def _count_seconds(self) -> NoReturn:
        before = self._now()
        while True:
            await asyncio.sleep(1.0)
            now = self._now()
            if stale := self._replica.tick(now - before):
                self._changed(stale)
            before = now

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _first(errors: BaseExceptionGroup[EtcdError]) -> EtcdError:
    """The error that ended the session. The other tasks end because of it, so their errors are ignored."""
    one = errors.exceptions[0]
    return _first(one) if isinstance(one, BaseExceptionGroup) else one
