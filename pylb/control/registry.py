"""Control as the rest of pylb sees it: start and stop, views, and the three ways to change something.

`calls` serves phone-homes, `operator` has the commands of the control socket, `rules` applies the config. All their changes go
through one writer (writer.py).
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping

from pylb.control.calls import Calls
from pylb.control.desired_state import DesiredState, Sink, UnsupportedEntry
from pylb.control.event_log import Event, Rejection
from pylb.control.health.prober import Ask, ProbeRequest, probe_request
from pylb.control.health.prober import ask as ask_server
from pylb.control.health.resolver import Resolve
from pylb.control.health_sentence import troubles
from pylb.control.merged import MergedRegistrations
from pylb.control.operator_commands import OperatorCommands
from pylb.control.periodic import PeriodicWork
from pylb.control.persistence import NUMBERS_AHEAD
from pylb.control.registrar import Registrar
from pylb.control.rules import RulesInForce
from pylb.control.sharing import ClusterView, Sharing
from pylb.control.state import ControlState
from pylb.control.steps import in_turns
from pylb.control.storage.store import Store
from pylb.control.storage.table_history import Generation
from pylb.control.tasks import Tasks
from pylb.control.views import (
    FrontendView,
    RecordedSince,
    RegistrationView,
    ServerView,
    frontend_views,
    server_views,
)
from pylb.core.address import Address, Listen
from pylb.core.auth import Keyring
from pylb.core.health import NOT_ASKED
from pylb.core.policy import Rules
from pylb.core.table import Frontend, Server, Table
from pylb.core.text import counted

VIEWS = 250  # of servers or registrations, between two turns of the loop: 1.5 ms


def _unheard(_event: Event) -> None:
    """The `on_event` of a caller that only reads `events()`."""


async def nobody_resolves(host: str) -> tuple[str, ...]:
    """The `resolve` of a caller without host names."""
    raise OSError(f"nobody here resolves {host}")


class Registry:
    def __init__(
        self,
        *,
        rules: Rules,
        keyring: Keyring,
        sink: Sink,
        store: Store,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        ask: Ask = ask_server,
        uniform: Callable[[float, float], float] = random.uniform,
        resolve: Resolve = nobody_resolves,
        on_event: Callable[[Event], None] = _unheard,
        tasks: Tasks | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        self._store = store
        self._ask = ask
        self.tasks = tasks or Tasks()
        self._state = ControlState(
            rules=rules,
            keyring=keyring,
            sink=sink,
            store=store,
            clock=clock,
            wall=wall,
            ask=ask,
            uniform=uniform,
            resolve=resolve,
            on_event=on_event,
            tasks=self.tasks,
            sharing=sharing,
        )
        self.sharing = sharing  # None: this pylb has its table for itself
        registrar = Registrar(self._state, clock, wall)
        self._periodic = PeriodicWork(self._state, registrar, clock, wall)
        self.calls = Calls(self._state, registrar, clock, wall)
        self.operator = OperatorCommands(self._state, registrar, wall)
        self.rules = RulesInForce(self._state, ask)
        self.standby = self._state.standby
        self.merged = MergedRegistrations(self._state)
        self._writing: asyncio.Task[None] | None = None
        self._handed_over = False

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Restore the snapshot and publish the first table: ports serve before anything else. Raises StateLocked."""
        await self._state.restore()
        if self.sharing is not None:
            await self.sharing.begin(lambda: self._desired, self.merged.apply)
        self._writing = asyncio.get_running_loop().create_task(self._state.writer.run())
        count = len(self._desired.claims.registrations)
        text = f"restored: {counted(count, 'registration')}, serving: {counted(len(self.table.frontends), 'frontend')}"
        self._state.event_log.note("started", text, {"registrations": count})

    async def webhook_is_up(self) -> None:
        """Phone-homes can call from now on: leases run, and each lasts at least a whole TTL more."""
        await self._state.leases.webhook_is_up(self._desired.claims)

    def webhook_is_down(self) -> None:
        """Nobody can call: no lease ends."""
        self._state.leases.webhook_is_down()

    async def run(self) -> None:
        """Leases, probes and retries, until cancelled. If a bug ends the writer, raises what ended it."""
        if self._writing is None:
            raise RuntimeError("start() comes first")
        async with asyncio.TaskGroup() as group:
            periodic = group.create_task(self._periodic.run())
            await asyncio.wait([self._writing])
            periodic.cancel()
        if not self._writing.cancelled():
            self._writing.result()

    async def tick(self) -> None:
        """One round of leases and retries; `run` does two a second."""
        await self._periodic.tick()

    async def resolve(self) -> None:
        """One round of the host names that are due; `run` does them as they come."""
        await self._state.resolve()

    async def probe(self) -> None:
        """One round of the probes that are due; `run` does them as they come."""
        await self._state.checker.probe()

    async def hand_over(self) -> None:
        """Write everything to disk and release the disk, for a successor; calls wait. Then `take_back` or `stop`.

        Raises OSError: it could not be written, and everything goes on as before, as after any other failure.
        """
        await self._state.writer.hold()
        if self.sharing is not None:
            await self.sharing.pause()
        self._state.persistence.numbers_ahead = 0  # the successor continues where this table ends
        try:
            await self._state.save_now()
            await self._state.persistence.write_history()
            self._store.unlock()
        except BaseException:
            self._state.persistence.numbers_ahead = NUMBERS_AHEAD
            self._go_on()
            raise
        self._handed_over = True

    async def take_back(self) -> None:
        """The successor failed. Raises StateLocked, OSError."""
        await asyncio.to_thread(self._store.open)
        self._handed_over = False
        self._state.persistence.numbers_ahead = NUMBERS_AHEAD
        self._state.persistence.unsaved = True  # the successor may have written
        self._go_on()

    def _go_on(self) -> None:
        if self.sharing is not None:
            self.sharing.resume()
        self._state.writer.resume()

    def totals(self) -> dict[str, dict[str, int]]:
        """The counters of calls and the rest of a standby, for a successor."""
        calls = {"registrations": dict(self._state.totals), "refused": dict(self._state.event_log.refused)}
        return {**calls, "standby": self.standby.totals()}

    def go_on_from(self, totals: Mapping[str, Mapping[str, int]]) -> None:
        """Continue the previous pylb's counters, and its standby."""
        self._state.totals.update(totals.get("registrations", {}))
        self._state.event_log.refused.update(totals.get("refused", {}))
        self.standby.go_on_from(totals.get("standby", {}))
        self._state.event_log.note("upgraded", "this pylb follows another: ports, state and counters are its now")

    async def stop(self) -> None:
        """Write the final snapshot; then calls are refused. The sink is left as it is. Idempotent."""
        if self.ready and not self._handed_over:
            self._state.persistence.unsaved, self._state.persistence.numbers_ahead = True, 0
            await self._periodic.save_again(force=True)
            await self._state.persistence.write_history()
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        await self._state.checker.stop()
        self._store.close()

    # ------------------------------------------------------------ what servers answer

    def connect_ended(self, listen: Listen, server: Server, failure: str | None) -> None:
        """The outcome of a session's connect, reported from inside the engine's turn: the table is swapped in a later one."""
        self._state.checker.connect_ended(listen, server.address, failure)

    async def ask_now(self, listen: Listen) -> dict[Address, tuple[str, str]]:
        """For each server of this frontend: the outcome of a connect at this moment, and the result of its own check. Nothing
        is recorded. Takes at most the check's timeout.
        """
        frontend = self.table.frontends[listen]
        both = await asyncio.gather(*(self._ask_both(frontend, server) for server in frontend.servers))
        return dict(zip((server.address for server in frontend.servers), both, strict=True))

    async def _ask_both(self, frontend: Frontend, server: Server) -> tuple[str, str]:
        """A range is asked by its check alone, and only if that has a port."""
        check = probe_request(frontend, server)
        if not server.address.last:
            met, answer = await asyncio.gather(self._ask(ProbeRequest(server.address)), self._ask(check))
            return met, answer
        answer = await self._ask(check) if check.check.port else NOT_ASKED
        return answer, answer

    # ------------------------------------------------------------ what it shows

    @property
    def _desired(self) -> DesiredState:
        return self._state.desired

    @property
    def table(self) -> Table:
        return self._state.publisher.table

    @property
    def ready(self) -> bool:
        """Whether the state is restored and the writer runs."""
        return self._writing is not None and not self._writing.done()

    @property
    def durable(self) -> bool:
        """Whether everything in force is on disk."""
        return self._state.writer.durable

    @property
    def preserving(self) -> bool:
        """Whether most phone-homes are silent; then none of them becomes stale because of it."""
        return self._state.leases.preserving

    @property
    def checks(self) -> int:
        """Questions asked of servers since the start, without the first dial of a call's targets."""
        return self._state.checker.schedule.asked

    @property
    def check_lag(self) -> float:
        """For how many seconds the longest waiting check has been due: the budget, or the machine, is too small."""
        return self._state.checker.schedule.lag

    @property
    def write_failures(self) -> int:
        return self._state.persistence.failures

    @property
    def apply_seconds(self) -> float:
        """The seconds that the last swap of the table took."""
        return self._state.publisher.apply_seconds

    @property
    def registrations_total(self) -> Mapping[str, int]:
        """Calls by result."""
        results = ("created", "unchanged", "moved", "updated", "released", "refused", "superseded")
        return {result: self._state.totals[result] for result in results}

    @property
    def refused_total(self) -> Mapping[str, int]:
        """Refused calls by code."""
        return dict(self._state.event_log.refused)

    def each_registration(self) -> Iterator[RegistrationView]:
        """In any order, for callers that let the loop run meanwhile: those at the first step, each with its current lease."""
        return map(self._state.view, self._desired.claims.registrations.in_any_order())

    async def all_registrations(self) -> list[RegistrationView]:
        """In the order in which they came; made in steps."""
        return [self._state.view(one) async for one in in_turns(self._desired.claims.registrations.values(), VIEWS)]

    def each_server(self) -> Iterator[ServerView]:
        """In the order of the ports, for callers that let the loop run meanwhile: of the table at the first step, each with its
        current health."""
        return server_views(
            self.table,
            self._desired.claims,
            self._desired.static_rules,
            self._state.checker.health_records,
            self._state.leases.said_goodbye,
        )

    def each_frontend(self) -> Iterator[FrontendView]:
        """Each with its servers, like `each_server`."""
        return frontend_views(self.table, self.each_server(), self.unbound(), self.closes_at, self.unresolved())

    def last_check(self, listen: Listen, address: Address) -> tuple[float, str] | None:
        """The last dial, probe or newsworthy client's connect of a server: its time on the clock, and "yes" or the failure."""
        return self._state.checker.health_records.last_check(listen, address)

    def open_ports(self) -> int:
        """How many frontends have their port."""
        return len(self.table.frontends) - len(self._state.publisher.unbound)

    def unbound(self) -> dict[Listen, str]:
        """Ports of the table that could not be opened, with the reason; retried every 5 s."""
        return dict(self._state.publisher.unbound)

    def unresolved(self) -> Mapping[Listen, tuple[str, ...]]:
        """Host names of static servers that have no address yet, by frontend."""
        return self._desired.static_rules.unresolved

    def unserved(self) -> list[UnsupportedEntry]:
        """Registrations from a newer pylb that this one cannot serve."""
        return list(self._desired.unserved.values())

    def closes_at(self, listen: Listen) -> float | None:
        """When a port closes that only stale registrations hold (unix time); None: not because of that."""
        return self._state.liveness.port_closes_at(listen, self._desired)

    def troubles(self, *, reloaded: bool) -> list[str]:
        """The problems of pylb itself. `reloaded`: the config on disk is in force."""
        return troubles(
            durable=self.durable,
            preserving=self.preserving,
            reloaded=reloaded,
            unserved=[one.name for one in self.unserved()],
            standby=self.standby.left > 0,
            cluster=self.cluster(),
        )

    def cluster(self) -> ClusterView | None:
        """None: this pylb has its table for itself."""
        return None if self.sharing is None else self.sharing.view()

    def cluster_trouble(self) -> str | None:
        """The cluster's trouble in a word, at once however large the table is. None: this pylb has its table for itself."""
        return None if self.sharing is None else self.sharing.trouble()

    def note(self, kind: str, text: str, *, alarm: bool = False) -> None:
        """An event of a part that is not control's own."""
        self._state.event_log.note(kind, text, alarm=alarm)

    def events(self) -> list[Event]:
        """The last 1,000, oldest first."""
        return self._state.event_log.events()

    @property
    def task_failures(self) -> Mapping[str, int]:
        """The number of failures of each part (tasks.py)."""
        return {str(part): count for part, count in self.tasks.failures.items()}

    @property
    def noted(self) -> int:
        """How many events there were; the last of them is the last of `events()`."""
        return self._state.event_log.noted

    def history(self, what: str | None = None) -> list[Generation]:
        """The changes of the table, oldest first; for a port or a name."""
        return self._state.history.generations(what)

    @property
    def since(self) -> RecordedSince:
        """How far back `events`, `rejected` and `history` go."""
        event_log = self._state.event_log
        return RecordedSince(event_log.events_since, event_log.rejected_since, self._state.history.since)

    def rejected(self) -> list[Rejection]:
        """The last 100 refused calls, oldest first."""
        return self._state.event_log.rejected()
