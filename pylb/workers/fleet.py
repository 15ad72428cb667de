"""All workers as control sees them. Main has every listening socket and passes it to a worker's replacement.

sink.py passes tables on, requests.py asks all workers something, supervisor.py starts workers and replaces them. From outside
it looks like an engine in this process (in_process.py).
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pylb.core.address import Address, Listen
from pylb.core.flow import FlowBatch
from pylb.core.recorder import Query, SearchResult, SessionTrace, joined
from pylb.core.session import SessionView
from pylb.core.table import Server, Table
from pylb.core.text import counted
from pylb.forward.counters import Counters, FrontendCounters
from pylb.workers.archive import CodeArchive
from pylb.workers.channel import BadFrame
from pylb.workers.messages import (
    Applied,
    ConnectEnded,
    CountsByListen,
    Drain,
    FaultReport,
    Hello,
    LimitUse,
    LogLines,
    OtherWorkerUse,
    Ready,
    Report,
    ReportAllUse,
    Response,
)
from pylb.workers.process import WorkerProcess
from pylb.workers.requests import ChangeSignal, WorkerRequests
from pylb.workers.sink import SocketSource, TableSink
from pylb.workers.supervisor import Supervisor
from pylb.workers.totals import Totals

log = logging.getLogger("pylb")


@dataclass(frozen=True, slots=True)
class FleetObserver:
    """The receivers of what workers report."""

    connect_ended: Callable[[Listen, Server, str | None], None]
    lines: Callable[[str, int], None]  # lines of the session log: a text, and how many lines it has
    started: Callable[[int], None]  # a worker with that pid has started


class Fleet:
    """`hello` for each worker's index. `observer` receives the workers' reports, none before `start`."""

    rate_samples = 3  # they report once a second, at different moments

    def __init__(
        self, count: int, hello: Callable[[int], Hello], observer: FleetObserver, ports: SocketSource, archive: CodeArchive
    ) -> None:
        self._archive = archive
        self._hello = hello
        self._observer = observer
        self._workers = [WorkerProcess(index, self._archive, self._on_message, self._on_end) for index in range(1, count + 1)]
        self._signal = ChangeSignal()
        self._sink = TableSink(self._workers, ports, self._signal)
        self._requests = WorkerRequests(self._workers, self._signal)
        self._supervisor = Supervisor(self._workers, hello, observer.started, self._signal)
        self._totals = Totals()
        self._draining = False
        self.lines_dropped = 0

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Like Supervisor.start."""
        await self._supervisor.start()

    def drain(self, deadline: float, *, accept: bool = True) -> None:
        """Like Engine.drain. Sockets that a successor or systemd has too stay open there."""
        self._draining = True
        self._supervisor.stop_restarting()
        for worker in self._workers:
            worker.say(Drain(deadline, accept))
            worker.release()

    async def drained(self, *, at_once: asyncio.Event) -> None:
        """Wait until the last worker has ended: by itself, or at once when that is set."""
        cut_short = False
        while any(worker.runs for worker in self._workers):
            if at_once.is_set() and not cut_short:
                cut_short = True
                self.drain(time.monotonic())
            await asyncio.sleep(0.05)

    def pause_flows(self) -> None:
        """Each worker has its flows for itself: they do not pass to another pylb."""

    def resume_flows(self) -> None:
        """Nothing was paused."""

    def described_flows(self) -> Iterator[FlowBatch]:
        """There are no flows that could pass on."""
        return iter(())

    def take_flows(self, batches: Iterable[FlowBatch]) -> None:
        """Their clients' next datagrams begin new ones."""
        for _, fds in batches:
            for fd in fds:
                os.close(fd)

    def flows_taken(self) -> None:
        """There are none."""

    def close(self) -> None:
        """End what still runs. Idempotent."""
        self._draining = True
        self._supervisor.close()
        for worker in self._workers:
            worker.close()
        self._archive.close()

    @property
    def restarts(self) -> int:
        return self._supervisor.restarts

    # ------------------------------------------------------------ the sink

    def open(self, listen: Listen, *, freebind: bool) -> None:
        self._sink.open(listen, freebind=freebind)

    def discard(self, listen: Listen) -> None:
        self._sink.discard(listen)

    def apply(self, table: Table) -> Mapping[Listen, OSError]:
        if self._draining:
            return {}
        change, failed = self._sink.apply(table)
        self._totals.follow(self._sink.table, change)
        return failed

    async def applied(self) -> None:
        await self._sink.applied()

    # ------------------------------------------------------------ what they know

    @property
    def open_sessions(self) -> int:
        """According to their last reports."""
        return self._totals.open_sessions()

    @property
    def recording(self) -> bool:
        """Are ended sessions recorded?"""
        return self._hello(1).recorded > 0

    async def counters(self) -> Counters:
        await self._requests.ask("counters")
        blank = Counters(sum(self._hello(worker.index).max_connections for worker in self._workers))
        blank.frontends = {listen: FrontendCounters(one.name) for listen, one in self._sink.table.frontends.items()}
        return await self._totals.added(blank)

    def parts(self) -> list[CountsByListen]:
        """The counts whose sum is `counters`, according to the workers' reports, which come once a second."""
        return self._totals.parts()

    async def sessions(self) -> list[SessionView]:
        return [view for answer in await self._requests.ask("sessions") for view in answer.sessions]

    async def ended(self, query: Query) -> SearchResult:
        """Those that match, newest first, from live workers. What a dead worker had recorded is lost."""
        answers = await self._requests.ask("ended", query=query)
        found = sorted((trace for answer in answers for trace in answer.ended), key=lambda one: -one.ended_at)
        reach = joined((answer.reach for answer in answers if answer.reach is not None), query.codes)
        return SearchResult(found[: query.limit], reach)

    async def trace(self, number: int) -> SessionTrace | None:
        """All that is known of one session, live or ended."""
        found = [trace for answer in await self._requests.ask("trace", session=number) for trace in answer.ended]
        return found[0] if found else None

    async def expect(self, client: Address) -> None:
        await self._requests.ask("expect", address=client)

    async def shutdown_session(self, number: int) -> int:
        return sum(answer.touched for answer in await self._requests.ask("shutdown session", session=number))

    async def shutdown_sessions(self, listen: Listen, server: Address) -> int:
        return sum(answer.touched for answer in await self._requests.ask("shutdown sessions", listen=listen, address=server))

    def workers(self) -> dict[str, tuple[int, float]]:
        """The pid and the loop's lag, in seconds, of each worker that runs."""
        return {f"worker-{worker.index}": (worker.pid, self._totals.lag(worker.pid)) for worker in self._workers if worker.runs}

    def pids(self) -> list[int]:
        """The pids of the workers that run."""
        return [worker.pid for worker in self._workers if worker.runs]

    # ------------------------------------------------------------ what they say

    def _on_message(self, worker: WorkerProcess, message: Any) -> None:
        """Raises BadFrame."""
        match message:
            case Report():
                self._totals.heard(worker.pid, message)
            case LogLines():
                if message.lines:
                    self._observer.lines(message.text, message.lines)
                self.lines_dropped += message.dropped
            case ConnectEnded():
                self._observer.connect_ended(message.listen, message.server, message.failure)
            case Applied():
                worker.pending -= 1
                self._signal.come()
            case Response():
                self._requests.answered(message)
            case Ready():
                if self._draining:  # its sockets are gone
                    worker.say(Drain(time.monotonic(), accept=False))
                else:
                    self._sink.introduce(worker)
                    self._tell_others(worker, ReportAllUse())
                self._signal.come()
            case LimitUse():
                self._tell_others(worker, OtherWorkerUse(worker.index, message.uses, gone=False))
            case FaultReport():
                log.error("worker %d: %s:\n%s", worker.index, message.what, message.text)
            case _:
                raise BadFrame(f"{type(message).__name__} from a worker")

    def _tell_others(self, worker: WorkerProcess, message: OtherWorkerUse | ReportAllUse) -> None:
        for other in self._workers:
            if other is not worker and other.serves:
                other.say(message)

    def _on_end(self, worker: WorkerProcess, status: int, fault: str) -> None:
        lost = counted(self._totals.open_sessions(worker.pid), "session")
        self._totals.retire(worker.pid)
        self._archive.own_dials.forget(worker.index)
        self._tell_others(worker, OtherWorkerUse(worker.index, (), gone=True))
        self._signal.come()
        if self._draining:
            if status:
                log.error("worker %d (pid %d) ended with %d; reset: about %s", worker.index, worker.pid, status, lost)
        else:
            self._supervisor.ended(worker, status, fault, lost)
