"""The state of control (desired state, leases, health, disk and sink) and how it changes.

Both the registry, which answers questions, and the periodic work change things only through this module.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from pylb.control.desired_state import DesiredState, Sink
from pylb.control.event_log import Event, EventLog
from pylb.control.event_texts import EventTexts, whose
from pylb.control.health.checker import Checker
from pylb.control.health.prober import Ask
from pylb.control.health.resolver import FIRST_LOOK, Resolve, Resolver
from pylb.control.leases import LeaseRecord, Leases
from pylb.control.liveness import Liveness
from pylb.control.persistence import Persistence
from pylb.control.publisher import Publisher
from pylb.control.replaced_tokens import passed_on
from pylb.control.sharing import Sharing
from pylb.control.standby import Standby
from pylb.control.steps import in_turns, stepwise
from pylb.control.storage.store import Store
from pylb.control.storage.table_history import TableHistory
from pylb.control.tasks import Part, Tasks
from pylb.control.views import RegistrationView, registration_view
from pylb.control.writer import Writer
from pylb.core.address import Listen
from pylb.core.auth import Keyring
from pylb.core.claims import Claims
from pylb.core.errors import Refused
from pylb.core.operator_overrides import checked
from pylb.core.ownership import Change, readmitting
from pylb.core.policy import Rules
from pylb.core.registration import Registration, State
from pylb.core.static_rules import StaticRules
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
        sharing: Sharing | None,
    ) -> None:
        self.tasks = tasks
        self.sharing = sharing
        self.event_log = EventLog(wall, tasks.guarded(Part.EVENTS, on_event))
        tasks.on_failure = lambda part, text: self.event_log.note("task_failed", text, {"task": str(part)}, alarm=True)
        self._clock, self.wall = clock, wall
        self.leases = Leases(clock)
        if sharing is not None:
            self.leases.is_fresh_elsewhere = sharing.is_fresh_elsewhere
        self.checker = Checker(ask, clock, uniform, self._on_health_change)
        self.liveness = Liveness(self.checker, self.leases, clock, wall)
        self.follow(rules)
        self.resolver = Resolver(
            resolve, clock, uniform, lambda kind, text, alarm: self.event_log.note(kind, text, alarm=alarm)
        )
        self.history = TableHistory(wall, store.history)
        desired = DesiredState(Claims(), StaticRules(rules), keyring)
        self.publisher = Publisher(
            desired, sink, checker=self.checker, event_log=self.event_log, history=self.history, clock=clock
        )
        self.writer = Writer(self.publisher, sink, self._save, tasks, sharing)
        self.persistence = Persistence(
            store,
            self.history,
            publisher=self.publisher,
            leases=self.leases,
            health_records=self.checker.health_records,
            resolver=self.resolver,
            wall=wall,
            tasks=tasks,
        )
        self.event_texts = EventTexts(self.event_log, self.liveness, clock)
        self.standby = Standby(self.event_log, clock)
        self.totals: Counter[str] = Counter()
        self.unsettled = False  # a new server has answered: the displaced one may leave

    def follow(self, rules: Rules) -> None:
        """Pass new rules on to the parts."""
        self.checker.defaults = rules.defaults.health
        self.liveness.leases = rules.leases

    @property
    def desired(self) -> DesiredState:
        return self.publisher.desired

    async def restore(self) -> None:
        """Restore the state from disk. Raises StateLocked; any other problem is an alarm, and the start goes on."""
        snapshot, complaints = await self.persistence.load()
        rules = self.desired.static_rules.rules
        self.resolver.restore(snapshot.resolved)
        await self.resolver.first_look(rules.hosts, FIRST_LOOK)
        self.resolver.follow(rules.hosts, rules.resolve_interval)
        static_rules = StaticRules(rules, self.resolver.answers)
        registrations: Iterable[Registration] = snapshot.registrations.values()
        if self.sharing is None:  # they were shared before: now each needs calls here
            registrations = (one if not one.hearer else replace(one, hearer="") for one in registrations)
        claims, refusals = await stepwise(readmitting(registrations, static_rules))
        for text in complaints:
            self.event_log.note("state", text, alarm=True)
        for refused in refusals:
            self.event_log.note("not_restored", str(refused), alarm=True)
        self.persistence.unsaved = bool(complaints or refusals)
        desired, _, moved = passed_on(replace(self.desired, claims=claims))
        claims, was = desired.claims, {new: old for old, new in moved.items()}
        async for one in in_turns(claims.registrations.values(), LEASES):
            if not one.hearer:
                self.leases.restore(one, snapshot.leases.get(was.get(one.key, one.key), LeaseRecord()))
        self.checker.health_records.restore(snapshot.proven, snapshot.down, snapshot.passed)
        overrides = await stepwise(checked(snapshot.overrides, claims, static_rules))
        self.publisher.table = Table(max(snapshot.generation, snapshot.reserved))
        for later in snapshot.unserved.values():
            text = f"not served: {later.name} on port {', '.join(map(str, later.ports))} needs {', '.join(later.needs)}, "
            self.event_log.note("unserved", text + "which this version of pylb does not know; its entry is kept", alarm=True)
        unserved = snapshot.unserved
        desired = replace(self.desired, claims=claims, static_rules=static_rules, overrides=overrides, unserved=unserved)
        await self.publisher.publish(desired, None, ["start"])
        await stepwise(self.event_texts.loops(self.desired))

    def view(self, one: Registration) -> RegistrationView:
        goodbye = self.leases.said_goodbye(one.key)
        return registration_view(one, self.leases.get(one.key), self._clock(), self.wall(), said_goodbye=goodbye)

    def beat(self, one: Registration, *, moved: bool) -> None:
        """Note that this registration has called."""
        if one.state is State.FRESH:
            self.liveness.called(one.key)
        before = self.leases.get(one.key)
        after = self.leases.beat(one, moved=moved)
        if one.key.is_legacy and after.ttl is not None and (before is None or before.ttl is None):
            self.persistence.unsaved = True

    async def _save(self, desired: DesiredState) -> None:
        """Raises OSError, after reporting it."""
        try:
            await self.persistence.save(desired)
        except OSError as error:
            if self.writer.durable:
                text = f"the state cannot be written: {error}; new registrations are refused until it can"
                self.event_log.note("state_not_durable", text, alarm=True)
            raise
        if not self.writer.durable and not self.writer.hangs:
            self.event_log.note("state_durable", "the state is on disk again")

    async def save_now(self) -> None:
        """Save what is in force now, outside of a batch. Raises OSError."""
        await self._save(self.desired)

    async def resolve(self) -> None:
        """Look up the host names that are due, and publish their new addresses."""
        changed = await self.resolver.ask()
        if not changed:
            return

        def step(desired: DesiredState) -> tuple[DesiredState, Change]:
            static_rules = StaticRules(desired.static_rules.rules, self.resolver.answers)
            touched = frozenset(
                listen for listen, new in static_rules.frontends.items() if new != desired.static_rules.frontends.get(listen)
            )
            return replace(desired, static_rules=static_rules), Change(desired.claims, "updated", touched)

        self.persistence.unsaved = True  # nobody waits for it
        try:
            await self.writer.perform(step, (), by="names")
        except Refused:
            pass  # pylb is stopping

    def _on_health_change(self, listens: list[Listen], kind: str, text: str, fields: Mapping[str, str | int]) -> None:
        held = (key for listen in listens[:1] for key in self.desired.claims.holders.get(listen, ()))
        self.event_log.note(kind, text, {**fields, **whose(held)})
        self.unsettled |= kind == "server_proven"
        self.persistence.unsaved |= kind in ("server_down", "server_up")
        self.publisher.health_changed(listens)
