"""What one new connection costs each proxy: `python -m bench profile-connection`.

A connection is: accept, connect to the server, a request, its answer, and both FINs; 64 at a time, on loopback (wrk with
`Connection: close`). The CPU comes first, in interleaved rounds, split into the program's own part and the kernel's. CPU per
connection suffers less from neighbours on the machine than connections per second do. Then comes the number of system calls,
from one more load under strace, which is too slow to be timed.
"""

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import NamedTuple

from bench import load, report, targets
from bench.figures import rotated
from bench.processes import BenchError, Process, family, started, user_and_system_seconds
from bench.tables import aligned

TARGETS = (report.BASELINE, targets.FLOOR, "pylb")
DESCRIPTORS = 10_000
CONNECTIONS = 64
MENTIONED = 0.05  # calls per connection; rarer ones are not worth a line
_STRACE_ROW = re.compile(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(\d+\s+)?(\w+)$", re.MULTILINE)


class Cost(NamedTuple):
    """CPU microseconds of one connection."""

    user: float
    system: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.user + self.system


class Calls(NamedTuple):
    """What strace counted."""

    by_name: dict[str, int]
    accepted: int  # connections: accepts without an error

    def per_connection(self) -> dict[str, float]:
        """By name. Raises BenchError if nothing was accepted."""
        if not self.accepted:
            raise BenchError("no connection was accepted under strace")
        return {name: count / self.accepted for name, count in self.by_name.items()}


def parse_strace(text: str) -> Calls:
    """Reads the table of `strace -c`. Raises BenchError if there is none."""
    rows = {name: (int(calls), int(errors or 0)) for calls, errors, name in _STRACE_ROW.findall(text) if name != "total"}
    if not rows:
        raise BenchError(f"cannot read strace's table:\n{text}")
    accepted = sum(calls - errors for name, (calls, errors) in rows.items() if name in {"accept", "accept4"})
    return Calls({name: calls for name, (calls, _) in rows.items()}, accepted)


def cost(target: targets.Target, seconds: int) -> Cost:
    """Raises BenchError."""
    process = _process(target)
    load.wrk(target.http, CONNECTIONS, 1, close=True)  # the first ones allocate what is used again later
    before = user_and_system_seconds(family(process.pid))
    made = load.wrk(target.http, CONNECTIONS, seconds, close=True).requests
    after = user_and_system_seconds(family(process.pid))
    if not made:
        raise BenchError(f"{target.name} served no connection in {seconds} s")
    return Cost(*((late - early) / made * 1e6 for early, late in zip(before, after, strict=True)))


def system_calls(target: targets.Target, seconds: int, folder: Path) -> dict[str, float]:
    """Calls per connection, by name. Raises BenchError."""
    process, table = _process(target), folder / "strace"
    pids = [argument for pid in family(process.pid) for argument in ("-p", str(pid))]
    with started(["strace", "-f", "-c", "-o", str(table), *pids], stdout=DEVNULL, stderr=PIPE) as tracer:
        while not Path(f"/proc/{process.pid}/status").read_text().partition("TracerPid:\t")[2].startswith(str(tracer.pid)):
            if tracer.poll() is not None:
                raise BenchError(f"strace cannot attach:\n{tracer.stderr.read() if tracer.stderr else ''}")
            time.sleep(0.01)  # noqa: TID251 - a process of its own is waited for
        load.wrk(target.http, CONNECTIONS, seconds, close=True)
    return parse_strace(table.read_text()).per_connection()


def _process(target: targets.Target) -> Process:
    if target.process is None:
        raise BenchError(f"{target.name} is no process: there is nothing to profile")
    return target.process


def main(argv: list[str]) -> int:
    """`python -m bench profile-connection`."""
    parser = argparse.ArgumentParser(
        "python -m bench profile-connection", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="interleaved rounds (5)")
    parser.add_argument("--seconds", type=int, default=4, metavar="S", help="length of one load (4)")
    parser.add_argument("--targets", default=",".join(TARGETS), metavar="A,B", help=",".join(TARGETS))
    options = parser.parse_args(argv)
    names = options.targets.split(",")
    if unknown := [name for name in names if name not in targets.KINDS]:
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(targets.KINDS)}")
    targets.require(targets.requirements(names) | {"strace": "strace"})
    costs: dict[str, list[Cost]] = {name: [] for name in names}
    calls: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="pylb-bench-") as folder:
        wiring = targets.wired(Path(folder), DESCRIPTORS)
        with targets.origin(wiring):
            for turn in range(1, options.rounds + 1):
                for name in rotated(names, turn):
                    with targets.running(name, wiring) as target:
                        costs[name].append(cost(target, options.seconds))
                    report.progress(f"round {turn}/{options.rounds} {name:<14} {costs[name][-1].total:.1f} CPU µs/connection")
            for name in names:
                with targets.running(name, wiring) as target:
                    calls[name] = system_calls(target, options.seconds, Path(folder))
    print("\n".join([*aligned(cost_rows(costs)), "", *aligned(call_rows(calls))]))
    return 0


def cost_rows(costs: dict[str, list[Cost]]) -> list[list[str]]:
    """The median of each target, and of the ratios to the first target in the same round."""
    first = next(iter(costs))
    rows = [["CPU µs/connection", "all", "program", "kernel", f"x {first}"]]
    for name, found in costs.items():
        ratios = sorted(ours.total / theirs.total for ours, theirs in zip(found, costs[first], strict=True))
        spread = "1" if name == first else f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}..{ratios[-1]:.2f})"
        figures = (statistics.median(values) for values in zip(*((one.total, *one) for one in found), strict=True))
        rows.append([name, *(f"{figure:.1f}" for figure in figures), spread])
    return rows


def call_rows(calls: dict[str, dict[str, float]]) -> list[list[str]]:
    """A row for each system call, the most frequent first, and their sum."""
    names = sorted({name for found in calls.values() for name in found}, key=lambda name: -_most(calls, name))
    rows = [["system calls/connection", *calls]]
    rows += [
        _row(name, [found.get(name, 0.0) for found in calls.values()]) for name in names if _most(calls, name) >= MENTIONED
    ]
    return [*rows, _row("all", [sum(found.values()) for found in calls.values()])]


def _most(calls: dict[str, dict[str, float]], name: str) -> float:
    return max(found.get(name, 0.0) for found in calls.values())


def _row(name: str, figures: Sequence[float]) -> list[str]:
    return [name, *(f"{figure:.2f}" for figure in figures)]
