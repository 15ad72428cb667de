"""`python -m bench compare OLD NEW`: two stored runs side by side, for the message of a performance commit."""

import argparse
from pathlib import Path

from bench import charts, report
from bench.figures import Sample, Spread, ratio, spread, values
from bench.scenarios import SCENARIOS
from bench.tables import aligned


def rows(old: list[Sample], new: list[Sample]) -> list[list[str]]:
    """pylb's medians before and after, and its ratios to HAProxy, which a slower or faster machine does not change."""
    found = []
    for scenario in SCENARIOS.values():
        for metric in scenario.metrics:
            sides = [values(samples, scenario.name, "pylb", metric.key) for samples in (old, new)]
            if not all(sides):
                continue
            peers = [values(samples, scenario.name, report.BASELINE, metric.key) for samples in (old, new)]
            medians = [f"{spread(side.values()).median:,.{metric.decimals}f}" for side in sides]
            ratios = [_short(ratio(side, peer)) for side, peer in zip(sides, peers, strict=True)]
            found.append([f"{scenario.name}, {metric.title}", *medians, *ratios])
    return found


def _short(found: Spread | None) -> str:
    return "-" if found is None else f"{found.median:.2f} ({found.low:.2f}..{found.high:.2f})"


def main(argv: list[str]) -> int:
    """`python -m bench compare`."""
    parser = argparse.ArgumentParser("python -m bench compare", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    options = parser.parse_args(argv)
    heads = ["pylb", "before", "after", f"before x {report.BASELINE}", f"after x {report.BASELINE}"]
    print("\n".join(aligned([heads, *rows(charts.load(options.old), charts.load(options.new))])))
    return 0
