"""All metrics, read from the engine's ints and the registry's views at the moment of a scrape (names: docs/metrics.md).

Nothing is counted here. A thousand frontends have 50,000 samples, a quarter of a second of work: families come in parts, and
the loop runs between them.
"""

import asyncio
import platform
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from functools import cache
from itertools import accumulate, chain

from prometheus_client.metrics_core import Metric
from prometheus_client.utils import floatToGoString

from pylb import __version__
from pylb.control.registry import Registry
from pylb.control.steps import in_turns
from pylb.control.views import routes_of_ports
from pylb.core.address import UDP
from pylb.core.errors import Code
from pylb.core.registration import State
from pylb.core.table import DOWN, Frontend, Table
from pylb.forward.counters import Counters, FrontendCounters, Histogram, ServerCounters
from pylb.host.machine import local_addresses
from pylb.metrics.cluster import cluster_families
from pylb.metrics.families import PART, Buckets, Row, Scrape, counter, gauge, histogram, simple
from pylb.metrics.flows import datagram_families, denial_reasons
from pylb.metrics.process import ProcessUsage, process_usage

Families = Iterator[Metric]


class Metrics:
    """What a scrape exports about pylb. The app passes values that belong to no module as callables."""

    def __init__(
        self,
        *,
        counters: Callable[[], Awaitable[Counters]],
        registry: Registry,
        lines_dropped: Callable[[], int],
        processes: Callable[[], Mapping[str, tuple[int, float]]],  # pid and loop lag in seconds, by name
        reloaded: Callable[[], bool],  # did the last reload of the config succeed?
        certificate_expires_at: Callable[[], float | None] = lambda: None,  # unix time; None without TLS
        insecure: Callable[[], bool] = lambda: False,  # is a webhook without TLS beyond loopback?
        worker_restarts: Callable[[], int] = lambda: 0,
        reopen_failures: Callable[[], int] = lambda: 0,  # of the log's file
        floating: Callable[[], Collection[str]] = tuple,  # the floating addresses
    ) -> None:
        self._counters = counters
        self._registry = registry
        self._lines_dropped = lines_dropped
        self._processes = processes
        self._reloaded = reloaded
        self._certificate_expires_at = certificate_expires_at
        self._insecure = insecure
        self._worker_restarts = worker_restarts
        self._started_at = time.time()
        self._reopen_failures = reopen_failures
        self._floating = floating

    async def scrape(self) -> Scrape:
        """Values that come from many views are collected here, in steps; the rest when the scrape is written."""
        counted, processes = await self._counters(), self._processes()
        found = await asyncio.to_thread(process_usage, {name: pid for name, (pid, _) in processes.items()})
        # Copied and grouped first: while the loop runs, frontends come and go. Names are unique only by intent, and one
        # duplicate series would cost the whole scrape: the values of equal names are added up.
        frontends: dict[str, list[FrontendCounters]] = defaultdict(list)
        for counters in counted.frontends.values():
            frontends[counters.name].append(counters)
        return Scrape(
            chain(
                _traffic(frontends, self._registry.table),
                datagram_families(frontends),
                _servers(frontends),
                await self._frontends(),
                await self._servers_up(),
                await self._registrations(),
                await self._addresses(),
                self._control(),
                cluster_families(self._registry.cluster()),
                self._process(counted),
                _processes(processes, found),
            )
        )

    async def _frontends(self) -> Families:
        """What control knows about frontends."""
        registry, label = self._registry, ("frontend",)
        unbound = registry.unbound()
        routes = routes_of_ports(registry.table)
        usable, is_open, most, closing = Counter[str](), dict[str, bool](), Counter[str](), dict[str, float]()
        async for one in in_turns(registry.table.frontends.values(), PART):
            name = one.name
            if one.servers or not routes[one.listen]:
                usable[name] += sum(server.rank < DOWN for server in one.servers)
            is_open[name] = is_open.get(name, True) and one.listen not in unbound
            if one.policy.max_connections:
                most[name] += one.policy.max_connections
            if (end := registry.closes_at(one.listen)) is not None:
                closing[name] = end
        return chain(
            gauge("pylb_frontend_usable_servers", "Servers of a frontend that are in service.", label, simple(usable)),
            gauge("pylb_frontend_open", "1 if the port is open; if not, pylb tries again.", label, simple(is_open)),
            gauge("pylb_frontend_max_connections", "Limit of sessions, for a frontend that has one.", label, simple(most)),
            gauge(
                "pylb_frontend_closes_timestamp_seconds",
                "When the port closes, because none of its registrations calls any more, unix time.",
                label,
                simple(closing),
            ),
        )

    async def _servers_up(self) -> Families:
        up: dict[tuple[str, str], bool] = {}
        async for view in in_turns(self._registry.each_server(), PART):
            if view.tried and not view.not_missed:
                place = view.frontend, view.server
                up[place] = up.get(place, True) and view.state != "down" and not view.silent
        text = "0 if a server is out of service or has accepted nothing yet."
        return gauge("pylb_server_up", text, ("frontend", "server"), up.items())

    async def _registrations(self) -> Families:
        states, leases = Counter[str](), dict[tuple[str, str], float]()
        owners: dict[tuple[str, str, str, str], int] = {}  # a port has several only by routes, and instances share theirs
        async for view in in_turns(self._registry.each_registration(), PART):
            states[view.state] += 1
            for wanted in view.frontends:
                port = f"{wanted.port}-{wanted.last}" if wanted.last else str(wanted.port)
                owners[port, wanted.protocol, view.token, view.name] = 1
            if view.expires_at_wall is not None and not view.goodbye:  # a lease that ended after a goodbye is expected
                place = (view.name, view.instance)  # two tokens may share it: the lease that ends first matters
                leases[place] = min(view.expires_at_wall, leases.get(place, view.expires_at_wall))
        return chain(
            gauge("pylb_registrations", "Registrations by state.", ("state",), simple({s: states[s] for s in State})),
            gauge(
                "pylb_lease_expires_timestamp_seconds",
                "When the lease of a registration ends, unix time.",
                ("name", "instance"),
                leases.items(),
            ),
            gauge(
                "pylb_frontend_owner_info",
                "Who has a registered port; what balancers with the same clients should agree about.",
                ("port", "protocol", "token", "name"),
                owners.items(),
            ),
        )

    async def _addresses(self) -> Families:
        """Looked up now: who has a floating address may change between any two scrapes."""
        floating = self._floating()
        own = await asyncio.to_thread(local_addresses) if floating else frozenset[str]()
        held = {address: address in own for address in floating}
        return gauge("pylb_address_held", "1 if this machine has the floating address.", ("address",), simple(held))

    def _control(self) -> Families:
        registry = self._registry
        yield from counter(
            "pylb_registrations_total",
            "Calls of phone-homes by result.",
            ("result",),
            simple(dict(registry.registrations_total)),
        )
        # All codes from the start on: a series that begins at 1 has no increase that Prometheus could see.
        refused = {str(code): registry.refused_total.get(str(code), 0) for code in Code}
        yield from counter("pylb_calls_refused_total", "Refused calls by error code.", ("reason",), simple(refused))
        uses = registry.calls.legacy_uses()
        yield from counter(
            "pylb_legacy_calls_total",
            "Accepted calls of the legacy protocol.",
            ("token",),
            simple({t: u.calls for t, u in uses.items()}),
        )
        yield from gauge(
            "pylb_legacy_last_call_timestamp_seconds",
            "When the last call of the legacy protocol was accepted, unix time.",
            ("token",),
            simple({token: use.last_at for token, use in uses.items()}),
        )
        yield from gauge(
            "pylb_leases_preserved",
            "1 while most phone-homes are silent at once, so that none becomes stale.",
            value=registry.preserving,
        )
        yield from gauge(
            "pylb_standby",
            "1 while this pylb is on standby, so that another one has the floating address.",
            value=registry.standby.left > 0,
        )
        yield from gauge("pylb_table_generation", "Generation of the table in force.", value=registry.table.generation)
        yield from gauge(
            "pylb_table_apply_seconds", "Seconds that it took to apply the last table.", value=registry.apply_seconds
        )
        yield from counter(
            "pylb_checks_total", "Checks of servers, including connects that prove a new one.", value=registry.checks
        )
        yield from gauge(
            "pylb_check_lag_seconds",
            "How late the check is that has waited longest; above 1,000 checks a second, intervals stretch.",
            value=registry.check_lag,
        )
        yield from counter("pylb_state_write_failures_total", "Failed writes of the snapshot.", value=registry.write_failures)
        yield from gauge("pylb_state_durable", "1 if all that was answered is on disk.", value=registry.durable)

    def _process(self, counters: Counters) -> Families:
        labels = {"version": __version__, "python": platform.python_version()}
        yield from gauge("pylb_build_info", "Version of pylb.", tuple(labels), [(tuple(labels.values()), 1)])
        yield from gauge(
            "pylb_config_last_reload_successful", "1 if the config in force is the one on disk.", value=self._reloaded()
        )
        yield from gauge("pylb_webhook_insecure", "1 if tokens travel in plain HTTP beyond loopback.", value=self._insecure())
        if (expires_at := self._certificate_expires_at()) is not None:
            yield from gauge(
                "pylb_certificate_expiry_timestamp_seconds",
                "When the webhook's certificate expires, unix time.",
                value=expires_at,
            )
        yield from gauge("pylb_start_time_seconds", "When pylb started, unix time.", value=self._started_at)
        yield from gauge("pylb_sessions", "Live sessions of all frontends, also of removed ones.", value=counters.open_sessions)
        if any(one.datagrams is not None for one in counters.frontends.values()):
            yield from gauge("pylb_flows", "Live flows of UDP, also of removed frontends.", value=counters.open_flows)
        yield from gauge(
            "pylb_max_connections",
            "Limit of live sessions, over all workers. A quarter of it is divided among the frontends.",
            value=counters.max_connections,
        )
        yield from counter(
            "pylb_faults_total",
            "Bugs of pylb in forwarding; each ended at most one session.",
            value=counters.faults,
        )
        yield from counter(
            "pylb_task_failures_total",
            "Failures of background tasks, which pylb starts again.",
            ("task",),
            simple(dict(self._registry.task_failures)),
        )
        yield from counter(
            "pylb_log_lines_dropped_total", "Log lines dropped because nobody took them in time.", value=self._lines_dropped()
        )
        yield from counter(
            "pylb_log_reopen_failures_total",
            "Times the log's file could not be opened again.",
            value=self._reopen_failures(),
        )
        yield from counter("pylb_worker_restarts_total", "Workers that ended and were replaced.", value=self._worker_restarts())
        yield from counter(
            "pylb_accept_errors_total", "Accepts that failed, by errno.", ("reason",), simple(dict(counters.accept_errors))
        )
        yield from counter(
            "pylb_pipe_fallbacks_total",
            "Times that bulk continued with recv and send for lack of a pipe.",
            value=counters.pipe_fallbacks,
        )
        yield from gauge("pylb_buffered_bytes", "Bytes that wait for blocked destinations.", value=counters.buffered)


def _processes(processes: Mapping[str, tuple[int, float]], found: Mapping[str, ProcessUsage]) -> Families:
    label, limit = ("process",), resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    def of(read: Callable[[ProcessUsage], float | None]) -> Iterator[Row]:
        return simple({name: value for name, one in found.items() if (value := read(one)) is not None})

    lags = simple({name: lag for name, (_, lag) in processes.items()})
    yield from gauge("pylb_loop_lag_seconds", "Worst recent delay of a process's event loop.", label, lags)
    yield from gauge("pylb_open_fds", "Open file descriptors of a process.", label, of(lambda one: one.open_fds))
    yield from gauge("pylb_max_fds", "Limit of file descriptors of a process.", label, of(lambda _: limit))
    yield from counter(
        "pylb_cpu_seconds_total", "CPU time of a process, user and system.", label, of(lambda one: one.cpu_seconds)
    )
    yield from gauge("pylb_resident_memory_bytes", "Memory of a process.", label, of(lambda one: one.resident_bytes))


Grouped = Mapping[str, list[FrontendCounters]]


def _traffic(frontends: Grouped, table: Table) -> Families:
    label = ("frontend",)

    def summed(read: Callable[[FrontendCounters], int]) -> Iterator[Row]:
        return (((name,), sum(map(read, group))) for name, group in frontends.items())

    yield from gauge("pylb_frontend_sessions", "Live sessions.", label, summed(lambda f: f.sessions))
    yield from gauge("pylb_frontend_queue", "Sessions that wait for a server with room.", label, summed(lambda f: f.queued))
    yield from counter("pylb_frontend_sessions_total", "Accepted sessions.", label, summed(lambda f: f.sessions_total))
    yield from counter(
        "pylb_bytes_total", "Bytes from clients (in) and to clients (out).", ("frontend", "direction"), _bytes(frontends)
    )
    yield from counter("pylb_frontend_denied_total", "Refused clients.", ("frontend", "reason"), _denied(frontends, table))
    yield from histogram(
        "pylb_connect_duration_seconds",
        "Time until a server accepted.",
        label,
        _buckets(frontends, lambda f: f.connect_seconds),
    )
    yield from histogram(
        "pylb_session_duration_seconds", "Length of ended sessions.", label, _buckets(frontends, lambda f: f.session_seconds)
    )


def _servers(frontends: Grouped) -> Families:
    place = ("frontend", "server")
    yield from gauge(
        "pylb_server_sessions",
        "Live sessions that a server has accepted.",
        place,
        _per_server(frontends, lambda server: server.sessions),
    )
    yield from counter(
        "pylb_server_sessions_total",
        "Sessions that a server has accepted.",
        place,
        _per_server(frontends, lambda server: server.sessions_total),
    )
    yield from counter(
        "pylb_sessions_closed_total",
        "Ended sessions by HAProxy's two letters.",
        (*place, "code"),
        _by_word(frontends, lambda server: server.closed),
    )
    yield from counter(
        "pylb_connect_failures_total",
        "Failed connects by reason.",
        (*place, "reason"),
        _by_word(frontends, lambda server: server.failures),
    )


def _bytes(frontends: Grouped) -> Iterator[Row]:
    for name, group in frontends.items():
        yield (name, "in"), sum(f.bytes_in for f in group)
        yield (name, "out"), sum(f.bytes_out for f in group)


def _denied(frontends: Grouped, table: Table) -> Iterator[Row]:
    """Includes reasons that have not occurred yet: a series that begins at 1 has no increase that Prometheus could see."""
    possible: dict[str, set[str]] = {}
    routes = routes_of_ports(table)
    for one in table.frontends.values():
        udp = one.listen.protocol == UDP
        if reasons := denial_reasons(one.policy) if udp else _reasons(one, routes[one.listen]):
            possible.setdefault(one.name, set()).update(reasons)
    for name, group in frontends.items():
        counts = sum((f.denied for f in group), Counter[str]())
        for reason in sorted(counts.keys() | possible.get(name, set())):
            yield (name, reason), counts[reason]


def _reasons(frontend: Frontend, routes: int) -> list[str]:
    """The reasons for which such a frontend may refuse a client. `routes`: by server name, on its port."""
    policy, limits = frontend.policy, frontend.policy.limits
    queue = policy.max_queue and any(server.max_connections for server in frontend.servers)
    if frontend.listen.server_name:  # its port has admitted its clients
        return ["queue"] if queue else []
    may = {
        "access": policy.access,
        "per_source": limits.per_source,
        "per_source_rate": limits.per_source_rate,
        "proxy_header": policy.accept_proxy.networks,
        "source_share": limits.source_share < 100,
        "hello": routes,
        "server_name": routes and not frontend.servers,
        "queue": queue,
    }
    return [reason for reason, wanted in may.items() if wanted]


def _per_server(frontends: Grouped, read: Callable[[ServerCounters], int]) -> Iterator[Row]:
    for name, group in frontends.items():
        counts: Counter[str] = Counter()
        for frontend in group:
            for server, counters in frontend.servers.items():
                counts[server] += read(counters)
        for server, count in counts.items():
            if server:  # "": sessions that never had a server
                yield (name, server), count


def _by_word(frontends: Grouped, read: Callable[[ServerCounters], Counter[str]]) -> Iterator[Row]:
    for name, group in frontends.items():
        counts: Counter[tuple[str, str]] = Counter()
        for frontend in group:
            for server, counters in frontend.servers.items():
                for word, count in read(counters).items():
                    counts[server, word] += count
        for (server, word), count in counts.items():
            yield (name, server, word), count


def _buckets(frontends: Grouped, read: Callable[[FrontendCounters], Histogram]) -> Iterator[Buckets]:
    """Cumulative, as Prometheus expects; our counts are not."""
    for name, group in frontends.items():
        histograms = [read(frontend) for frontend in group]
        counts = accumulate(map(sum, zip(*(histogram.counts for histogram in histograms), strict=True)))
        total = sum(histogram.total for histogram in histograms)
        yield (name,), list(zip(_bounds(histograms[0].bounds), counts, strict=True)), total


@cache
def _bounds(bounds: tuple[float, ...]) -> tuple[str, ...]:
    """The bounds as values of the label `le`."""
    return (*map(floatToGoString, bounds), "+Inf")
