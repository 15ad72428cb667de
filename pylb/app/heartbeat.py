"""What happens periodically: measuring the loop's delay, and signs of life for systemd."""

import asyncio
import os
import time
from functools import partial

from pylb.app.background import Background
from pylb.app.forwarding import Forwarding
from pylb.control.registry import Registry
from pylb.control.steps import collect_young
from pylb.control.tasks import Part, Tasks
from pylb.core.text import counted
from pylb.forward.timers import TICK
from pylb.host.loop_lag import Pulse
from pylb.host.machine import reap_strangers
from pylb.host.systemd import SystemdService


class Heartbeat:
    """Measures the loop's delay and shows systemd that pylb lives, in two tasks that `begin` starts."""

    def __init__(self, systemd: SystemdService, forwarding: Forwarding, registry: Registry) -> None:
        self._systemd = systemd
        self._forwarding = forwarding
        self._registry = registry
        self._pulse = Pulse(TICK, time.monotonic())  # a scrape asks for it before its first beat

    @property
    def lag(self) -> float:
        """How late the loop is, in seconds."""
        return self._pulse.lag

    def begin(self, background: Background) -> None:
        """The beat goes on when a successor does everything else: sessions still depend on the loop."""
        background.forever(Part.BEAT, self.beat, lasting=True)
        if self._systemd.watchdog:
            background.forever(Part.WATCHDOG, partial(self._show_life, background.boundary))

    async def beat(self) -> None:
        """Measure the loop's delay; a stall of five seconds prints all stacks to stderr. Also the duties of a process 1."""
        loop = asyncio.get_running_loop()
        self._pulse = Pulse(TICK, loop.time())
        try:
            while True:
                self._pulse.beat(loop.time())
                self._systemd.flush()
                collect_young()  # also sessions that replaced others
                if os.getpid() == 1:
                    reap_strangers([pid for pid, _ in self._forwarding.workers().values()])
                await asyncio.sleep(TICK)
        finally:
            self._pulse.stop()

    async def _show_life(self, tasks: Tasks) -> None:
        """Runs in the loop that does everything: if it hangs, systemd ends pylb and starts another."""
        while True:
            self._systemd.alive()
            with tasks.surviving(Part.WATCHDOG):  # no pause follows: systemd would think that we have died
                self._systemd.status(self.state())
            await asyncio.sleep(self._systemd.watchdog / 3)

    def state(self) -> str:
        """For `systemctl status`."""
        ports, unbound = len(self._registry.table.frontends), len(self._registry.unbound())
        text = f"{counted(ports, 'port')}, {counted(self._forwarding.open_sessions, 'session')}"
        return f"{text}, {counted(unbound, 'port')} cannot be opened" if unbound else text
