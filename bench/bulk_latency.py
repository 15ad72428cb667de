"""How long small requests wait beside bulk: a 64-byte ping-pong, `/livez`, and pylb's own loops.

The lag of a loop is how late its 100 ms timer runs (pylb/host/loop_lag.py). Each process of pylb records it every time,
because the metric shows only the worst recent value.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

from bench import load
from bench.figures import percentile
from bench.processes import BenchError, family
from bench.targets import Kind, Target

SETTLE = 1.0  # seconds in which the streams reach their full rate
_LAGS = """
import os, time
from pylb.host.loop_lag import Pulse
beat, last, out = Pulse.beat, [time.monotonic()], open(%r + str(os.getpid()), "w", buffering=1)
def noted(self, now):
    came = time.monotonic()
    print(came - last[0] - self._period, file=out)
    last[0] = came
    beat(self, now)
Pulse.beat = noted
"""
_MAIN = """
from pylb.workers import archive as program
start = "from pylb.workers.worker import main"
program._BOOT = program._BOOT.replace(start, "exec(" + repr({lags!r}) + "); " + start)
from pylb.cli.main import main
main()
"""


def with_lags(kind: Kind) -> Kind:
    """The same pylb, but its loops write their lags to files beside its config."""

    def command(config: Path) -> list[str]:
        lags = _LAGS % f"{config.parent}/lags-"
        return [sys.executable, "-c", lags + _MAIN.format(lags=lags), "run", "-c", str(config)]

    return replace(kind, command=command)


def measure(target: Target, streams: int, seconds: int) -> tuple[dict[str, float], int]:
    """Milliseconds for each figure, and the number of failed probes of /livez."""
    with load.draining(target.bulk, streams):
        time.sleep(SETTLE)  # noqa: TID251 - for other processes
        before = _lags(target)
        ping, *probes = load.ping(target.http, seconds, target.wiring.admin if target.says_ready else None)
        lags = {pid: found[len(before.get(pid, ())) :] for pid, found in _lags(target).items()}
    metrics = {"ping_p99_ms": 1e3 * ping.p99, "ping_p50_ms": 1e3 * ping.p50}
    for livez in probes:
        metrics |= {"livez_p50_ms": 1e3 * livez.p50, "livez_p95_ms": 1e3 * livez.p95}
        if not all(lags.values()) or not lags:
            raise BenchError(f"{target.name}: a loop had no beat in {seconds} s")
        metrics["lag_p99_ms"] = 1e3 * max(percentile(found, 99) for found in lags.values())
    return metrics, sum(livez.errors for livez in probes)


def _lags(target: Target) -> dict[int, list[float]]:
    """The lags of each process of pylb, in seconds."""
    if target.process is None or not target.says_ready:
        return {}
    files = {pid: target.wiring.folder / f"lags-{pid}" for pid in family(target.process.pid)}
    return {pid: [float(line) for line in file.read_text().splitlines()] for pid, file in files.items() if file.exists()}
