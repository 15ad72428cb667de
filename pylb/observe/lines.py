"""Lines to a file descriptor through a bounded queue and one thread, so that a stalled pipe never stops the loop."""

import os
import select
import threading
from collections import deque

QUEUE_LINES = 8192  # ~2 MiB of lines; a burst of a second at the engine's top rate
BATCH_LINES = 512  # per write: joining them holds the interpreter lock for less than 0.1 ms
GATHER_SECONDS = 0.02  # a line is late by this much; so a busy loop sees 50 wake-ups a second, not one per line


class LineWriter:
    """Takes lines from any thread and writes them in its own, which does nothing else: work there would hold up the loop, for
    every system call of the loop hands the interpreter lock over to whoever waits for it.

    `put` never blocks. Lines that are dropped (full queue, closed reader, or left at the end) are counted in `dropped`.
    """

    def __init__(self, fd: int, *, limit: int = QUEUE_LINES, name: str = "lines") -> None:
        self._fd = fd  # not ours: never closed here
        self._limit = limit
        self._queue: deque[str] = deque()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._asleep = False
        self.dropped = 0
        # A daemon: stuck in a write to a stalled pipe it must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=f"pylb-{name}", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        if len(self._queue) >= self._limit or self._stop.is_set():
            self.dropped += 1
            return
        self._queue.append(line)
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
                lines.append(self._queue.popleft())
            except IndexError:
                break  # close() gave up on us and cleared the queue
        try:
            self._write(("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"))
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
