"""The single writer's turn: judge, open, make durable, publish, answer. One order, one answer each.

Calls that arrive while a snapshot is being written wait for its end and share the next one (group commit): however many
come at once, the disk sees two writes. All calls of a batch are judged one after the other, each on top of those before it.

Not atomic: ports are opened one by one before the write, and closed again if it fails; nothing is accepted on them yet.
"""

import asyncio
import errno
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from pylb.control.tasks import Part, Tasks
from pylb.core.address import Listen
from pylb.core.auth import Keyring
from pylb.core.claims import Change, Claims
from pylb.core.errors import Code, Refused
from pylb.core.layout import Layout
from pylb.core.overrides import NONE, Overrides
from pylb.core.registration import Key
from pylb.core.table import Table


class Sink(Protocol):
    """What serves the tables: the in-process engine, or the workers."""

    def open(self, listen: Listen, *, freebind: bool) -> None:
        """Binds and listens, accepts nothing yet. Idempotent. Raises OSError."""

    def discard(self, listen: Listen) -> None:
        """Closes what `open` opened and no table has published; anything else is left alone."""

    def apply(self, table: Table) -> Mapping[Listen, OSError]:
        """Publishes. What cannot be opened is returned, and tried again with the next table."""

    async def applied(self) -> None:
        """Until what was published last is in force everywhere."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a call is judged against; the next call sees the next one."""

    claims: Claims
    layout: Layout
    keyring: Keyring
    overrides: Overrides = field(default_factory=lambda: NONE)

    def has(self, listen: Listen) -> bool:
        return listen in self.claims.holders or listen in self.layout.statics


Step = Callable[[Scene], tuple[Scene, Change]]


Admit = Callable[[Scene, Scene, Change], None]  # (before, after, change); raises Refused


@dataclass(slots=True)
class Call:
    """`step` is pure and may run twice. `done` runs once, when it is in force, whether or not the caller still waits."""

    step: Step
    keys: Collection[Key]  # the registrations that it is about
    answer: asyncio.Future[tuple[Change, bool]]
    done: Callable[[Change], None] | None
    by: str  # who asks, for the history
    write: bool = False  # even if nothing changed: the retry of a failed snapshot


@dataclass(slots=True)
class _Batch:
    scene: Scene
    decided: list[tuple[Call, Change]] = field(default_factory=list)
    touched: set[Listen] = field(default_factory=set)
    refused: list[tuple[Call, Refused]] = field(default_factory=list)

    def accept(self, call: Call, scene: Scene, change: Change) -> None:
        self.scene = scene
        self.decided.append((call, change))
        self.touched |= change.touched

    def must_write(self, live: Scene) -> bool:
        same = self.scene.claims.registrations is live.claims.registrations and self.scene.overrides is live.overrides
        return not same or any(call.write for call, _ in self.decided)


class Writer:
    """`scene` is what is in force. `save` raises OSError; `publish` swaps the table, and never fails."""

    def __init__(
        self,
        scene: Scene,
        sink: Sink,
        save: Callable[[Scene], Awaitable[None]],
        publish: Callable[[Scene, set[Listen] | None, Iterable[str]], Table],
        tasks: Tasks,
    ) -> None:
        self.scene = scene
        self.table = Table()
        self.durable = True  # what is in force is on disk
        self._sink = sink
        self._save = save
        self._publish = publish
        self._tasks = tasks
        self._queue: list[Call] = []
        self._busy: list[Call] = []  # the batch under way
        self._work = asyncio.Event()
        self._turn = asyncio.Lock()  # held while a batch is under way, or by `hold`
        self._stopped = False

    def is_busy_with(self, key: Key) -> bool:
        """Is a call about it waiting? Then nothing about it may be answered out of turn."""
        return any(key in call.keys for call in (*self._busy, *self._queue))

    async def turn(
        self, step: Step, keys: Iterable[Key], done: Callable[[Change], None] | None = None, *, by: str, write: bool = False
    ) -> tuple[Change, bool]:
        """Runs `step` in its turn. Returns (what changed, whether it is on disk). Raises Refused: nothing changed."""
        if self._stopped:
            raise _stopping()
        call = Call(step, frozenset(keys), asyncio.get_running_loop().create_future(), done, by, write)
        self._queue.append(call)
        self._work.set()
        return await call.answer

    async def run(self) -> None:
        """Until cancelled; then the calls that still wait are told so."""
        try:
            while True:
                await self._work.wait()
                self._work.clear()
                async with self._turn:
                    self._busy, self._queue = self._queue, []
                    await self._commit(self._busy)
                    self._busy = []
        finally:
            self._stopped = True
            for call in (*self._busy, *self._queue):
                _fail(call, _stopping())
            self._busy, self._queue = [], []

    async def hold(self) -> None:
        """From here on nothing changes: calls wait, until `resume`."""
        await self._turn.acquire()

    def resume(self) -> None:
        self._turn.release()

    def republish(self, touched: set[Listen] | None, by: Iterable[str]) -> Table:
        """The same claims with what is known of the servers now. None: all frontends."""
        self.table = self._publish(self.scene, touched, by)
        return self.table

    async def _commit(self, calls: list[Call]) -> None:
        live, opened = self.scene, set[Listen]()
        batch = _judge(live, calls, lambda *step: opened.update(self._open(*step)))
        if batch.must_write(live):
            try:
                await self._save(batch.scene)
                self.durable = True
            except OSError as error:
                self.durable = False
                refusal = _not_writable(error)
                again = _judge(live, [call for call, _ in batch.decided], lambda *step: _needs_no_disk(refusal, *step))
                again.refused += batch.refused
                batch = again
        self.scene = batch.scene
        table = self.republish(batch.touched, dict.fromkeys(call.by for call, change in batch.decided if change.touched))
        for listen in opened - table.frontends.keys():
            self._sink.discard(listen)
        await self._sink.applied()
        for call, refused in batch.refused:
            _fail(call, refused)
        for call, change in batch.decided:
            if call.done is not None:
                with self._tasks.surviving(Part.ANSWERS):  # it is in force, whatever becomes of the rest
                    call.done(change)
            if not call.answer.done():
                call.answer.set_result((change, self.durable))

    def _open(self, before: Scene, after: Scene, change: Change) -> set[Listen]:
        """Opens what `after` has and the published table has not. All or nothing: raises Refused."""
        wanted = {listen for listen in change.touched if after.has(listen) and listen not in self.table.frontends}
        closing = [listen for listen in change.touched if listen in self.table.frontends and not after.has(listen)]
        done: set[Listen] = set()
        for listen in sorted(wanted):
            if any(listen.overlaps(other) for other in closing):
                continue  # the kernel would refuse the two side by side: the swap closes one and opens the other
            try:
                self._sink.open(listen, freebind=after.layout.policy(listen).freebind)
            except OSError as error:
                for other in done:
                    if not before.has(other):  # else an earlier call of this batch needs it
                        self._sink.discard(other)
                raise cannot_bind(listen, error) from None
            done.add(listen)
        return done


def _judge(live: Scene, calls: Iterable[Call], admit: Admit) -> _Batch:
    """One call after the other, each on top of those before it that were not refused."""
    batch = _Batch(live)
    for call in calls:
        try:
            scene, change = call.step(batch.scene)
            admit(batch.scene, scene, change)
        except Refused as refused:
            batch.refused.append((call, refused))
        except Exception as bug:  # noqa: BLE001 - the task boundary: a bug in one call must not end the writer
            _fail(call, bug)
        else:
            batch.accept(call, scene, change)
    return batch


def _needs_no_disk(refusal: Refused, _before: Scene, _after: Scene, change: Change) -> None:
    """What a restart would forget is refused; a move, or one more instance of a known name, is worth having for now."""
    if change.opened or change.new_name:
        raise refusal


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
    """Why the kernel refused a port, for the caller."""
    if error.errno == errno.EADDRINUSE:
        return Refused(
            Code.PORT_IN_USE,
            f"port {listen.port} is in use by another process, or by an outgoing connection of this machine",
            "`ss -tanp` shows which; keep ports of your own inside net.ipv4.ip_local_port_range by "
            "net.ipv4.ip_local_reserved_ports",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = "start it with CAP_NET_BIND_SERVICE (the systemd unit does), or use a higher port"
        return Refused(Code.PORT_PRIVILEGED, f"pylb may not open port {listen.port}", hint)
    return Refused(Code.CANNOT_BIND, f"{listen} cannot be opened: {error.strerror or error}")
