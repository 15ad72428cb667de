"""Work beside the single writer: if it fails, only that work suffers, never the process or a session.

All of it is run from here, so every failure is handled alike: a traceback in the log, `pylb_task_failures_total{task}`, an
alarm among the events. Work that is meant to run for ever restarts after a pause.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, ParamSpec

log = logging.getLogger("pylb")

P = ParamSpec("P")

PAUSE = 1.0  # seconds before a restart; doubled each time
PAUSE_MAX = 60.0
STEADY = 60.0  # after so many seconds without a failure, the next pause is the first one again
COMPLAIN = 60.0  # seconds between two reports about one part; every failure is counted


class Part(StrEnum):
    """Parts that may fail without harm: the label `task` of the metric."""

    # run for ever
    LEASES = "leases"
    PROBES = "probes"
    NAMES = "names"  # look-ups of host names
    KEYS = "keys"  # watches the secret files
    CERTIFICATES = "certificates"
    ADDRESSES = "addresses"  # follows this machine's addresses
    BEAT = "beat"
    RATES = "rates"
    PAGE = "page"
    CLUSTER = "cluster"  # the session with etcd
    PEERS = "peers"  # asks other pylbs for the page
    WATCHDOG = "watchdog"
    # run from time to time
    RELOAD = "reload"
    UPGRADE = "upgrade"
    PREDECESSOR = "predecessor"
    SUCCESSOR = "successor"
    SNAPSHOT = "snapshot"
    PROCESSES = "processes"  # writes the file with their pids
    # called by code that must go on
    EVENTS = "events"  # the receivers of events
    ANSWERS = "answers"  # consequences of a change that is in force
    SESSIONS = "sessions"  # what the engine reports to control and the log
    WORKERS = "workers"  # what a worker reports
    CALLBACK = "callback"  # any other callback of the loop


class Tasks:
    """`on_failure` is called with the part and a text."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.on_failure: Callable[[Part, str], None] = lambda _part, _text: None
        # All parts from the start on: a series that begins at 1 has no increase that Prometheus could see.
        self.failures: Counter[Part] = Counter(dict.fromkeys(Part, 0))
        self._complain_at: dict[Part, float] = {}
        self._complaining = False

    async def forever(self, part: Part, body: Callable[[], Awaitable[None]]) -> None:
        """Run `body` until it returns or this is cancelled; after a failure comes a pause and another try."""
        pause = PAUSE
        while True:
            began = self._clock()
            try:
                await body()
            except Exception as error:  # noqa: BLE001 - the task boundary
                self.failed(part, error)
            else:
                return
            if self._clock() - began >= STEADY:
                pause = PAUSE
            await asyncio.sleep(pause)
            pause = min(pause * 2, PAUSE_MAX)

    async def once(self, part: Part, work: Awaitable[None]) -> None:
        with self.surviving(part):
            await work

    @contextmanager
    def surviving(self, part: Part) -> Iterator[None]:
        """Log and swallow whatever the block raises."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the task boundary
            self.failed(part, error)

    def guarded(self, part: Part, callback: Callable[P, None]) -> Callable[P, None]:
        """`callback`, for a caller that must go on after it."""

        def call(*args: P.args, **kwargs: P.kwargs) -> None:
            with self.surviving(part):
                callback(*args, **kwargs)

        return call

    def failed(self, part: Part, error: BaseException, where: str = "") -> None:
        """Never raises. `where`: more about the place, if the part is not enough."""
        self.failures[part] += 1
        now = self._clock()
        if self._complaining or now < self._complain_at.get(part, now):
            return
        self._complain_at[part] = now + COMPLAIN
        self._complaining = True  # the receiver may fail too, and would get that as well
        try:
            log.error("%s failed, everything else goes on%s", part, where and f": {where}", exc_info=error)
            self.on_failure(part, f"{part} failed, everything else goes on: {type(error).__name__}: {error}")
        except Exception as another:
            self.failures[Part.EVENTS] += 1
            log.error("a failure could not be noted", exc_info=another)
        finally:
            self._complaining = False

    def failed_before(self, part: str, count: int) -> None:
        """It failed in the previous pylb, which logged the traceback. `part` may be a name from another version."""
        if part in set(Part):
            self.failures[Part(part)] += count
            self.on_failure(Part(part), f"{part} failed in the pylb before this one, everything else goes on; its log says why")

    def on_loop_error(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        """The loop's exception handler, for callbacks and for tasks that nobody waits for."""
        error = context.get("exception")
        if isinstance(error, BaseException):
            part = context.get("part")
            self.failed(part if isinstance(part, Part) else Part.CALLBACK, error, str(context.get("message", "")))
        else:
            loop.default_exception_handler(dict(context))
