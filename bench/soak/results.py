"""What a run of the soak did and found, and what it says at the end."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from bench import report
from bench.figures import spread
from bench.soak.kills import Kills
from bench.tables import listed

WARM_UP = 0.1  # of the time: allocators and pools fill


@dataclass
class Totals:
    """Counts what was done and what went wrong."""

    ends: Counter[str] = field(default_factory=Counter)
    bytes_up: int = 0
    bytes_down: int = 0
    connections: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def complain(self, text: str) -> None:
        """Record a complaint and print it at once, so that nobody has to wait for the end of the run."""
        self.wrong.append(text)
        report.progress(f"  ! {report.now()} {text}")


@dataclass(frozen=True)
class Sample:
    """pylb at one moment: seconds since the start, bytes it allocated, CPU seconds so far, loop lag in seconds."""

    at: float
    memory: int
    descriptors: int
    cpu: float
    sessions: int
    lag: float


@dataclass
class Results:
    """All of a run. `kills` None: nobody was killed."""

    totals: Totals
    kills: Kills | None
    samples: list[Sample] = field(default_factory=list)

    def memory_growth(self) -> float:
        """Bytes that the least-squares line through the second half rises in it."""
        half = [sample for sample in self.samples if sample.at >= self.samples[-1].at / 2]
        if len(half) < 3:
            return 0.0
        times, sizes = [sample.at for sample in half], [float(sample.memory) for sample in half]
        middle, level = sum(times) / len(times), sum(sizes) / len(sizes)
        across = sum((at - middle) ** 2 for at in times)
        slope = sum((at - middle) * (size - level) for at, size in zip(times, sizes, strict=True)) / across
        return slope * (times[-1] - times[0])

    def summary(self) -> str:
        """The table at the end."""
        totals = self.totals
        late = [sample for sample in self.samples if sample.at >= self.samples[-1].at * WARM_UP]
        rows = [
            ["seconds", f"{self.samples[-1].at:.0f}"],
            [
                "streams",
                f"{sum(totals.ends.values()):,} ({', '.join(f'{n:,} {end}' for end, n in sorted(totals.ends.items()))})",
            ],
            ["bytes", f"{totals.bytes_up / 1e9:.2f} GB up, {totals.bytes_down / 1e9:.2f} GB down, SHA-256 on each stream"],
            ["table", ", ".join(f"{n:,} {what}" for what, n in sorted(totals.calls.items()))],
            ["memory", f"{_span([s.memory / 2**20 for s in late], '.1f')} MiB"],
            ["descriptors", _span([s.descriptors for s in late], ".0f")],
            ["loop lag", f"{_span([1000 * s.lag for s in late], '.1f')} ms"],
            *(self._steady_rows() if self.kills is None else [["deaths", self._deaths(self.kills)]]),
            ["wrong", str(len(totals.wrong))],
        ]
        return listed(rows)

    def _steady_rows(self) -> list[list[str]]:
        """The rows about a process that lives all the time."""
        return [
            ["memory growth", f"{self.memory_growth() / 2**20:+.2f} MiB in the second half"],
            ["CPU share", " ".join(f"{share:.0%}" for share in self._cpu_quarters()) + " of a core, by quarters"],
        ]

    def _deaths(self, kills: Kills) -> str:
        done = ", ".join(f"{n:,} {what}" for what, n in sorted(kills.done.items()))
        return f"{done}; {kills.lost:,} ends of connections were in killed workers"

    def _cpu_quarters(self) -> Iterator[float]:
        count = len(self.samples) - 1
        for quarter in range(4) if count >= 4 else ():
            first, last = self.samples[count * quarter // 4], self.samples[count * (quarter + 1) // 4]
            yield (last.cpu - first.cpu) / (last.at - first.at)

    def as_json(self, seconds: float, seed: int, workers: int) -> str:
        """One object: the machine, the totals, every sample."""
        return json.dumps(
            {
                "soak": seconds,
                "seed": seed,
                "workers": workers,
                "deaths": None if self.kills is None else self.kills.done,
                "machine": report.machine(),
                "totals": {
                    "ends": self.totals.ends,
                    "calls": self.totals.calls,
                    "connections": self.totals.connections,
                    "bytes_up": self.totals.bytes_up,
                    "bytes_down": self.totals.bytes_down,
                    "wrong": self.totals.wrong,
                },
                "memory_growth": self.memory_growth(),
                "samples": [vars(sample) for sample in self.samples],
            },
            indent=1,
        )


def _span(values: list[float] | list[int], form: str) -> str:
    found = spread(map(float, values))
    return f"{found.median:{form}} ({found.low:{form}}..{found.high:{form}})"
