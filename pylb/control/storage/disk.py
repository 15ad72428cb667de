"""The disk's thread: if it hangs, only those that wait for the disk are delayed, for two seconds at most.

Those two seconds are the disk's own. Encoding a large state does not need the disk, and on a busy machine the thread waits for
the GIL after each of its pauses: 25,000 servers that came at once were three minutes of "the disk did not answer".
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from time import monotonic
from typing import TypeVar

T = TypeVar("T")

WRITE_TIMEOUT = 2.0  # seconds: a disk that hangs is a disk that fails; a phone-home waits 15 s for its answer


class Unsynced(OSError):  # noqa: N818 - the state, not the program, is in this condition
    """It is written and in place; the disk does not say whether it would survive a loss of power."""


class Job:
    """Work for the thread, which its caller may cancel. Of `commit` and `call_off` the first one counts.

    Safe without a lock: each side sets its own flag first and then reads the other's. If both do so at once, the thread does
    nothing and the caller reports "perhaps", which is also true.
    """

    def __init__(self, work: Callable[["Job"], None], loop: asyncio.AbstractEventLoop) -> None:
        self.work = work
        self.loop = loop
        self.done: asyncio.Future[None] = loop.create_future()
        self.timer: asyncio.TimerHandle | None = None
        self.ended = False  # the thread has finished it
        self.at_disk_since: float | None = None  # None: it has not begun, or computes
        self._committed = False
        self._called_off = False

    def commit(self) -> None:
        """In the thread, before what cannot be undone. Raises TimeoutError: it is not wanted any more."""
        self._committed = True
        if self._called_off:
            raise TimeoutError("called off")

    def call_off(self) -> bool:
        """Cancel the work. Returns whether it is certain that nothing of it will be visible."""
        self._called_off = True
        return not self._committed

    def computed(self, make: Callable[[], T]) -> T:
        """In the thread: the result of `make`, which does not touch the disk and waits for nothing."""
        self.at_disk_since = None
        try:
            return make()
        finally:
            self.at_disk_since = monotonic()

    def run(self) -> None:
        error: BaseException | None = None
        self.at_disk_since = monotonic()
        try:
            if not self._called_off:
                self.work(self)
        except BaseException as found:  # noqa: BLE001 - it is its caller's, whatever it is
            error = found
        self.ended = True
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(self.end, error)

    def end(self, error: BaseException | None) -> None:
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


class Disk:
    """One thread, so writes stay in order. A daemon: a write that hangs does not keep the process from ending."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._current: Job | None = None  # of the thread
        self._late: list[Job] = []  # given up

    async def run(self, work: Callable[[Job], None]) -> None:
        """Run `work` in the thread. Raises what it raises, or TimeoutError (an OSError): at once while earlier work hangs.

        Raises Unsynced if it was too late to cancel.
        """
        self._late = [job for job in self._late if not job.ended]
        if self._late:
            raise TimeoutError("the disk has not answered yet")
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="pylb-state", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        job = Job(work, loop)
        self._jobs.put(job)
        job.timer = loop.call_later(WRITE_TIMEOUT, self._look_at, job)
        try:
            await job.done
        except asyncio.CancelledError:
            job.call_off()
            raise
        finally:
            job.timer.cancel()

    def _look_at(self, job: Job) -> None:
        """Give it up if the disk hangs, at this job or at one before it."""
        if job.ended:
            return  # the loop stood still until then: its end comes next
        current = self._current
        since = None if current is None else current.at_disk_since
        rest = WRITE_TIMEOUT if since is None else since + WRITE_TIMEOUT - monotonic()
        if rest > 0:
            job.timer = job.loop.call_later(rest, self._look_at, job)
            return
        self._late.append(job)
        if job.call_off():
            job.end(TimeoutError("the disk did not answer in time"))
        else:
            job.end(Unsynced(None, "the disk did not answer in time"))

    def close(self) -> None:
        """Idempotent."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread = None

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._current = job
            job.run()
            self._current = None
