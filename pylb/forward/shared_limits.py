"""Limits that hold over several processes: each reports to the others how much of a limited frontend, server or source it uses.

Reports are sent once a tick and contain only what changed. So the others may exceed a limit by what they admit within about
two ticks (0.2 s), and frontends without a limit cost nothing. Two things are not shared: the limit of a process's own
descriptors, and the queue, whose order is that of each process.

Why a worker does not simply get its share, limit / workers: the kernel deals out connections by a hash, so one worker would
refuse clients while others have room, most of all those of one source; and `max_connections: 1` of a server would become one
for each worker.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from pylb.core.address import Listen
from pylb.core.rate_limits import SourceLimiter
from pylb.forward.dial import Dialer
from pylb.forward.listener import ListeningPorts
from pylb.forward.session import FrontendState


class FrontendUse(NamedTuple):
    """What one process uses of a limited frontend. `accepted` and `entered` count from one report to the next."""

    listen: Listen
    sessions: int
    accepted: int
    servers: dict[str, int]  # sessions, by address; of servers with a limit
    sources: dict[bytes, tuple[int, int]]  # live and entered sessions, of those sources that changed


class _ProcessUse:
    """What another process uses of a frontend."""

    def __init__(self) -> None:
        self.sessions = 0
        self.servers: dict[str, int] = {}
        self.sources: dict[bytes, int] = {}


class OtherProcesses:
    """What the other processes use, for one engine. A number identifies each process."""

    def __init__(self, ports: ListeningPorts, dialer: Dialer, find: Callable[[Listen], FrontendState | None]) -> None:
        """`find`: what serves a port or a route."""
        self._ports = ports
        self._dialer = dialer
        self._find = find
        self._limited: dict[Listen, FrontendState] = {}
        self._others: dict[int, dict[Listen, _ProcessUse]] = {}
        self._reported: dict[Listen, tuple[int, dict[str, int]]] = {}

    def follow(self, touched: Iterable[Listen]) -> None:
        """A new table is in force; only these ports may differ."""
        for listen in touched:
            frontend = self._find(listen)
            if frontend is None:
                for known in self._others.values():
                    known.pop(listen, None)
            if frontend is not None and _is_limited(frontend):
                self._limited[listen] = frontend
                self._apply(listen)
            else:
                self._limited.pop(listen, None)
                self._reported.pop(listen, None)

    def uses(self, *, whole: bool = False) -> tuple[FrontendUse, ...]:
        """What changed since the last report; `whole`: everything, for a process that has no report yet."""
        found = []
        for listen, frontend in self._limited.items():
            servers = {state.identity: state.sessions for state in frontend.servers.values() if state.server.max_connections}
            sources = frontend.admission_rules.sources if frontend.admission_rules is not None else None
            changed = _changed(sources, whole=whole)
            accepted, frontend.accepted = frontend.accepted, 0
            mark = (frontend.counters.sessions, servers)
            if whole or accepted or changed or self._reported.get(listen) != mark:
                self._reported[listen] = mark
                found.append(FrontendUse(listen, frontend.counters.sessions, accepted, servers, changed))
        return tuple(found)

    def take_report(self, process: int, uses: tuple[FrontendUse, ...], now: float) -> None:
        """Apply the report of another process. `now` is the clock's."""
        known = self._others.setdefault(process, {})
        for use in uses:
            others = known.setdefault(use.listen, _ProcessUse())
            others.sessions, others.servers = use.sessions, use.servers
            for source, (live, _) in use.sources.items():
                if live:
                    others.sources[source] = live
                else:
                    others.sources.pop(source, None)
            frontend = self._limited.get(use.listen)
            if frontend is not None:
                self._spend(frontend, use, now)
                self._apply(use.listen)

    def forget(self, process: int) -> None:
        """That process and its sessions are gone. Idempotent."""
        for listen in self._others.pop(process, {}):
            if listen in self._limited:
                self._apply(listen)

    def _spend(self, frontend: FrontendState, use: FrontendUse, now: float) -> None:
        """Rates: what the others admitted is used up here too."""
        if frontend.frontend.policy.limits.rate:
            frontend.allowance -= use.accepted
        if frontend.admission_rules is not None and (sources := frontend.admission_rules.sources) is not None:
            for source, (_, entered) in use.sources.items():
                sources.spend(source, entered, now)

    def _apply(self, listen: Listen) -> None:
        """Apply what the others use together, and admit those that waited for them to use less."""
        frontend = self._limited[listen]
        others = [known[listen] for known in self._others.values() if listen in known]
        frontend.others = sum(one.sessions for one in others)
        for state in frontend.servers.values():
            if state.server.max_connections:
                state.allow(state.server.max_connections - sum(one.servers.get(state.identity, 0) for one in others))
        if frontend.admission_rules is not None and (sources := frontend.admission_rules.sources) is not None:
            sources.elsewhere = [one.sources for one in others]
        self._dialer.make_room(frontend)
        for one in self._ports.of(listen):
            if not one.watched:
                self._ports.rewatch(one)


def _is_limited(frontend: FrontendState) -> bool:
    policy = frontend.frontend.policy
    at_the_port = policy.max_connections or policy.limits.rate or policy.limits.by_source
    if at_the_port and not frontend.frontend.listen.server_name:  # a route has the clients that its port admitted
        return True
    return any(server.max_connections for server in frontend.frontend.servers)


def _changed(sources: SourceLimiter | None, *, whole: bool) -> dict[bytes, tuple[int, int]]:
    if sources is None:
        return {}
    entered = sources.changed or {}
    if whole or sources.changed is None:  # from now on the source counters record changes
        entered = dict.fromkeys(sources.live, 0) | entered
    sources.changed = {}
    return {source: (sources.live.get(source, 0), count) for source, count in entered.items()}
