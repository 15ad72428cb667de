"""One turn of the engine: the run queue, and the one budget that all sessions and ports share.

A turn first handles what the kernel reports: a message that fits into one read is delivered at once and costs little. Work
beyond that goes into the run queue, and is done in order until the turn's budget is spent. Entries that did not get their share
come first in the next turn; an entry that got it and wants more goes to the end.

Work is counted in units, not in time, so that a turn is the same on every machine and in every test. A unit is one byte moved;
a system call that moves none costs as many units as bytes could be moved meanwhile (at about 2.5 GB/s).
"""

from collections import deque
from typing import Protocol

BUDGET = 1024 * 1024  # units a turn, about half a millisecond
QUANTUM = 256 * 1024  # bytes a session may move before the next one's turn; with 1 MiB small ones waited three times as long
EVENT = 8 * 1024  # a request or an answer that fits into one read
STEP = 8 * 1024  # the cost of each visit, however little there is to move
VISIT = 4 * 1024  # of the sweep
ACCEPT = DIAL = END = 64 * 1024


class Runnable(Protocol):
    """A session's half, a port, a frontend with clients that wait for its servers, or the timers' work."""

    queued: bool  # it waits for its share: each is queued at most once, or the fastest would get the most


class RunQueue:
    def __init__(self) -> None:
        self.budget = 0  # units; the turn is over below zero
        self.queue: deque[Runnable] = deque()

    def add(self, one: Runnable) -> None:
        """Append to the queue, unless it is in there already."""
        if not one.queued:
            one.queued = True
            self.queue.append(one)

    def take(self) -> Runnable:
        one = self.queue.popleft()
        one.queued = False
        self.budget -= STEP
        return one
