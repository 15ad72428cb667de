"""Periodic work: leases that end, probes, ports to open again, and a snapshot to write again."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Sequence
from dataclasses import replace
from functools import partial

from pylb.control.desired_state import Decision, DesiredState, Step, with_many
from pylb.control.event_texts import key_title, whose
from pylb.control.leases import FALLBACK
from pylb.control.liveness import moment
from pylb.control.registrar import Registrar
from pylb.control.state import ControlState
from pylb.control.steps import in_turns
from pylb.control.tasks import Part
from pylb.control.views import title
from pylb.control.writer import Done
from pylb.core.claims import Claims
from pylb.core.errors import Refused
from pylb.core.operator_overrides import OverrideTarget, affected, ended, without
from pylb.core.ownership import Change, become, give_up, release, settle
from pylb.core.registration import Key, State
from pylb.core.text import span

PERIOD = 0.5  # seconds between two rounds: fine enough for leases of >= 10 s
PROBE_PERIOD = 0.05
REBIND = 5.0  # seconds between two attempts on ports that are not open
LOOKS = 500  # registrations between two turns of the loop: 1 ms
WARNINGS = 20  # events between two turns of the loop: 1 ms
SAVE_AGAIN_MAX = 30.0  # seconds between two attempts at a failed snapshot, at most


class PeriodicWork:
    def __init__(
        self, state: ControlState, registrar: Registrar, clock: Callable[[], float], wall: Callable[[], float]
    ) -> None:
        self._state = state
        self._registrar = registrar
        self._clock = clock
        self._wall = wall
        self._rebind_at = clock() + REBIND
        self._save_at = clock()
        self._save_wait = 1.0

    async def run(self) -> None:
        """Runs until it is cancelled."""
        tasks, control = self._state.tasks, self._state
        async with asyncio.TaskGroup() as group:
            # Each separately: a disk that hangs delays no lease.
            for part, work in ((Part.LEASES, self._leases), (Part.SNAPSHOT, self._disk)):
                group.create_task(tasks.forever(part, partial(self._rounds, work)))
            for part, is_due, ask, pause in (
                (Part.PROBES, control.checker.is_due, control.checker.probe, PROBE_PERIOD),
                (Part.NAMES, control.resolver.is_due, control.resolve, PERIOD),
            ):
                group.create_task(tasks.forever(part, partial(self._ask, group, part, is_due, ask, pause)))

    async def _rounds(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await work()
            await asyncio.sleep(PERIOD)

    async def _ask(
        self,
        group: asyncio.TaskGroup,
        part: Part,
        is_due: Callable[[], bool],
        ask: Callable[[], Coroutine[object, object, None]],
        pause: float,
    ) -> None:
        while True:
            if is_due():  # not awaited: a probe of a black hole takes a second, and others are due meanwhile
                group.create_task(self._state.tasks.once(part, ask()))
            await asyncio.sleep(pause)

    async def tick(self) -> None:
        """One round of everything except probes."""
        await self._leases()
        await self._disk()

    async def _disk(self) -> None:
        await self.save_again()
        await self._state.persistence.write_history()

    async def _leases(self) -> None:
        control = self._state
        control.standby.look()
        await control.liveness.look(control.desired.claims)
        due = await control.leases.due(control.desired.claims, control.desired.static_rules.rules.leases.keep_stale)
        if due.elsewhere and control.sharing is not None:
            control.sharing.leave_to_others(self._silent(due.elsewhere))
        self._tell_of_mass_lapse(now_preserving=due.verdict.preserving)
        if silent := self._silent((*due.verdict.lapsed, *due.gone)):
            await self._end(silent)
        if due.verdict.revived:
            await self._revive(due.verdict.revived)
        await self._warn("still_silent", due.late)
        await self._warn("closing", due.closing)
        if due.overstayed:
            await self._release(due.overstayed, lambda _key, _claims: True)
        superfluous, dead = control.liveness.is_superfluous, in_turns(control.liveness.dead(), LOOKS)
        if gone := self._silent([key async for key in dead if superfluous(key, control.desired.claims)]):
            await self._release(gone, superfluous)
        if due.fallen_back:
            await self._give_up(due.fallen_back)
        if words := ended(control.desired.overrides, self._wall()):
            await self._end_words(words)
        if control.unsettled:
            control.unsettled = False
            await self._perform(self._settled, ())
        if control.publisher.unbound and self._clock() >= self._rebind_at:
            self._rebind_at = self._clock() + REBIND
            control.publisher.apply()

    def _silent(self, keys: Iterable[Key]) -> tuple[Key, ...]:
        """The silent ones, without those that have a call waiting, which would be decided first and then undone by this."""
        return self._state.writer.not_busy_with(keys)

    async def _end(self, keys: tuple[Key, ...]) -> None:
        leases, titles = self._state.leases, list[str]()

        def step(desired: DesiredState) -> Generator[None, None, Decision]:
            # Those that called since have not lapsed.
            silent = yield from _filtered(keys, leases.is_over)
            after, change = yield from with_many(desired, silent, partial(become, state=State.STALE))
            ended = yield from _filtered(keys, lambda key: after.claims.not_fresh.get(key) is State.STALE)
            titles[:] = yield from _mapped(ended, key_title)
            return after, change

        def done(_change: Change) -> None:
            if titles:
                text = f"silent for its TTL, now the last resort: {', '.join(titles)}"
                self._state.event_log.note("stale", text, {"count": len(titles)})

        await self._perform(step, keys, done)

    async def _revive(self, keys: tuple[Key, ...]) -> None:
        def step(desired: DesiredState) -> Generator[None, None, Decision]:
            still = yield from _filtered(keys, lambda key: desired.claims.not_fresh.get(key) is State.STALE)
            return (yield from with_many(desired, still, partial(become, state=State.FRESH)))

        await self._perform(step, keys)

    async def _release(self, keys: tuple[Key, ...], due: Callable[[Key, Claims], bool]) -> None:
        """Release those that are still stale, and still `due`, when it is their turn."""

        def step(desired: DesiredState) -> Generator[None, None, Decision]:
            claims = desired.claims
            still = yield from _filtered(keys, lambda key: claims.not_fresh.get(key) is State.STALE and due(key, claims))
            return (yield from with_many(desired, still, release))

        await self._perform(step, keys, self._registrar.left)

    async def _warn(self, kind: str, keys: Iterable[Key]) -> None:
        """Warn only about ports for which nobody else calls: one silent instance among many does not raise the alarm."""
        control = self._state
        async for key in in_turns(keys, WARNINGS):
            desired = control.desired
            one = desired.claims.registrations.get(key)
            if one is None or not (ports := control.liveness.silent_ports(one, desired)):
                continue
            where = ", ".join(listen.route_text for listen in ports)
            ends = max(filter(None, (control.liveness.port_closes_at(port, desired) for port in ports)), default=None)
            text = f"{title(one)} has not called for over an hour, and nobody else holds port {where}"
            if ends is not None:
                text += f", which closes at {moment(ends)} if it stays so (leases.keep_stale)"
            fields = {"token": one.key.token, "name": one.name, "instance": one.key.instance}
            control.event_log.note(kind, text, fields, alarm=True)

    def _settled(self, desired: DesiredState) -> Generator[None, None, Decision]:
        settling = partial(settle, proven=self._state.checker.health_records.proven)
        return (yield from with_many(desired, tuple(desired.claims.waiting), settling))

    async def _end_words(self, targets: tuple[OverrideTarget, ...]) -> None:
        control = self._state

        def step(desired: DesiredState) -> Generator[None, None, Decision]:
            found = yield from affected(control.publisher.table, targets)
            touched = frozenset(one.listen for servers in found.values() for one, _ in servers)
            return replace(desired, overrides=without(desired.overrides, targets)), Change(desired.claims, "updated", touched)

        def done(_change: Change) -> None:
            names = ", ".join(one if isinstance(one, str) else f"{one[0]}/{one[1]}" for one in targets)
            control.event_log.note("admin_over", f"what was said of it has ended, as it was to: {names}")

        await self._perform(step, (), done)

    async def _give_up(self, keys: tuple[Key, ...]) -> None:
        """Remove old addresses that were the fallback for long enough, because addresses of nodes are reused."""

        def done(change: Change) -> Generator[None, None, None]:
            if change.touched:
                held = self._state.desired.claims.registrations
                there = yield from _filtered(keys, held.__contains__)
                titles = yield from _mapped(there, lambda key: title(held[key]))
                text = f"the new address has not answered in {span(FALLBACK)}, and the old one no longer serves for it: "
                self._state.event_log.note("fallback_over", text + ", ".join(titles), whose(keys), alarm=True)

        await self._perform(lambda desired: with_many(desired, keys, give_up), keys, done)

    def _tell_of_mass_lapse(self, *, now_preserving: bool) -> None:
        leases = self._state.leases
        before, leases.preserving = leases.preserving, now_preserving
        if now_preserving and not before:
            text = "more than half of all phone-homes fell silent together: none is demoted (network, DNS, a certificate?)"
            self._state.event_log.note("mass_lapse", text, alarm=True)
        elif before and not now_preserving:
            self._state.event_log.note("mass_lapse_over", "most phone-homes call again")

    async def save_again(self, *, force: bool = False) -> None:
        """Write a snapshot that failed, or that nobody waits for; at first every second, then up to every 30."""
        control, now = self._state, self._clock()
        if control.writer.durable and not control.persistence.is_wanted():
            self._save_wait = 1.0
            return
        if force or now >= self._save_at:
            self._save_at = now + self._save_wait
            self._save_wait = min(self._save_wait * 2, SAVE_AGAIN_MAX)
            if control.writer.hangs and not force:  # beside the batches: in one of them it would delay all calls
                try:
                    await control.save_now()
                except OSError:
                    return
                control.writer.hangs = False
            await self._perform(lambda desired: (desired, Change(desired.claims, "unchanged")), (), write=True)

    async def _perform(self, step: Step, keys: Iterable[Key], done: Done | None = None, *, write: bool = False) -> None:
        try:
            await self._state.writer.perform(step, keys, done, by="leases", write=write)
        except Refused:
            pass  # pylb is stopping: the next start decides again


def _mapped(keys: Sequence[Key], text: Callable[[Key], str]) -> Generator[None, None, list[str]]:
    """The text of each, made in steps."""
    found = list[str]()
    for start in range(0, len(keys), LOOKS):
        if start:
            yield
        found += map(text, keys[start : start + LOOKS])
    return found


def _filtered(keys: Sequence[Key], wanted: Callable[[Key], bool]) -> Generator[None, None, list[Key]]:
    """Those of `keys` for which `wanted` is true, found in steps."""
    found = list[Key]()
    for start in range(0, len(keys), LOOKS):
        if start:
            yield
        found += filter(wanted, keys[start : start + LOOKS])
    return found
