"""From the claims to the table in force, in steps: a thousand frontends are a tenth of a second of work.

One batch is one swap, however many steps its preparation took: until then the old table and desired state are in force, then
the new ones. Only the sink takes a large table in slices, before the calls are answered. Changes of health have swaps of their
own, which wait for the end of a batch that is under way.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from pylb.control.desired_state import DesiredState, Sink
from pylb.control.event_log import EventLog
from pylb.control.health.checker import Checker
from pylb.control.steps import in_turns, let_loop_run
from pylb.control.storage.table_history import TableHistory
from pylb.core.address import Listen
from pylb.core.claims import with_ports
from pylb.core.compose import ServerStates, all_listens, compose_frontend, compose_table
from pylb.core.table import Frontend, Table
from pylb.core.table_diff import ChangeLine, changes, in_order, lines

FRONTENDS = 20  # composed, watched or described between two turns of the loop: with ten servers each, 1 ms


class Publisher:
    """`desired` and `table` are in force."""

    def __init__(
        self,
        desired: DesiredState,
        sink: Sink,
        *,
        checker: Checker,
        event_log: EventLog,
        history: TableHistory,
        clock: Callable[[], float],
    ) -> None:
        self.desired = desired
        self.table = Table()
        self.unbound: dict[Listen, str] = {}  # ports of the table that are not open, with the reason
        self.apply_seconds = 0.0  # of the last swap
        self._sink = sink
        self._checker = checker
        self._event_log = event_log
        self._history = history
        self._clock = clock
        self._under_way = False
        self._health_changes: dict[Listen, None] = {}  # frontends whose servers went down, came back or were proven

    async def planned(self, base: Table, desired: DesiredState, touched: Iterable[Listen]) -> tuple[Table, list[ChangeLine]]:
        """The table that `desired` would give after `base`, and the differences between the two."""
        table = compose_table(base, await self._made_in_turns(base, desired, with_ports(touched)))
        return table, await _lines(base, table)

    async def publish(self, desired: DesiredState, touched: Iterable[Listen] | None, by: Iterable[str]) -> None:
        """Put `desired` in force, and the table that follows from it. One caller at a time."""
        self._under_way = True
        try:
            base = self.table
            listens = all_listens(desired.claims, desired.static_rules, base) if touched is None else with_ports(touched)
            made = await self._made_in_turns(base, desired, listens)
            touched = list(made)
            await self._swap_in_turns(desired, made)
            await self._follow(base, touched, by)
        finally:
            self._under_way = False
            self._apply_health_soon()

    def health_changed(self, listens: Iterable[Listen]) -> None:
        """Called by the checker when it has news, maybe from inside the engine's turn; the swap waits for a later turn."""
        quiet = not self._health_changes
        self._health_changes.update(dict.fromkeys(listens))
        if quiet and not self._under_way:
            self._apply_health_soon()

    def _apply_health_soon(self) -> None:
        if self._health_changes:
            asyncio.get_running_loop().call_soon(self._apply_health)

    def _apply_health(self) -> None:
        """Apply some of the news, so that a node with a thousand servers delays nobody."""
        if self._under_way:
            return  # `publish` does it when it ends
        some = list(self._health_changes)[:FRONTENDS]
        for listen in some:
            del self._health_changes[listen]
        self._apply_health_soon()  # before anything that may fail: else the rest would wait for the next news
        base = self.table
        desired, server_states = self.desired, self._server_states(self.desired)
        before = {listen: base.frontends.get(listen) for listen in some}
        made = {
            listen: compose_frontend(desired.claims, desired.static_rules, server_states, listen, one)
            for listen, one in before.items()
        }
        self._swap(desired, {listen: one for listen, one in made.items() if one is not before[listen]})
        if self.table is not base:
            self._checker.sync(self.table, self.table.touched)
            self._history.note(self.table.generation, ["health"], lines(base, self.table))

    async def _made_in_turns(
        self, base: Table, desired: DesiredState, listens: Iterable[Listen]
    ) -> dict[Listen, Frontend | None]:
        """The frontends that differ from those in `base`, made in steps."""
        made: dict[Listen, Frontend | None] = {}
        server_states = self._server_states(desired)
        async for listen in in_turns(listens, FRONTENDS):
            before = base.frontends.get(listen)
            one = compose_frontend(desired.claims, desired.static_rules, server_states, listen, before)
            if one is not before:
                made[listen] = one
        return made

    def _server_states(self, desired: DesiredState) -> ServerStates:
        return self._checker.health_records.server_states(desired.overrides)

    def _swap(self, desired: DesiredState, made: Mapping[Listen, Frontend | None], served: Table | None = None) -> None:
        """Swap the table. `served`: the table in force with the other changes, which the sink already has."""
        started = self._clock()
        self.desired = desired
        if made:
            self.table = (served or self.table).edited(self.table.generation + 1, made)
            self.apply()
            self.apply_seconds = self._clock() - started

    async def _swap_in_turns(self, desired: DesiredState, made: dict[Listen, Frontend | None]) -> None:
        """Up to FRONTENDS changes are one swap. With more, the sink serves some before others, which clients cannot tell from a
        small delay. Closing comes first, because what opens may need the place."""
        table = self.table
        order = sorted(made, key=lambda listen: (made[listen] is not None, listen))  # a port before its routes
        for start in range(0, len(order) - FRONTENDS, FRONTENDS):
            table = table.edited(
                self.table.generation + 1, {listen: made.pop(listen) for listen in order[start : start + FRONTENDS]}
            )
            self._sink.apply(table)
            await let_loop_run()
        self._swap(desired, made, table)

    async def _follow(self, base: Table, touched: Iterable[Listen], by: Iterable[str]) -> None:
        """Tell the other parts about the new table, in steps, since no client's connection depends on it."""
        table = self.table
        if table is base:
            return
        touched = frozenset(touched)
        whole = table
        if table.since is not base.mark:  # it was made in slices: compared with `base` at once
            whole = replace(table, since=base.mark, touched=touched)
        async for _ in in_turns(self._checker.syncing(table, touched), FRONTENDS):
            pass
        self._history.note(table.generation, by, await _lines(base, whole))

    def apply(self) -> None:
        """Pass the table to the sink; or again the one in force, to retry ports that are not open."""
        failed = {listen: error.strerror or str(error) for listen, error in self._sink.apply(self.table).items()}
        for listen in failed.keys() - self.unbound.keys():
            self._event_log.note("unbound", f"{listen} cannot be opened: {failed[listen]}; retried", alarm=True)
        for listen in self.unbound.keys() - failed.keys():
            if listen in self.table.frontends:
                self._event_log.note("bound", f"{listen} is open now")
        self.unbound = failed


async def _lines(old: Table, new: Table) -> list[ChangeLine]:
    """Like table_diff.lines, in steps."""
    found: list[ChangeLine] = []
    async for group in in_turns(changes(old, new), FRONTENDS):
        found += group
    return in_order(found)
