"""`python -m bench soak`: a real pylb under random streams, random faults and constant changes of the table, for a long time.

Clients and servers are scripted (`streams`) and run here; pylb is a process of its own. It checks that every stream that
both ends finished arrived complete and unchanged, and that any other stream is a prefix that ended with a reset; that idle
sessions survive; and that at the end memory, descriptors and CPU are back where they were, and pylb's counts equal ours.

With --kills pylb has two workers. Workers and main are killed at random and upgrades are made, under a `unit` that restarts
main and keeps its sockets as systemd does. Then only sessions of a killed worker may fail, and only with a reset.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import random
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from bench import report
from bench.figures import spread
from bench.kills import Kills
from bench.processes import Address, BenchError, anonymous_bytes, children, cpu_seconds, family, free_ports
from bench.streams import END_SECONDS, GREETING, NUMBER, Half, Peer, Script, play, scripts, verdict
from bench.tables import listed
from bench.targets import OWN_PORTS
from bench.unit import Unit

LOOPBACK = "127.0.0.1"
FRONTENDS = 4  # under load; two more come and go
IDLE_SESSIONS = 50
SAMPLE_SECONDS = 2.0
PROGRESS_SECONDS = 10.0
WARM_UP = 0.1  # of the time: allocators and pools fill
IDLE_CPU = 0.02
# What the least-squares line through the memory of the second half may rise in that time. Ten minutes make some 17,000
# connections in that half: 60 bytes lost with each would be seen.
MEMORY_GROWTH = 1 << 20
REMEMBERED = 1000  # events that control keeps, and more than it keeps of refused calls
LONG = 300  # seconds; a shorter run is no judge of memory
LARGEST = 64 << 20
WORKERS = 2  # where somebody is killed
KILLED = "KILLED WORKER"
CALLS = 5  # at most, of what a dying main may have left unanswered


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


class Servers:
    """The servers behind pylb. Each speaks first, reads the number of the script, and plays its side of it."""

    def __init__(self) -> None:
        self.expected: dict[int, tuple[Script, asyncio.Future[tuple[Half, int]]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, server: socket.socket) -> None:
        """Accept connections for ever."""
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(server)
            sock.setblocking(False)
            task = loop.create_task(self._one(sock))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _one(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with sock:
            try:
                port = sock.getpeername()[1]
                await loop.sock_sendall(sock, GREETING)
                number = await exactly(sock, NUMBER.size)
                while number == NUMBER.pack(0):  # an idle session's round
                    await loop.sock_sendall(sock, number)
                    number = await exactly(sock, NUMBER.size)
            except (OSError, EOFError):
                return  # reset or closed before it said what it wants
            found = self.expected.get(NUMBER.unpack(number)[0])
            if found is not None:
                script, done = found
                peer = Peer(sock, sends=script.number + 1, expects=script.number)
                await play(peer, script, client=False)
                if not done.done():
                    done.set_result((peer.half, port))


async def exactly(sock: socket.socket, size: int) -> bytes:
    """Raises EOFError if the other end says FIN before."""
    loop, data = asyncio.get_running_loop(), b""
    while len(data) < size:
        more = await loop.sock_recv(sock, size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


@dataclass(frozen=True)
class Setup:
    """Where everything of a run listens, its folder and its token."""

    webhook: Address
    admin: Address
    frontends: list[Address]
    extra: list[Address]
    servers: list[Address]
    refused: Address
    folder: Path
    token: str
    workers: int

    def config(self) -> str:
        """pylb's own file, rewritten with another number of retries for every reload."""
        return self.with_retries(3)

    def with_retries(self, retries: int) -> str:
        ports = [address.port for address in (*self.frontends, *self.extra)]
        targets = [address.port for address in (*self.servers, self.refused)]
        everything: dict[str, Any] = {
            "webhook": [{"listen": str(self.webhook)}],
            "admin": {"listen": str(self.admin)},
            "state_dir": str(self.folder / "state"),
            "workers": self.workers,
            "log": {"format": "tcplog", "level": "warning"},
            "tokens": [
                {
                    "name": "soak",
                    "secret": self.token,
                    "names": ["*"],
                    "ports": ports,
                    "targets": ["127.0.0.0/8"],
                    "target_ports": targets,
                }
            ],
            "defaults": {"bind": LOOPBACK, "retries": retries, "timeouts": {"flush": "10s", "drain": "30s"}},
        }
        return yaml.safe_dump(everything, sort_keys=False)


Excuse = Callable[[int, float], bool]  # of a client's port, for a session begun then (monotonic)


class Control:
    """Makes calls of phone-homes, reloads, and invalid calls. `steady` is always registered, so clients find a server."""

    def __init__(self, setup: Setup, unit: Unit, totals: Totals, excuse: "Excuse", rng: random.Random) -> None:
        self._setup, self._unit, self._totals, self._excuse, self._rng = setup, unit, totals, excuse, rng
        self._retries = 3

    async def register(self, instance: str, target: Address, *, state: str = "ready") -> None:
        frontends = [{"port": one.port, "target_port": target.port} for one in self._setup.frontends]
        body = {"frontends": frontends, "address": LOOPBACK, "ttl": 3600, "state": state}
        await self._call("PUT", f"/v1/registrations/soak/{instance}", body, {200, 201})

    async def fill_journal(self) -> None:
        """As many events as control remembers. They are 0.6 MiB, which would else come during the first 15 minutes."""
        setup = self._setup
        for number in range(REMEMBERED):
            await self.register("b", setup.servers[number % 2])
        for _ in range(REMEMBERED // 10):
            await self._call("PUT", "/v1/registrations/soak/x", {"frontends": []}, {422})
        await self._call("DELETE", "/v1/registrations/soak/b", None, {200})

    async def one(self) -> None:
        """Change the table, or try to."""
        setup, rng = self._setup, self._rng
        what = rng.choice(["move", "come", "go", "drain", "refuse", "beat", "extra", "reload", "rubbish", "stranger"])
        self._totals.calls[what] += 1
        other = rng.choice(["b", "c"])
        match what:
            case "move" | "come":
                await self.register(other, rng.choice(setup.servers))
            case "drain":
                await self.register(other, rng.choice(setup.servers), state="draining")
            case "go":
                await self._call("DELETE", f"/v1/registrations/soak/{other}", None, {200})
            case "refuse":
                await self.register(other, setup.refused)
            case "beat":
                await self.register("steady", setup.servers[0])
            case "extra":
                await self._extra()
            case "reload":
                self._retries = 7 - self._retries  # 3 and 4
                (setup.folder / "pylb.yaml").write_text(setup.with_retries(self._retries))
                if self._unit.is_ready:  # else it is about to read it anyway
                    os.kill(self._unit.pid, signal.SIGHUP)
            case "rubbish":
                await asyncio.to_thread(_shout, setup.webhook, rng.randbytes(rng.randrange(1, 3000)))
            case "stranger":
                await self._call("PUT", "/v1/registrations/soak/x", {"frontends": []}, {401, 429}, token="x" * 40)

    async def _extra(self) -> None:
        """Open a port, use it, and close it again."""
        listen = self._rng.choice(self._setup.extra)
        name = f"/v1/registrations/extra-{listen.port}/a"
        target = self._rng.choice(self._setup.servers).port
        body = {"frontends": [{"port": listen.port, "target_port": target}], "address": LOOPBACK, "ttl": 60}
        await self._call("PUT", name, body, {200, 201})
        began = time.monotonic()
        with socket.socket() as sock:
            try:
                async with asyncio.timeout(10):
                    await greeted(sock, listen)
                    self._totals.connections += 1
                    await echo(sock)
            except (OSError, EOFError, TimeoutError) as error:
                if not self._excuse(sock.getsockname()[1], began):
                    self._totals.complain(f"port {listen.port} was registered and does not serve: {error!r}")
        await self._call("DELETE", name, None, {200})

    async def _call(self, method: str, path: str, body: object, good: set[int], *, token: str | None = None) -> None:
        status, text = 0, ""
        for _ in range(CALLS if self._setup.workers else 1):
            status, text = await asyncio.to_thread(request, self._setup.webhook, method, path, body, token or self._setup.token)
            if status not in {0, 503}:
                break
            await asyncio.sleep(0.5)  # main died under it, or was followed by another: a phone-home calls again
        if status not in good:
            self._totals.complain(f"{method} {path} was answered {status}: {text}")


def request(server: Address, method: str, path: str, body: object, token: str) -> tuple[int, str]:
    """One call on a connection of its own → status and body; (0, why) if there was no answer."""
    connection = http.client.HTTPConnection(*server, timeout=10)
    try:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, repr(error)
    finally:
        connection.close()


def _shout(server: Address, noise: bytes) -> None:
    with contextlib.suppress(OSError), socket.create_connection(server, timeout=5) as sock:
        sock.sendall(noise)


async def greeted(sock: socket.socket, listen: Address) -> None:
    """Raises OSError or EOFError."""
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, listen)
    await exactly(sock, len(GREETING))


async def connected(listen: Address) -> socket.socket:
    """A client that has been greeted. Raises OSError or EOFError."""
    sock = socket.socket()
    try:
        await greeted(sock, listen)
    except BaseException:
        sock.close()
        raise
    return sock


async def echo(sock: socket.socket) -> None:
    """One round on an idle session. Raises OSError or EOFError."""
    await asyncio.get_running_loop().sock_sendall(sock, NUMBER.pack(0))
    if await exactly(sock, NUMBER.size) != NUMBER.pack(0):
        raise EOFError


class Soak:
    """One run of the soak."""

    def __init__(self, setup: Setup, unit: Unit, options: "Options") -> None:
        self._setup, self._unit, self._options = setup, unit, options
        self.totals = Totals()
        self.samples: list[Sample] = []
        self._servers = Servers()
        self._control = Control(setup, unit, self.totals, self._excuse, random.Random(options.seed))
        frontends = {address.port for address in (*setup.frontends, *setup.extra)}
        servers = {address.port for address in setup.servers}
        self._kills = Kills(unit, frontends, servers, random.Random(options.seed + 1)) if options.kills else None
        self._began = 0.0

    async def run(self, seconds: float) -> None:
        """Everything up to the checks at the end. `totals` and `samples` have what came out."""
        listeners = [_listener(address) for address in self._setup.servers]
        async with _tasks([self._servers.serve(one) for one in listeners]):
            await self._control.register("steady", self._setup.servers[0])
            if seconds >= LONG and self._kills is None:
                report.progress("filling control's journal of events")
                await self._control.fill_journal()
            base = self._descriptors()
            idle = [await connected(self._setup.frontends[0]) for _ in range(IDLE_SESSIONS)]
            self.totals.connections += IDLE_SESSIONS
            self._began = time.monotonic()
            stop = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
            jobs = [self._stream_on(random.Random(self._options.seed + n + 1), stop) for n in range(self._options.streams)]
            async with _tasks([self._watch()]), asyncio.TaskGroup() as group:
                for job in (*jobs, self._churn(stop), self._kill(stop)):
                    group.create_task(job)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), seconds)
                stop.set()
            await self._check_idle(idle)
            await self._check_end(base)
        for listener in listeners:
            listener.close()

    async def _stream_on(self, rng: random.Random, stop: asyncio.Event) -> None:
        for script in scripts(rng, self._options.largest):
            if stop.is_set():
                return
            try:
                async with asyncio.timeout(END_SECONDS):
                    await self._stream(script, rng.choice(self._setup.frontends))
            except TimeoutError:
                self.totals.complain(f"{script}: stuck for {END_SECONDS:.0f} s")

    async def _stream(self, script: Script, listen: Address) -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[tuple[Half, int]] = loop.create_future()
        self._servers.expected[script.number] = (script, done)
        began = time.monotonic()
        try:
            with socket.socket() as sock:
                self.totals.connections += 1
                try:
                    await greeted(sock, listen)
                    await loop.sock_sendall(sock, NUMBER.pack(script.number))
                except (OSError, EOFError) as error:
                    if not self._excuse(sock.getsockname()[1], began):
                        self.totals.complain(f"{script}: no greeting: {error!r}")
                    return
                port = sock.getsockname()[1]  # it may close itself
                peer = Peer(sock, sends=script.number, expects=script.number + 1)
                await play(peer, script, client=True)
            server, upstream = await _soon(done)
        finally:
            del self._servers.expected[script.number]
        broken = verdict(script, peer.half, server)
        if broken and (self._excuse(port, began) or self._excuse(upstream, began)):
            # Its bytes died with it. What arrived must be right all the same, and not look like the whole.
            broken = [wrong for wrong in broken if not is_loss(wrong)]
        for wrong in broken:
            self.totals.complain(f"{script}: {wrong}")
        self.totals.ends[script.end.name] += 1
        self.totals.bytes_up += server.got if server else 0
        self.totals.bytes_down += peer.half.got

    def _excuse(self, port: int, began: float) -> bool:
        """Whether it was the session of a killed worker; then it is counted as such."""
        if self._kills is None or not self._kills.excuse(port, began):
            return False
        self.totals.ends[KILLED] += 1
        return True

    async def _kill(self, stop: asyncio.Event) -> None:
        """Kill something now and then."""
        while self._kills is not None and not stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), self._kills.pause())
                return
            await self._kills.one()

    async def _churn(self, stop: asyncio.Event) -> None:
        rng = random.Random(-self._options.seed)
        while not stop.is_set():
            await self._control.one()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), rng.random() / 2)

    async def _watch(self) -> None:
        said = time.monotonic()
        while True:
            try:
                self.samples.append(await asyncio.to_thread(self._sample))
            except (BenchError, OSError):
                if self._kills is None:
                    raise  # else main was just being killed
            if time.monotonic() - said >= PROGRESS_SECONDS:
                said = time.monotonic()
                report.progress(self._progress())
            await asyncio.sleep(SAMPLE_SECONDS)

    def _progress(self) -> str:
        last, totals = self.samples[-1], self.totals
        moved = (totals.bytes_up + totals.bytes_down) / 1e9
        return (
            f"{last.at:6.0f} s  {sum(totals.ends.values()):7,} streams  {moved:7.2f} GB  "
            f"{sum(totals.calls.values()):6,} calls  {last.memory / 2**20:6.1f} MiB  "
            f"{last.descriptors:4} fds  {last.sessions:3} sessions  {len(totals.wrong)} wrong"
        )

    def _sample(self) -> Sample:
        figures = self._figures()
        return Sample(
            at=time.monotonic() - self._began,
            memory=anonymous_bytes(family(self._unit.pid)),
            descriptors=self._descriptors(),
            cpu=cpu_seconds(family(self._unit.pid)),
            sessions=int(figures("pylb_frontend_sessions")),
            lag=figures("pylb_loop_lag_seconds"),
        )

    def _figures(self) -> Callable[[str], float]:
        """The sum of a metric over its labels, as scraped now."""
        status, text = request(self._setup.admin, "GET", "/metrics", None, "")
        if status != 200:
            raise BenchError(f"/metrics was answered {status}: {text}")
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return lambda name: sum(float(value) for label, _, value in lines if label.partition("{")[0] == name)

    def _descriptors(self) -> int:
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in (self._unit.pid, *children(self._unit.pid)))

    # ------------------------------------------------------------ the end

    async def _check_idle(self, idle: list[socket.socket]) -> None:
        for number, sock in enumerate(idle):
            try:
                await asyncio.wait_for(echo(sock), 10)
            except (OSError, EOFError, TimeoutError) as error:
                if not self._excuse(sock.getsockname()[1], self._began):
                    self.totals.complain(f"idle session {number} did not survive: {error!r}")
            sock.close()

    async def _check_end(self, base: int) -> None:
        complain, setup = self.totals.complain, self._setup
        for other in "bc":
            await asyncio.to_thread(request, setup.webhook, "DELETE", f"/v1/registrations/soak/{other}", None, setup.token)
        if not await _eventually(lambda: self._figures()("pylb_frontend_sessions") == 0):
            complain(f"{self._figures()('pylb_frontend_sessions'):.0f} sessions are open although everybody is gone")
        # Pipes that wait for reuse (16) and the connections of the last calls are no leak.
        if not await _eventually(lambda: self._descriptors() <= base + 2 * 16):
            complain(f"{self._descriptors()} descriptors are open, {base} were at the start")
        if not await _eventually(lambda: len(self._unit.processes()) == 1 + setup.workers):
            complain(f"processes {self._unit.processes()} live on, with nothing to do")
        shares: list[float] = []
        while len(shares) < 5 and min(shares, default=1.0) >= IDLE_CPU:  # what spins does so in each of them
            before = cpu_seconds(family(self._unit.pid))
            await asyncio.sleep(2)
            shares.append((cpu_seconds(family(self._unit.pid)) - before) / 2)
        if min(shares) >= IDLE_CPU:
            complain(f"{min(shares):.1%} of a core is used while nothing happens")
        if self._kills is not None:
            return  # what main counted died with it, and its memory is another's
        self._check_counts()
        if (growth := self.memory_growth()) > MEMORY_GROWTH:
            complain(f"memory grew by {growth / 2**20:.1f} MiB in the second half")

    def _check_counts(self) -> None:
        figures, totals = self._figures(), self.totals
        # A frontend that was released takes its counters along: the two extra ports are not in the sum.
        counted = int(figures("pylb_frontend_sessions_total"))
        closed = int(figures("pylb_sessions_closed_total"))
        extra = totals.calls["extra"]
        if counted != totals.connections - extra:
            totals.complain(f"pylb counted {counted} sessions, the clients made {totals.connections - extra}")
        if closed > counted:
            totals.complain(f"pylb closed {closed} sessions of {counted}")
        moved = int(figures("pylb_bytes_total"))
        if moved < totals.bytes_up + totals.bytes_down:
            totals.complain(f"pylb counted {moved} bytes, {totals.bytes_up + totals.bytes_down} arrived")

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
            *(self._steady_rows() if self._kills is None else [["deaths", self._deaths(self._kills)]]),
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

    def as_json(self, seconds: float) -> str:
        """One object: the machine, the totals, every sample."""
        return json.dumps(
            {
                "soak": seconds,
                "seed": self._options.seed,
                "workers": self._setup.workers,
                "deaths": None if self._kills is None else self._kills.done,
                "machine": report.machine(),
                "tally": {
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


def is_loss(wrong: str) -> bool:
    """Whether a `verdict` only says that a killed worker's session ended with a reset, on either side."""
    return "a reset that nobody sent" in wrong or wrong == "no server was reached; the client saw reset"


def _span(values: list[float] | list[int], form: str) -> str:
    found = spread(map(float, values))
    return f"{found.median:{form}} ({found.low:{form}}..{found.high:{form}})"


async def _eventually(happened: Callable[[], bool]) -> bool:
    """Wait until it holds, for at most 15 seconds."""
    for _ in range(75):
        if happened():
            return True
        await asyncio.sleep(0.2)
    return False


async def _soon(done: "asyncio.Future[tuple[Half, int]]") -> tuple[Half | None, int]:
    """The server's account, and the port it was dialled from; none if that does not come within the flush timeout and a bit."""
    try:
        return await asyncio.wait_for(done, 15)
    except TimeoutError:
        return None, 0


def _listener(address: Address) -> socket.socket:
    sock = socket.create_server(address, backlog=1024)
    sock.setblocking(False)
    return sock


@contextlib.asynccontextmanager
async def _tasks(coroutines: list[Any]) -> AsyncIterator[None]:
    """Run the tasks while the block runs."""
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(each) for each in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result


@contextlib.contextmanager
def prepared(workers: int) -> Iterator[Setup]:
    """Free ports on loopback and a folder for the run. The refusing address is bound and never listens."""
    start = random.randrange(len(OWN_PORTS))
    names = iter(free_ports(LOOPBACK, 2 + FRONTENDS + 2 + 3, iter([*OWN_PORTS[start:], *OWN_PORTS[:start]])))

    def take(count: int) -> list[Address]:
        return [Address(LOOPBACK, next(names)) for _ in range(count)]

    webhook, admin = take(2)
    with tempfile.TemporaryDirectory(prefix="pylb-soak-") as folder, socket.socket() as refused:
        frontends, extra, servers, [nobody] = take(FRONTENDS), take(2), take(2), take(1)
        refused.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # of what was there before only TIME_WAIT is left
        refused.bind(nobody)
        yield Setup(webhook, admin, frontends, extra, servers, nobody, Path(folder), secrets.token_urlsafe(32), workers)


class Options(NamedTuple):
    seconds: float
    seed: int
    streams: int  # at a time
    largest: int  # bytes one way
    kills: bool


async def _run(options: Options, setup: Setup, log: int, errors: int) -> Soak:
    config = setup.folder / "pylb.yaml"
    config.write_text(setup.config())
    unit = Unit([sys.executable, "-m", "pylb", "run", "-c", str(config)], setup.folder, log, errors)
    run = Soak(setup, unit, options)
    try:
        await unit.start()
        await run.run(options.seconds)
    finally:
        if left := await unit.stop():
            run.totals.complain(f"SIGTERM did not end {left}")
    return run


def soak(options: Options, keep: Path | None) -> int:
    """A whole run → exit code: 0 nothing was wrong, 1 something was."""
    report.progress(
        f"seed {options.seed} (repeat with --seed {options.seed}), {options.streams} streams at a time, {options.seconds:.0f} s"
    )
    with prepared(WORKERS if options.kills else 0) as setup:
        log, errors = setup.folder / "sessions.log", setup.folder / "pylb.stderr"
        with log.open("wb") as out, errors.open("wb") as err:
            run = asyncio.run(_run(options, setup, out.fileno(), err.fileno()))
        said = errors.read_text(errors="replace")
        if "Traceback" in said:
            run.totals.complain(f"pylb's log has a traceback:\n{said[said.index('Traceback') :][:2000]}")
        lines = len(log.read_text().splitlines())
        # Those of a killed worker's last moment die with it.
        if lines != run.totals.connections and not options.kills:
            run.totals.complain(f"{lines} session lines for {run.totals.connections} connections")
        if options.kills and keep is not None:
            keep.with_suffix(".stderr").write_text(said)
    print(run.summary())
    if keep is not None:
        keep.parent.mkdir(parents=True, exist_ok=True)
        keep.write_text(run.as_json(options.seconds))
        report.progress(f"raw samples: {keep}")
    return int(bool(run.totals.wrong))


def main(argv: list[str]) -> int:
    """`python -m bench soak`."""
    parser = argparse.ArgumentParser("python -m bench soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="how long (10)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32), help="repeat a run's choices")
    parser.add_argument("--streams", type=int, default=24, help="at a time (24)")
    parser.add_argument("--largest", type=int, default=LARGEST, help="bytes one way, at most (64 MiB)")
    parser.add_argument("--kills", action="store_true", help="two workers; they and main are killed at random, and upgraded")
    parser.add_argument("--json", type=Path, help="keep the samples here (from 10 minutes on: under bench/results/)")
    options = parser.parse_args(argv)
    keep = options.json
    if keep is None and options.minutes >= 10:
        keep = report.RESULTS / f"soak-{report.now().replace(':', '')}.json"
    chosen = Options(options.minutes * 60, options.seed, options.streams, options.largest, options.kills)
    return soak(chosen, keep)
