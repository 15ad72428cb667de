"""The sum of all workers' counters: the last report of each, and the totals of those that are gone."""

from collections import Counter
from typing import Any

from pylb.control.steps import in_turns
from pylb.core.address import Listen
from pylb.core.table import Diff, Frontend, Table
from pylb.forward.counters import Counters, FrontendCounters
from pylb.workers.messages import PIECE, CountsByListen, FrontendCount, Report, add, frontend_count

# Fields of Counters and Report that stay when their process is gone, and those that do not.
_SINCE_THE_START = ("faults", "pipe_fallbacks", "bytes_spliced")
_NOW = ("buffered", "pipes_lent", "runnable", "open_flows")


class Totals:
    """A source is a process that counts, identified by its pid: a worker, or the previous pylb after an upgrade."""

    def __init__(self) -> None:
        self._frontends: dict[int, dict[Listen, FrontendCount]] = {}
        self._reports: dict[int, Report] = {}
        self._gone: dict[Listen, FrontendCounters] = {}  # added up
        self._ended: Counter[str] = Counter()  # the sums of _SINCE_THE_START over processes that are gone
        self._accept_errors: Counter[str] = Counter()

    def heard(self, source: int, report: Report) -> None:
        """Take over a source's report. Raises BadFrame if its form is wrong."""
        known = self._frontends.setdefault(source, {})
        for one in report.frontends:
            add(FrontendCounters(one.name), one)  # raises if its form is wrong
            known[one.listen] = one
        self._reports[source] = report

    def open_sessions(self, source: int | None = None) -> int:
        """The number of live sessions, by the last reports, of all sources or of one."""
        if source is not None:
            return self._reports[source].open_sessions if source in self._reports else 0
        return sum(report.open_sessions for report in self._reports.values())

    def lag(self, source: int) -> float:
        """The lag of a worker's loop in its last report, in seconds."""
        return self._reports[source].lag if source in self._reports else 0.0

    def retire(self, source: int) -> None:
        """The source is gone: its totals remain, its live sessions do not. Idempotent."""
        for listen, one in self._frontends.pop(source, {}).items():
            add(self._gone.setdefault(listen, FrontendCounters(one.name)), one, live=False)
        report = self._reports.pop(source, None)
        if report is not None:
            for name in _SINCE_THE_START:
                self._ended[name] += getattr(report, name)
            self._accept_errors.update(report.accept_errors)

    def follow(self, table: Table, change: Diff) -> None:
        """Drop the counters of removed frontends, and of removed server labels. `change`: what is new in the table."""
        counts: list[dict[Listen, Any]] = [*self._frontends.values(), self._gone]
        for known in counts:
            for closed in change.closed:
                known.pop(closed.listen, None)
            if len(known) > len(table.frontends):  # a late report has brought some back
                for listen in [listen for listen in known if listen not in table.frontends]:
                    del known[listen]
        for _, new in change.changed:
            if new.listen in self._gone:
                self._follow(self._gone[new.listen], new)

    @staticmethod
    def _follow(gone: FrontendCounters, frontend: Frontend) -> None:
        labels = {server.name for server in frontend.servers} | {""}
        for label in gone.servers.keys() - labels:
            gone.forgotten += gone.servers.pop(label).closed.total()

    def parts(self) -> list[CountsByListen]:
        """Each source's last report, and the totals of those that are gone."""
        return [*self._frontends.values(), self._gone]

    async def added(self, base: Counters) -> Counters:
        """`base` plus all of these counts, for the frontends of `base`, in steps: each frontend takes 20 µs."""
        total = Counters(base.max_connections)
        async for listen, own in in_turns(list(base.frontends.items()), PIECE):
            into = total.frontends[listen] = FrontendCounters(own.name)
            add(into, frontend_count(listen, own))
            if (gone := self._gone.get(listen)) is not None:
                add(into, frontend_count(listen, gone))
            for known in self._frontends.values():
                if listen in known:
                    add(into, known[listen])
        total.open_sessions = base.open_sessions + self.open_sessions()
        total.accept_errors = base.accept_errors + self._accept_errors
        for report in self._reports.values():
            total.accept_errors.update(report.accept_errors)
        for name in _SINCE_THE_START + _NOW:
            reported = sum([getattr(report, name) for report in self._reports.values()])
            setattr(total, name, getattr(base, name) + self._ended[name] + reported)
        return total
