"""What the flight recorder costs a short connection: `python -m bench recorder`.

One engine in this process, between a real load (wrk, a new connection for every request) and a real origin (nginx), with the
recorder switched on and off ten times a second: same process, same memory, same moment. The result is the CPU time of this
process per connection. A ratio compares two neighbouring slices; `off` compared with `off` shows how far it can be trusted.
"""

import argparse
import gc
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from bench.processes import started
from bench.tables import aligned
from bench.targets import origin, require, wired
from pylb.core.address import Address, Listen
from pylb.core.policy import Policy
from pylb.core.recorder import Recorder
from pylb.core.session import SessionRecord
from pylb.core.table import Frontend, Server, make_table
from pylb.forward.engine import Engine
from pylb.forward.timers import TICK
from pylb.host.loop_lag import GC_THRESHOLDS

SIZE = 1000  # the default of recorder.sessions
SLICE = 0.1  # seconds
ORDER = (True, False, False)  # is it on?


class _CountingObserver:
    """An observer that counts."""

    wants_records = True

    def __init__(self) -> None:
        self.count = 0

    def session_ended(self, _record: SessionRecord) -> None:
        self.count += 1

    def connect_ended(self, listen: Listen, server: Server, failure: str | None) -> None:
        """Do nothing, because no connect fails here."""


def costs(seconds: float, folder: Path) -> list[list[float]]:
    """CPU microseconds per connection, of each slice, by its place in ORDER. Raises BenchError."""
    wiring = wired(folder, 10_000)
    observer, recorder = _CountingObserver(), Recorder(SIZE)
    engine = Engine(observer=observer, max_connections=1000, on_fault=_fail)
    listen = Listen("tcp", wiring.proxy_http.host, wiring.proxy_http.port)
    server = Server("origin", Address(wiring.origin_http.host, wiring.origin_http.port))
    engine.apply(make_table(1, {listen: Frontend("http", listen, Policy(), (server,))}))
    argv = ["wrk", "-t1", "-c64", f"-d{int(seconds) + 2}s", "-H", "Connection: close", f"http://{wiring.proxy_http}/"]
    taken: list[list[float]] = [[] for _ in ORDER]
    with origin(wiring), started(argv, stderr=subprocess.DEVNULL):
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        _turn(engine, 0.5)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for place, is_on in enumerate(ORDER):
                engine._accounts.recorder = recorder if is_on else None  # noqa: SLF001 - no caller of pylb's own needs that
                before, began = observer.count, time.thread_time()
                _turn(engine, SLICE)
                if observer.count > before:
                    taken[place].append((time.thread_time() - began) / (observer.count - before) * 1e6)
    engine.close()
    return taken


def _turn(engine: Engine, seconds: float) -> None:
    """Turn the engine as a worker's loop does."""
    clock = time.monotonic
    due, busy = clock(), False
    end = due + seconds
    while (now := clock()) < end:
        if now >= due:
            due = now + TICK
            engine.tick(now)
        busy = engine.on_ready(0 if busy else due - now)


def _fail(what: str, error: Exception) -> None:
    raise SystemExit(what) from error  # an Exception would be kept from the loop


def main(argv: list[str]) -> int:
    """`python -m bench recorder`."""
    parser = argparse.ArgumentParser("python -m bench recorder", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="in all (60)")
    seconds = parser.parse_args(argv).seconds
    require({"nginx": "nginx", "wrk": "wrk"})
    with tempfile.TemporaryDirectory() as folder:
        on, off, again = costs(seconds, Path(folder))
    rows = [["recorder", "CPU µs/connection", "x off", "quarter", "three quarters"]]
    for name, taken in (("on", on), ("off", off), ("off again", again)):
        low, middle, high = statistics.quantiles([one / other for one, other in zip(taken, off, strict=False)], n=4)
        rows.append([name, f"{statistics.median(taken):.1f}", f"{middle:.3f}", f"{low:.3f}", f"{high:.3f}"])
    print("\n".join(aligned(rows)))
    return 0
