"""What health checks cost the loop that also forwards: `python -m bench probes`.

Active checks of many servers that all refuse (nothing listens on their 127.0.0.0/8), in one uvloop with nothing else in it but
a task that wakes every millisecond. The result is the CPU time between two of its turns, which no step of a probe can have
exceeded. Other processes of the machine do not affect it.
"""

import argparse
import asyncio
import random
import statistics
import time

import uvloop

from bench.tables import aligned
from pylb.control.health.checker import Checker
from pylb.control.health.prober import ask
from pylb.core.address import Address, Listen
from pylb.core.policy import HealthMode, HealthPolicy, Policy
from pylb.core.table import Frontend, Server, make_table
from pylb.host.loop_lag import collect_rarely

POOLS = (1, 1000)
TICK = 0.1  # seconds between two looks at what is due, as in pylb itself
LISTEN = Listen("tcp", "*", 443)


async def turns(size: int, seconds: float) -> list[float]:
    """CPU milliseconds between two turns of the watch, in ascending order."""
    checker = Checker(ask, time.monotonic, random.uniform, lambda *_: None)
    servers = tuple(Server(f"s{n}", Address(f"127.{1 + n // 250}.{n % 250}.1", 30443)) for n in range(size))
    policy = Policy(health=HealthPolicy(HealthMode.ACTIVE))
    checker.sync(make_table(1, {LISTEN: Frontend("web", LISTEN, policy, servers)}), None)
    end, taken = time.monotonic() + seconds, list[float]()

    async def watch() -> None:
        while time.monotonic() < end:
            began = time.thread_time()
            await asyncio.sleep(0.001)
            taken.append((time.thread_time() - began) * 1e3)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(watch())
        while time.monotonic() < end:
            if checker.is_due():
                tasks.create_task(checker.probe())
            await asyncio.sleep(TICK)
    return sorted(taken)


def main(argv: list[str]) -> int:
    """`python -m bench probes`."""
    parser = argparse.ArgumentParser("python -m bench probes", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="for each pool (10)")
    seconds = parser.parse_args(argv).seconds
    collect_rarely()
    rows = []
    for size in POOLS:
        taken = uvloop.run(turns(size, seconds))
        p99 = taken[int(len(taken) * 0.99)]
        rows.append([f"{size:,} servers", f"{statistics.median(taken):.2f}", f"{p99:.1f}", f"{taken[-1]:.1f}"])
    print("\n".join(aligned([["CPU ms between two turns", "median", "p99", "most"], *rows])))
    return 0
