"""What control knows: the scene in force, the leases, the servers' health, the disk, the sink; and what follows from news.

The registry (what may be asked) and maintenance (what is due with time) both change things only through here.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from pylb.control.event_log import Event, Journal
from pylb.control.health.checker import Checker
from pylb.control.health.prober import Ask
from pylb.control.health.resolver import FIRST_LOOK, Resolve, Resolver
from pylb.control.heirs import passed_on
from pylb.control.leases import LeaseRecord, Tenure
from pylb.control.notices import Notices, whose
from pylb.control.publisher import Publisher
from pylb.control.saving import Saving
from pylb.control.scene import Scene, Sink
from pylb.control.silence import Silence
from pylb.control.steps import in_turns, stepwise
from pylb.control.storage.store import Store
from pylb.control.storage.table_history import History
from pylb.control.tasks import Part, Tasks
from pylb.control.writer import Writer
from pylb.core.address import Listen
from pylb.core.auth import Keyring
from pylb.core.claims import Claims
from pylb.core.errors import Refused
from pylb.core.operator_overrides import kept
from pylb.core.ownership import Change, readmitting
from pylb.core.policy import Rules
from pylb.core.registration import Registration, State
from pylb.core.static_frontends import Layout
from pylb.core.table import Table

LEASES = 500  # restored between two turns of the loop: 1 ms


class ControlState:
    def __init__(
        self,
        *,
        rules: Rules,
        keyring: Keyring,
        sink: Sink,
        store: Store,
        clock: Callable[[], float],
        wall: Callable[[], float],
        ask: Ask,
        uniform: Callable[[float, float], float],
        resolve: Resolve,
        on_event: Callable[[Event], None],
        tasks: Tasks,
    ) -> None:
        self.tasks = tasks
        self.journal = Journal(wall, tasks.guarded(Part.EVENTS, on_event))
        tasks.on_failure = lambda part, text: self.journal.note("task_failed", text, {"task": str(part)}, alarm=True)
        self.tenure = Tenure(clock)
        self.checker = Checker(ask, clock, uniform, self._on_news)
        self.silence = Silence(self.checker, self.tenure, clock, wall)
        self.follow(rules)
        self.resolver = Resolver(resolve, clock, uniform, lambda kind, text, alarm: self.journal.note(kind, text, alarm=alarm))
        self.history = History(wall, store.history)
        scene = Scene(Claims(), Layout(rules), keyring)
        self.publisher = Publisher(scene, sink, checker=self.checker, journal=self.journal, history=self.history, clock=clock)
        self.writer = Writer(self.publisher, sink, self._save, tasks)
        self.saving = Saving(
            store,
            self.history,
            publisher=self.publisher,
            tenure=self.tenure,
            findings=self.checker.findings,
            resolver=self.resolver,
            wall=wall,
            tasks=tasks,
        )
        self.notices = Notices(self.journal, self.silence, clock)
        self.totals: Counter[str] = Counter()
        self.unsettled = False  # a new server has answered: the displaced one may leave

    def follow(self, rules: Rules) -> None:
        """Pass the rules on to the parts."""
        self.checker.defaults = rules.defaults.health
        self.silence.leases = rules.leases

    @property
    def scene(self) -> Scene:
        return self.publisher.scene

    async def restore(self) -> None:
        """Raises StateLocked. Anything else that is wrong with the state is an alarm, and the start goes on."""
        snapshot, complaints = await self.saving.load()
        rules = self.scene.layout.rules
        self.resolver.restore(snapshot.resolved)
        await self.resolver.first_look(rules.hosts, FIRST_LOOK)
        self.resolver.follow(rules.hosts, rules.resolve_interval)
        layout = Layout(rules, self.resolver.answers)
        claims, refusals = await stepwise(readmitting(snapshot.registrations.values(), layout))
        for text in complaints:
            self.journal.note("state", text, alarm=True)
        for refused in refusals:
            self.journal.note("not_restored", str(refused), alarm=True)
        self.saving.unsaved = bool(complaints or refusals)
        scene, _, moved = passed_on(replace(self.scene, claims=claims))
        claims, was = scene.claims, {new: old for old, new in moved.items()}
        async for one in in_turns(claims.registrations.values(), LEASES):
            self.tenure.restore(one, snapshot.leases.get(was.get(one.key, one.key), LeaseRecord()))
        self.checker.findings.restore(snapshot.proven, snapshot.down, snapshot.passed)
        overrides = kept(snapshot.overrides, claims, layout)
        self.publisher.table = Table(max(snapshot.generation, snapshot.reserved))
        for later in snapshot.unserved.values():
            text = f"not served: {later.name} on port {', '.join(map(str, later.ports))} needs {', '.join(later.needs)}, "
            self.journal.note("unserved", text + "which this version of pylb does not know; its entry is kept", alarm=True)
        unserved = snapshot.unserved
        scene = replace(self.scene, claims=claims, layout=layout, overrides=overrides, unserved=unserved)
        await self.publisher.publish(scene, None, ["start"])
        self.notices.loops(self.scene)

    def beat(self, one: Registration, *, moved: bool) -> None:
        """It has called."""
        if one.state is State.FRESH:
            self.silence.called(one.key)
        before = self.tenure.get(one.key)
        after = self.tenure.beat(one, moved=moved)
        if one.key.is_legacy and after.ttl is not None and (before is None or before.ttl is None):
            self.saving.unsaved = True

    async def _save(self, scene: Scene) -> None:
        """Raises OSError, after reporting it."""
        try:
            await self.saving.save(scene)
        except OSError as error:
            if self.writer.durable:
                text = f"the state cannot be written: {error}; new registrations are refused until it can"
                self.journal.note("state_not_durable", text, alarm=True)
            raise
        if not self.writer.durable and not self.writer.hangs:
            self.journal.note("state_durable", "the state is on disk again")

    async def save_now(self) -> None:
        """Outside of a batch: what is in force now. Raises OSError."""
        await self._save(self.scene)

    async def resolve(self) -> None:
        """Look up the host names that are due; a new answer is a change like any other."""
        changed = await self.resolver.ask()
        if not changed:
            return

        def step(scene: Scene) -> tuple[Scene, Change]:
            layout = Layout(scene.layout.rules, self.resolver.answers)
            touched = frozenset(listen for listen, new in layout.statics.items() if new != scene.layout.statics.get(listen))
            return replace(scene, layout=layout), Change(scene.claims, "updated", touched)

        self.saving.unsaved = True  # nobody waits for it
        try:
            await self.writer.turn(step, (), by="names")
        except Refused:
            pass  # pylb is stopping

    def _on_news(self, listens: list[Listen], kind: str, text: str, fields: Mapping[str, str | int]) -> None:
        held = (key for listen in listens[:1] for key in self.scene.claims.holders.get(listen, ()))
        self.journal.note(kind, text, {**fields, **whose(held)})
        self.unsettled |= kind == "server_proven"
        self.saving.unsaved |= kind in ("server_down", "server_up")
        self.publisher.news(listens)
