"""What phone-homes and old containers can ask of control: to register, to leave, and whether a call is only a heartbeat."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from typing import TypeVar

from pylb.control.event_log import RejectionLogLimit
from pylb.control.new_registration import legacy_registration, native_registration
from pylb.control.registrar import Registrar
from pylb.control.state import ControlState
from pylb.control.steps import in_turns
from pylb.control.views import LegacyUse, Outcome, RegistrationView
from pylb.core.address import TCP, PortKey
from pylb.core.auth import Caller, Token, check_source, fingerprint
from pylb.core.errors import Refused, break_cycles
from pylb.core.legacy import LegacyCall
from pylb.core.registration import SET, Announcement, Key, check_name, legacy_key
from pylb.core.table_diff import ChangeLine

T = TypeVar("T")
OWN = 250  # registrations between two turns of the loop: 1 ms


class Calls:
    def __init__(
        self, state: ControlState, registrar: Registrar, clock: Callable[[], float], wall: Callable[[], float]
    ) -> None:
        self._state = state
        self._registrar = registrar
        self._wall = wall
        self._worth = RejectionLogLimit(clock)
        self._legacy_uses: dict[str, LegacyUse] = {}
        self._uses: dict[tuple[str, str], float] = {}  # only of valid secrets

    async def announce(self, name: str, instance: str, announcement: Announcement, caller: Caller) -> Outcome:
        """A native registration, heartbeat, move or goodbye. In force when it returns. Raises Refused."""

        async def call() -> Outcome:
            wanted = native_registration(name, instance, announcement, caller, self._state.desired.static_rules.rules)
            return await self._registrar.enter(wanted, caller)

        ports = [(wanted.protocol, wanted.port) for wanted in announcement.frontends]
        return await self._answered(call, caller, f"PUT {_path(name, instance)}", name, ports)

    async def release(self, name: str, instance: str, caller: Caller) -> Outcome:
        """Release the caller's own registration; one that does not exist counts as released. Raises Refused."""

        async def call() -> Outcome:
            check_source(caller)
            check_name("name", name)
            if instance != SET:
                check_name("instance", instance)
            return await self._registrar.leave(Key(caller.token.name, name, instance), caller)

        return await self._answered(call, caller, f"DELETE {_path(name, instance)}", name, ())

    async def own(self, caller: Caller) -> AsyncIterator[RegistrationView]:
        """All registrations of the caller's token. Raises Refused."""
        check_source(caller)
        async for one in in_turns(self._state.desired.claims.registrations.values(), OWN):
            if one.key.token == caller.token.name:
                yield self._state.view(one)

    async def legacy(self, call: LegacyCall, caller: Caller) -> str:
        """Carry out a call of the legacy route. Returns the one line of the answer. Raises Refused."""

        async def add() -> str:
            one, note = legacy_registration(call, caller, self._state.desired.static_rules)
            outcome = await self._registrar.enter(one, caller)
            before = self._legacy_uses.get(caller.token.name)
            self._legacy_uses[caller.token.name] = LegacyUse(
                1 + (before.calls if before else 0), self._wall(), caller.ip, call.name
            )
            if note:
                self._state.event_log.note_once("dst_ip", f"legacy call from {caller.ip}: {note}", caller.ip, caller.token.name)
            return _line(call.port, outcome, note)

        async def delete() -> str:
            check_source(caller)
            outcome = await self._registrar.leave(legacy_key(caller.token.name, call.port), caller)
            return _line(call.port, outcome, "")

        what = f"legacy {call.action} {call.port}"
        return await self._answered(add if call.action == "add" else delete, caller, what, call.name, ((TCP, call.port),))

    async def plan_announce(
        self, name: str, instance: str, announcement: Announcement, caller: Caller
    ) -> tuple[list[ChangeLine], list[str]]:
        """What `announce` would change here, and what it would mean for the balancers that share the table; does not test
        whether ports are free and targets answer. Raises Refused."""
        wanted = native_registration(name, instance, announcement, caller, self._state.desired.static_rules.rules)
        desired, change = self._registrar.announce(self._state.desired, wanted, caller, takeover=caller.token.takeover)
        _, planned = await self._state.publisher.planned(self._state.publisher.table, desired, change.touched)
        sharing = self._state.sharing
        takeover = caller.token.takeover or bool(change.evicted)
        return planned, [] if sharing is None else sharing.plan(wanted, takeover=takeover)

    def is_beat(self, name: str, instance: str, announcement: Announcement, caller: Caller) -> bool:
        """Whether the call would change nothing. Cheap, because it is asked before every call."""
        try:
            one = native_registration(name, instance, announcement, caller, self._state.desired.static_rules.rules)
        except Refused as refused:
            break_cycles(refused)
            return False
        return self._registrar.is_beat(one)

    def is_legacy_beat(self, call: LegacyCall, caller: Caller) -> bool:
        """Like `is_beat`, for a legacy call."""
        if call.action != "add":
            return False
        try:
            one, _ = legacy_registration(call, caller, self._state.desired.static_rules)
        except Refused as refused:
            break_cycles(refused)
            return False
        return self._registrar.is_beat(one)

    def note_use(self, token: Token, secret: str) -> None:
        """Note a call with this secret."""
        self._uses[token.name, fingerprint(secret)] = self._wall()

    def uses(self) -> dict[str, dict[str, float]]:
        """When each secret was last called with (unix time), by token and fingerprint, since pylb started."""
        found: dict[str, dict[str, float]] = {}
        for (name, print_), at in self._uses.items():
            found.setdefault(name, {})[print_] = at
        return found

    def legacy_uses(self) -> Mapping[str, LegacyUse]:
        """The use of the legacy route by each token. When it no longer changes, the last old container is gone."""
        return dict(self._legacy_uses)

    async def _answered(
        self, call: Callable[[], Awaitable[T]], caller: Caller, what: str, name: str, ports: Collection[PortKey]
    ) -> T:
        """The outcome of a call; a refusal is counted and shown."""
        try:
            return await call()
        except Refused as refused:
            token = caller.token.name
            tell = self._worth.allows_line(token, caller.ip, refused.code)
            self.reject(refused, caller.ip, token, what, name=name[:64], ports=ports, tell=tell)
            raise

    def reject(
        self,
        refused: Refused,
        ip: str,
        token: str,
        what: str,
        *,
        name: str = "",
        ports: Iterable[PortKey] = (),
        tell: bool = True,
    ) -> None:
        """Count a call that the web layer refused like any other. It is shown if `tell` is set (of a flood, some are enough).

        `token`: "" without a valid one.
        """
        self._state.totals["refused"] += 1
        if tell:
            clean = self._state.desired.keyring.without_secrets
            refused, what, name = Refused(refused.code, clean(refused.detail), clean(refused.hint)), clean(what), clean(name)
        self._state.event_log.reject(refused, ip, token, what, name=name, ports=ports, tell=tell)


def _path(name: str, instance: str) -> str:
    return f"{name[:64]}/{instance[:64]}" if instance != SET else name[:64]


def _line(port: int, outcome: Outcome, note: str) -> str:
    routes = "".join(
        f" -> {one.address}:{one.target_port}, reachable: {one.reachable}" + (f" ({one.hint})" if one.hint else "")
        for one in outcome.frontends
    )
    notes = [text for text in (note, outcome.note, "" if outcome.durable else "not on disk yet") if text]
    return f"{outcome.result}: port {port}{routes}" + "".join(f"; {text}" for text in notes)
