"""The old pylb: it starts a successor, gives it everything, and continues to send the counts of its live sessions.

The messages between the two are in protocol.py.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from typing import Protocol

from pylb.core.codec import to_plain
from pylb.core.flow import FlowBatch
from pylb.core.text import span
from pylb.upgrade.protocol import PROTOCOL, Conversation, Refusal
from pylb.upgrade.successor import Successor, command, launch
from pylb.workers.channel import MOST_FDS
from pylb.workers.messages import Report

READY = 30.0  # seconds for a successor to load its code and read its config
SERVING = 20.0  # and from then on until it serves: it may have a thousand ports to open
REPORT = 1.0  # seconds between two reports of counts
LAST = 5.0  # seconds for a successor to take the last counts
INTRODUCED = 10.0  # seconds for systemd to take a message: it may be starting a hundred other units
ASK_AGAIN = 0.05


class OldProcess(Protocol):
    """What the old process can do."""

    async def hold(self) -> None:
        """Stop all changes and write everything to disk. Raises OSError; then changes continue."""

    async def take_back(self) -> None:
        """Undo `hold`."""

    def descriptors(self) -> list[int]:
        """All listening sockets."""

    def flows(self) -> Iterator[FlowBatch]:
        """The flows of UDP, and a descriptor of each."""

    def counted(self) -> AsyncIterator[Report]:
        """What changed in the counters since the last call, in pieces."""

    def totals(self) -> Mapping[str, Mapping[str, int]]:
        """Like Registry.totals."""

    def failures(self) -> Mapping[str, int]:
        """Failures of tasks beside the single writer, by part."""


async def hand_over(old: OldProcess, environ: Mapping[str, str], introduce: Callable[[int], bool]) -> Successor:
    """Start a successor and give it everything: it is in charge when this returns, and nothing was awaited since it is.

    `introduce`: tells systemd the successor's pid. False: it could not be told yet. Raises Refusal; whatever is raised, the old
    process is still in charge.
    """
    if os.getpid() == 1:
        raise Refusal("this pylb is process 1 of a container: start a new container instead")
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise Refusal(f"no channel to a successor: {error.strerror}") from None
    try:
        successor = Successor(await launch(theirs, environ), ours)
    except OSError as error:
        ours.close()
        program = await asyncio.to_thread(command)
        raise Refusal(f"{program[0]} cannot be started: {error.strerror}") from None
    finally:
        theirs.close()
    try:
        await _give(old, successor, introduce)
    except BaseException:
        try:
            await successor.end()
        finally:
            successor.close()
        raise
    return successor


async def _give(old: OldProcess, successor: Successor, introduce: Callable[[int], bool]) -> None:
    """Give the successor everything. Raises Refusal."""
    conversation = successor.conversation
    said, _ = await conversation.expect("ready", READY)
    if said.get("protocol") != PROTOCOL:
        raise Refusal(
            f"the other process speaks version {said.get('protocol')} of the hand-over, this pylb {PROTOCOL}: restart instead"
        )
    try:
        await old.hold()
    except OSError as error:
        raise Refusal(f"the state cannot be written ({error.strerror or error}), and would be lost") from None
    try:
        fds = old.descriptors()
        for start in range(0, len(fds), MOST_FDS):
            conversation.say("listeners", fds[start : start + MOST_FDS])
        for some, flow_fds in old.flows():
            conversation.say("flows", flow_fds, flows=some)
            await conversation.taken(SERVING)  # descriptors under way are counted per user (unix(7), ETOOMANYREFS)
        await send_counts(conversation, old)
        conversation.say("yours", totals=old.totals())
        await conversation.expect("serving", SERVING)
        await _tell_systemd(introduce, successor)
        try:
            conversation.say("go")  # nothing may be awaited after this: two would be in charge
        except BaseException:
            await _tell_systemd(introduce)
            raise
    except BaseException:
        try:
            await successor.end()  # its lock on the state is released with it, maybe after the channel has closed
        finally:
            await old.take_back()
        raise


async def _tell_systemd(introduce: Callable[[int], bool], successor: Successor | None = None) -> None:
    """That the successor, or without one this process, is the service. Returns in the step in which it is told.

    Raises Refusal: systemd took nothing for so long, or the successor has ended.
    """
    pid = os.getpid() if successor is None else successor.pid
    try:
        async with asyncio.timeout(INTRODUCED):
            while True:
                if successor is not None and successor.has_ended:
                    raise Refusal("the other process has ended")
                if introduce(pid):
                    return
                await asyncio.sleep(ASK_AGAIN)
    except TimeoutError:
        raise Refusal(f"systemd has taken no message for {span(INTRODUCED)}") from None


async def send_counts(conversation: Conversation, old: OldProcess) -> None:
    async for report in old.counted():
        conversation.say("count", count=to_plain(tuple(report)), failures=dict(old.failures()))


async def send_last_counts(conversation: Conversation, old: OldProcess) -> None:
    """Send the last counts and close: what the successor does not take is lost."""
    await send_counts(conversation, old)
    with suppress(Refusal):
        await conversation.taken(LAST)
    conversation.close()


async def report_to(successor: Conversation, old: OldProcess) -> None:
    """Send counts once a second, each after the previous was taken, until the process ends."""
    with suppress(Refusal):
        while True:
            await send_counts(successor, old)
            await successor.taken()
            await asyncio.sleep(REPORT)
