"""The operator's rules and tokens in force: reloads, changed addresses of this machine, and plans of a reload's effect.

A plan takes the same steps as its reload, without effect.
"""

from collections.abc import Callable, Collection, Generator, Mapping
from dataclasses import replace
from functools import partial

from pylb.control.desired_state import Decision, DesiredState
from pylb.control.health.dry_run import failing
from pylb.control.health.prober import Ask
from pylb.control.health.resolver import FIRST_LOOK
from pylb.control.publisher import FRONTENDS
from pylb.control.replaced_tokens import passed_on
from pylb.control.state import ControlState
from pylb.control.steps import in_turns, stepwise
from pylb.core.address import Address, PortKey, port_text
from pylb.core.auth import Keyring
from pylb.core.loops import looping
from pylb.core.operator_overrides import checked
from pylb.core.ownership import Change, adopting
from pylb.core.policy import Rules, StaticServer
from pylb.core.registration import Key
from pylb.core.static_rules import StaticRules
from pylb.core.table import Diff, Table, as_diff, compared
from pylb.core.table_diff import ChangeLine

NAMED = 5  # ports in a sentence
LOOKS = 500  # registrations that one step looks at: 0.5 ms


class RulesInForce:
    def __init__(self, state: ControlState, ask: Ask) -> None:
        self._state = state
        self._ask = ask

    async def set_keyring(self, keyring: Keyring) -> None:
        """Replace the tokens but not the rules. Registrations of a removed token stay, and become stale."""

        before, moved = self._state.desired.keyring, dict[Key, Key]()

        def step(desired: DesiredState) -> tuple[DesiredState, Change]:
            after, change, keys = passed_on(replace(desired, keyring=keyring))
            moved.update(keys)
            return after, change

        await self._state.writer.perform(step, (), partial(self._with_tokens, before, keyring, moved), by="reload")

    def _with_tokens(self, before: Keyring, after: Keyring, moved: Mapping[Key, Key], _change: Change) -> None:
        self._state.leases.pass_on(moved)
        self._state.event_texts.tokens(before, after, moved, self._state.desired.claims)

    async def readdress(self, own_ips: frozenset[str]) -> None:
        """Note the new addresses and names of this machine. Servers that lead back to pylb itself go out of service, and those
        that no longer do come back. Raises Refused if pylb is stopping."""

        def step(desired: DesiredState) -> Generator[None, None, Decision]:
            before, static_rules = (
                desired.static_rules,
                StaticRules(replace(desired.static_rules.rules, own_ips=own_ips), self._state.resolver.answers),
            )
            yield
            changed = before.own_ips ^ own_ips
            touched = {listen for listen, one in static_rules.frontends.items() if one != before.frontends.get(listen)}
            touched |= {
                listen for listen, one in static_rules.frontends.items() if any(_ip(line) in changed for line in one.servers)
            }
            for number, one in enumerate(desired.claims.registrations.in_any_order()):
                if number % LOOKS == 0:
                    yield
                if not changed.isdisjoint(one.ips) or any(old.address.ip in changed for old in one.displaced):
                    touched.update(one.places)
            yield
            return replace(desired, static_rules=static_rules), Change(desired.claims, "updated", frozenset(touched))

        if own_ips != self._state.desired.static_rules.own_ips:
            await self._state.writer.perform(
                step, (), lambda _change: self._state.event_texts.loops(self._state.desired), by="addresses"
            )

    async def reload(self, rules: Rules, keyring: Keyring) -> Diff:
        """Put new rules and tokens in force, all or none. Returns what changed in the table. Raises Refused."""
        await self._state.resolver.first_look(rules.hosts, FIRST_LOOK)
        before, tokens, moved = self._state.publisher.table, self._state.desired.keyring, dict[Key, Key]()

        def done(change: Change) -> Generator[None, None, None]:
            self._with_tokens(tokens, keyring, moved, change)
            self._state.follow(rules)
            self._state.resolver.follow(rules.hosts, rules.resolve_interval)
            text = f"static frontends: {len(rules.frontends)}, tokens: {len(keyring.tokens)}"
            self._state.event_log.note("reloaded", text)
            yield from self._state.event_texts.loops(self._state.desired)

        await self._state.writer.perform(self._reloading(rules, keyring, moved), (), done, by="reload")
        pairs = in_turns(compared(before, self._state.publisher.table), FRONTENDS)
        return as_diff([pair async for pair in pairs])

    def _reloading(
        self, rules: Rules, keyring: Keyring, moved: dict[Key, Key]
    ) -> Callable[[DesiredState], Generator[None, None, Decision]]:
        """`moved` is filled with the registrations that belong to another token afterwards."""

        def step(desired: DesiredState) -> Generator[None, None, Decision]:
            static_rules = StaticRules(rules, self._state.resolver.answers)
            yield
            before = StaticRules(replace(desired.static_rules.rules, own_ips=rules.own_ips), self._state.resolver.answers)
            yield
            looped = yield from looping(desired.claims, before)
            yield
            change = yield from adopting(desired.claims, static_rules, looped)
            yield
            touched = change.touched | desired.static_rules.frontends.keys() | static_rules.frontends.keys()
            overrides = yield from checked(desired.overrides, change.claims, static_rules)
            after = replace(desired, claims=change.claims, static_rules=static_rules, keyring=keyring, overrides=overrides)
            after, given, keys = passed_on(after)
            moved.update(keys)
            return after, Change(given.claims, change.result, touched | given.touched)

        return step

    async def plan(self, rules: Rules, keyring: Keyring) -> tuple[Table, list[ChangeLine]]:
        """The table that `reload` would give, and what it would change. Raises Refused as it would."""
        base = self._state.publisher.table
        desired, change = await stepwise(self._reloading(rules, keyring, {})(self._state.desired))
        return await self._state.publisher.planned(base, desired, change.touched)

    def plan_for_others(self, rules: Rules) -> list[str]:
        """What a reload means for the balancers that share the table: they register nothing on ports of this config."""
        if self._state.sharing is None:
            return []
        before, after = self._state.desired.static_rules.own_ports, StaticRules(rules, self._state.resolver.answers).own_ports
        return [
            f"{_ports(ports)}: {text}"
            for ports, text in (
                (after - before, "from then on no balancer accepts registrations there, because this config has it"),
                (before - after, "from then on registrations may be there again, unless the config of another balancer has it"),
            )
            if ports
        ]

    async def plan_checks(self, planned: Table) -> list[ChangeLine]:
        """The servers that this table would put out of service, because they do not pass their check now."""
        return await failing(planned.frontends.values(), self._ask)


def _ports(ports: Collection[PortKey]) -> str:
    named = ", ".join(port_text(number, protocol) for protocol, number in sorted(ports)[:NAMED])
    more = f", and {len(ports) - NAMED} more" if len(ports) > NAMED else ""
    return f"port{'s' if len(ports) > 1 else ''} {named}{more}"


def _ip(line: StaticServer) -> str:
    return line.address.ip if isinstance(line.address, Address) else ""
