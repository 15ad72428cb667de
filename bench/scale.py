"""What control costs with many registrations: `python -m bench scale`. Its second half measures a running pylb
(scale_process.py).

10,000 registrations on 1,000 frontends, ten instances each, in this process: a registry, the real engine with its ports, the
page's stream and the metrics; nothing is dialled. For each piece of work it prints the CPU time of the loop's thread and the
longest step that blocked the loop, as CPU time between two turns, so other processes do not count. For the snapshot it prints
how late a task in the same loop is while the store's thread encodes and writes, in wall time, which would show a thread that
keeps the GIL.
"""

import argparse
import asyncio
import gc
import json
import random
import resource
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import report, scale_process
from bench.processes import BenchError
from bench.report import progress
from bench.scale_outage import Clock, Outage
from bench.tables import aligned
from pylb.api.routes import rows
from pylb.app.engine_observer import EngineObserver
from pylb.control.health.prober import ProbeRequest
from pylb.control.new_registration import ImportedServer
from pylb.control.registry import Registry
from pylb.control.storage.snapshot import Encoder
from pylb.control.storage.store import Store
from pylb.control.tasks import Tasks
from pylb.core.address import Address, Listen, parse_network, parse_ports
from pylb.core.auth import Caller, Keyring, Token
from pylb.core.policy import AdminState, Policy, Rules, StaticFrontend, StaticServer
from pylb.core.registration import Announcement, FrontendRequest
from pylb.forward.engine import Engine
from pylb.forward.sockets import open_listener
from pylb.haproxy.rates import Rates
from pylb.host.loop_lag import collect_rarely
from pylb.host.machine import raise_descriptor_limit
from pylb.logs.session_log import ConnectionLog
from pylb.logs.targets import Stream
from pylb.metrics import exposition
from pylb.metrics.collector import Metrics
from pylb.statuspage.stream import PageStream
from pylb.statuspage.timeseries import TimeSeries
from pylb.workers.in_process import InProcessEngine
from pylb.workers.sampler import Sampler

FRONTENDS, INSTANCES = 1000, 10
TOKENS = 20  # a token may hold 2,000 registrations
LONGEST = 10.0  # ms: the mark of a step
ANNOUNCE = 0.5  # ms: the mark of one announce


@dataclass(frozen=True)
class Figure:
    what: str
    cpu_ms: float  # of the loop's thread, for all of it
    step_ms: float  # the longest step
    mark_ms: float | None  # what the step, or with `each` the CPU of one, may take
    each: int = 1  # how many calls it was

    @property
    def reached(self) -> bool:
        figure = self.cpu_ms / self.each if self.mark_ms == ANNOUNCE else self.step_ms
        return self.mark_ms is None or figure <= self.mark_ms


@contextmanager
def watched() -> Iterator[Callable[[], tuple[float, float]]]:
    """Time each step of the loop in the block. The yielded function returns the CPU seconds of all and of the longest."""
    run, steps = asyncio.Handle._run, list[float]()  # noqa: SLF001 - the one place that every callback passes

    def timed(handle: asyncio.Handle) -> None:
        began = time.thread_time()
        run(handle)
        steps.append(time.thread_time() - began)

    asyncio.Handle._run = timed  # type: ignore[method-assign,assignment]  # noqa: SLF001
    try:
        yield lambda: (sum(steps), max(steps, default=0.0))
    finally:
        asyncio.Handle._run = run  # type: ignore[method-assign]  # noqa: SLF001


class RegistryBenchmark:
    """A registry full of registrations, and the measurements on it."""

    def __init__(self, registry: Registry, tokens: list[Token], ports: list[int], driver: InProcessEngine) -> None:
        self.registry = registry
        self.tokens = tokens
        self.ports = ports
        self.driver = driver
        self.keyring = Keyring(tokens)
        self.figures: list[Figure] = []
        self.said: list[str] = []

    async def put(self, number: int, *, move: int = 0) -> None:
        """Register the instance of that number, with its node's address or another one."""
        frontend = number % len(self.ports)
        node = f"10.{move}.0.{1 + number // len(self.ports)}"
        caller = Caller(node, self.tokens[frontend % TOKENS])
        wanted = (FrontendRequest(self.ports[frontend], 30000 + frontend),)
        await self.registry.calls.announce(f"app-{frontend}", f"pod-{number}", Announcement(wanted, None, 3600.0), caller)

    async def fill(self) -> None:
        total = len(self.ports) * INSTANCES
        for start in range(0, total, 500):
            await asyncio.gather(*(self.put(number) for number in range(start, min(total, start + 500))))

    async def measure(self, what: str, work: Awaitable[object], mark: float | None = LONGEST, each: int = 1) -> None:
        with watched() as taken:
            await asyncio.get_running_loop().create_task(_done(work))
            await asyncio.sleep(0)
            cpu, step = taken()
        self.figures.append(Figure(what, 1000 * cpu, 1000 * step, mark, each))
        progress(f"{what}: {1000 * cpu:.1f} ms of CPU, longest step {1000 * step:.2f} ms")

    async def several(self, count: int, call: Callable[[int], Awaitable[object]]) -> None:
        for number in range(count):
            await call(number)

    async def at_once(self, count: int, call: Callable[[int], Awaitable[object]]) -> None:
        await asyncio.gather(*(call(number) for number in range(count)))


async def _done(work: Awaitable[object]) -> None:
    """Run it as a separate task, so that its steps are steps of the loop."""
    await work


async def _answers(_question: ProbeRequest) -> str:
    return "yes"


def _token(number: int) -> Token:
    return Token(
        name=f"token-{number}",
        secrets=(f"a-secret-of-a-bench-token-{number}",),
        ports=parse_ports(["1-65535"]),
        names=("*",),
        targets=(parse_network("10.0.0.0/8"),),
        target_ports=parse_ports(["1-65535"]),
    )


def _fail(what: str, error: Exception) -> None:
    raise SystemExit(what) from error


@asynccontextmanager
async def running(
    folder: Path, ports: list[int], clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[RegistryBenchmark]:
    tokens = [_token(number) for number in range(TOKENS)]
    hooks = EngineObserver(ConnectionLog(Stream(1), "none"), Tasks())
    driver = InProcessEngine(Engine(observer=hooks, max_connections=1000, on_fault=_fail))
    registry = Registry(rules=Rules(), keyring=Keyring(tokens), sink=driver, store=Store(folder), ask=_answers, clock=clock)
    await registry.start()
    await registry.webhook_is_up()
    try:
        yield RegistryBenchmark(registry, tokens, ports, driver)
    finally:
        await registry.stop()
        driver.close()


def statics(ports: Sequence[int]) -> Rules:
    lines = tuple(StaticServer(Address(f"10.200.0.{one}", 30000)) for one in range(1, 4))
    return Rules(frontends=tuple(StaticFrontend(f"static-{port}", Listen("tcp", "*", port), lines, Policy()) for port in ports))


async def measured(benchmark: RegistryBenchmark, spare: Sequence[int], before: int) -> None:
    """The rows, in the order in which they are printed. `spare`: 2,000 more ports."""
    registry = benchmark.registry
    await benchmark.measure("fill: 10,000 calls, 500 at once", benchmark.fill(), each=len(benchmark.ports) * INSTANCES)
    gc.collect()
    registrations = len(benchmark.ports) * INSTANCES
    each = (resident() - before) / registrations / 1024
    benchmark.said.append(f"memory: {each:.1f} KiB for each of {registrations:,} registrations, ports and engine included")
    await benchmark.measure("beat (200)", benchmark.several(200, benchmark.put), ANNOUNCE, 200)
    await benchmark.measure("move (200)", benchmark.several(200, lambda n: benchmark.put(n, move=1)), ANNOUNCE, 200)
    await benchmark.measure("100 moves at once", benchmark.at_once(100, lambda n: benchmark.put(500 + n, move=2)))
    metrics = Metrics(
        counters=benchmark.driver.counters,
        registry=registry,
        lines_dropped=lambda: 0,
        processes=benchmark.driver.workers,
        reloaded=lambda: True,
    )
    await benchmark.measure("metrics", exposition.written([metrics.scrape], exposition.TEXT))
    await benchmark.measure("routes", rows(registry))
    history, rates = TimeSeries(), Rates()
    feed = PageStream(registry, history, dict)
    sampler = Sampler(lambda: registry.table, benchmark.driver.parts, [history, rates], sampled=feed.sampled)
    stream = feed.stream()
    for what in ("first picture", "next one"):
        await benchmark.measure(f"sampler, before the {what}", sampler.sample())
        await benchmark.measure(f"page, the {what}", feed.look())
    await stream.aclose()
    await benchmark.measure("drain of a node with 1,000 servers", registry.operator.set_admin("10.0.0.6", AdminState.DRAIN))
    await benchmark.measure(
        "reload that opens 1,000 static frontends", registry.rules.reload(statics(spare[:1000]), benchmark.keyring)
    )
    await benchmark.measure("reload that changes nothing", registry.rules.reload(statics(spare[:1000]), benchmark.keyring))
    await benchmark.measure("reload that closes them", registry.rules.reload(Rules(), benchmark.keyring))
    items = [ImportedServer(port, Address("10.100.0.1", 30000)) for port in spare]
    await benchmark.measure(f"import of {len(items):,}", registry.operator.import_legacy(items, "token-0"))
    await benchmark.measure("history", _history(registry))
    for what in ("all of it", "what one call changed"):
        if what == "all of it":
            registry._state.persistence._encoder = Encoder()  # noqa: SLF001 - it knows nothing of the snapshots before
        late = await lag(benchmark.put(7, move=3 + (what == "all of it")))
        worst, median = late[-1], statistics.median(late)
        benchmark.said.append(f"snapshot, {what}: the loop is late by {median:.2f} ms in the median, {worst:.2f} ms at most")


async def _history(registry: Registry) -> None:
    registry.history()


def free(count: int) -> list[int]:
    """Ports that pylb can open: by opening them as it does."""
    found: list[int] = []
    for port in random.sample(range(10_000, 32_000), 22_000):
        try:
            open_listener(Listen("tcp", "*", port)).close()
        except OSError:
            continue
        found.append(port)
        if len(found) == count:
            return found
    raise BenchError(f"fewer than {count} free ports")


def main(argv: list[str]) -> int:
    """`python -m bench scale`."""
    parser = argparse.ArgumentParser("python -m bench scale", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures here")
    options = parser.parse_args(argv)
    started, machine = report.now(), report.machine()
    raise_descriptor_limit()
    ports = free(scale_process.PORTS)
    with tempfile.TemporaryDirectory(prefix="pylb-bench-") as folder:
        benchmark = asyncio.run(scale(Path(folder), ports[: FRONTENDS + 2000]))
        running_ones = scale_process.run(Path(folder), ports)
    table = [("what", "CPU ms", "each ms", "longest step ms", "mark ms", "")]
    for one in benchmark.figures:
        each = f"{one.cpu_ms / one.each:.3f}" if one.each > 1 else ""
        mark = "" if one.mark_ms is None else f"{one.mark_ms:g}"
        verdict = "" if one.mark_ms is None else "reached" if one.reached else "MISSED"
        table.append((one.what, f"{one.cpu_ms:.1f}", each, f"{one.step_ms:.2f}", mark, verdict))
    print("\n".join([*aligned(table), "", *(f"  {text}" for text in benchmark.said), ""]))
    table = [("a pylb that runs", "ms", "each ms", "CPU ms of the longest turn", "late by ms at most", "")]
    for found in running_ones:
        each = f"{found.took_ms / found.calls:.2f}" if found.calls > 1 else ""
        verdict = "reached" if found.reached else "MISSED"
        table.append((found.what, f"{found.took_ms:.0f}", each, f"{found.turn_ms:.1f}", f"{found.late_ms:.1f}", verdict))
    print("\n".join(aligned(table)))
    if options.json:
        here, there = [asdict(one) for one in benchmark.figures], [asdict(one) for one in running_ones]
        kept = {"started": started, "machine": machine, "said": benchmark.said, "figures": here, "running": there}
        options.json.write_text(json.dumps(kept, indent=1, default=str) + "\n")
    return int(not all([*(one.reached for one in benchmark.figures), *(one.reached for one in running_ones)]))


async def scale(folder: Path, ports: list[int]) -> RegistryBenchmark:
    collect_rarely()
    before = resident()
    clock = Clock()
    async with running(folder, ports[:FRONTENDS], clock) as benchmark:
        await measured(benchmark, ports[FRONTENDS:], before)
        await Outage(benchmark, clock).measured()
        return benchmark


def resident() -> int:
    """Bytes of memory of this process (proc(5): statm, in pages)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def lag(work: Awaitable[object]) -> list[float]:
    """How late a task of the loop is meanwhile that should run each millisecond, in milliseconds of wall time."""
    task, late = asyncio.get_running_loop().create_task(_done(work)), list[float]()
    while not task.done():
        due = time.perf_counter() + 0.001
        await asyncio.sleep(0.001)
        late.append(1000 * (time.perf_counter() - due))
    await task
    return sorted(late)
