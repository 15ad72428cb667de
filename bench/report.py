"""The result of a run: an aligned table for the eye, and JSON with every sample and the machine it was taken on."""

import datetime as dt
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import goals
from bench.figures import Sample, Spread, ratio, spread, values
from bench.scenarios import SCENARIOS, Effort, Metric, Scenario
from bench.tables import aligned

BASELINE = "haproxy"
RESULTS = Path(__file__).parent / "results"
FORMAT = 1


@dataclass(frozen=True)
class Run:
    """Everything a run says about itself and all its samples, the warm-up round (0) included."""

    command: str
    started: str
    rounds: int
    targets: Sequence[str]
    effort: Effort
    network: str
    machine: Mapping[str, object]
    versions: Mapping[str, str]
    failures: Sequence[str]
    samples: Sequence[Sample]

    def as_json(self) -> str:
        """One object; its `samples` are as measured, unrounded."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"


def machine() -> dict[str, object]:
    """What a reader must know to compare figures with those of another machine."""
    autogroup = Path("/proc/sys/kernel/sched_autogroup_enabled")
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": _commit(),
        "load_average": os.getloadavg(),
        "autogroup": autogroup.read_text().strip() if autogroup.exists() else "absent",
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    """The commit pylb was measured at, with `-dirty` if the tree differed from it; "unknown" outside a repository."""
    argv = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def now() -> str:
    """UTC, to the second, in ISO 8601."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def save(run: Run, path: Path | None) -> Path:
    """Writes the JSON to `path`, by default to bench/results/ under the time of the run; → where it lies."""
    target = path or RESULTS / f"{run.started.replace(':', '')}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(run.as_json())
    return target


def tables(run: Run) -> str:
    """Every scenario of the run as an aligned table, with its targets as rows."""
    facts = run.machine
    where = f"Python {facts['python']}, over {run.network}"
    head = f"{facts['cpu']}, {facts['cores']} cores, Linux {facts['kernel']}, {where}; {run.command}"
    names = list(dict.fromkeys(sample.scenario for sample in run.samples))
    legend = f"medians, rounds: {run.rounds}; x = the median of the ratios to {BASELINE} in the same round (min..max)"
    parts = [f"{head}\n{legend}", *(_table(SCENARIOS[name], run) for name in names)]
    if reached := goals.rows(run.samples):
        parts.append("\n".join(["goals:", *aligned([["", "wanted", "measured", ""], *reached])]))
    if run.failures:
        parts.append("\n".join(["could not be measured:", *(f"  ! {failure}" for failure in run.failures)]))
    return "\n\n".join(parts)


def _table(scenario: Scenario, run: Run) -> str:
    samples = [sample for sample in run.samples if sample.scenario == scenario.name]
    targets = [name for name in run.targets if any(sample.target == name for sample in samples)]
    compare = BASELINE in targets and not scenario.once
    rows = [_heading(scenario.metrics, compare=compare)]
    rows += [_row(samples, scenario, target, compare=compare) for target in targets if _measured(samples, scenario, target)]
    failed = {t: sum(s.errors for s in samples if s.target == t) for t in targets}
    notes = [f"  ! {target}: {count} requests failed" for target, count in failed.items() if count]
    return "\n".join([f"{scenario.name}: {scenario.about}", *aligned(rows), *notes])


def _measured(samples: Sequence[Sample], scenario: Scenario, target: str) -> bool:
    return bool(values(samples, scenario.name, target, scenario.metrics[0].key))


def _heading(metrics: Sequence[Metric], *, compare: bool) -> list[str]:
    cells = [[metric.title, f"x {BASELINE}"] if compare else [metric.title] for metric in metrics]
    return ["", *(cell for group in cells for cell in group)]


def _row(samples: Sequence[Sample], scenario: Scenario, target: str, *, compare: bool) -> list[str]:
    cells = [target]
    for metric in scenario.metrics:
        ours = values(samples, scenario.name, target, metric.key)
        cells.append(f"{spread(ours.values()).median:,.{metric.decimals}f}" if ours else "-")
        if compare:
            cells.append(_against(ratio(ours, values(samples, scenario.name, BASELINE, metric.key)), target))
    return cells


def _against(found: Spread | None, target: str) -> str:
    if found is None:
        return "-"
    return "1" if target == BASELINE else f"{found.median:.2f} ({found.low:.2f}..{found.high:.2f})"


def progress(text: str) -> None:
    """A line to stderr at once: stdout holds the tables alone."""
    print(text, file=sys.stderr, flush=True)
