"""All metrics, read from the engine's ints and the registry's views at the moment of a scrape (names: design.md 8).

Nothing is counted here. A thousand frontends are 40,000 lines, a fifth of a second of work: families come in pieces and
the loop gets its turn between them. So a scrape is not one instant; every single number is right at its own.
"""

import asyncio
import os
import platform
import resource
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import inf
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from pylb import __version__
from pylb.control.registry import Registry
from pylb.control.views import ServerView
from pylb.core.registration import State
from pylb.core.table import DOWN
from pylb.forward.counters import Counters, FrontendCounters, Histogram, ServerCounters

PIECE = 250  # lines: ~2 ms of work
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Row = tuple[Sequence[str], Any]  # label values and value


class Metrics:
    """`render` is one scrape. The arguments without a module of their own are told by the app, each as a callable."""

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
    ) -> None:
        self._counters = counters
        self._registry = registry
        self._lines_dropped = lines_dropped
        self._processes = processes
        self._reloaded = reloaded
        self._certificate_expires_at = certificate_expires_at
        self._insecure = insecure
        self._worker_restarts = worker_restarts
        self._reopen_failures = reopen_failures

    async def render(self) -> bytes:
        """Prometheus' text format 0.0.4. It holds the loop for a few milliseconds at a time."""
        counters, processes = await self._counters(), self._processes()
        # A listing of 40,000 descriptors takes long enough to leave the loop for it.
        open_fds = await asyncio.to_thread(_open_fds, processes)
        parts: list[bytes] = []
        family = ("", "")
        for piece in self._pieces(counters, processes, open_fds):
            text = generate_latest(_One(piece))
            if family == (piece.name, piece.type):
                text = text.split(b"\n", 2)[2]  # HELP and TYPE were said with the first piece
            family = (piece.name, piece.type)
            parts.append(text)
            await asyncio.sleep(0)
        return b"".join(parts)

    def reference(self) -> str:
        """docs/metrics.md: a Markdown table of all families."""
        rows = {}
        for family in self._pieces(Counters(0), {}, {}):
            counter = "_total" if family.type == "counter" else ""
            labels = ", ".join(f"`{label}`" for label in getattr(family, "_labelnames", ()))
            rows[f"{family.name}{counter}"] = (
                f"| `{family.name}{counter}` | {family.type} | {labels} | {family.documentation} |\n"
            )
        return "".join(rows.values())

    def _pieces(
        self, counted: Counters, processes: Mapping[str, tuple[int, float]], open_fds: Mapping[str, int]
    ) -> Iterator[Metric]:
        # Copied and grouped first: while the loop has its turn frontends come and go. Names are unique by intent only,
        # and one series given twice would cost the whole scrape: equal names are added up.
        frontends: dict[str, list[FrontendCounters]] = defaultdict(list)
        for counters in counted.frontends.values():
            frontends[counters.name].append(counters)
        yield from _traffic(frontends)
        yield from _servers(frontends, self._registry.servers())
        yield from self._control()
        yield from self._process(counted)
        yield from _processes(processes, open_fds)

    def _control(self) -> Iterator[Metric]:
        registry = self._registry
        views = registry.registrations()
        states = Counter(str(view.state) for view in views)
        yield from _gauge("registrations", "Registrations by state.", ("state",), _rows({s: states[s] for s in State}))
        yield from _counter(
            "registrations_total",
            "Calls of phone-homes by result.",
            ("result",),
            _rows(dict(registry.registrations_total)),
        )
        yield from _counter(
            "calls_refused_total", "Refused calls by error code.", ("reason",), _rows(dict(registry.refused_total))
        )
        uses = registry.legacy_uses()
        yield from _counter(
            "legacy_calls_total",
            "Accepted calls of the legacy protocol.",
            ("token",),
            _rows({t: u.calls for t, u in uses.items()}),
        )
        yield from _gauge(
            "legacy_last_call_timestamp_seconds",
            "The last one of them, unix time.",
            ("token",),
            _rows({token: use.last_at for token, use in uses.items()}),
        )
        leases: dict[tuple[str, str], float] = {}
        for view in views:
            if view.expires_at_wall is not None:
                place = (view.name, view.instance)  # two tokens may share it: the one that ends first matters
                leases[place] = min(view.expires_at_wall, leases.get(place, view.expires_at_wall))
        yield from _gauge(
            "lease_expires_timestamp_seconds",
            "When the lease of a registration ends, unix time.",
            ("name", "instance"),
            leases.items(),
        )
        usable: Counter[str] = Counter()
        for frontend in registry.table.frontends.values():
            usable[frontend.name] += sum(server.rank < DOWN for server in frontend.servers)
        yield from _gauge("frontend_usable_servers", "Servers of a frontend that are not down.", ("frontend",), _rows(usable))
        yield from _gauge("table_generation", "Generation of the table in force.", value=registry.table.generation)
        yield from _gauge("table_apply_seconds", "Seconds the last table took to apply.", value=registry.apply_seconds)
        yield from _counter("state_write_failures_total", "Failed writes of the snapshot.", value=registry.write_failures)
        yield from _gauge("state_durable", "1 if all that was answered is on disk.", value=registry.durable)

    def _process(self, counters: Counters) -> Iterator[Metric]:
        labels = {"version": __version__, "python": platform.python_version()}
        yield from _gauge("build_info", "Which pylb this is.", tuple(labels), [(tuple(labels.values()), 1)])
        yield from _gauge(
            "config_last_reload_successful", "1 if the config in force is the one on disk.", value=self._reloaded()
        )
        yield from _gauge("webhook_insecure", "1 if tokens travel in plain HTTP beyond loopback.", value=self._insecure())
        if (expires_at := self._certificate_expires_at()) is not None:
            yield from _gauge(
                "certificate_expiry_timestamp_seconds",
                "When the webhook's certificate ends, unix time.",
                value=expires_at,
            )
        yield from _counter("log_lines_dropped_total", "Log lines nobody took in time.", value=self._lines_dropped())
        yield from _counter(
            "log_reopen_failures_total", "Times the log's file could not be opened again.", value=self._reopen_failures()
        )
        yield from _counter("worker_restarts_total", "Workers that ended and were replaced.", value=self._worker_restarts())
        yield from _counter(
            "accept_errors_total", "Accepts that failed, by errno.", ("reason",), _rows(dict(counters.accept_errors))
        )
        yield from _counter(
            "pipe_fallbacks_total", "Times bulk went on by recv and send for want of a pipe.", value=counters.pipe_fallbacks
        )
        yield from _gauge("buffered_bytes", "Bytes that wait for blocked destinations.", value=counters.buffered)


class _One(Collector):
    """One family, for generate_latest, which wants whoever collects."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return (self._family,)


def _open_fds(processes: Mapping[str, tuple[int, float]]) -> dict[str, int]:
    """By name; of those that live."""
    found = {}
    for name, (pid, _) in processes.items():
        try:
            found[name] = len(os.listdir(f"/proc/{pid}/fd")) - (pid == os.getpid())  # our own listing is in it
        except OSError:
            continue
    return found


def _processes(processes: Mapping[str, tuple[int, float]], open_fds: Mapping[str, int]) -> Iterator[Metric]:
    label, limit = ("process",), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield from _gauge(
        "loop_lag_seconds",
        "Worst delay of a process's event loop of late.",
        label,
        _rows({name: lag for name, (_, lag) in processes.items()}),
    )
    yield from _gauge("open_fds", "Open file descriptors of a process.", label, _rows(open_fds))
    yield from _gauge("max_fds", "Limit of file descriptors of a process.", label, _rows(dict.fromkeys(open_fds, limit)))


Grouped = Mapping[str, list[FrontendCounters]]


def _traffic(frontends: Grouped) -> Iterator[Metric]:
    label = ("frontend",)

    def summed(read: Callable[[FrontendCounters], int]) -> Iterator[Row]:
        return (((name,), sum(map(read, group))) for name, group in frontends.items())

    yield from _gauge("frontend_sessions", "Live sessions.", label, summed(lambda f: f.sessions))
    yield from _gauge("frontend_queue", "Sessions that wait for a server with room.", label, summed(lambda f: f.queued))
    yield from _counter("frontend_sessions_total", "Accepted sessions.", label, summed(lambda f: f.sessions_total))
    yield from _counter("bytes_total", "Bytes of clients: in, and out.", ("frontend", "direction"), _bytes(frontends))
    yield from _counter("frontend_denied_total", "Refused clients.", ("frontend", "reason"), _denied(frontends))
    yield from _histogram(
        "connect_duration_seconds",
        "Time until a server had accepted.",
        label,
        _buckets(frontends, lambda f: f.connect_seconds),
    )
    yield from _histogram(
        "session_duration_seconds", "Length of ended sessions.", label, _buckets(frontends, lambda f: f.session_seconds)
    )


def _servers(frontends: Grouped, views: Iterable[ServerView]) -> Iterator[Metric]:
    yield from _counter(
        "sessions_closed_total",
        "Ended sessions by HAProxy's two letters.",
        ("frontend", "server", "code"),
        _by_server(frontends, lambda server: server.closed),
    )
    yield from _counter(
        "connect_failures_total",
        "Failed connects by reason.",
        ("frontend", "server", "reason"),
        _by_server(frontends, lambda server: server.failures),
    )
    up: dict[tuple[str, str], bool] = {}
    for view in views:
        if view.tried:
            place = (view.frontend, view.server)
            up[place] = up.get(place, True) and view.state != "down"
    yield from _gauge("server_up", "1 if a server that was ever tried answers.", ("frontend", "server"), up.items())


def _bytes(frontends: Grouped) -> Iterator[Row]:
    for name, group in frontends.items():
        yield (name, "in"), sum(f.bytes_in for f in group)
        yield (name, "out"), sum(f.bytes_out for f in group)


def _denied(frontends: Grouped) -> Iterator[Row]:
    for name, group in frontends.items():
        for reason, count in sum((f.denied for f in group), Counter[str]()).items():
            yield (name, reason), count


def _by_server(frontends: Grouped, read: Callable[[ServerCounters], Counter[str]]) -> Iterator[Row]:
    for name, group in frontends.items():
        counts: Counter[tuple[str, str]] = Counter()
        for frontend in group:
            for server, counters in frontend.servers.items():
                for word, count in read(counters).items():
                    counts[server, word] += count
        for (server, word), count in counts.items():
            yield (name, server, word), count


def _buckets(frontends: Grouped, read: Callable[[FrontendCounters], Histogram]) -> Iterator[Row]:
    """Cumulative, as Prometheus wants them; ours are not."""
    for name, group in frontends.items():
        histograms = [read(frontend) for frontend in group]
        below, buckets = 0, []
        for place, bound in enumerate((*histograms[0].bounds, inf)):
            below += sum(histogram.counts[place] for histogram in histograms)
            buckets.append(("+Inf" if bound == inf else repr(bound), below))
        yield (name,), (buckets, sum(histogram.total for histogram in histograms))


def _rows(values: Mapping[str, float]) -> Iterator[Row]:
    return (((label,), value) for label, value in values.items())


def _gauge(
    name: str, text: str, labels: Sequence[str] = (), rows: Iterable[Row] | None = None, *, value: float = 0
) -> Iterator[Metric]:
    """Labels and rows, or one `value`."""
    make = partial(GaugeMetricFamily, f"pylb_{name}", text, labels=labels)
    return _in_pieces(make, [((), value)] if rows is None else rows)


def _counter(
    name: str, text: str, labels: Sequence[str] = (), rows: Iterable[Row] | None = None, *, value: float = 0
) -> Iterator[Metric]:
    make = partial(CounterMetricFamily, f"pylb_{name}", text, labels=labels)
    return _in_pieces(make, [((), value)] if rows is None else rows)


def _histogram(name: str, text: str, labels: Sequence[str], rows: Iterable[Row]) -> Iterator[Metric]:
    make = partial(HistogramMetricFamily, f"pylb_{name}", text, labels=labels)
    return _in_pieces(make, ((labels, *value) for labels, value in rows))


def _in_pieces(make: Callable[[], Any], rows: Iterable[Sequence[Any]]) -> Iterator[Metric]:
    """A family of each ≤ PIECE lines; the last one may be empty, so that even a family without series is described."""
    piece = make()
    for row in rows:
        piece.add_metric(*row)
        if len(piece.samples) >= PIECE:
            yield piece
            piece = make()
    yield piece
