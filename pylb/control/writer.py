"""The single writer: it decides calls one after the other, opens ports, makes the change durable, publishes it and answers.

Calls that arrive while a snapshot is being written wait for its end and share the next one (group commit): however many
come at once, the disk sees two writes. The calls of a batch are decided one after the other, each on top of those before it,
and the event loop runs other tasks after every few: a batch is one swap, but never one step.

Not atomic: ports are opened one by one before the write, and closed again if it fails; nothing is accepted on them yet.
"""

import asyncio
import errno
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Generator, Iterable
from dataclasses import dataclass, field, replace
from itertools import filterfalse

from pylb.control.desired_state import DesiredState, Sink, Step
from pylb.control.publisher import Publisher
from pylb.control.sharing import Sharing
from pylb.control.steps import collect_young, freed_in_steps, in_turns, stepwise
from pylb.control.storage.disk import Unsynced
from pylb.control.tasks import Part, Tasks
from pylb.core.address import Listen
from pylb.core.claims import Claims, with_ports
from pylb.core.errors import Code, Refused, break_cycles
from pylb.core.ownership import Change
from pylb.core.registration import Key

KEYS = 500  # of decided calls, forgotten in one step: 0.2 ms
CALLS = 10  # decided or answered in one step, 1 ms, before the event loop runs other tasks
PORTS = 50  # of a range, opened in one step: 2 ms
MANY = 100  # frontends that a batch may touch before the claims that it replaced are freed in steps
BUCKETS = 50  # of these claims, freed in one step: 1 ms


Done = Callable[[Change], Generator[None, None, None] | None]  # a generator for long work, in steps
Admit = Callable[[DesiredState, DesiredState, Change], Awaitable[None]]  # (before, after, change); raises Refused


@dataclass(slots=True)
class Call:
    """`step` is pure and may run twice. `done` runs once, when the change is in force, even if the caller has left."""

    step: Step
    keys: Collection[Key]  # the registrations that it is about
    answer: asyncio.Future[tuple[Change, bool]]
    done: Done | None
    by: str  # who asks, for the history
    write: bool = False  # even if nothing changed: the retry of a failed snapshot


_NONE = Claims()


@dataclass(slots=True)
class _Batch:
    """The calls of a batch. `decided` does not contain the pictures, see `accept`."""

    desired: DesiredState
    decided: list[tuple[Call, Change]] = field(default_factory=list)
    touched: set[Listen] = field(default_factory=set)
    refused: list[tuple[Call, Refused]] = field(default_factory=list)

    def accept(self, call: Call, desired: DesiredState, change: Change) -> None:
        """Keep the picture that a call gave only until the next call is decided: with 500 of them at once the garbage collector
        would pause to visit each of their thousands of parts."""
        self.desired = desired
        self.decided.append((call, replace(change, claims=_NONE)))
        self.touched |= change.touched

    def must_write(self, live: DesiredState) -> bool:
        now = self.desired
        same = now.claims.registrations is live.claims.registrations and now.overrides is live.overrides
        same = same and now.unserved is live.unserved
        return not same or any(call.write for call, _ in self.decided)


class Writer:
    """`save` raises OSError."""

    def __init__(
        self,
        publisher: Publisher,
        sink: Sink,
        save: Callable[[DesiredState], Awaitable[None]],
        tasks: Tasks,
        sharing: Sharing | None = None,
    ) -> None:
        self.durable = True  # what is in force is on disk
        self.hangs = False  # the disk failed: no batch waits for it again before a write outside the batches has succeeded
        self._publisher = publisher
        self._sink = sink
        self._save = save
        self._tasks = tasks
        self._sharing = sharing
        self._queue: list[Call] = []
        self._busy: list[Call] = []  # the batch under way
        self._about: Counter[Key] = Counter()  # the keys of both
        self._work = asyncio.Event()
        self._turn = asyncio.Lock()  # held while a batch is under way, or by `hold`
        self._stopped = False

    def not_busy_with(self, keys: Iterable[Key]) -> tuple[Key, ...]:
        """Those about which no call is waiting."""
        return tuple(filterfalse(self._about.__contains__, keys))

    def is_busy_with(self, key: Key) -> bool:
        """Whether a call about this registration is waiting. Then nothing about it may be answered out of turn."""
        return key in self._about

    async def perform(
        self, step: Step, keys: Iterable[Key], done: Done | None = None, *, by: str, write: bool = False
    ) -> tuple[Change, bool]:
        """Run `step` in its turn. Returns what changed, without the picture, and whether it is on disk.

        Raises Refused; then nothing has changed.
        """
        return await self.submit(step, keys, done, by=by, write=write)

    def submit(
        self, step: Step, keys: Iterable[Key], done: Done | None = None, *, by: str, write: bool = False
    ) -> asyncio.Future[tuple[Change, bool]]:
        """Like `perform`, for callers with many steps: the answer may be awaited later. Raises Refused."""
        if self._stopped:
            raise _stopping()
        call = Call(step, frozenset(keys), asyncio.get_running_loop().create_future(), done, by, write)
        self._queue.append(call)
        self._about.update(call.keys)
        self._work.set()
        return call.answer

    async def run(self) -> None:
        """Run until cancelled; then the calls that still wait are refused."""
        done = 0  # calls since the last look at young objects
        try:
            while True:
                await self._work.wait()
                self._work.clear()
                async with self._turn:
                    self._busy, self._queue = self._queue, []
                    await self._commit(self._busy)
                    await self._forget(self._busy)
                    done, self._busy = done + len(self._busy), []
                if done >= CALLS:  # changes that are committed alone have no turn between their steps
                    collect_young()
                    done = 0
        finally:
            self._stopped = True
            for call in (*self._busy, *self._queue):
                _fail(call, _stopping())
            self._busy, self._queue = [], []

    async def hold(self) -> None:
        """Stop changing anything: calls wait until `resume`."""
        await self._turn.acquire()

    def resume(self) -> None:
        self._turn.release()

    async def _forget(self, calls: Iterable[Call]) -> None:
        async for key in in_turns((key for call in calls for key in call.keys), KEYS):
            self._about[key] -= 1
            if not self._about[key]:
                self._about.pop(key)

    async def _commit(self, calls: list[Call]) -> None:
        live = self._publisher.desired
        opened: set[Listen] = set()

        async def opening(before: DesiredState, after: DesiredState, change: Change) -> None:
            opened.update(await self._open(before, after, change))

        batch = await _judge(live, calls, opening)
        if batch.must_write(live):
            try:
                await self._write(batch)
            except Unsynced:
                pass  # it is on disk as far as anybody can see, so refusing it would be wrong
            except OSError as error:
                again = await _judge(live, [call for call, _ in batch.decided], _without_disk(error))
                again.refused += batch.refused
                batch = again
        by = dict.fromkeys(call.by for call, change in batch.decided if change.touched)
        await self._publisher.publish(batch.desired, batch.touched, by)
        for listen in opened:
            if listen not in self._publisher.table.frontends:
                self._sink.discard(listen)
        await self._sink.applied()
        if self._sharing is not None:
            await self._share(self._sharing, live, batch.desired)
        await self._answer(batch)
        if len(batch.touched) > MANY:
            replaced = live.claims.buckets
            del live, batch  # nobody else refers to these claims any more
            await freed_in_steps(replaced, BUCKETS)

    async def _answer(self, batch: _Batch) -> None:
        for call, refused in batch.refused:
            _fail(call, refused)
        async for call, change in in_turns(batch.decided, CALLS):
            if call.done is not None:
                with self._tasks.surviving(Part.ANSWERS):  # the change is in force, even if the rest fails
                    if (rest := call.done(change)) is not None:
                        await stepwise(rest)
            if not call.answer.done():
                call.answer.set_result((change, self.durable))

    async def _share(self, sharing: Sharing, before: DesiredState, after: DesiredState) -> None:
        with self._tasks.surviving(Part.CLUSTER):
            await stepwise(sharing.committed(before, after))

    async def _write(self, batch: _Batch) -> None:
        """Raises OSError; Unsynced is one."""
        if self.hangs and not any(call.write for call, _ in batch.decided):
            raise TimeoutError("the disk does not answer")
        try:
            await self._save(batch.desired)
        except OSError as error:
            self.durable, self.hangs = False, isinstance(error, TimeoutError)
            raise
        self.durable, self.hangs = True, False

    async def _open(self, before: DesiredState, after: DesiredState, change: Change) -> set[Listen]:
        """Open the ports that `after` has and the published table does not have, all or none. Raises Refused."""
        published = self._publisher.table.frontends
        ports = [listen for listen in with_ports(change.touched) if not listen.server_name]
        wanted = [port for port in ports if port not in published and after.has(port)]
        if not wanted:
            return set()
        closing = [port for port in ports if port in published and not after.has(port)]
        done: set[Listen] = set()
        async for listen in in_turns(sorted(wanted), CALLS):
            if any(listen.overlaps(other) for other in closing):
                continue  # the kernel would refuse the two side by side: the swap closes one and opens the other
            done.add(listen)
            freebind = after.static_rules.policy(listen).freebind
            async for one in in_turns(listen.each(), PORTS):
                try:
                    self._sink.open(one, freebind=freebind)
                except OSError as error:
                    for other in done:
                        if not before.has(other):  # else an earlier call of this batch needs it
                            self._sink.discard(other)
                    raise cannot_bind(one, error) from None
        return done


async def _judge(live: DesiredState, calls: Iterable[Call], admit: Admit) -> _Batch:
    """Decide one call after the other, each on top of the previous ones that were not refused."""
    batch = _Batch(live)
    async for call in in_turns(calls, CALLS):
        try:
            judged = call.step(batch.desired)
            desired, change = await stepwise(judged) if isinstance(judged, Generator) else judged
            await admit(batch.desired, desired, change)
        except Refused as refused:
            break_cycles(refused)  # its frames have the pictures, and the batch may take long
            batch.refused.append((call, refused))
        except Exception as bug:  # noqa: BLE001 - the task boundary: a bug in one call must not end the writer
            _fail(call, bug)
        else:
            batch.accept(call, desired, change)
    return batch


def _without_disk(error: OSError) -> Admit:
    async def admit(_before: DesiredState, _after: DesiredState, change: Change) -> None:
        """While the disk fails, refuse what a restart would forget, but allow a move or another instance of a known name."""
        if change.opened or change.new_name:
            raise _not_writable(error)  # one for each call: the same one raised again would collect all their frames

    return admit


def _stopping() -> Refused:
    return Refused(Code.UNAVAILABLE, "pylb is stopping", "call again", retry_after=1)


def _not_writable(error: OSError) -> Refused:
    return Refused(
        Code.STATE_NOT_WRITABLE,
        f"the state directory cannot be written ({error.strerror or error}): nothing new is accepted",
        "free or repair the disk of state_dir; what is registered keeps working and may move",
        retry_after=10,
    )


def _fail(call: Call, error: Exception) -> None:
    if not call.answer.done():  # its caller may have gone
        call.answer.set_exception(error)


def cannot_bind(listen: Listen, error: OSError) -> Refused:
    """A refusal that tells the caller why the kernel refused a port."""
    if error.errno == errno.EADDRINUSE:
        return Refused(
            Code.PORT_IN_USE,
            f"port {listen.port_text} is in use by another process, or by an outgoing connection of this machine",
            "`ss -tanp` shows which; keep ports of your own inside net.ipv4.ip_local_port_range by "
            "net.ipv4.ip_local_reserved_ports",
            port=listen.port_text,
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = "start it with CAP_NET_BIND_SERVICE (the systemd unit does), or use a higher port"
        return Refused(Code.PORT_PRIVILEGED, f"pylb may not open port {listen.port_text}", hint, port=listen.port_text)
    return Refused(Code.CANNOT_BIND, f"{listen} cannot be opened: {error.strerror or error}", port=listen.port_text)
