"""Writes lines through a bounded queue and a thread, so that a stalled pipe or a dead syslog never stops the loop."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger("pylb")

QUEUE_LINES = 8192  # ~2 MiB of lines; a burst of a second at the engine's top rate
BATCH_LINES = 512  # per write: joining them holds the interpreter lock for less than 0.1 ms
GATHER_SECONDS = 0.02  # delay of a line, so that a busy loop causes 50 wake-ups a second and not one per line


class Output(Protocol):
    """Where lines end up. Only the writer's thread calls it, except for the constructor."""

    def write(self, text: str, count: int) -> int:
        """Write `count` lines (`text` has no newline at the end). Returns how many were lost."""

    def reopen(self) -> None:
        """Open the target anew, after its file was moved away."""

    def close(self) -> None: ...


class LineWriter:
    """Takes lines from any thread and writes them in a separate one. That thread does nothing else, since its work would delay
    the loop: with every system call the loop gives the interpreter lock to a waiting thread.

    `put` never blocks. Lines that are dropped (queue full, reader gone, or unwritten at the end) are counted in `dropped`.
    """

    def __init__(self, out: Output, *, limit: int = QUEUE_LINES, name: str = "lines") -> None:
        self._out = out
        self._limit = limit
        self._queue: deque[tuple[str, int] | Callable[[], None]] = deque()
        # Their difference is the number of lines in the queue: each number is written by one side only.
        self._put = 0
        self._taken = 0
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._asleep = False
        self._refused = 0
        self._lost = 0
        self._failing = False  # the last batch failed, and that is in the log
        # A daemon thread: stuck in a write to a stalled pipe, it must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=f"pylb-{name}", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        return self._refused + self._lost

    def put(self, text: str, count: int = 1) -> None:
        """Queue `count` lines; `text` has no newline at the end."""
        if self._put - self._taken >= self._limit or self._stop.is_set():
            self._refused += count
            return
        self._put += count
        self._queue.append((text, count))
        self._rouse()

    def reopen(self) -> None:
        """Takes effect after the lines that were put before."""
        self._queue.append(self._out.reopen)
        self._rouse()

    def _rouse(self) -> None:
        # Safe without a lock: the thread sets `asleep` first and then looks at the queue; this side does it in reverse order.
        if self._asleep:
            self._asleep = False
            self._wake.set()

    def close(self, timeout: float) -> bool:
        """Write what is queued, for at most `timeout` seconds. False if lines remained; they count as dropped."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout)
        left = self._put - self._taken
        self._queue.clear()
        self._taken += left
        self._refused += left
        return left == 0 and not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            self._asleep = True
            if not self._queue and not self._stop.is_set():
                self._wake.wait()
            self._wake.clear()
            self._asleep = False
            if not self._stop.is_set():
                self._stop.wait(GATHER_SECONDS)
            while self._queue:
                self._write_batch()
            if self._stop.is_set() and not self._queue:
                self._out.close()
                return

    def _write_batch(self) -> None:
        texts: list[str] = []
        lines = 0
        job: Callable[[], None] | None = None
        while self._queue and lines < BATCH_LINES and job is None:
            try:
                item = self._queue.popleft()
            except IndexError:
                break  # close() has given up waiting and cleared the queue
            if isinstance(item, tuple):
                texts.append(item[0])
                lines += item[1]
            else:
                job = item
        self._taken += lines
        try:
            if texts:
                self._lost += self._out.write("\n".join(texts), lines)
                lines = 0
            if job is not None:
                job()
        except Exception as error:
            # The boundary of this thread: at its end all later lines would be lost.
            self._lost += lines
            if not self._failing:  # once: this message may be a line of this writer
                self._failing = True
                log.error("lines of the log are lost by a fault", exc_info=error)
        else:
            self._failing = False
