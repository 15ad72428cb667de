"""The registry: what the webhook, the admin socket and the config may ask of control, and what it shows of itself.

Every change goes through one writer (turn.py). Before its turn a call is judged once without effect, and its new targets
are dialled, so a black hole delays only the call that names it. In its turn it is judged again, on top of whatever came
before it.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeVar

from pylb.control.admission import Imported, imported_registration, legacy_registration, native_registration
from pylb.control.event_log import Event, Rejection, Worth
from pylb.control.health.prober import Ask, Question, question_of
from pylb.control.health.prober import ask as ask_server
from pylb.control.health.rehearsal import failing
from pylb.control.health.resolver import FIRST_LOOK, Resolve
from pylb.control.maintenance import Clockwork
from pylb.control.scene import Judged, Scene, Sink, Unserved
from pylb.control.state import RESERVE, Ledger, with_claims, without
from pylb.control.steps import in_turns, stepwise
from pylb.control.storage.store import Store
from pylb.control.storage.table_history import Generation
from pylb.control.tasks import Tasks
from pylb.control.views import LegacyUse, Outcome, RegistrationView, ServerView, Since, registration_view, server_views, title
from pylb.core.address import Address, Listen
from pylb.core.auth import Caller, Keyring, Token, check_source, fingerprint
from pylb.core.claims import Claims
from pylb.core.errors import Code, Refused, let_go
from pylb.core.legacy import LegacyCall
from pylb.core.loops import loops
from pylb.core.operator_overrides import Override, Whom, changed, find, hit, kept
from pylb.core.ownership import Change, adopting, release
from pylb.core.policy import AdminState, Rules
from pylb.core.registration import Announcement, Key, Registration, check_name, legacy_key
from pylb.core.static_frontends import Layout
from pylb.core.table import Diff, Server, Table, diff
from pylb.core.table_diff import Line
from pylb.core.text import counted, whole_number

T = TypeVar("T")


IMPORTED = 50  # entries submitted, or answered, between two turns of the loop: 1 ms
NODE_WORD = 86_400.0  # seconds that a word about a node counts unless it says otherwise: the next node may have its address
VIEWS = 250  # of servers, between two turns of the loop: 1.5 ms


def _unheard(_event: Event) -> None:
    """The `on_event` of somebody who only reads `events()`."""


async def nobody_resolves(host: str) -> tuple[str, ...]:
    """The `resolve` of somebody without host names."""
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
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._store = store
        self._ask = ask
        self.tasks = tasks or Tasks()
        self._ledger = Ledger(
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
        )
        self._clockwork = Clockwork(self._ledger, clock)
        self._worth = Worth(clock)
        self._legacy_uses: dict[str, LegacyUse] = {}
        self._uses: dict[tuple[str, str], float] = {}  # of valid secrets alone
        self._writing: asyncio.Task[None] | None = None
        self._handed_over = False

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Restores the snapshot and publishes the first table: ports serve before anything else. Raises StateLocked."""
        await self._ledger.restore()
        self._writing = asyncio.get_running_loop().create_task(self._ledger.writer.run())
        count = len(self._scene.claims.registrations)
        text = f"restored: {counted(count, 'registration')}, serving: {counted(len(self.table.frontends), 'frontend')}"
        self._ledger.journal.note("started", text, {"registrations": count})

    async def webhook_is_up(self) -> None:
        """Phone-homes can call from now on: leases run, and each lasts at least a whole TTL more."""
        await self._ledger.tenure.webhook_is_up(self._scene.claims)

    def webhook_is_down(self) -> None:
        """Nobody can call: no lease ends."""
        self._ledger.tenure.webhook_is_down()

    async def run(self) -> None:
        """Leases, probes and retries, until cancelled. Raises what ended the writer, should a bug do that."""
        if self._writing is None:
            raise RuntimeError("start() comes first")
        async with asyncio.TaskGroup() as group:
            clockwork = group.create_task(self._clockwork.run())
            await asyncio.wait([self._writing])
            clockwork.cancel()
        if not self._writing.cancelled():
            self._writing.result()

    async def tick(self) -> None:
        """One round of leases and retries; `run` does two a second."""
        await self._clockwork.tick()

    async def resolve(self) -> None:
        """One round of the host names that are due; `run` does them as they come."""
        await self._ledger.resolve()

    async def probe(self) -> None:
        """One round of the probes that are due; `run` does them as they come."""
        await self._ledger.checker.probe()

    async def hand_over(self) -> None:
        """All of it on disk and the disk let go of, for a successor; calls wait. Then `take_back` or `stop`.

        Raises OSError: it could not be written, and everything goes on as before; as after any other failure.
        """
        await self._ledger.writer.hold()
        self._ledger.reserve = 0  # the successor goes on where this table ends
        try:
            await self._ledger.save_now()
            await self._ledger.write_history()
            self._store.unlock()
        except BaseException:
            self._ledger.reserve = RESERVE
            self._ledger.writer.resume()
            raise
        self._handed_over = True

    async def take_back(self) -> None:
        """The successor did not come. Raises StateLocked, OSError."""
        await asyncio.to_thread(self._store.open)
        self._handed_over = False
        self._ledger.reserve = RESERVE
        self._ledger.unsaved = True  # it may have written
        self._ledger.writer.resume()

    def totals(self) -> dict[str, dict[str, int]]:
        """What was counted of calls, for a successor."""
        return {"registrations": dict(self._ledger.totals), "refused": dict(self._ledger.journal.refused)}

    def go_on_from(self, totals: Mapping[str, Mapping[str, int]]) -> None:
        """What the pylb before had counted."""
        self._ledger.totals.update(totals.get("registrations", {}))
        self._ledger.journal.refused.update(totals.get("refused", {}))
        self._ledger.journal.note("upgraded", "this pylb follows another: ports, state and counters are its now")

    async def stop(self) -> None:
        """The final snapshot; then calls are refused. The sink is left as it is. Idempotent."""
        if self.ready and not self._handed_over:
            self._ledger.unsaved, self._ledger.reserve = True, 0
            await self._clockwork.save_again(force=True)
            await self._ledger.write_history()
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        await self._ledger.checker.stop()
        self._store.close()

    # ------------------------------------------------------------ calls

    async def announce(self, name: str, instance: str, announcement: Announcement, caller: Caller) -> Outcome:
        """A native registration, beat, move or goodbye. In force when it returns. Raises Refused."""

        async def call() -> Outcome:
            wanted = native_registration(name, instance, announcement, caller, self._scene.layout.rules)
            return await self._ledger.enter(wanted, caller)

        ports = [wanted.port for wanted in announcement.frontends]
        return await self._heard(call, caller, f"PUT {name[:64]}/{instance[:64]}", name, ports)

    async def release(self, name: str, instance: str, caller: Caller) -> Outcome:
        """Releases the caller's own registration; one that is not there is released already. Raises Refused."""

        async def call() -> Outcome:
            check_source(caller)
            check_name("name", name)
            check_name("instance", instance)
            return await self._ledger.leave(Key(caller.token.name, name, instance), caller)

        return await self._heard(call, caller, f"DELETE {name[:64]}/{instance[:64]}", name, ())

    async def legacy(self, call: LegacyCall, caller: Caller) -> str:
        """The one line to answer with. Raises Refused."""

        async def add() -> str:
            one, note = legacy_registration(call, caller, self._scene.layout)
            outcome = await self._ledger.enter(one, caller)
            before = self._legacy_uses.get(caller.token.name)
            self._legacy_uses[caller.token.name] = LegacyUse(
                1 + (before.calls if before else 0), self._wall(), caller.ip, call.name
            )
            if note:
                self._ledger.journal.note_once("dst_ip", f"legacy call from {caller.ip}: {note}", caller.ip, caller.token.name)
            return _line(call.port, outcome, note)

        async def delete() -> str:
            check_source(caller)
            outcome = await self._ledger.leave(legacy_key(caller.token.name, call.port), caller)
            return _line(call.port, outcome, "")

        what = f"legacy {call.action} {call.port}"
        return await self._heard(add if call.action == "add" else delete, caller, what, call.name, (call.port,))

    async def release_any(self, what: str) -> list[str]:
        """`PORT` (that port, of whoever holds it) or `NAME[/INSTANCE]`: a line for each. Raises Refused NOT_FOUND."""
        port = whole_number(what, 65535)
        lines: list[str] = []

        def step(scene: Scene) -> tuple[Scene, Change]:
            found = scene.claims.on_port(port) if port is not None else _named(scene.claims, what)
            kept_aside = {key: one for key, one in scene.unserved.items() if _is_meant(key, one, port, what)}
            if not found and not kept_aside:
                raise Refused(Code.NOT_FOUND, f"nothing is registered as {what[:300]!r}", "`pylb routes` shows what is")
            lines[:] = [f"released {title(one)}" + (f", port {port}" if port else "") for one in found]
            lines.extend(f"released {one.name}, which a newer pylb had registered" for one in kept_aside.values())
            return with_claims(without(scene, kept_aside), release(scene.claims, [one.key for one in found], port))

        await self._ledger.writer.turn(step, (), self._ledger.left, by="admin")
        return lines

    async def import_legacy(self, items: Iterable[Imported], token: str | None = None) -> list[str]:
        """Old HAProxy servers as legacy registrations: a line for each, also for those refused."""

        answers: list[tuple[Imported, asyncio.Future[tuple[Change, bool]] | Refused]] = []
        async for item in in_turns(items, IMPORTED):
            try:
                one = imported_registration(item, self._scene.keyring, token, self._scene.layout.rules)
                answers.append((item, self._ledger.submit(one, None, takeover=False)))
            except Refused as refused:
                answers.append((item, refused))
        lines: list[str] = []
        async for item, answer in in_turns(answers, IMPORTED):
            where = f"{item.port} -> {item.address}"
            try:
                if isinstance(answer, Refused):
                    raise answer
                change, _ = await answer
                lines.append(f"{change.result} {where}")
            except Refused as refused:
                lines.append(f"refused {where}: {refused}")
        return lines

    async def set_admin(self, target: str, state: AdminState, seconds: float | None = None) -> list[str]:
        """`FRONTEND/SERVER`, or a node's IP: a line for each server that it names. Raises Refused NOT_FOUND.

        `seconds`: for how long; None: a day for a node, and without an end for a server.
        """
        return await self._overrule(target, f"{state}", seconds, state=state)

    async def set_weight(self, target: str, weight: int | None, seconds: float | None = None) -> list[str]:
        """0-256, None: as registered or configured. As `set_admin`."""
        word = "default weight" if weight is None else f"weight {weight}"
        return await self._overrule(target, word, seconds, weight=weight)

    def words(self) -> list[tuple[str, Override, list[str]]]:
        """All that the operator said and that counts: about whom, what, and the servers that it is about now."""
        return [
            (
                whom if isinstance(whom, str) else f"{whom[0]}/{whom[1]}",
                word,
                [f"{frontend.name}/{server.name}" for frontend, server in hit(self.table, whom)],
            )
            for whom, word in self._scene.overrides.items()
        ]

    async def _overrule(self, target: str, word: str, seconds: float | None, **said: AdminState | int | None) -> list[str]:
        lines: list[str] = []
        node = "/" not in target
        seconds = NODE_WORD if seconds is None and node else seconds
        until = None if seconds is None else self._wall() + seconds

        def step(scene: Scene) -> Generator[None, None, Judged]:
            found = find(self.table, target)
            yield
            places: list[Whom] = [(frontend.listen, server.address) for frontend, server in found]
            before = scene.overrides
            if node and said.get("state") is AdminState.READY:  # then nothing that was said of its servers alone holds either
                before = changed(before, [place for place in places if place in before], state=AdminState.READY, exempt=False)
            overrides = changed(before, [target] if node else places, until, **said)
            if not node and "state" in said:  # the narrower word wins over one about the node
                out = {ip: old for ip, old in before.items() if isinstance(ip, str) and old.state is not AdminState.READY}
                for place in ((one.listen, server.address) for one, server in found):
                    taken_out = out.get(place[1].ip) if said["state"] is AdminState.READY else None
                    ends = until if taken_out is None else taken_out.until
                    overrides = changed(overrides, [place], ends, exempt=taken_out is not None)
            yield
            lines[:] = [f"{word}: {frontend.name}/{_titled(server)}" for frontend, server in found]
            after = scene if overrides == scene.overrides else replace(scene, overrides=overrides)
            return after, Change(scene.claims, "updated", frozenset(frontend.listen for frontend, _ in found))

        def done(_change: Change) -> None:
            self._ledger.journal.note("admin", "; ".join(lines))

        await self._ledger.writer.turn(step, (), done, by="admin")
        return lines

    async def set_keyring(self, keyring: Keyring) -> None:
        """Other tokens, the same rules. What a token that is gone registered stays, and becomes stale."""

        before, moved = self._scene.keyring, dict[Key, Key]()

        def step(scene: Scene) -> tuple[Scene, Change]:
            after, change, keys = self._ledger.passed_on(replace(scene, keyring=keyring))
            moved.update(keys)
            return after, change

        await self._ledger.writer.turn(step, (), partial(self._with_tokens, before, keyring, moved), by="reload")

    def _with_tokens(self, before: Keyring, after: Keyring, moved: Mapping[Key, Key], _change: Change) -> None:
        self._ledger.tenure.pass_on(moved)
        self._ledger.tell_of_tokens(before, after, moved)

    async def readdress(self, own_ips: frozenset[str]) -> None:
        """The addresses of this machine, and those it is called by, are these now. Raises Refused: pylb is stopping."""
        await self._ledger.readdress(own_ips)

    async def reload(self, rules: Rules, keyring: Keyring) -> Diff:
        """New rules and tokens, all or nothing. Returns what changed in the table. Raises Refused."""
        await self._ledger.resolver.first_look(rules.hosts, FIRST_LOOK)
        before, tokens, moved = self.table, self._scene.keyring, dict[Key, Key]()

        def done(change: Change) -> None:
            self._with_tokens(tokens, keyring, moved, change)
            self._ledger.follow(rules)
            self._ledger.resolver.follow(rules.hosts, rules.resolve_interval)
            text = f"static frontends: {len(rules.frontends)}, tokens: {len(keyring.tokens)}"
            self._ledger.journal.note("reloaded", text)
            self._ledger.tell_of_loops()

        await self._ledger.writer.turn(self._reloading(rules, keyring, moved), (), done, by="reload")
        return diff(before, self.table)

    def _reloading(
        self, rules: Rules, keyring: Keyring, moved: dict[Key, Key]
    ) -> Callable[[Scene], Generator[None, None, Judged]]:
        """`moved`: to be filled with those that are another token's afterwards."""

        def step(scene: Scene) -> Generator[None, None, Judged]:
            layout = Layout(rules, self._ledger.resolver.answers)
            yield
            before = Layout(replace(scene.layout.rules, own_ips=rules.own_ips), self._ledger.resolver.answers)
            yield
            looped = loops(scene.claims, before)
            yield
            change = yield from adopting(scene.claims, layout, looped)
            yield
            touched = change.touched | scene.layout.statics.keys() | layout.statics.keys()
            overrides = kept(scene.overrides, change.claims, layout)
            after = replace(scene, claims=change.claims, layout=layout, keyring=keyring, overrides=overrides)
            after, given, keys = self._ledger.passed_on(after)
            moved.update(keys)
            return after, Change(given.claims, change.result, touched | given.touched)

        return step

    # ------------------------------------------------------------ plans: the same steps, without their turn

    async def plan_reload(self, rules: Rules, keyring: Keyring) -> tuple[Table, list[Line]]:
        """The table that `reload` would give, and what it would change. Raises Refused as it would."""
        base = self.table
        scene, change = await stepwise(self._reloading(rules, keyring, {})(self._scene))
        return await self._ledger.publisher.planned(base, scene, change.touched)

    async def plan_checks(self, planned: Table) -> list[Line]:
        """Who would go out with this table, because it does not pass its check now."""
        return await failing(planned.frontends.values(), self._ask)

    async def plan_announce(self, name: str, instance: str, announcement: Announcement, caller: Caller) -> list[Line]:
        """What `announce` would change; whether the ports are free and the targets answer is not tried. Raises Refused."""
        wanted = native_registration(name, instance, announcement, caller, self._scene.layout.rules)
        scene, change = self._ledger.announce(self._scene, wanted, caller, takeover=caller.token.takeover)
        _, planned = await self._ledger.publisher.planned(self.table, scene, change.touched)
        return planned

    async def ask_now(self, listen: Listen) -> dict[Address, tuple[str, str]]:
        """Of each server of this frontend: what a connect meets at this moment, and what its own check finds. Nothing is
        learned from it. Within the check's timeout.
        """
        frontend = self.table.frontends[listen]
        connects = [Question(server.address) for server in frontend.servers]
        checks = [question_of(frontend, server) for server in frontend.servers]
        found = await asyncio.gather(*(self._ask(question) for question in (*connects, *checks)))
        both = zip(found[: len(connects)], found[len(connects) :], strict=True)
        return dict(zip((server.address for server in frontend.servers), both, strict=True))

    def is_beat(self, name: str, instance: str, announcement: Announcement, caller: Caller) -> bool:
        """Would it change nothing? Cheap, for it is asked before every call."""
        try:
            one = native_registration(name, instance, announcement, caller, self._scene.layout.rules)
        except Refused as refused:
            let_go(refused)
            return False
        return self._ledger.is_beat(one)

    def is_legacy_beat(self, call: LegacyCall, caller: Caller) -> bool:
        """As `is_beat`."""
        if call.action != "add":
            return False
        try:
            one, _ = legacy_registration(call, caller, self._scene.layout)
        except Refused as refused:
            let_go(refused)
            return False
        return self._ledger.is_beat(one)

    def note_use(self, token: Token, secret: str) -> None:
        """A call has come with this secret."""
        self._uses[token.name, fingerprint(secret)] = self._wall()

    def uses(self) -> dict[str, dict[str, float]]:
        """When each secret was last called with (unix time), by token and fingerprint, since pylb started."""
        found: dict[str, dict[str, float]] = {}
        for (name, print_), at in self._uses.items():
            found.setdefault(name, {})[print_] = at
        return found

    def connect_ended(self, listen: Listen, server: Server, failure: str | None) -> None:
        """What a session met, told by the engine from inside its turn: the table is swapped in a later one."""
        self._ledger.checker.connect_ended(listen, server.address, failure)

    async def _heard(self, call: Callable[[], Awaitable[T]], caller: Caller, what: str, name: str, ports: Collection[int]) -> T:
        try:
            return await call()
        except Refused as refused:
            token = caller.token.name
            tell = self._worth.a_line(token, caller.ip, refused.code)
            self.reject(refused, caller.ip, token, what, name=name[:64], ports=ports, tell=tell)
            raise

    # ------------------------------------------------------------ views

    @property
    def _scene(self) -> Scene:
        return self._ledger.scene

    @property
    def table(self) -> Table:
        return self._ledger.publisher.table

    @property
    def ready(self) -> bool:
        """State restored and the writer running."""
        return self._writing is not None and not self._writing.done()

    @property
    def durable(self) -> bool:
        """What is in force is on disk."""
        return self._ledger.writer.durable

    @property
    def preserving(self) -> bool:
        """Most phone-homes are silent, and none is demoted for it."""
        return self._ledger.tenure.preserving

    @property
    def checks(self) -> int:
        """Questions asked of servers since the start, but for the first dial of a call's targets."""
        return self._ledger.checker.agenda.asked

    @property
    def check_lag(self) -> float:
        """Seconds that the check that waits longest has been due: the budget, or the machine, does not suffice."""
        return self._ledger.checker.agenda.lag

    @property
    def write_failures(self) -> int:
        return self._ledger.write_failures

    @property
    def apply_seconds(self) -> float:
        """The last swap of the table."""
        return self._ledger.publisher.apply_seconds

    @property
    def registrations_total(self) -> Mapping[str, int]:
        """Calls by result."""
        results = ("created", "unchanged", "moved", "updated", "released", "refused", "superseded")
        return {result: self._ledger.totals[result] for result in results}

    def legacy_uses(self) -> Mapping[str, LegacyUse]:
        """By token: when nothing is here any more, the last old container is gone."""
        return dict(self._legacy_uses)

    @property
    def refused_total(self) -> Mapping[str, int]:
        """Refused calls by code."""
        return dict(self._ledger.journal.refused)

    def each_registration(self) -> Iterator[RegistrationView]:
        """In any order, for who lets the loop turn meanwhile: those at the first step, each with its lease as it is."""
        return map(self._view, self._scene.claims.registrations.in_any_order())

    async def all_registrations(self) -> list[RegistrationView]:
        """In the order in which they came; made in steps."""
        return [self._view(one) async for one in in_turns(self._scene.claims.registrations.values(), VIEWS)]

    def _view(self, one: Registration) -> RegistrationView:
        tenure = self._ledger.tenure
        goodbye = tenure.said_goodbye(one.key)
        return registration_view(one, tenure.get(one.key), self._clock(), self._wall(), said_goodbye=goodbye)

    def each_server(self) -> Iterator[ServerView]:
        """In the order of the ports, for who lets the loop turn meanwhile: of the table at the first step, with each one's
        health."""
        return server_views(
            self.table, self._scene.claims, self._scene.layout, self._ledger.checker.findings, self._ledger.tenure.said_goodbye
        )

    def last_check(self, listen: Listen, address: Address) -> tuple[float, str] | None:
        """When (the clock's time) a server was last dialled, probed, or a client's connect told something new, and what it
        said: "yes", or why not."""
        return self._ledger.checker.findings.last_check(listen, address)

    def unbound(self) -> dict[Listen, str]:
        """Ports of the table that could not be opened, with the reason; retried every 5 s."""
        return dict(self._ledger.publisher.unbound)

    def unserved(self) -> list[Unserved]:
        """What a newer pylb wrote and this one cannot serve."""
        return list(self._scene.unserved.values())

    def closing(self) -> dict[Listen, float | None]:
        """Ports that only stale registrations hold, and when each closes (unix time; None: not for that)."""
        return self._ledger.closing()

    def events(self) -> list[Event]:
        """The last 1,000, oldest first."""
        return self._ledger.journal.events()

    @property
    def task_failures(self) -> Mapping[str, int]:
        """By part (tasks.py)."""
        return {str(part): count for part, count in self.tasks.failures.items()}

    @property
    def noted(self) -> int:
        """How many events there were; the last of them is the last of `events()`."""
        return self._ledger.journal.noted

    def history(self, what: str | None = None) -> list[Generation]:
        """What changed the table, oldest first; of a port or a name."""
        return self._ledger.history.generations(what)

    @property
    def since(self) -> Since:
        """How far back `events`, `rejected` and `history` go."""
        journal = self._ledger.journal
        return Since(journal.events_since, journal.rejected_since, self._ledger.history.since)

    def rejected(self) -> list[Rejection]:
        """The last 100 refused calls, oldest first."""
        return self._ledger.journal.rejected()

    def reject(
        self, refused: Refused, ip: str, token: str, what: str, *, name: str = "", ports: Iterable[int] = (), tell: bool = True
    ) -> None:
        """A call that the web layer refused: it counts like any other, and is shown where `tell` says so (of a flood, some
        are enough). `token`: "" without a valid one."""
        self._ledger.totals["refused"] += 1
        if tell:
            clean = self._scene.keyring.without_secrets
            refused, what, name = Refused(refused.code, clean(refused.detail), clean(refused.hint)), clean(what), clean(name)
        self._ledger.journal.reject(refused, ip, token, what, name=name, ports=ports, tell=tell)


def _is_meant(key: Key, one: Unserved, port: int | None, what: str) -> bool:
    """By `PORT` or `NAME[/INSTANCE]`? It goes as a whole: nobody here knows what half of it would be."""
    name, _, instance = what.partition("/")
    return port in one.ports if port is not None else one.name == name and instance in ("", key.instance)


def _named(claims: Claims, what: str) -> tuple[Registration, ...]:
    name, _, instance = what.partition("/")
    held = claims.registrations.values()
    return tuple(one for one in held if one.name == name and instance in ("", one.key.instance))


def _titled(server: Server) -> str:
    """Its label, and its address where that is another text."""
    return server.name if server.name == str(server.address) else f"{server.name} ({server.address})"


def _line(port: int, outcome: Outcome, note: str) -> str:
    routes = "".join(
        f" -> {one.address}:{one.target_port}, reachable: {one.reachable}" + (f" ({one.hint})" if one.hint else "")
        for one in outcome.frontends
    )
    notes = [text for text in (note, outcome.note, "" if outcome.durable else "not on disk yet") if text]
    return f"{outcome.result}: port {port}{routes}" + "".join(f"; {text}" for text in notes)
