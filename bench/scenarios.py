"""The scenarios. Each measures a running target and returns {metric: value}; the first metric is its main one.

To add one: a function from (Target, Effort) to an Outcome, and an entry in SCENARIOS. Rounds, order, ratios, table and
JSON follow from that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Self

from bench import bulk_latency, configs, load, registrations
from bench.processes import Address
from bench.registrations import SWAPPED_PORT, register, swapping
from bench.targets import DIRECT, FLOOR, Target

SILENT_RATE = 3000
IDLE_WARM_UP = 20  # sessions that make a proxy allocate what it needs once, before the base line is read


@dataclass(frozen=True)
class Effort:
    """How long and how much: seconds per sample, idle sessions, and what surrounds a registration call.

    `beside_seconds`: those of `bulk-beside`, whose figures include rare ones.
    `rate`: requests per second of `half-rate`, half of what the first proxy reached just before; the same for all targets.
    """

    seconds: int = 4
    beside_seconds: int = 20
    idle_sessions: int = 4000
    frontends: int = 1000
    live_sessions: int = 2000
    calls: int = 300
    grown_frontends: Sequence[int] = (10, 100, 1000)
    grown_sessions: Sequence[int] = (100, 1000, 4000, 8000)
    slow_readers: int = 2000
    rate: float = 0.0


QUICK = Effort(
    seconds=1,
    beside_seconds=2,
    idle_sessions=500,
    frontends=100,
    live_sessions=200,
    calls=50,
    grown_frontends=(10, 100),
    grown_sessions=(100, 1000),
    slow_readers=200,
)


@dataclass(frozen=True)
class Metric:
    """A column: its key in the samples, its heading with unit, and how many decimals make sense."""

    key: str
    title: str
    decimals: int = 0


@dataclass(frozen=True)
class Outcome:
    """What one sample gave. A metric a target cannot have (the CPU of `direct`) is left out."""

    metrics: dict[str, float]
    errors: int = 0


@dataclass(frozen=True)
class Scenario:
    """`only`: the one target it makes sense for; `without`: those it does not; `once`: one sample says it all.

    `floor`: the floor is measured too. Where pylb's own ways are measured (splice, turns, memory) it says nothing.
    """

    name: str
    about: str
    metrics: tuple[Metric, ...]
    measure: Callable[[Target, Effort], Outcome] = field(hash=False)
    only: str | None = None
    without: tuple[str, ...] = ()
    once: bool = False
    floor: bool = False
    lags: bool = False  # pylb writes down how late its loops are

    def admits(self, target: str) -> bool:
        """Whether the scenario can measure this target."""
        if target == FLOOR and not self.floor:
            return False
        return self.only in {None, target} and target not in self.without


class _Cpu:
    """The CPU seconds a target's process used inside a with block."""

    def __init__(self, target: Target) -> None:
        self._process = target.process
        self._seconds = 0.0

    def __enter__(self) -> Self:
        if self._process:
            self._seconds = -self._process.cpu_seconds()
        return self

    def __exit__(self, *_failure: object) -> None:
        if self._process:
            self._seconds += self._process.cpu_seconds()

    def per(self, key: str, scale: float, amount: float) -> dict[str, float]:
        """{key: scale x CPU seconds / amount}, or nothing where there is no process or nothing was done."""
        return {key: scale * self._seconds / amount} if self._process and amount else {}


def _keepalive(connections: int, target: Target, effort: Effort) -> Outcome:
    with _Cpu(target) as cpu:
        result = load.wrk(target.http, connections, effort.seconds)
    metrics = {
        "requests_per_second": result.requests_per_second,
        "p50_ms": 1e3 * result.p50,
        "p99_ms": 1e3 * result.p99,
        **cpu.per("cpu_us_per_request", 1e6, result.requests),
    }
    return Outcome(metrics, result.errors)


def _connections(target: Target, effort: Effort) -> Outcome:
    with _Cpu(target) as cpu:
        result = load.wrk(target.http, 64, effort.seconds, close=True)
    metrics = {
        "connections_per_second": result.requests_per_second,
        "p99_ms": 1e3 * result.p99,
        **cpu.per("cpu_s_per_10k_connections", 1e4, result.requests),
    }
    return Outcome(metrics, result.errors)


def _bulk(streams: int, target: Target, effort: Effort) -> Outcome:
    with _Cpu(target) as cpu:
        result = load.drain(target.bulk, streams, effort.seconds)
    metrics = {
        "gb_per_second": result.bytes / result.seconds / 1e9,
        **cpu.per("cpu_s_per_gb", 1e9, result.total_bytes),
    }
    return Outcome(metrics)


def _mixed(target: Target, effort: Effort) -> Outcome:
    with load.draining(target.bulk, 2):
        result = load.wrk(target.http, 8, effort.seconds)
    return Outcome({"p99_ms": 1e3 * result.p99, "p50_ms": 1e3 * result.p50, "requests_per_second": result.requests_per_second})


def _bulk_beside(streams: int, target: Target, effort: Effort) -> Outcome:
    return Outcome(*bulk_latency.measure(target, streams, effort.beside_seconds))


def _silent(target: Target, effort: Effort) -> Outcome:
    alone, before = load.ping(target.http, 1, None)[0], target.process.memory_bytes() if target.process else 0
    with _Cpu(target) as cpu, load.connecting_silently(target.http, SILENT_RATE) as end:
        [ping] = load.ping(target.http, effort.beside_seconds, None)
        after = target.process.memory_bytes() if target.process else 0
        knocks = end()
    metrics = {
        "ping_p99_ms": 1e3 * ping.p99,
        "ping_p50_ms": 1e3 * ping.p50,
        "alone_p99_ms": 1e3 * alone.p99,
        "connects_per_second": knocks.rate,
        "late_percent": 100 * knocks.failed / max(1, knocks.closed),
        **cpu.per("cpu_us_per_connect", 1e6, knocks.closed),
    }
    if target.process:
        metrics |= {"grown_mib": (after - before) / 2**20, "mib_process": after / 2**20}
    return Outcome(metrics)


def _half_rate(target: Target, effort: Effort) -> Outcome:
    load.wrk(target.http, 64, 1)  # a scheduler that has just met a process leaves it on a busy core for some 20 ms
    with _Cpu(target) as cpu:
        result = load.pace(target.http, effort.rate, effort.seconds)
    metrics = {
        "p99_ms": 1e3 * result.p99,
        "p50_ms": 1e3 * result.p50,
        "generator_p99_ms": 1e3 * result.late_p99,
        **cpu.per("cpu_us_per_request", 1e6, result.answers),
    }
    return Outcome(metrics, result.due - result.answers)


def _swaps(target: Target, effort: Effort) -> Outcome:
    with swapping(target) as swaps:
        result = load.wrk(Address(target.http.host, SWAPPED_PORT), 64, effort.seconds, close=True)
    metrics = {
        "swaps_per_second": swaps() / effort.seconds,
        "connections_per_second": result.requests_per_second,
        "failed_connections": result.errors,
    }
    return Outcome(metrics, result.errors)


def _grown_frontends(target: Target, effort: Effort) -> Outcome:
    """Measure the same pylb at the same port, while the number of its other frontends grows."""
    metrics, errors, have = {}, 0, 0
    for count in effort.grown_frontends:
        register(target, have, count)
        have = count
        port = Address(target.http.host, configs.REGISTERED_PORTS[0])
        kept, new = load.wrk(port, 64, effort.seconds), load.wrk(port, 64, effort.seconds, close=True)
        metrics[f"requests_{count}"] = kept.requests_per_second
        metrics[f"connections_{count}"] = new.requests_per_second
        errors += kept.errors + new.errors
    return Outcome(metrics, errors)


def _grown_sessions(target: Target, effort: Effort) -> Outcome:
    metrics, errors = {}, 0
    for count in effort.grown_sessions:
        with load.held([target.http], count):
            result = load.wrk(target.http, 64, effort.seconds)
        metrics[f"requests_{count}"] = result.requests_per_second
        errors += result.errors
    return Outcome(metrics, errors)


def _slow_readers(target: Target, effort: Effort) -> Outcome:
    if target.process is None:
        raise ValueError(f"{target.name} has no process whose memory could be read")
    alone, before = load.drain(target.bulk, 1, effort.seconds), target.process.memory_bytes()
    with load.sipping(target.bulk, effort.slow_readers):
        beside, after = load.drain(target.bulk, 1, effort.seconds), target.process.memory_bytes()
    metrics = {
        "kept": beside.bytes / alone.bytes,
        "gb_per_second": beside.bytes / beside.seconds / 1e9,
        "kib_per_reader": (after - before) / effort.slow_readers / 1024,
    }
    return Outcome(metrics)


def _idle(target: Target, effort: Effort) -> Outcome:
    if target.process is None:
        raise ValueError(f"{target.name} has no process whose memory could be read")
    with load.held([target.http], IDLE_WARM_UP):
        pass
    before = target.process.memory_bytes()
    with load.held([target.http], effort.idle_sessions):
        after = target.process.memory_bytes()
    return Outcome({"kib_per_session": (after - before) / effort.idle_sessions / 1024, "mib_process": after / 2**20})


def _registrations(target: Target, effort: Effort) -> Outcome:
    return Outcome(registrations.measure(target, effort.frontends, effort.live_sessions, effort.calls))


def _keepalive_scenario(name: str, connections: int) -> Scenario:
    return Scenario(
        name,
        f"HTTP requests, 128-byte answers, keep-alive connections: {connections} (wrk)",
        (
            Metric("requests_per_second", "requests/s"),
            Metric("cpu_us_per_request", "CPU µs/request", 2),
            Metric("p50_ms", "p50 ms", 2),
            Metric("p99_ms", "p99 ms", 2),
        ),
        partial(_keepalive, connections),
        floor=True,
    )


def _bulk_scenario(name: str, streams: int) -> Scenario:
    return Scenario(
        name,
        f"from the origin to the client as fast as it goes, streams: {streams}",
        (Metric("gb_per_second", "GB/s", 2), Metric("cpu_s_per_gb", "CPU s/GB", 3)),
        partial(_bulk, streams),
    )


def _bulk_beside_scenario(name: str, streams: int) -> Scenario:
    return Scenario(
        name,
        f"a 64-byte ping-pong, /livez and pylb's loops beside saturated downloads, streams: {streams}",
        (
            Metric("ping_p99_ms", "ping-pong p99 ms", 2),
            Metric("ping_p50_ms", "p50 ms", 2),
            Metric("livez_p50_ms", "/livez median ms", 1),
            Metric("livez_p95_ms", "p95 ms", 1),
            Metric("lag_p99_ms", "loop lag p99 ms", 1),
        ),
        partial(_bulk_beside, streams),
        lags=True,
    )


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        _keepalive_scenario("keepalive", 64),
        _keepalive_scenario("keepalive-1", 1),
        _keepalive_scenario("keepalive-16", 16),
        _keepalive_scenario("keepalive-256", 256),
        Scenario(
            "connections",
            "a new connection for every request, 64 at a time (wrk, Connection: close)",
            (
                Metric("connections_per_second", "connections/s"),
                Metric("cpu_s_per_10k_connections", "CPU s/10,000 conn", 2),
                Metric("p99_ms", "p99 ms", 2),
            ),
            _connections,
            floor=True,
        ),
        _bulk_scenario("bulk", 1),
        _bulk_scenario("bulk-4", 4),
        Scenario(
            "mixed",
            "small requests over 8 connections while two bulk streams flow: how long the small ones wait (wrk)",
            (Metric("p99_ms", "p99 ms", 2), Metric("p50_ms", "p50 ms", 2), Metric("requests_per_second", "requests/s")),
            _mixed,
        ),
        _bulk_beside_scenario("bulk-beside", 8),
        _bulk_beside_scenario("bulk-beside-64", 64),
        Scenario(
            "silent",
            f"a 64-byte ping-pong beside {SILENT_RATE:,} connects a second that say nothing and close after a second",
            (
                Metric("ping_p99_ms", "ping-pong p99 ms", 2),
                Metric("ping_p50_ms", "p50 ms", 2),
                Metric("alone_p99_ms", "p99 ms alone", 2),
                Metric("connects_per_second", "connects/s"),
                Metric("late_percent", "% not accepted in theirs", 1),
                Metric("cpu_us_per_connect", "CPU µs/connect"),
                Metric("grown_mib", "MiB more", 1),
                Metric("mib_process", "process MiB then", 1),
            ),
            _silent,
        ),
        Scenario(
            "slow-readers",
            "one bulk stream beside many that are read at a byte a second: how much of its rate it keeps",
            (
                Metric("kept", "of its rate alone", 2),
                Metric("gb_per_second", "GB/s", 2),
                Metric("kib_per_reader", "KiB/reader", 1),
            ),
            _slow_readers,
            without=(DIRECT, "haproxy2"),
        ),
        Scenario(
            "half-rate",
            "latency at half of HAProxy's rate of keepalive, the same for all: open loop, counted from when a request was due",
            (
                Metric("p99_ms", "p99 ms", 2),
                Metric("p50_ms", "p50 ms", 2),
                Metric("generator_p99_ms", "of it the generator's p99", 2),
                Metric("cpu_us_per_request", "CPU µs/request", 2),
            ),
            _half_rate,
        ),
        Scenario(
            "idle",
            "memory of sessions that are idle after one request (PSS of the process, no kernel memory)",
            (Metric("kib_per_session", "KiB/session", 2), Metric("mib_process", "process MiB then", 1)),
            _idle,
            without=(DIRECT,),
        ),
        Scenario(
            "registrations",
            "native registration calls, each on a new connection, with many frontends registered and sessions live",
            tuple(
                Metric(f"{call}_{figure}_ms", f"{call} {figure} ms", 1)
                for call in ("create", "beat", "release")
                for figure in ("median", "p99")
            ),
            _registrations,
            only="pylb",
            once=True,
        ),
        Scenario(
            "swaps",
            "a registration moves a port to and fro as fast as it is answered, while new connections run through it",
            (
                Metric("swaps_per_second", "swaps/s"),
                Metric("connections_per_second", "connections/s"),
                Metric("failed_connections", "failed"),
            ),
            _swaps,
            only="pylb",
        ),
        Scenario(
            "frontends",
            "keep-alive requests and new connections through one of many frontends",
            tuple(
                Metric(f"{what}_{count}", f"{what}/s of {count:,}")
                for what in ("requests", "connections")
                for count in Effort().grown_frontends
            ),
            _grown_frontends,
            only="pylb",
        ),
        Scenario(
            "sessions",
            "keep-alive requests over 64 connections beside many idle ones",
            tuple(Metric(f"requests_{count}", f"requests/s beside {count:,}") for count in Effort().grown_sessions),
            _grown_sessions,
            without=(DIRECT, "haproxy2", "nginx"),
        ),
    )
}
DEFAULT_SCENARIOS = tuple(SCENARIOS)
