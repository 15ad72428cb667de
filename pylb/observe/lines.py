"""Lines to a file descriptor through a bounded queue and one thread, so that a stalled pipe never stops the loop."""

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

QUEUE_LINES = 8192  # ~4 MiB of records at worst; a burst of a second at the engine's top rate
# Formatting holds the interpreter lock, a write gives it back: a small batch keeps the loop waiting for ~0.2 ms.
BATCH_LINES = 32
GATHER_SECONDS = 0.02  # a line is late by this much; so a busy loop sees 50 wake-ups a second, not one per line


class LineWriter(Generic[T]):
    """Takes items from any thread, formats and writes them in its own.

    `put` never blocks. Lines that are dropped (full queue, closed reader, or left at the end) are counted in `dropped`.
    """

    def __init__(self, fd: int, form: Callable[[T], str], *, limit: int = QUEUE_LINES, name: str = "lines") -> None:
        self._fd = fd  # not ours: never closed here
        self._form = form
        self._limit = limit
        self._queue: deque[T] = deque()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._asleep = False
        self.dropped = 0
        # A daemon: stuck in a write to a stalled pipe it must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=f"pylb-{name}", daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        if len(self._queue) >= self._limit or self._stop.is_set():
            self.dropped += 1
            return
        self._queue.append(item)
        # Safe without a lock: the thread says `asleep` first, then looks at the queue; we do it the other way round.
        if self._asleep:
            self._asleep = False
            self._wake.set()

    def close(self, timeout: float) -> bool:
        """Write what is queued, for at most `timeout` seconds. False if lines were left; they count as dropped."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout)
        left = len(self._queue)
        self._queue.clear()
        self.dropped += left
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
                return

    def _write_batch(self) -> None:
        lines: list[str] = []
        while self._queue and len(lines) < BATCH_LINES:
            try:
                item = self._queue.popleft()
            except IndexError:
                break  # close() gave up on us and cleared the queue
            lines.append(self._form(item))
        try:
            self._write("".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))
        except OSError:
            # The reader is gone (EPIPE) or the disk is full: nobody to tell, the counter is the report.
            self.dropped += len(lines)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                # Somebody shares the descriptor and made it non-blocking.
                select.select([], [self._fd], [])


def stamp(unix: float) -> str:
    """Unix time as `2026-11-23T07:41:09.123Z`."""
    # Whole milliseconds first: rounding the fraction alone could give ".1000".
    seconds, millis = divmod(int(unix * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{millis:03}Z"
