"""The targets that pylb should reach, compared with HAProxy with as many threads, and whether a run reaches them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.figures import Sample, Spread, ratio, spread, values

OURS, THEIRS = "pylb", "haproxy"


@dataclass(frozen=True)
class Goal:
    """`figure` gives the median and its spread over the rounds, None where the run has not measured it."""

    about: str
    limit: float
    at_least: bool
    figure: Callable[[Sequence[Sample]], Spread | None]
    unit: str = "x"

    def reached(self, found: Spread) -> bool:
        """Whether the median reaches the target."""
        return found.median >= self.limit if self.at_least else found.median <= self.limit


def _ratio(scenario: str, metric: str, ours: str = OURS, theirs: str = THEIRS) -> Callable[[Sequence[Sample]], Spread | None]:
    return lambda samples: ratio(values(samples, scenario, ours, metric), values(samples, scenario, theirs, metric))


def _plain(scenario: str, metric: str, ours: str = OURS) -> Callable[[Sequence[Sample]], Spread | None]:
    def figure(samples: Sequence[Sample]) -> Spread | None:
        found = values(samples, scenario, ours, metric)
        return spread(found.values()) if found else None

    return figure


def _own(scenario: str, metric: str, base: str) -> Callable[[Sequence[Sample]], Spread | None]:
    """pylb against itself in the same round."""
    return lambda samples: ratio(values(samples, scenario, OURS, metric), values(samples, scenario, OURS, base))


def _with_workers(count: str, ours: str, theirs: str) -> tuple[Goal, ...]:
    return (
        Goal(f"keep-alive requests/s, {count}", 0.95, True, _ratio("keepalive", "requests_per_second", ours, theirs)),
        Goal(f"new connections/s, {count}", 0.90, True, _ratio("connections", "connections_per_second", ours, theirs)),
        Goal(f"p99 at half of HAProxy's rate, {count}", 1.5, False, _ratio("half-rate", "p99_ms", ours, theirs)),
    )


def _beside(streams: int, scenario: str, count: str, ours: str) -> tuple[Goal, ...]:
    where = f"beside {streams} downloads, {count}"
    return (
        Goal(f"p99 of a ping-pong {where}", 2.0, False, _ratio(scenario, "ping_p99_ms", ours)),
        Goal(f"p95 of /livez {where}", 20.0, False, _plain(scenario, "livez_p95_ms", ours), " ms"),
        Goal(f"p99 of the loops' lag {where}", 10.0, False, _plain(scenario, "lag_p99_ms", ours), " ms"),
    )


GOALS = (
    Goal("keep-alive requests/s, 64 connections", 0.90, True, _ratio("keepalive", "requests_per_second")),
    Goal("keep-alive requests/s, 1 connection", 0.90, True, _ratio("keepalive-1", "requests_per_second")),
    Goal("new connections/s", 0.90, True, _ratio("connections", "connections_per_second")),
    Goal("bulk bytes/s, 1 stream", 1.5, True, _ratio("bulk", "gb_per_second")),
    Goal("bulk CPU per GB, 1 stream", 0.5, False, _ratio("bulk", "cpu_s_per_gb")),
    Goal("p99 at half of HAProxy's rate", 1.2, False, _ratio("half-rate", "p99_ms")),
    Goal("p99 of small requests beside bulk", 1.5, False, _ratio("mixed", "p99_ms")),
    Goal("bulk beside 2,000 readers of a byte a second", 0.8, True, _plain("slow-readers", "kept")),
    Goal("memory of an idle session", 1.5, False, _plain("idle", "kib_per_session"), " KiB"),
    Goal("requests/s of 1,000 frontends against 10", 0.9, True, _own("frontends", "requests_1000", "requests_10")),
    Goal("connections/s of 1,000 frontends against 10", 0.9, True, _own("frontends", "connections_1000", "connections_10")),
    Goal("failed connections during table swaps", 0, False, _plain("swaps", "failed_connections"), ""),
    *_beside(8, "bulk-beside", "workers 0", "pylb"),
    *_beside(8, "bulk-beside", "1 worker", "pylb1"),
    *_beside(64, "bulk-beside-64", "workers 0", "pylb"),
    *_beside(64, "bulk-beside-64", "1 worker", "pylb1"),
    *_with_workers("1 worker", "pylb1", "haproxy"),
    *_with_workers("2 workers beside 2 threads", "pylb2", "haproxy2"),
)


def rows(samples: Sequence[Sample]) -> list[list[str]]:
    """For each target that was measured: its name, limit, figure with spread, and whether the median reaches it."""
    found = [(goal, figure) for goal in GOALS if (figure := goal.figure(samples)) is not None]
    return [
        [
            goal.about,
            f"{'≥' if goal.at_least else '≤'} {goal.limit:g}{goal.unit}",
            f"{figure.median:.2f}{goal.unit} ({figure.low:.2f}..{figure.high:.2f})",
            "reached" if goal.reached(figure) else "not reached",
        ]
        for goal, figure in found
    ]
