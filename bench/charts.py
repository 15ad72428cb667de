"""`python -m bench charts`: a kept run as SVG, for the README. Medians of per-round ratios to HAProxy, with their spread."""

import argparse
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from bench import report
from bench.figures import Sample, Spread, ratio, values
from bench.processes import BenchError

FOLDER = Path(__file__).parents[1] / "docs" / "charts"
TARGETS = ("pylb", "nginx")
# Scenario, metric, label. More is better in the first chart, less in the second.
MORE = (
    ("keepalive-1", "requests_per_second", "requests/s, 1 connection"),
    ("keepalive", "requests_per_second", "requests/s, 64 connections"),
    ("keepalive-256", "requests_per_second", "requests/s, 256 connections"),
    ("connections", "connections_per_second", "new connections/s"),
    ("bulk", "gb_per_second", "bulk, 1 stream"),
    ("bulk-4", "gb_per_second", "bulk, 4 streams"),
)
LESS = (
    ("bulk", "cpu_s_per_gb", "CPU per GB, 1 stream"),
    ("connections", "cpu_s_per_10k_connections", "CPU per connection"),
    ("keepalive", "cpu_us_per_request", "CPU per request"),
    ("half-rate", "p99_ms", "p99 at half rate"),
    ("mixed", "p99_ms", "p99 beside bulk"),
    ("idle", "kib_per_session", "memory per idle session"),
)
ROW, BAR, LEFT, WIDTH, TOP = 46, 14, 210, 640, 44
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #222 } .small { font-size: 11px; fill: #666 }
.pylb { fill: #2f6fdb } .nginx { fill: #9aa5b1 } .line { stroke: #222 } .one { stroke: #c2410c; stroke-dasharray: 4 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd } .small { fill: #999 } .line { stroke: #ddd } .pylb { fill: #6ea8fe } .nginx { fill: #6b7785 }
}
"""

Bars = list[tuple[str, dict[str, Spread]]]


def bars(samples: Sequence[Sample], what: Sequence[tuple[str, str, str]]) -> Bars:
    """For each row its label and the ratio of each target, where the run has measured it."""
    found = []
    for scenario, metric, label in what:
        base = values(samples, scenario, report.BASELINE, metric)
        ratios = {target: ratio(values(samples, scenario, target, metric), base) for target in TARGETS}
        known = {target: figure for target, figure in ratios.items() if figure is not None}
        if known:
            found.append((label, known))
    return found


def svg(title: str, rows: Bars) -> str:
    """A drawing without scripts, fonts or anything from elsewhere; its colours follow the reader's theme."""
    most = max((figure.high for _, known in rows for figure in known.values()), default=1.0)
    scale = (WIDTH - LEFT - 130) / max(most, 1.0)
    height = TOP + ROW * len(rows) + 28
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        f'<text x="8" y="20">{escape(title)}</text>',
        '<rect class="pylb" x="8" y="28" width="10" height="10"/><text class="small" x="22" y="37">pylb</text>',
        '<rect class="nginx" x="62" y="28" width="10" height="10"/><text class="small" x="76" y="37">nginx stream</text>',
    ]
    for at, (label, known) in enumerate(rows):
        y = TOP + ROW * at + 6
        parts.append(f'<text x="8" y="{y + 20}">{escape(label)}</text>')
        for target, figure in known.items():
            parts.append(_bar(target, figure, y, scale))
            y += BAR + 3
    one = LEFT + scale
    parts.append(f'<line class="one" x1="{one:.1f}" x2="{one:.1f}" y1="{TOP}" y2="{height - 22}"/>')
    parts.append(f'<text class="small" x="{one:.1f}" y="{height - 8}" text-anchor="middle">HAProxy = 1</text>')
    return "\n".join([*parts, "</svg>", ""])


def _bar(target: str, figure: Spread, y: float, scale: float) -> str:
    end, low, high = (LEFT + scale * value for value in (figure.median, figure.low, figure.high))
    middle = y + BAR / 2
    return (
        f'<rect class="{target}" x="{LEFT}" y="{y}" width="{end - LEFT:.1f}" height="{BAR}"/>'
        f'<line class="line" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>'
        f'<text class="small" x="{max(end, high) + 6:.1f}" y="{y + BAR - 3}">{figure.median:.2f}</text>'
    )


def load(path: Path) -> list[Sample]:
    """The samples of a kept run. Raises BenchError."""
    try:
        run = json.loads(path.read_text())
        return [Sample(**sample) for sample in run["samples"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(f"{path} is no kept run: {error!r}") from error


def newest() -> Path:
    """The last full run that was kept. Raises BenchError."""
    kept = sorted(report.RESULTS.glob("2*.json"))
    if not kept:
        raise BenchError(f"no run is kept under {report.RESULTS}\n  hint: python -m bench")
    return kept[-1]


def main(argv: list[str]) -> int:
    """`python -m bench charts`."""
    parser = argparse.ArgumentParser("python -m bench charts", description=__doc__)
    parser.add_argument("result", type=Path, nargs="?", help="a kept run (the newest under bench/results/)")
    samples = load(parser.parse_args(argv).result or newest())
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, title, what in (
        ("more", "One thread beside one thread of HAProxy: more is better", MORE),
        ("less", "One thread beside one thread of HAProxy: less is better", LESS),
    ):
        path = FOLDER / f"{name}.svg"
        path.write_text(svg(title, bars(samples, what)))
        report.progress(str(path))
    return 0
