"""How long a scrape takes, and how long it blocks the loop that also forwards: `python -m bench scrape`.

Static frontends with three servers each, with the engine in this process (workers 0) and with a worker beside it (workers 1).
Before every scrape each frontend has a session, so that all counters have changed and a worker has to report all of them.
The results are the wall time of a scrape, the CPU time of the loop's thread in it, and the CPU time between two turns of a
task in the same uvloop, which no step can have exceeded. Other processes of the machine do not affect the CPU times.
"""

import argparse
import asyncio
import random
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import uvloop
from prometheus_client.registry import Collector

from bench.processes import free_ports
from bench.report import progress
from bench.tables import aligned
from bench.targets import OWN_PORTS
from pylb.app.engine_observer import EngineObserver
from pylb.control.registry import Registry
from pylb.control.storage.store import Store
from pylb.control.tasks import Tasks
from pylb.core.address import Address, Listen
from pylb.core.auth import Keyring
from pylb.core.policy import Policy, Rules, StaticFrontend, StaticServer
from pylb.forward.engine import Engine
from pylb.haproxy.exporter import Exporter
from pylb.haproxy.info import Facts
from pylb.haproxy.rates import Rates
from pylb.haproxy.view import View
from pylb.host.loop_lag import collect_rarely
from pylb.host.machine import raise_descriptor_limit
from pylb.host.systemd import SystemdService
from pylb.logs.session_log import ConnectionLog
from pylb.logs.targets import Stream
from pylb.metrics import exposition
from pylb.metrics.collector import Metrics
from pylb.upgrade.sockets import ListeningSockets
from pylb.workers.archive import CodeArchive
from pylb.workers.fleet import Fleet, FleetObserver
from pylb.workers.in_process import InProcessEngine
from pylb.workers.messages import VERSION, Hello

SERVERS = 3  # of each frontend
HOST = "127.0.0.1"
MOST = 20_000  # sessions at once


@contextmanager
def servers() -> Iterator[int]:
    """Start a server that accepts on all of loopback and closes at once. Returns its port."""
    with socket.create_server(("", 0), backlog=1024) as listener:
        listener.settimeout(0.1)
        over = threading.Event()

        def run() -> None:
            while not over.is_set():
                try:
                    listener.accept()[0].close()
                except TimeoutError:
                    pass

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            over.set()
            thread.join()


def _fail(what: str, error: Exception) -> None:
    raise SystemExit(what) from error  # an Exception would be kept from the loop


@asynccontextmanager
async def forwarding(workers: int, hooks: EngineObserver) -> AsyncIterator[InProcessEngine | Fleet]:
    """Make the part that forwards, as the app does."""
    if not workers:
        driver = InProcessEngine(Engine(observer=hooks, max_connections=MOST, on_fault=_fail))
        try:
            yield driver
        finally:
            driver.close()
        return

    def hello(worker: int) -> Hello:
        return Hello(VERSION, worker, workers, MOST, 100, 1 << 26, "none")

    observer = FleetObserver(hooks.connect_ended, lambda _line, _count: None, lambda _pid: None)
    fleet = Fleet(workers, hello, observer, ListeningSockets(SystemdService({})), CodeArchive())
    try:
        await fleet.start()
        yield fleet
    finally:
        fleet.close()


def rules(ports: Sequence[int], target: int) -> Rules:
    frontends = []
    for number, port in enumerate(ports):
        pool = tuple(
            StaticServer(Address(f"127.{one + 1}.{number // 250}.{number % 250 + 1}", target)) for one in range(SERVERS)
        )
        frontends.append(StaticFrontend(f"frontend-{number}", Listen("tcp", HOST, port), pool, Policy()))
    return Rules(frontends=tuple(frontends))


def visit(ports: Sequence[int]) -> None:
    """Make a session on each frontend, and wait for its end."""
    for port in ports:
        with socket.create_connection((HOST, port), 10) as client:
            try:
                client.recv(1)
            except ConnectionResetError:
                pass


class Figures(NamedTuple):
    """The milliseconds of each scrape."""

    wall: list[float]
    cpu: list[float]  # of the loop's thread
    step: list[float]  # the longest


async def scrapes(workers: int, ports: Sequence[int], rounds: int, *, haproxy: bool = False) -> tuple[Figures, int]:
    """The figures, and the size of a scrape in bytes. `haproxy`: under its names instead of pylb's own."""
    found, size = Figures([], [], []), 0
    hooks = EngineObserver(ConnectionLog(Stream(1), "none"), Tasks())
    with servers() as target, tempfile.TemporaryDirectory(prefix="pylb-bench-") as folder:
        async with forwarding(workers, hooks) as forward:
            registry = Registry(rules=rules(ports, target), keyring=Keyring(()), sink=forward, store=Store(Path(folder)))
            hooks.registry = registry
            await registry.start()
            metrics = Metrics(
                counters=forward.counters,
                registry=registry,
                lines_dropped=lambda: 0,
                processes=forward.workers,
                reloaded=lambda: True,
            )
            facts = Facts(time.time(), workers, 1, 1, len(ports), 1, 0, False, "here")
            scrape = Exporter(View(registry, forward.counters, lambda: facts, Rates())).scrape if haproxy else metrics.scrape
            collect_rarely()
            for turn in range(rounds + 1):
                await asyncio.to_thread(visit, ports)
                began, worked = time.perf_counter(), time.thread_time()
                longest, text = await watched(scrape)
                if turn:  # the first one is a warm-up
                    found.wall.append((time.perf_counter() - began) * 1e3)
                    found.cpu.append((time.thread_time() - worked) * 1e3)
                    found.step.append(longest)
                    size = len(text)
            await registry.stop()
    return found, size


async def watched(scrape: Callable[[], Awaitable[Collector]]) -> tuple[float, bytes]:
    """The longest step of the loop during a scrape, in milliseconds of CPU, and the scrape."""
    longest = 0.0
    task = asyncio.get_running_loop().create_task(exposition.written([scrape], exposition.TEXT))
    while not task.done():
        before = time.thread_time()
        await asyncio.sleep(0)
        longest = max(longest, (time.thread_time() - before) * 1e3)
    return longest, await task


def main(argv: list[str]) -> int:
    """`python -m bench scrape`."""
    parser = argparse.ArgumentParser("python -m bench scrape", description=__doc__)
    parser.add_argument("--frontends", type=int, default=1000, metavar="N", help="with three servers each (1000)")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="scrapes (15)")
    options = parser.parse_args(argv)
    raise_descriptor_limit()
    ports = free_ports(HOST, options.frontends, iter(random.sample(OWN_PORTS, len(OWN_PORTS))))
    rows = []
    for workers, haproxy in ((0, False), (1, False), (0, True)):
        found, size = uvloop.run(scrapes(workers, ports, options.rounds, haproxy=haproxy))
        what = f"workers {workers}" + (", HAProxy's names" if haproxy else "")
        progress(f"{what}: {size / 1e6:.1f} MB a scrape")
        rows.append([what, *(f"{of(one):.1f}" for one in found for of in (statistics.median, max))])
    title = f"{options.frontends:,} frontends, {SERVERS} servers each: ms"
    print("\n".join(aligned([[title, "wall", "most", "CPU", "most", "longest step", "most"], *rows])))
    return 0
