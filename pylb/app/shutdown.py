"""The end of the service: no new sessions, some time for the live ones, and for previous processes."""

import asyncio
import logging
import time

from pylb.app.forwarding import Forwarding
from pylb.app.settings import Settings
from pylb.core.text import counted, span
from pylb.host.systemd import SystemdService
from pylb.upgrade.arriving import Predecessors
from pylb.upgrade.processes import ProcessList

log = logging.getLogger("pylb")

# Seconds that a pylb with a successor stays at least: somebody may have looked up the service's pid just before and
# send it a signal just after, and systemd learns of the new pid a moment later.
LINGER = 1.0


class Shutdown:
    """Live sessions have timeouts.shutdown, unless `now` is called."""

    def __init__(
        self,
        settings: Settings,
        systemd: SystemdService,
        forwarding: Forwarding,
        before: Predecessors,
        process_list: ProcessList,
    ) -> None:
        self._settings = settings
        self._systemd = systemd
        self._forwarding = forwarding
        self._before = before
        self._process_list = process_list
        self._at_once = asyncio.Event()  # the last sessions are reset now
        self._deadline = 0.0  # when the live sessions of a service that stops are over

    async def stop_accepting(self, live: int) -> None:
        """`live`: the number of sessions, including those of previous processes."""
        seconds = self._settings.config.defaults.timeouts.shutdown
        self._deadline = time.monotonic() + seconds
        text = f"stopping: {counted(live, 'live session')} {'has' if live == 1 else 'have'} {span(seconds)}"
        self._systemd.stopping(text)
        if live:
            log.info("%s; a second signal ends them now", text)
        else:
            log.info("stopping")
        # If systemd has the sockets, clients waiting in them are for the next pylb: here they would be reset in a moment.
        self._forwarding.drain(self._deadline, accept=not self._systemd.listens)
        self._before.stop(self._deadline)
        await asyncio.to_thread(self._process_list.stop_previous)

    def now(self) -> None:
        """Reset the live sessions. Idempotent."""
        if not self._at_once.is_set():
            log.warning("stopping at once")
            self._at_once.set()

    def fail(self) -> None:
        """After a failed start sessions get no time at all: it may have accepted some already."""
        self._at_once.set()
        self._forwarding.drain(time.monotonic(), accept=False)

    async def last_session(self) -> None:
        """Wait until the last session has ended, here and in previous processes."""
        await self._forwarding.drained(at_once=self._at_once)
        await self._before.ended(at_once=self._at_once)

    async def last_process(self) -> None:
        """Wait until previous processes have ended, as long as our own sessions may last.

        They got the signal, too. systemd ends all that is left once this process is gone.
        """
        while time.monotonic() < self._deadline + LINGER and not self._at_once.is_set():
            if not await asyncio.to_thread(self._process_list.previous):
                return
            await asyncio.sleep(0.05)
        if left := await asyncio.to_thread(self._process_list.previous):
            log.warning("%s from before this start still running", ", ".join(f"process {pid}" for pid in left))
