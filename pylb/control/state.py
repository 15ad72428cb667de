"""What control knows and how it changes it: the claims in force, the leases, the servers' health, the disk, the sink.

The registry (what may be asked) and the clockwork (what time asks) both change things only through here.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from errno import EINVAL
from functools import partial
from typing import TypeVar

from pylb.control.admission import same_call
from pylb.control.event_log import Event, Journal, Wanderers
from pylb.control.health.checker import Checker
from pylb.control.health.prober import Ask
from pylb.control.health.resolver import FIRST_LOOK, Resolve, Resolver
from pylb.control.leases import LeaseRecord, Tenure
from pylb.control.publisher import Publisher
from pylb.control.scene import Scene, Sink
from pylb.control.silence import Silence, addresses
from pylb.control.steps import in_turns, stepwise
from pylb.control.storage.snapshot import Encoder, Snapshot, decode
from pylb.control.storage.store import Store
from pylb.control.storage.table_history import History
from pylb.control.tasks import Part, Tasks
from pylb.control.views import FrontendOutcome, Outcome, title
from pylb.control.writer import Writer
from pylb.core.address import Address, Listen
from pylb.core.auth import Caller, Keyring
from pylb.core.claims import Claims
from pylb.core.errors import Code, Refused
from pylb.core.loops import loop, loops
from pylb.core.operator_overrides import Whom, kept
from pylb.core.ownership import Change, admit, announce, pass_on, readmitting, release
from pylb.core.policy import UNSAID, Balance, HealthMode, Policy, Rules, StaticServer
from pylb.core.registration import Key, Registration, State, Wanted
from pylb.core.static_frontends import Layout
from pylb.core.table import Table
from pylb.core.text import counted

MOST_REGISTRATIONS = 2000  # of one token
LEASES = 500  # restored between two turns of the loop: 1 ms
T = TypeVar("T")

RESERVE = 1000  # generations


class Ledger:
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
        self._store = store
        self._clock = clock
        self._wall = wall
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
        self._wanderers = Wanderers(clock)
        self._encoder = Encoder()
        self._looped: Mapping[Key, str] = {}
        self.totals: Counter[str] = Counter()
        self.unsettled = False  # a new server has answered: the one it displaced may leave
        # Numbers of generations that no other table will have, not even after a crash: those of health are in no snapshot.
        self.reserve = RESERVE  # with each snapshot; 0 for the last one
        self.reserved = 0  # the first one that is not
        self.unsaved = False  # something worth a snapshot, but no answer hangs on it
        self.write_failures = 0

    def follow(self, rules: Rules) -> None:
        """What the parts know of the rules."""
        self.checker.defaults = rules.defaults.health
        self.silence.leases = rules.leases

    @property
    def scene(self) -> Scene:
        return self.publisher.scene

    # ------------------------------------------------------------ start

    async def restore(self) -> None:
        """Raises StateLocked. Anything else that is wrong with the state is an alarm, and the start goes on."""
        try:
            await asyncio.to_thread(self._store.open)
        except OSError as error:
            self.journal.note("state", f"the state directory cannot be used: {error}", alarm=True)
        payload, complaints = await asyncio.to_thread(self._store.load)
        snapshot, more = decode(payload or {})
        more += await asyncio.to_thread(self.history.restore)
        rules = self.scene.layout.rules
        self.resolver.restore(snapshot.resolved)
        await self.resolver.first_look(rules.hosts, FIRST_LOOK)
        self.resolver.follow(rules.hosts, rules.resolve_interval)
        layout = Layout(rules, self.resolver.answers)
        claims, refusals = await stepwise(readmitting(snapshot.registrations.values(), layout))
        for text in (*complaints, *more):
            self.journal.note("state", text, alarm=True)
        for refused in refusals:
            self.journal.note("not_restored", str(refused), alarm=True)
        self.unsaved = bool(complaints or more or refusals)
        scene, _, moved = self.passed_on(replace(self.scene, claims=claims))
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
        self.tell_of_loops()

    # ------------------------------------------------------------ calls

    async def enter(self, wanted: Registration, caller: Caller) -> Outcome:
        """A registration, native or legacy, that its token may make. Raises Refused."""
        wanted = self._inheriting(wanted)
        before = self.scene.claims.registrations.get(wanted.key)
        if before is not None and self._repeats(before, wanted):
            self._beat(before, moved=False)  # nothing to write, to swap or to wait for
            self._ask_at_once(before)
            self.totals["unchanged"] += 1
            return self.outcome("unchanged", before, durable=self.writer.durable)
        takeover = caller.token.takeover
        targets = [wanted.address(item) for item in wanted.wanted]
        await self._ask_once_more(wanted)
        with self.checker.findings.considering(targets):
            if self.checker.findings.unknown(targets):  # then a call that would be refused is not to dial them
                admitted, _ = self._judged(
                    self.scene, wanted, caller, partial(admit, takeover=takeover, contest=self.silence.contest)
                )
                if not isinstance(admitted, Change):
                    await self.checker.dial_new(targets)
            change, durable = await self.submit(wanted, caller, takeover=takeover)
        return self.outcome(change.result, change.registered, durable=durable, note=change.note)

    def is_beat(self, wanted: Registration) -> bool:
        """Is it what is registered already, with nothing about it under way?"""
        wanted = self._inheriting(wanted)
        before = self.scene.claims.registrations.get(wanted.key)
        return before is not None and self._repeats(before, wanted)

    def _repeats(self, before: Registration, wanted: Registration) -> bool:
        return same_call(before, wanted) and not self.writer.is_busy_with(wanted.key)

    async def _ask_once_more(self, wanted: Registration) -> None:
        """Before a call may take a port from somebody who seems to be gone: the last moment at which that may be wrong."""
        claims = self.scene.claims
        if not self.silence.dead():
            return
        there = {one.key: one for item in wanted.wanted for one in claims.on_port(item.port)}
        gone = [one for key, one in there.items() if key != wanted.key and self.silence.is_abandoned(one)]
        if gone:
            await self.checker.dial(address for one in gone for address in addresses(one))
            self.silence.look_again(gone)

    def submit(self, wanted: Registration, caller: Caller | None, *, takeover: bool) -> asyncio.Future[tuple[Change, bool]]:
        """Its turn, to be awaited. Raises Refused."""
        before = self.scene.claims.registrations.get(wanted.key)
        known: dict[Key, Registration] = {}  # those that leave for it

        def step(scene: Scene) -> tuple[Scene, Change]:
            after, change = self.announce(scene, wanted, caller, takeover=takeover)
            known.update({key: scene.claims.registrations[key] for key in {*change.evicted, *change.removed}})
            return after, change

        def done(change: Change) -> None:
            self.totals[change.result] += 1
            self.tenure.forget(change.removed)  # those that a takeover left without a port
            self._tell_of_evicted(wanted, known, change)
            if room := [key for key in change.removed if key not in change.evicted]:
                places = {place for key in room for place in known[key].places}
                self._tell_of_released(places, room, f" to make room for {title(wanted)}")
            one = change.registered
            if one is not None:
                self._beat(one, moved=change.result == "moved")
                self._ask_at_once(one)
                self._tell(before, one, change)

        by = "import" if caller is None else called_by(caller)
        return self.writer.submit(step, [wanted.key], done, by=by)

    async def leave(self, key: Key, caller: Caller) -> Outcome:
        """Releases one registration; idempotent. Raises Refused."""
        key = self._inherited(key)
        change, durable = await self.writer.turn(
            lambda scene: with_claims(without(scene, [key]), release(scene.claims, [key])),
            [key],
            self.left,
            by=called_by(caller),
        )
        return self.outcome(change.result, None, durable=durable, note=change.note)

    def _inheriting(self, wanted: Registration) -> Registration:
        """As the registration that a call is about. One that stayed its old token's goes on being so."""
        keyring = self.scene.keyring
        if not keyring.has_heirs or wanted.key in self.scene.claims.registrations:
            return wanted
        return replace(wanted, key=heir_of(wanted, keyring))

    def _inherited(self, key: Key) -> Key:
        """The registration that is meant by somebody whose token another one replaces."""
        held = self.scene.claims.registrations
        if key in held:
            return key
        heirs = (key._replace(token=one.name) for one in self.scene.keyring.tokens if key.token in one.replaces)
        return next((new for new in heirs if new in held), key)

    def tell_of_tokens(self, before: Keyring, after: Keyring, moved: Mapping[Key, Key]) -> None:
        """Tokens that came, went, or are called otherwise, and whose registrations are another's now."""
        old, new = ({one.name: one for one in ring.tokens} for ring in (before, after))
        gone, come = old.keys() - new.keys(), new.keys() - old.keys()
        for name in sorted(gone):
            same = next((other for other in come if set(new[other].secrets) & set(old[name].secrets)), None)
            count = self.scene.claims.of_token.get(name, 0)
            rest = f"; {counted(count, 'registration')} of it will be stale (`pylb release` frees their ports)" if count else ""
            text = f"token {name!r} is removed: its calls are refused{rest}"
            if same is not None:
                text = f"token {name!r} is called {same!r} now{rest}; `replaces: [{name}]` would pass them on"
            self.journal.note("token_renamed" if same else "token_removed", text, {"token": name}, alarm=bool(count))
        for name in sorted(come):
            self.journal.note("token_added", f"token {name!r} is in force", {"token": name})
        for name in sorted(old.keys() & new.keys()):
            if set(old[name].secrets) != set(new[name].secrets):
                text = f"token {name!r} has {counted(len(new[name].secrets), 'secret')} now, and not the same as before"
                self.journal.note("token_rotated", text, {"token": name})
        for key, given in moved.items():
            text = f"{title_of(key)} is a registration of token {given.token!r} now, which replaces {key.token!r}"
            self.journal.note("passed_on", text, {"token": given.token, "name": given.name, "instance": given.instance})

    def passed_on(self, scene: Scene) -> tuple[Scene, Change, dict[Key, Key]]:
        """`scene` with the registrations of replaced tokens as their heirs'.

        One whose heir has another of that name and instance stays where it is: two cannot be one, and neither may be lost.
        """
        registrations = scene.claims.registrations
        heirs: dict[Key, Key] = {}
        for one in registrations.in_any_order() if scene.keyring.has_heirs else ():
            if (new := heir_of(one, scene.keyring)) not in registrations:
                heirs.setdefault(new, one.key)
        keys = {old: new for new, old in heirs.items()}
        change = pass_on(scene.claims, keys)
        return replace(scene, claims=change.claims), change, keys

    def left(self, change: Change) -> None:
        """The `done` of every release."""
        self.totals[change.result] += 1
        self.tenure.forget(change.removed)
        if change.touched:
            self._tell_of_released(change.touched, change.removed)

    def _tell_of_released(self, places: Collection[Listen], keys: Iterable[Key], why: str = "") -> None:
        ports = ", ".join(str(listen.port) for listen in sorted(places))
        closed = ", ".join(str(listen.port) for listen in sorted(places) if not self.scene.has(listen))
        text = f"released on port {ports}{why}; " + (f"closed: {closed}" if closed else "none closed")
        self.journal.note("released", text, whose(keys))

    def announce(self, scene: Scene, wanted: Registration, caller: Caller | None, *, takeover: bool) -> tuple[Scene, Change]:
        """The step of every call that registers. Raises Refused."""
        if wanted.key not in scene.claims.registrations:
            wanted = replace(wanted, since=self._wall())
        judge = partial(announce, takeover=takeover, proven=self.checker.findings.proven, contest=self.silence.contest)
        change, gone = self._judged(scene, wanted, caller, judge)
        if gone:
            touched = change.touched.union(*(scene.claims.registrations[key].places for key in gone))
            change = replace(change, touched=touched, removed=(*change.removed, *gone))
        if wanted.key in change.claims.registrations:
            scene = without(scene, [wanted.key])
        return with_claims(scene, change)

    def _judged(
        self, scene: Scene, wanted: Registration, caller: Caller | None, judge: Callable[[Claims, Layout, Registration], T]
    ) -> tuple[T, list[Key]]:
        """What `judge` says, and who is released for it. Raises Refused."""
        if caller is not None and not scene.keyring.has(caller.token):  # reloaded away while it was dialled
            raise Refused(Code.UNAUTHORIZED, f"token {caller.token.name!r} is no longer valid as it was", "call again")
        claims, gone = scene.claims, list[Key]()
        while True:
            try:
                _room_for_one_more(claims, wanted.key)
                return judge(claims, scene.layout, wanted), gone
            except Refused as refused:
                # The dead of an orderly goodbye count for nothing: they make room, the oldest first.
                one = self._gone(claims, wanted.key.token) if refused.code is Code.TOO_MANY else None
                if one is None:
                    raise
                gone.append(one)
                claims = release(claims, [one]).claims

    def _ask_at_once(self, one: Registration) -> None:
        self.checker.called(one.places, (one.address(item) for item in one.wanted))

    def _gone(self, claims: Claims, token: str) -> Key | None:
        """The oldest registration of the token that said goodbye, whose lease is over, and whose servers do not answer."""
        found = (key for key in self.silence.dead() if key.token == token and self.tenure.said_goodbye(key))
        return next((key for key in found if claims.not_fresh.get(key) is State.STALE), None)

    def _tell_of_evicted(self, wanted: Registration, known: Mapping[Key, Registration], change: Change) -> None:
        for key, places in change.evicted.items():
            held = known[key]
            ports = ", ".join(str(listen.port) for listen in sorted(places))
            fields = {"token": key.token, "name": held.name, "instance": key.instance, "by": title(wanted)}
            if key.token == wanted.key.token and key.is_legacy:
                text = f"port {ports}: {title(wanted)} takes the place of {title(held)}"
                self.journal.note("taken_over", text, fields)
                continue
            began = self.silence.since(key)
            kind, why = "taken_over", "its token may (takeover: true)"
            if held.state is not State.FRESH and began is not None and self.silence.is_abandoned(held):
                silent = f"{self._clock() - began:.0f} s"
                kind, why = "yielded", f"{title(held)} has neither called nor answered for {silent} (leases.yield_after)"
            text = f"port {ports} goes from {title(held)} to {title(wanted)}: {why}"
            self.journal.note(kind, text, fields, alarm=True)
        for key in change.removed:
            self.silence.called(key)

    def ended_words(self) -> tuple[Whom, ...]:
        """Of the operator, whose time is over."""
        now = self._wall()
        return tuple(one for one, word in self.scene.overrides.items() if word.until is not None and word.until <= now)

    def is_superfluous(self, key: Key) -> bool:
        """It said goodbye, its lease is over, nothing of it answers, and others who call hold each of its ports."""
        claims = self.scene.claims
        one = claims.registrations.get(key)
        if one is None or not self.tenure.said_goodbye(key) or one.state is not State.STALE:
            return False
        return all(any(other not in claims.not_fresh for other in claims.holders[place]) for place in one.places)

    def silent_ports(self, one: Registration) -> tuple[Listen, ...]:
        """Those of its ports that no line of the config and nobody who calls holds."""
        claims, statics = self.scene.claims, self.scene.layout.statics
        return tuple(
            place
            for place in one.places
            if place not in statics and all(claims.not_fresh.get(key) is State.STALE for key in claims.holders[place])
        )

    def closes_at(self, listen: Listen) -> float | None:
        """When a port that only stale registrations hold closes, as unix time; None: it does not, as far as is known."""
        claims, keep = self.scene.claims, self.scene.layout.rules.leases.keep_stale
        keys = claims.holders.get(listen, ())
        if not keys or listen in self.scene.layout.statics or self.tenure.preserving:
            return None
        if any(claims.not_fresh.get(key) is not State.STALE for key in keys):
            return None
        ends = [self.tenure.closes_at(key, keep) for key in keys]
        if None in ends:
            return None
        return self._wall() + max(end for end in ends if end is not None) - self._clock()

    def closing(self) -> dict[Listen, float | None]:
        """Of each port whose registrations are all stale: when it closes."""
        claims = self.scene.claims
        stale = [key for key, state in claims.not_fresh.items() if state is State.STALE]
        places = dict.fromkeys(place for key in stale for place in self.silent_ports(claims.registrations[key]))
        return {place: self.closes_at(place) for place in places}

    def _beat(self, one: Registration, *, moved: bool) -> None:
        if one.state is State.FRESH:
            self.silence.called(one.key)
        before = self.tenure.get(one.key)
        after = self.tenure.beat(one, moved=moved)
        if one.key.is_legacy and after.ttl is not None and (before is None or before.ttl is None):
            self.unsaved = True

    def _tell(self, before: Registration | None, one: Registration, change: Change) -> None:
        if not change.touched:
            return
        routes = ", ".join(f"{item.port} -> {one.address(item)}" for item in one.wanted)
        kind = "draining" if one.state is State.DRAINING else {"unchanged": "fresh_again"}.get(change.result, change.result)
        fields: dict[str, str | int] = {"token": one.key.token, "name": one.name, "instance": one.key.instance}
        self.journal.note(kind, f"{kind} {title(one)}: {routes}", fields)
        if before is not None and before.ip != one.ip and self._wanderers.moved(one.key):
            text = f"unstable source address: {title(one)} keeps moving, now from {before.ip} to {one.ip}"
            self.journal.note("unstable_source", text, fields, alarm=True)

    async def readdress(self, own_ips: frozenset[str]) -> None:
        """This machine has other addresses now: what aims at pylb itself goes out, and what no longer does comes back."""

        def step(scene: Scene) -> tuple[Scene, Change]:
            before, layout = scene.layout, Layout(replace(scene.layout.rules, own_ips=own_ips), self.resolver.answers)
            changed = before.own_ips ^ own_ips
            touched = {listen for listen, one in layout.statics.items() if one != before.statics.get(listen)}
            touched |= {listen for listen, one in layout.statics.items() if any(_ip(line) in changed for line in one.servers)}
            for one in scene.claims.registrations.values():
                if one.ip in changed or any(old.address.ip in changed for old in one.displaced):
                    touched.update(one.places)
            return replace(scene, layout=layout), Change(scene.claims, "updated", frozenset(touched))

        if own_ips != self.scene.layout.own_ips:
            await self.writer.turn(step, (), lambda _change: self.tell_of_loops(), by="addresses")

    def tell_of_loops(self) -> None:
        """After whatever may have made one, or ended one, of registrations that are not calling just now."""
        claims = self.scene.claims
        before, self._looped = self._looped, loops(claims, self.scene.layout)
        for key in self._looped.keys() - before.keys():
            one = claims.registrations[key]
            text = f"out of service: {title(one)}: {self._looped[key]}"
            self.journal.note("loop", text, {"token": key.token, "name": one.name, "instance": key.instance}, alarm=True)
        for key in before.keys() - self._looped.keys():
            if (back := claims.registrations.get(key)) is not None:
                text = f"in service again: {title(back)}: it no longer aims at pylb itself"
                self.journal.note("loop_over", text, {"token": key.token, "name": back.name, "instance": key.instance})

    def outcome(self, result: str, one: Registration | None, *, durable: bool, note: str = "") -> Outcome:
        """The answer as of now. `one` None: nothing is registered."""
        generation = self.publisher.table.generation
        if one is None:
            return Outcome(result, generation, durable, note=note)
        lease = self.tenure.get(one.key)
        notes = [note] if note else []
        if (why := loop(self.scene.claims, self.scene.layout, one)) is not None:
            notes.append(f"out of service: {why}")
        for item, place in zip(one.wanted, one.places, strict=True):
            notes += _without_effect(item, self.scene.layout.policy(place))
        unbound = self.publisher.unbound
        notes += [f"port {place.port} is not open: {unbound[place]}" for place in one.places if place in unbound]
        ttl = lease.ttl if lease else one.ttl
        left = lease.expires - self._clock() if lease and lease.ttl is not None else None
        return Outcome(result, generation, durable, ttl, left, self._targets(one), "; ".join(notes))

    def _targets(self, one: Registration) -> tuple[FrontendOutcome, ...]:
        found = []
        for item in one.wanted:
            reachable, hint, _ = self.checker.findings.reachable(one.address(item))
            found.append(FrontendOutcome(item.port, one.ip, item.target_port, reachable, hint))
        return tuple(found)

    # ------------------------------------------------------------ the disk and the sink

    async def _save(self, scene: Scene) -> None:
        """Raises OSError, after saying so."""
        snapshot = Snapshot(
            self.publisher.table.generation + 1,
            self._wall(),
            scene.claims.registrations,
            self.tenure.records(scene.claims),
            self.checker.findings.proven,
            self.checker.findings.down,
            self.checker.findings.passed,
            scene.overrides,
            dict(self.resolver.answers),
            scene.unserved,
            self.publisher.table.generation + 1 + self.reserve,
        )
        self.unsaved = False
        try:
            await self._encoded_and_saved(snapshot)
        except OSError as error:
            self.unsaved = True
            self.write_failures += 1
            if self.writer.durable:
                text = f"the state cannot be written: {error}; new registrations are refused until it can"
                self.journal.note("state_not_durable", text, alarm=True)
            raise
        if not self.writer.durable and not self.writer.hangs:
            self.journal.note("state_durable", "the state is on disk again")

    async def _encoded_and_saved(self, snapshot: Snapshot) -> None:
        """Raises OSError."""
        try:
            await self._store.save(lambda: self._encoder.encode(snapshot))
        except OSError:
            raise
        except Exception as bug:  # noqa: BLE001 - a bug there is a disk that fails, not the end of the writer
            self.tasks.failed(Part.SNAPSHOT, bug)
            raise OSError(EINVAL, f"it cannot be encoded ({type(bug).__name__}: {bug})") from None
        self.reserved = snapshot.reserved

    async def save_now(self) -> None:
        """Outside of a turn: what is in force as it is now. Raises OSError."""
        await self._save(self.scene)

    async def write_history(self) -> None:
        """A record that cannot be written is no reason to refuse anything: the alarm is the snapshot's."""
        if self.history.has_news:
            with suppress(OSError):
                await self._store.run(self.history.write)

    async def resolve(self) -> None:
        """Asks for the host names that are due; a new answer is a turn like any other change."""
        changed = await self.resolver.ask()
        if not changed:
            return

        def step(scene: Scene) -> tuple[Scene, Change]:
            layout = Layout(scene.layout.rules, self.resolver.answers)
            touched = frozenset(listen for listen, new in layout.statics.items() if new != scene.layout.statics.get(listen))
            return replace(scene, layout=layout), Change(scene.claims, "updated", touched)

        self.unsaved = True  # nobody waits for it
        try:
            await self.writer.turn(step, (), by="names")
        except Refused:
            pass  # pylb is stopping

    def _on_news(self, listens: list[Listen], kind: str, text: str, fields: Mapping[str, str | int]) -> None:
        held = (key for listen in listens[:1] for key in self.scene.claims.holders.get(listen, ()))
        self.journal.note(kind, text, {**fields, **whose(held)})
        self.unsettled |= kind == "server_proven"
        self.unsaved |= kind in ("server_down", "server_up")
        self.publisher.news(listens)


def _without_effect(item: Wanted, policy: Policy) -> Iterator[str]:
    """For whoever announced it: what of it the frontend's own settings leave without effect."""
    if item.health != UNSAID and policy.health.mode is HealthMode.NONE:
        yield f"health of port {item.port} has no effect: the mode of its frontend is none, so there are no checks"
    if item.weight > 1 and policy.balance is Balance.FIRST:
        yield f"weight of port {item.port} has no effect: with the balance of its frontend, first, there are no shares"


def whose(keys: Iterable[Key]) -> dict[str, str]:
    """The `token` of an event, if all that it is about is one's: its share of the journal."""
    tokens = {key.token for key in keys}
    return {"token": tokens.pop()} if len(tokens) == 1 else {}


def _ip(line: StaticServer) -> str:
    return line.address.ip if isinstance(line.address, Address) else ""


def without(scene: Scene, keys: Iterable[Key]) -> Scene:
    """Without what a newer pylb wrote of these: they are released, or have registered what this one serves."""
    if not scene.unserved:
        return scene
    left = {key: one for key, one in scene.unserved.items() if key not in set(keys)}
    return scene if len(left) == len(scene.unserved) else replace(scene, unserved=left)


def _room_for_one_more(claims: Claims, key: Key) -> None:
    """A stolen token must not fill memory and disk with instances. Raises Refused."""
    most = MOST_REGISTRATIONS
    if key not in claims.registrations and claims.of_token.get(key.token, 0) >= most:
        hint = f"`pylb release NAME` those that are gone, or use another token ({key.token!r} has them all)"
        raise Refused(Code.TOO_MANY, f"a token may hold {most} registrations", hint, retry_after=60)


def heir_of(one: Registration, keyring: Keyring) -> Key:
    """Its key, under the token whose it is."""
    if not keyring.has_heirs:
        return one.key
    ports = [item.port for item in one.wanted]
    return one.key._replace(token=keyring.heir(one.key.token, one.key.name, ports, legacy=one.key.is_legacy))


def title_of(key: Key) -> str:
    return f"{key.token}/{key.name or key.legacy_port}" + (f"/{key.instance}" if key.instance else "")


def called_by(caller: Caller) -> str:
    return f"token {caller.token.name!r} from {caller.ip}" + (" (legacy)" if caller.at == "legacy" else "")


def with_claims(scene: Scene, change: Change) -> tuple[Scene, Change]:
    """The next scene; the same one if nothing changed."""
    if change.claims is scene.claims:
        return scene, change
    overrides = kept(scene.overrides, change.claims, scene.layout)
    return replace(scene, claims=change.claims, overrides=overrides), change
