"""What one announce costs that comes alone: `python -m bench announce`.

The registry of `python -m bench scale`, with 10,000 registrations on 1,000 frontends in this process, in the loop in which pylb
runs (uvloop). Calls come one after the other, and for each the CPU time of the loop's thread is taken, from the call to its
answer. The middle one counts, and the quickest is the least that it took. "Without a disk" leaves out the snapshot; "after a
pause" replaces it by a pause of the same length, in which the caches turn cold. How many function calls each makes is in
tests/control/test_announce_cost.py.
"""

import argparse
import asyncio
import gc
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from bench.report import progress
from bench.scale import ANNOUNCE, FRONTENDS, RegistryBenchmark, free, running
from bench.tables import aligned
from pylb.control.desired_state import DesiredState
from pylb.core.auth import Caller
from pylb.core.registration import Announcement, FrontendRequest
from pylb.host.loop_lag import collect_rarely
from pylb.host.machine import raise_descriptor_limit

CALLS = 100
PAUSE = 0.01  # seconds, about as long as a snapshot takes

Announce = Callable[[], Awaitable[None]]


class Announces:
    """Each call is about another registration, so that none finds its frontend in the caches."""

    def __init__(self, benchmark: RegistryBenchmark) -> None:
        self._benchmark = benchmark
        self._made = 0

    async def _call(self, ip: str, instance: str, frontend: int, *, draining: bool = False) -> None:
        ports, tokens = self._benchmark.ports, self._benchmark.tokens
        wanted = (FrontendRequest(ports[frontend], 30000 + frontend),)
        caller = Caller(ip, tokens[frontend % len(tokens)])
        said = Announcement(wanted, None, 3600.0, draining)
        await self._benchmark.registry.calls.announce(f"app-{frontend}", instance, said, caller)

    def _next(self) -> int:
        self._made += 1
        return self._made * 13 % len(self._benchmark.ports)  # no common factor: all come before one comes again

    async def beat(self) -> None:
        frontend = self._next()
        await self._call("10.0.0.1", f"pod-{frontend}", frontend)

    async def move(self) -> None:
        frontend = self._next()
        await self._call(self._node(9), f"pod-{len(self._benchmark.ports) + frontend}", frontend)

    async def goodbye(self) -> None:
        """A beat that changes something: once for each frontend."""
        frontend = self._next()
        await self._call("10.0.0.3", f"pod-{2 * len(self._benchmark.ports) + frontend}", frontend, draining=True)

    async def new_instance(self) -> None:
        frontend = self._next()
        await self._call(self._node(8), f"new-{self._made}", frontend)

    def _node(self, network: int) -> str:
        return f"10.{network}.{self._made // 250}.{self._made % 250 + 1}"


async def _taken(announce: Announce) -> list[float]:
    """Milliseconds of CPU of each, from the quickest to the slowest."""
    found = []
    for _ in range(CALLS):
        began = time.thread_time()
        await announce()
        found.append(1000 * (time.thread_time() - began))
    return sorted(found)


async def _no_disk(_desired: DesiredState) -> None:
    """In place of the snapshot."""


async def _pause(_desired: DesiredState) -> None:
    """In place of the snapshot."""
    await asyncio.sleep(PAUSE)


async def measured(folder: Path) -> list[tuple[str, ...]]:
    collect_rarely()
    async with running(folder, free(FRONTENDS)) as benchmark:
        writer = benchmark.registry._state.writer  # noqa: SLF001 - the disk is replaced
        save, writer._save = writer._save, _no_disk  # noqa: SLF001
        progress("10,000 registrations")
        await benchmark.fill()
        gc.collect()
        announces = Announces(benchmark)
        rows: list[tuple[str, ...]] = [("an announce that comes alone", "CPU ms", "quickest", "mark ms", "")]
        for what, announce, saving in (
            ("a beat", announces.beat, save),
            ("a move", announces.move, save),
            ("a goodbye", announces.goodbye, save),
            ("a new instance", announces.new_instance, save),
            ("a move, without a disk", announces.move, _no_disk),
            ("a move, after a pause", announces.move, _pause),
        ):
            progress(what)
            writer._save = saving  # noqa: SLF001
            await announce()  # whatever is made only once
            taken = await _taken(announce)
            median = statistics.median(taken)
            verdict = "reached" if median <= ANNOUNCE else "MISSED"
            rows.append((what, f"{median:.3f}", f"{taken[0]:.3f}", f"{ANNOUNCE:g}", verdict))
        writer._save = save  # noqa: SLF001
        return rows


def main(argv: list[str]) -> int:
    """`python -m bench announce`."""
    parser = argparse.ArgumentParser("python -m bench announce", description=__doc__)
    parser.parse_args(argv)
    raise_descriptor_limit()
    with tempfile.TemporaryDirectory(prefix="pylb-bench-") as folder:
        rows = uvloop.run(measured(Path(folder)))
    print("\n".join(aligned(rows)))
    return int(any(row[-1] == "MISSED" for row in rows))
