"""One pylb follows another: how the new process starts, and how the old one ends.

Their messages are in upgrade/protocol.py; phases.py says what a signal means meanwhile.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial

from pylb.app.background import Background
from pylb.app.errors import CannotStart
from pylb.app.forwarding import Forwarding
from pylb.app.phases import Trigger
from pylb.app.settings import Settings
from pylb.app.shutdown import LINGER
from pylb.control.registry import Registry
from pylb.control.tasks import Part
from pylb.core.errors import Code, Refused
from pylb.core.text import counted, span
from pylb.host.systemd import SystemdService
from pylb.upgrade.arriving import InheritedState, Predecessors, inherit
from pylb.upgrade.handover import hand_over, report_to, send_last_counts
from pylb.upgrade.leaving import StateLost, Transfer
from pylb.upgrade.protocol import ANSWER, Conversation, Refusal
from pylb.upgrade.sockets import ListeningSockets, passed
from pylb.upgrade.successor import Successor

log = logging.getLogger("pylb")

# Turns of the loop after which a signal that had arrived before is handled: one to read it, one to call its handler.
SIGNAL_TURNS = 3


class IncomingUpgrade:
    """The start of a pylb that another one may have started, in three steps. Otherwise they do little."""

    def __init__(
        self,
        environ: Mapping[str, str],
        systemd: SystemdService,
        listeners: ListeningSockets,
        before: Predecessors,
        background: Background,
    ) -> None:
        self._environ = environ
        self._systemd = systemd
        self._listeners = listeners
        self._before = before
        self._background = background
        self._inherited: InheritedState | None = None
        self._number = 0  # the number of the process that started us, among the previous ones

    async def inherit(self) -> None:
        """The sockets of the previous pylb, or systemd's. Raises CannotStart."""
        self._listeners.inherit(passed(self._environ))
        try:
            self._inherited = inherited = await inherit(self._environ)
        except Refusal as refusal:
            raise CannotStart(f"the pylb that started this one keeps its ports: {refusal}") from None
        if inherited is not None:
            self._systemd.muted = True
            self._listeners.inherit(inherited.descriptors)

    def pass_flows(self, forwarding: Forwarding) -> None:
        """Give the previous pylb's flows of UDP to whoever forwards, before its first table."""
        if self._inherited is not None:
            forwarding.take_flows(self._inherited.flows)

    def count_on(self, registry: Registry) -> None:
        """Continue the previous pylb's counters."""
        if self._inherited is not None:
            registry.go_on_from(self._inherited.totals)
            self._number = self._before.add(self._inherited.conversation, self._inherited.counts)

    async def take_over(self) -> None:
        """Everything serves: once the old process says so, or ends, we are the service. Raises CannotStart."""
        if self._inherited is None:
            return
        conversation = self._inherited.conversation
        conversation.say("serving")
        try:
            await conversation.expect("go", ANSWER)
        except Refusal as refusal:
            if self._systemd.listens:  # for systemd the service is dead, and the next one is about to use these sockets
                raise CannotStart(f"the pylb before is gone before its time: {refusal}") from None
            log.warning("the pylb before is gone before its time: %s", refusal)
            self._before.remove(self._number)
        else:
            follow = partial(self._before.follow, self._number)
            self._background.forever(Part.PREDECESSOR, follow, lasting=True)
        self._systemd.muted = False
        with self._background.boundary.surviving(Part.PREDECESSOR):  # nobody else is in charge any more
            self._listeners.store()


class OutgoingUpgrade:
    """The end of a pylb that is followed by another. `on`: what happens here is also a trigger of the phases."""

    def __init__(
        self,
        *,
        environ: Mapping[str, str],
        settings: Settings,
        systemd: SystemdService,
        forwarding: Forwarding,
        before: Predecessors,
        transfer: Transfer,
        background: Background,
        on: Callable[[Trigger], None],
    ) -> None:
        self._environ = environ
        self._settings = settings
        self._systemd = systemd
        self._forwarding = forwarding
        self._before = before
        self._transfer = transfer
        self._background = background
        self._on = on
        self._successor: Successor | None = None  # set as soon as it is in charge
        self._may_end = asyncio.Event()  # LINGER is over, or need not be waited for

    # ------------------------------------------------------------ until there is another one

    async def hand_over(self) -> str:
        """Start the installed pylb, and give it everything but the live sessions. Returns a sentence on what follows.

        Raises Refused: this pylb stays in charge, or ends if it cannot.
        """
        try:
            successor = await hand_over(self._transfer, self._environ, self._systemd.successor)
        except Refusal as refusal:
            self._on(Trigger.UPGRADE_FAILED)
            text = f"the upgrade failed, process {os.getpid()} stays in charge: {refusal}"
            raise Refused(Code.UNAVAILABLE, text, "its log says what the new one had to say") from None
        except StateLost as lost:
            log.critical("%s", lost, exc_info=lost.__cause__)
            self._on(Trigger.FAILED)
            self._on(Trigger.UPGRADE_FAILED)
            raise Refused(Code.UNAVAILABLE, str(lost)) from None
        except BaseException:
            self._on(Trigger.UPGRADE_FAILED)
            raise
        self._successor = successor
        try:
            self._on(Trigger.TAKEN_OVER)
            for _ in range(SIGNAL_TURNS):
                await asyncio.sleep(0)
        finally:
            self._on(Trigger.PARTED)
        live, seconds = self._forwarding.open_sessions, self._settings.config.defaults.timeouts.upgrade
        return f"process {successor.pid} serves; {_ends(live, seconds)}"

    # ------------------------------------------------------------ from then on

    def forward(self, about: Trigger) -> None:
        """Pass on a signal that was meant for the service."""
        if self._successor is None or not self._successor.signal(signal.Signals[about.value]):
            log.warning("%s has no effect: process %d only ends its sessions, and its successor has ended", about, os.getpid())

    async def leave(self, registry: Registry, *, hastened: bool) -> None:
        """Only the live sessions remain ours."""
        timeouts = self._settings.config.defaults.timeouts
        seconds = timeouts.shutdown if hastened else timeouts.upgrade
        surviving = self._background.boundary.surviving
        self._systemd.muted = True
        with surviving(Part.SUCCESSOR):  # the sessions live, whatever happens to the rest
            self._forwarding.drain(time.monotonic() + seconds)
        self._background.cancel()
        with surviving(Part.SUCCESSOR):
            await registry.stop()
        with surviving(Part.SUCCESSOR):
            if live := (await self._transfer.counters()).open_sessions:
                log.info("%s", _ends(live, seconds))
        conversation = self._conversation
        self._background.forever(Part.SUCCESSOR, partial(report_to, conversation, self._transfer))
        self._background.once(Part.SUCCESSOR, self._hear_of_a_stop(conversation))
        asyncio.get_running_loop().call_later(LINGER, self._may_end.set)

    def hasten(self) -> None:
        """The live sessions now have timeouts.shutdown, and nothing else is waited for."""
        self._may_end.set()
        self._forwarding.drain(time.monotonic() + self._settings.config.defaults.timeouts.shutdown)

    async def may_end(self) -> None:
        """Returns once the last session has ended and the process may end."""
        await self._may_end.wait()

    async def send_last_counts(self) -> None:
        """Send the last counts. Nothing may be sent to the successor after this."""
        with self._background.boundary.surviving(Part.SUCCESSOR):
            await send_last_counts(self._conversation, self._transfer)

    @property
    def _conversation(self) -> Conversation:
        if self._successor is None:
            raise RuntimeError("nobody follows")
        return self._successor.conversation

    async def _hear_of_a_stop(self, conversation: Conversation) -> None:
        try:
            said, _ = await conversation.expect("stop", None)
        except Refusal:
            return  # it ended by a fault: no reason to end our sessions
        finally:
            self._may_end.set()  # the service ends, or has ended
        self._forwarding.drain(float(said["deadline"]))
        self._before.stop(float(said["deadline"]))


def _ends(live: int, seconds: float) -> str:
    return f"process {os.getpid()} ends with its {counted(live, 'session')}, in {span(seconds)} at the latest"
