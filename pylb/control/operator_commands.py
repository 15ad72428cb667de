"""The operator's commands on the control socket: release, drain, weights, and the import of old HAProxy servers."""

import asyncio
from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from functools import partial

from pylb.control.desired_state import Decision, DesiredState, UnsupportedEntry, with_many, without
from pylb.control.new_registration import ImportedServer, imported_registration
from pylb.control.registrar import Registrar
from pylb.control.state import ControlState
from pylb.control.steps import in_turns, stepwise
from pylb.control.views import title
from pylb.core.address import PortKey, parse_port_key
from pylb.core.claims import Claims
from pylb.core.errors import Code, Refused
from pylb.core.operator_overrides import Override, OverrideTarget, affected, changed, find
from pylb.core.ownership import Change, release
from pylb.core.policy import AdminState
from pylb.core.registration import Key, Registration
from pylb.core.table import Server

IMPORTED = 50  # entries submitted, or answered, between two turns of the loop: 1 ms
WORDS = 5  # overrides shown between two turns of the loop: with a thousand servers each, a few milliseconds
NODE_WORD = 86_400.0  # seconds that a setting for a node lasts by default: another node may get its address


def _nothing(desired: DesiredState, what: str) -> Refused:
    """What to say where there is nothing to release."""
    text, hint = f"nothing is registered as {what[:300]!r}", "`pylb routes` shows what is"
    if any(what == one.name or one.listen.is_named(what) for one in desired.static_rules.rules.frontends):
        hint = "it is a static frontend: remove it from the config, and `pylb reload`"
    return Refused(Code.NOT_FOUND, text, hint)


class OperatorCommands:
    def __init__(self, state: ControlState, registrar: Registrar, wall: Callable[[], float]) -> None:
        self._state = state
        self._registrar = registrar
        self._wall = wall

    async def release_any(self, what: str, server_name: str | None = None) -> list[str]:
        """Release a `PORT[/udp]`, whoever has it, or `NAME[/INSTANCE]`. A line for each. Raises Refused NOT_FOUND, INVALID.

        `server_name`: of the port only this route; "": only its default route.
        """
        port = _port(what)
        if server_name is not None and port is None:
            raise Refused(Code.INVALID, f"{what[:80]!r} is not a port, and routes are on ports", "pylb release 443 --name NAME")
        where = f", port {what}" + (" " + (server_name or "(default route)") if server_name is not None else "")
        lines: list[str] = []

        def step(desired: DesiredState) -> Generator[None, None, Decision]:
            claims = desired.claims
            found = _named(claims, what) if port is None else claims.on_port(port[1], port[0], server_name)
            kept_aside = {key: one for key, one in desired.unserved.items() if _is_meant(key, one, port, what)}
            if server_name is not None:
                kept_aside = {}  # this version cannot read what they have on the port
            if not found and not kept_aside:
                raise _nothing(desired, f"{what} {server_name}" if server_name else what)
            lines[:] = [f"released {title(one)}" + (where if port else "") for one in found]
            lines.extend(f"released {one.name}, which a newer pylb had registered" for one in kept_aside.values())
            releasing = release
            if port is not None:
                releasing = partial(release, port=port[1], protocol=port[0], server_name=server_name)
            return (yield from with_many(without(desired, kept_aside), [one.key for one in found], releasing))

        def left(change: Change) -> Generator[None, None, None]:
            if self._state.sharing is not None:
                self._state.sharing.released(change.removed)
            return self._registrar.left(change)

        await self._state.writer.perform(step, (), left, by="admin")
        return lines

    async def import_legacy(self, items: Iterable[ImportedServer], token: str | None = None) -> list[str]:
        """Register old HAProxy servers as legacy registrations. A line for each, also for refused ones."""

        answers: list[tuple[ImportedServer, asyncio.Future[tuple[Change, bool]] | Refused]] = []
        async for item in in_turns(items, IMPORTED):
            try:
                one = imported_registration(item, self._state.desired.keyring, token, self._state.desired.static_rules.rules)
                answers.append((item, self._registrar.submit(one, None, takeover=False)))
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
        """Set the state of `FRONTEND/SERVER` or of a node's IP. A line for each server. Raises Refused NOT_FOUND.

        `seconds`: for how long; None: a day for a node, and without an end for a server.
        """
        return await self._overrule(target, f"{state}", seconds, state=state)

    async def set_weight(self, target: str, weight: int | None, seconds: float | None = None) -> list[str]:
        """Set a weight of 0-256; None: the registered or configured one. Otherwise like `set_admin`."""
        word = "default weight" if weight is None else f"weight {weight}"
        return await self._overrule(target, word, seconds, weight=weight)

    async def words(self) -> list[tuple[str, Override, list[str]]]:
        """Every override in force, with its target, its setting, and the servers that it affects now."""
        overrides = self._state.desired.overrides
        found = await stepwise(affected(self._state.publisher.table, overrides))
        return [
            (
                target if isinstance(target, str) else f"{target[0]}/{target[1]}",
                overrides[target],
                [f"{frontend.name}/{server.name}" for frontend, server in servers],
            )
            async for target, servers in in_turns(found.items(), WORDS)
        ]

    async def _overrule(self, target: str, word: str, seconds: float | None, **said: AdminState | int | None) -> list[str]:
        lines: list[str] = []
        node = "/" not in target
        seconds = NODE_WORD if seconds is None and node else seconds
        until = None if seconds is None else self._wall() + seconds

        def step(desired: DesiredState) -> Generator[None, None, Decision]:
            found = yield from find(self._state.publisher.table, target)
            yield
            places: list[OverrideTarget] = [(frontend.listen, server.address) for frontend, server in found]
            before = desired.overrides
            if node and said.get("state") is AdminState.READY:  # then overrides of its servers alone end too
                before = changed(before, [place for place in places if place in before], state=AdminState.READY, exempt=False)
            overrides = changed(before, [target] if node else places, until, **said)
            if not node and "state" in said:  # the narrower setting wins over one for the node
                out = {ip: old for ip, old in before.items() if isinstance(ip, str) and old.state is not AdminState.READY}
                by_node: dict[Override | None, list[OverrideTarget]] = {}
                for one, server in found:
                    taken_out = out.get(server.address.ip) if said["state"] is AdminState.READY else None
                    by_node.setdefault(taken_out, []).append((one.listen, server.address))
                for taken_out, some in by_node.items():
                    ends = until if taken_out is None else taken_out.until
                    overrides = changed(overrides, some, ends, exempt=taken_out is not None)
            yield
            lines[:] = [f"{word}: {frontend.name}/{_titled(server)}" for frontend, server in found]
            after = desired if overrides == desired.overrides else replace(desired, overrides=overrides)
            return after, Change(desired.claims, "updated", frozenset(frontend.listen for frontend, _ in found))

        def done(_change: Change) -> None:
            self._state.event_log.note("admin", "; ".join(lines))

        await self._state.writer.perform(step, (), done, by="admin")
        return lines


def _port(what: str) -> PortKey | None:
    """None: it is the name of a registration."""
    try:
        return parse_port_key(what)
    except ValueError:
        return None


def _is_meant(key: Key, one: UnsupportedEntry, port: PortKey | None, what: str) -> bool:
    """Whether `PORT` or `NAME[/INSTANCE]` names it. It is released as a whole, as this version cannot divide it."""
    name, _, instance = what.partition("/")
    return port in one.ports if port is not None else one.name == name and instance in ("", key.instance)


def _named(claims: Claims, what: str) -> tuple[Registration, ...]:
    name, _, instance = what.partition("/")
    held = claims.registrations.values()
    return tuple(one for one in held if one.name == name and instance in ("", one.key.instance))


def _titled(server: Server) -> str:
    """Its label, and its address if that is a different text."""
    return server.name if server.name == server.address.without_protocol else f"{server.name} ({server.address})"
