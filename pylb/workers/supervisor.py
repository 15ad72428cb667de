"""Starts workers, replaces those that end, and ends those that hang."""

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence

from pylb.core.text import span
from pylb.workers.messages import Hello
from pylb.workers.process import WorkerProcess
from pylb.workers.requests import ChangeSignal

log = logging.getLogger("pylb")

SILENT = 2.5  # seconds without a message: reported; reports come once a second
DEAF = 6.0  # seconds without a message: replaced
START = 10.0  # seconds until the first message
BACKOFF = 10.0  # most seconds between two starts of a worker that keeps ending
SETTLED = 10.0  # seconds after which a start counts as successful
_LOOK = 0.25  # seconds between two checks for silent workers


class Supervisor:
    """`hello` for each worker's index; `started` is called with each worker's pid."""

    def __init__(
        self,
        workers: Sequence[WorkerProcess],
        hello: Callable[[int], Hello],
        started: Callable[[int], None],
        signal: ChangeSignal,
    ) -> None:
        self._workers = workers
        self._hello = hello
        self._started = started
        self._signal = signal
        self._tries: dict[WorkerProcess, int] = {}  # starts in a row that failed early
        self._restarting: dict[WorkerProcess, asyncio.TimerHandle] = {}
        self._looking: asyncio.TimerHandle | None = None
        self._looked_at = 0.0
        self.restarts = 0

    async def start(self) -> None:
        """Wait until all workers serve, or for START seconds. Raises OSError."""
        for worker in self._workers:
            self._start(worker)
        self._look()
        try:
            async with asyncio.timeout(START):
                while not all(worker.serves for worker in self._workers):
                    await self._signal.wait()
        except TimeoutError:
            serving, count = sum(worker.serves for worker in self._workers), len(self._workers)
            log.error("not all workers have started within %g s: %d of %d workers serve", START, serving, count)

    def stop_restarting(self) -> None:
        """No worker is started from now on. Idempotent."""
        for timer in self._restarting.values():
            timer.cancel()

    def close(self) -> None:
        """Stop restarting workers and checking them. Idempotent."""
        self.stop_restarting()
        if self._looking is not None:
            self._looking.cancel()

    def ended(self, worker: WorkerProcess, status: int, fault: str, lost: str) -> None:
        """A worker ended unexpectedly: start another in its place. `lost`: its sessions, in words."""
        loop = asyncio.get_running_loop()
        lived = loop.time() - worker.started >= SETTLED
        tries = self._tries[worker] = 1 if lived else self._tries.get(worker, 0) + 1
        wait = 0.0 if tries == 1 else min(BACKOFF, 0.1 * 2.0**tries)
        self.restarts += 1
        how = f"ended by signal {-status}" if status < 0 else f"ended with {status}"
        again = "another takes its place" if not wait else f"start {tries} in a row that did not last: again in {span(wait)}"
        log.error(
            "worker %d (pid %d) %s%s; reset: about %s; %s",
            worker.index,
            worker.pid,
            how,
            f", {fault}" if fault else "",
            lost,
            again,
        )
        self._restarting[worker] = loop.call_later(wait, self._restart, worker)

    def _start(self, worker: WorkerProcess) -> None:
        """Raises OSError."""
        worker.start(self._hello(worker.index))
        self._started(worker.pid)

    def _restart(self, worker: WorkerProcess) -> None:
        self._restarting.pop(worker, None)
        try:
            self._start(worker)
        except Exception as error:
            bug = None if isinstance(error, OSError) else error
            log.error("worker %d cannot be started: %s; again in %g s", worker.index, error, BACKOFF, exc_info=bug)
            self._restarting[worker] = asyncio.get_running_loop().call_later(BACKOFF, self._restart, worker)

    def _look(self) -> None:
        """Check for silent workers. A main that was stuck itself first reads what they sent meanwhile."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        stalled = self._looked_at and now - self._looked_at > 4 * _LOOK
        self._looked_at = now
        self._looking = loop.call_later(_LOOK, self._look)
        for worker in self._workers:
            if worker.runs:
                if stalled:
                    worker.heard = max(worker.heard, now - SILENT)
                worker.flush()
                self._judge(worker, now - worker.heard)

    @staticmethod
    def _judge(worker: WorkerProcess, silence: float) -> None:
        deaf = DEAF if worker.serves else START
        if silence > deaf + 1:
            worker.signal(signal.SIGKILL)  # the other one had no effect
        elif silence > deaf and worker.doubts < 2:
            worker.doubts = 2
            log.error("worker %d (pid %d) stands still: replaced; its stacks follow on stderr", worker.index, worker.pid)
            worker.signal(signal.SIGABRT)  # faulthandler prints its stacks, and the process ends
        elif silence > SILENT and worker.serves and not worker.doubts:
            worker.doubts = 1
            log.error("worker %d (pid %d) has said nothing for %g s", worker.index, worker.pid, SILENT)
