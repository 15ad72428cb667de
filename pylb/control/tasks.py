"""Work beside the single writer: whatever fails in it costs that work alone, never the process, never a session.

All of it goes through here, so a failure is always the same: its traceback in the log, `pylb_task_failures_total{task}`, an
alarm among the events. What is meant to run for ever begins again after a pause.
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

PAUSE = 1.0  # seconds before what failed begins again; doubled each time
PAUSE_MAX = 60.0
STEADY = 60.0  # seconds that it ran well for: then the next pause is the first one again
COMPLAIN = 60.0  # seconds between two complaints of one part; every failure is counted


class Part(StrEnum):
    """What may fail without harm: the label `task` of the metric."""

    # for ever
    LEASES = "leases"
    PROBES = "probes"
    NAMES = "names"  # of hosts
    KEYS = "keys"  # watches the secrets' files
    CERTIFICATES = "certificates"
    ADDRESSES = "addresses"  # of this machine
    BEAT = "beat"
    RATES = "rates"
    PAGE = "page"
    WATCHDOG = "watchdog"
    # now and then
    RELOAD = "reload"
    UPGRADE = "upgrade"
    PREDECESSOR = "predecessor"
    SUCCESSOR = "successor"
    SNAPSHOT = "snapshot"
    PROCESSES = "processes"  # the file that names them
    # called by somebody who must go on
    EVENTS = "events"  # who listens to them
    ANSWERS = "answers"  # what follows from a change that is in force
    SESSIONS = "sessions"  # what control and the log learn from the engine
    WORKERS = "workers"  # what a worker says
    CALLBACK = "callback"  # any other of the loop's


class Tasks:
    """`on_failure` is given the part and a text."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.on_failure: Callable[[Part, str], None] = lambda _part, _text: None
        # All parts from the start on: a series that begins at 1 has no increase that Prometheus could see.
        self.failures: Counter[Part] = Counter(dict.fromkeys(Part, 0))
        self._complain_at: dict[Part, float] = {}
        self._complaining = False

    async def forever(self, part: Part, body: Callable[[], Awaitable[None]]) -> None:
        """Runs `body` until it returns or this is cancelled; each failure is followed by a pause and another try."""
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
        """Whatever the block raises ends there."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the task boundary
            self.failed(part, error)

    def guarded(self, part: Part, callback: Callable[P, None]) -> Callable[P, None]:
        """`callback` for somebody who must go on after it."""

        def call(*args: P.args, **kwargs: P.kwargs) -> None:
            with self.surviving(part):
                callback(*args, **kwargs)

        return call

    def failed(self, part: Part, error: BaseException, where: str = "") -> None:
        """Never raises. `where`: more about the place, where the part does not say it."""
        self.failures[part] += 1
        now = self._clock()
        if self._complaining or now < self._complain_at.get(part, now):
            return
        self._complain_at[part] = now + COMPLAIN
        self._complaining = True  # who listens may fail too, and would hear of that
        try:
            log.error("%s failed, everything else goes on%s", part, where and f": {where}", exc_info=error)
            self.on_failure(part, f"{part} failed, everything else goes on: {type(error).__name__}: {error}")
        except Exception as another:
            self.failures[Part.EVENTS] += 1
            log.error("a failure could not be noted", exc_info=another)
        finally:
            self._complaining = False

    def failed_before(self, part: str, count: int) -> None:
        """In the pylb before this one, which wrote the traceback. `part` may be a word of another version."""
        if part in set(Part):
            self.failures[Part(part)] += count
            self.on_failure(Part(part), f"{part} failed in the pylb before this one, everything else goes on; its log says why")

    def on_loop_error(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        """The loop's exception handler: of callbacks, and of tasks that nobody waits for."""
        error = context.get("exception")
        if isinstance(error, BaseException):
            part = context.get("part")
            self.failed(part if isinstance(part, Part) else Part.CALLBACK, error, str(context.get("message", "")))
        else:
            loop.default_exception_handler(dict(context))
