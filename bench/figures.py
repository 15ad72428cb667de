"""From samples to figures: medians, percentiles, ratios inside one round and their spread. Pure."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

WARM_UP = 0  # the number of the round that is measured and then dropped


@dataclass(frozen=True)
class Sample:
    """What one scenario measured of one target in one round: {metric: value}. `errors` counts requests that failed."""

    scenario: str
    target: str
    round: int
    metrics: Mapping[str, float] = field(hash=False)
    errors: int = 0


@dataclass(frozen=True)
class Spread:
    """The median of some values and their extremes."""

    median: float
    low: float
    high: float


def spread(values: Iterable[float]) -> Spread:
    """Raises ValueError if there are none."""
    found = sorted(values)
    if not found:
        raise ValueError("no values")
    return Spread(statistics.median(found), found[0], found[-1])


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank: the smallest value that at least `percent` of all values do not exceed. No interpolation."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """`names`, rotated by `turn` places, so that over the rounds each target runs in every place of the order."""
    offset = turn % len(names) if names else 0
    return [*names[offset:], *names[:offset]]


def values(samples: Iterable[Sample], scenario: str, target: str, metric: str) -> dict[int, float]:
    """{round: value}, without the warm-up round and without rounds in which the target has no such metric."""
    return {
        s.round: s.metrics[metric]
        for s in samples
        if s.scenario == scenario and s.target == target and s.round != WARM_UP and metric in s.metrics
    }


def ratio(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Spread | None:
    """The spread of ours/theirs over the rounds both have; None if there is none with a divisor other than zero."""
    shared = [ours[n] / theirs[n] for n in sorted(ours.keys() & theirs.keys()) if theirs[n]]
    return spread(shared) if shared else None
