"""What control costs a running pylb: the second half of `python -m bench scale`.

A real process with 765 frontends and 13 servers each, which phone-homes have registered by calls to its webhook; every target
is dialled, and answers. A task in its loop runs each millisecond and records how late it was, and how much CPU
the loop's thread used between two of its turns, which no step can have exceeded. Both are printed for each piece of work,
beside the time that its caller had to wait.
"""

import http.client
import json
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector

import yaml

from bench.processes import Address, BenchError, Process
from bench.report import progress
from pylb.web.control_client import call

FRONTENDS, INSTANCES = 765, 13
SPARE = 1000  # static frontends that a reload opens
IMPORTED, OF_ONE = 10_000, 2000  # legacy servers; a token may hold so many registrations
TOKENS = 20
CALLERS = 32
HOST = "127.0.0.1"
STEP = 10.0  # ms: the mark
PATIENCE = 120.0  # seconds for an answer
_WATCHED = """
import asyncio, time
from pylb.app.heartbeat import Heartbeat
beat, out = Heartbeat.beat, open(%r, "w", buffering=1)
async def watch():
    while True:
        used, due = time.thread_time(), time.monotonic() + 0.001
        await asyncio.sleep(0.001)
        now = time.monotonic()
        print(now, 1e3 * (time.thread_time() - used), 1e3 * (now - due), file=out)
async def watched(self):
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(watch())
        await beat(self)
Heartbeat.beat = watched
from pylb.cli.main import main
main()
"""


@dataclass(frozen=True)
class Figure:
    what: str
    took_ms: float  # of wall time, for all of it
    turn_ms: float  # CPU of the loop's thread in its longest turn
    late_ms: float  # of wall time, the most that a turn came late
    calls: int = 1

    @property
    def reached(self) -> bool:
        return self.turn_ms <= STEP


@contextmanager
def node_ports(ports: Sequence[int]) -> Iterator[None]:
    """Servers on any address of loopback; each greets its clients and closes the connection."""
    with ExitStack() as stack, DefaultSelector() as selector:
        for port in ports:
            selector.register(stack.enter_context(socket.create_server(("", port), backlog=256)), EVENT_READ)
        over = threading.Event()

        def run() -> None:
            while not over.is_set():
                for key, _ in selector.select(0.1):
                    with key.fileobj.accept()[0] as client:  # type: ignore[union-attr]
                        client.sendall(b"hello")

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


class ProcessBenchmark:
    """`ports`: of the frontends, then SPARE, then IMPORTED; then those of the nodes, and two for the process itself."""

    def __init__(self, folder: Path, ports: Sequence[int]) -> None:
        self.folder = folder
        rest = iter(ports)
        self.ports, self.spare, self.legacy, self.nodes = (
            [next(rest) for _ in range(count)] for count in (FRONTENDS, SPARE, IMPORTED, FRONTENDS)
        )
        self.webhook, self.admin = Address(HOST, next(rest)), Address(HOST, next(rest))
        self.config, self.turns = folder / "live.yaml", folder / "turns"
        names = [f"token-{number}" for number in range(TOKENS)]
        names += [f"import-{number}" for number in range(IMPORTED // OF_ONE)]
        self.secrets = {name: secrets.token_urlsafe(32) for name in names}
        self.figures: list[Figure] = []

    def configure(self, statics: Sequence[int] = ()) -> None:
        scope = {"names": ["*"], "ports": ["1024-65535"], "targets": ["127.0.0.0/8"], "target_ports": ["1024-65535"]}
        everything = {
            "webhook": [{"listen": str(self.webhook), "insecure": True, "limits": {"rate": 100_000, "burst": 100_000}}],
            "admin": {"listen": str(self.admin)},
            "state_dir": str(self.folder / "live-state"),
            "log": {"format": "none", "level": "warning"},
            "defaults": {"bind": HOST},
            "tokens": [{"name": name, "secret": secret, **scope} for name, secret in self.secrets.items()],
            "frontends": [
                {"name": f"static-{port}", "listen": f"{HOST}:{port}", "servers": [f"127.0.0.1:{self.nodes[0]}"]}
                for port in statics
            ],
        }
        self.config.write_text(yaml.safe_dump(everything))

    @contextmanager
    def running(self) -> Iterator[Process]:
        argv = [sys.executable, "-c", _WATCHED % str(self.turns), "run", "-c", str(self.config)]
        with Process.started("live", argv, self.folder) as process:
            process.wait_ready(self.admin)
            yield process

    def measure(self, what: str, work: Callable[[], object], calls: int = 1) -> None:
        time.sleep(0.3)  # noqa: TID251 - for another process: what came before has ended
        began = time.monotonic()
        work()
        ended = time.monotonic()
        time.sleep(0.3)  # noqa: TID251 - and what it left has been freed
        lines = (line.split() for line in self.turns.read_text().splitlines() if line.count(" ") == 2)
        turns = [(float(used), float(late)) for at, used, late in lines if began <= float(at) <= ended + 0.2]
        if not turns:
            raise BenchError(f"{what}: the loop had no turn")
        one = Figure(what, 1e3 * (ended - began), max(used for used, _ in turns), max(late for _, late in turns), calls)
        self.figures.append(one)
        progress(f"{what}: {one.took_ms:.0f} ms; the longest turn {one.turn_ms:.1f} ms of CPU, {one.late_ms:.1f} ms late")

    # ------------------------------------------------------------ what it is asked

    def put(self, number: int, move: int = 0) -> None:
        """Register the instance of that number from its node, or from another one."""
        frontend, node = number % FRONTENDS, number // FRONTENDS
        body = {
            "frontends": [{"port": self.ports[frontend], "target_port": self.nodes[frontend]}],
            "address": f"127.{1 + move}.0.{1 + node}",
            "ttl": 3600,
        }
        token = self.secrets[f"token-{frontend % TOKENS}"]
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._http(self.webhook, "PUT", f"/v1/registrations/app-{frontend}/pod-{number}", json.dumps(body), headers)

    def get(self, path: str) -> bytes:
        return self._http(self.admin, "GET", path, None, {})

    def _http(self, at: Address, method: str, path: str, body: str | None, headers: dict[str, str]) -> bytes:
        connection = http.client.HTTPConnection(*at, timeout=PATIENCE)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            found = answer.read()
        finally:
            connection.close()
        if answer.status not in {200, 201}:
            raise BenchError(f"{method} {path}: {answer.status} {found[:300]!r}")
        return found

    def picture(self) -> None:
        """The first message of the page's stream."""
        with socket.create_connection(self.admin, PATIENCE) as client:
            client.sendall(b"GET /v1/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            found = bytearray()
            while not found.rstrip(b"\r\n").endswith(b"}") or b'"whole":true' not in found:
                piece = client.recv(1 << 20)
                if not piece:
                    raise BenchError("the page's stream ended")
                found += piece

    def ask(self, verb: str, **more: object) -> dict[str, object]:
        found = call(self.folder / "live-state" / "control.sock", {"verb": verb, **more}, PATIENCE)
        if not found["ok"]:
            raise BenchError(f"{verb}: {found}")
        return found

    def several(self, work: Callable[[int], object], count: int) -> None:
        with ThreadPoolExecutor(CALLERS) as pool:
            list(pool.map(work, range(count)))

    def in_a_row(self, work: Callable[[int], object], count: int) -> None:
        for number in range(count):
            work(number)

    def at_once(self, work: Callable[[int], object], count: int) -> None:
        together = threading.Barrier(count)

        def one(number: int) -> None:
            together.wait()
            work(number)

        with ThreadPoolExecutor(count) as pool:
            list(pool.map(one, range(count)))

    def visit(self, number: int) -> None:
        """Make a session through that frontend."""
        with socket.create_connection((HOST, self.ports[number]), PATIENCE) as client:
            if client.recv(5) != b"hello":
                raise BenchError(f"port {self.ports[number]}: nobody answers")

    def reload(self, statics: Sequence[int]) -> None:
        self.configure(statics)
        self.ask("reload")

    def take_over(self) -> None:
        """The servers of an old haproxy.cfg, as `pylb import` sends them."""
        for start in range(0, IMPORTED, OF_ONE):
            ports = self.legacy[start : start + OF_ONE]
            items = [
                {"action": "add", "frontend-port": port, "backend-port": self.nodes[0], "dst-ip": "127.9.0.1", "name": "old"}
                for port in ports
            ]
            found = self.ask("import", token=f"import-{start // OF_ONE}", items=items)
            refused = [line for line in found["lines"] if not str(line).startswith("created")]  # type: ignore[attr-defined]
            if refused:
                raise BenchError(f"import: {refused[:3]}")


def measured(benchmark: ProcessBenchmark) -> None:
    """The rows, in the order in which they are printed."""
    total = FRONTENDS * INSTANCES
    benchmark.measure(f"{total:,} registrations, {CALLERS} callers", lambda: benchmark.several(benchmark.put, total), total)
    benchmark.measure("a session through each frontend", lambda: benchmark.several(benchmark.visit, FRONTENDS), FRONTENDS)
    benchmark.measure("200 beats, one after the other", lambda: benchmark.in_a_row(benchmark.put, 200), 200)
    benchmark.measure(
        "200 moves, one after the other", lambda: benchmark.in_a_row(lambda number: benchmark.put(number, 1), 200), 200
    )
    benchmark.measure("100 moves at once", lambda: benchmark.at_once(lambda number: benchmark.put(300 + number, 1), 100), 100)
    benchmark.measure("a drain of a node with 765 servers", lambda: benchmark.ask("admin", target="127.1.0.6", state="drain"))
    benchmark.measure("the same node ready again", lambda: benchmark.ask("admin", target="127.1.0.6", state="ready"))
    benchmark.measure("pylb routes", lambda: benchmark.ask("routes"))
    benchmark.measure("pylb status", lambda: benchmark.ask("status"))
    benchmark.measure("pylb history", lambda: benchmark.ask("history"))
    benchmark.measure("a scrape of all metrics", lambda: benchmark.get("/metrics"))
    benchmark.measure("/v1/table", lambda: benchmark.get("/v1/table"))
    benchmark.measure("the page, its first picture", benchmark.picture)
    benchmark.measure(f"a reload that opens {SPARE:,} static frontends", lambda: benchmark.reload(benchmark.spare))
    benchmark.measure("a reload that changes nothing", lambda: benchmark.reload(benchmark.spare))
    benchmark.measure("a reload that closes them", lambda: benchmark.reload(()))
    benchmark.measure(f"an import of {IMPORTED:,} servers, {OF_ONE:,} a call", benchmark.take_over)
    benchmark.measure("a move, with the snapshot of all that", lambda: benchmark.put(500, 2))


def run(folder: Path, ports: Sequence[int]) -> list[Figure]:
    benchmark = ProcessBenchmark(folder, ports)
    benchmark.configure()
    with node_ports(benchmark.nodes), benchmark.running():
        measured(benchmark)
    return benchmark.figures


PORTS = 2 * FRONTENDS + SPARE + IMPORTED + 2
