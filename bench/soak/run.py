"""One run of the soak: the streams, what is sampled meanwhile, and the checks at the end."""

import asyncio
import contextlib
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

from bench import report
from bench.processes import Address, BenchError, anonymous_bytes, cpu_seconds, descriptors, family
from bench.soak.changes import Changes, request
from bench.soak.kills import Kills
from bench.soak.peers import Servers, connected, echo, greeted
from bench.soak.results import Results, Sample, Totals
from bench.soak.setup import Setup
from bench.soak.streams import END_SECONDS, NUMBER, Half, Peer, Script, play, scripts, verdict
from bench.soak.unit import Unit

IDLE_SESSIONS = 50
SAMPLE_SECONDS = 2.0
PROGRESS_SECONDS = 10.0
IDLE_CPU = 0.02
# What the least-squares line through the memory of the second half may rise in that time. Ten minutes make some 17,000
# connections in that half: 60 bytes lost with each would be seen.
MEMORY_GROWTH = 1 << 20
LONG = 300  # seconds; a shorter run is no judge of memory
KILLED = "KILLED WORKER"


class Options(NamedTuple):
    seconds: float
    seed: int
    streams: int  # at a time
    largest: int  # bytes one way
    kills: bool


class Run:
    """One run of the soak."""

    def __init__(self, setup: Setup, unit: Unit, options: Options) -> None:
        self._setup, self._unit, self._options = setup, unit, options
        self.totals = Totals()
        self._servers = Servers()
        self._changes = Changes(setup, unit, self.totals, self._excuse, random.Random(options.seed))
        frontends = {address.port for address in (*setup.frontends, *setup.extra)}
        servers = {address.port for address in setup.servers}
        self._kills = Kills(unit, frontends, servers, random.Random(options.seed + 1)) if options.kills else None
        self.results = Results(self.totals, self._kills)
        self._began = 0.0

    async def run(self, seconds: float) -> None:
        """Everything up to the checks at the end. `results` has what came out."""
        listeners = [_listener(address) for address in self._setup.servers]
        async with _tasks([self._servers.serve(one) for one in listeners]):
            await self._changes.register("steady", self._setup.servers[0])
            if seconds >= LONG and self._kills is None:
                report.progress("filling control's journal of events")
                await self._changes.fill_journal()
            base = descriptors(self._unit.pid)
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
            await self._changes.one()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), rng.random() / 2)

    async def _watch(self) -> None:
        said = time.monotonic()
        while True:
            try:
                self.results.samples.append(await asyncio.to_thread(self._sample))
            except (BenchError, OSError):
                if self._kills is None:
                    raise  # else main was just being killed
            if time.monotonic() - said >= PROGRESS_SECONDS:
                said = time.monotonic()
                report.progress(self._progress())
            await asyncio.sleep(SAMPLE_SECONDS)

    def _progress(self) -> str:
        last, totals = self.results.samples[-1], self.totals
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
            descriptors=descriptors(self._unit.pid),
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
        if not await _eventually(lambda: descriptors(self._unit.pid) <= base + 2 * 16):
            complain(f"{descriptors(self._unit.pid)} descriptors are open, {base} were at the start")
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
        if (growth := self.results.memory_growth()) > MEMORY_GROWTH:
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


def is_loss(wrong: str) -> bool:
    """Whether a `verdict` only says that a killed worker's session ended with a reset, on either side."""
    return "a reset that nobody sent" in wrong or wrong == "no server was reached; the client saw reset"


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
