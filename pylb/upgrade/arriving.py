"""The new pylb: what it takes over from the one that started it, and what it hears of those that only end their sessions."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from pylb.core.codec import Malformed
from pylb.core.flow import FlowBatch
from pylb.forward.counters import Counters
from pylb.upgrade.protocol import ANSWER, PROTOCOL, VARIABLE, Conversation, Refusal, report_of
from pylb.workers.channel import BadFrame
from pylb.workers.messages import CountsByListen
from pylb.workers.totals import Totals

log = logging.getLogger("pylb")


class InheritedState(NamedTuple):
    """What the previous pylb passed on."""

    conversation: Conversation
    descriptors: list[int]
    counts: list[dict[str, Any]]  # messages that are not evaluated yet
    totals: Mapping[str, Mapping[str, int]]
    flows: list[FlowBatch]  # of UDP


async def inherit(environ: Mapping[str, str]) -> InheritedState | None:
    """What the previous pylb passed on, once it has released it; None: none was. Raises Refusal: it is still in charge."""
    text = environ.get(VARIABLE, "")
    if not text:
        return None
    try:
        fd = int(text[:9])
        os.set_inheritable(fd, False)
        conversation = Conversation(socket.socket(fileno=fd))
    except (OSError, ValueError):
        raise Refusal(f"{VARIABLE} is set, and no channel to another pylb") from None
    conversation.say("ready", protocol=PROTOCOL)
    descriptors: list[int] = []
    counts: list[dict[str, Any]] = []
    flows: list[FlowBatch] = []
    while True:
        said, fds = await conversation.hear(ANSWER)
        if said.get("say") == "flows" and isinstance(some := said.get("flows"), list):
            flows.append((some, fds))
        else:
            descriptors += fds
        if said.get("say") == "count":
            counts.append(said)
        if said.get("say") == "yours":
            return InheritedState(conversation, descriptors, counts, said.get("totals") or {}, flows)


class Predecessors:
    """Previous pylbs that only end their sessions, each a process: their counts, and their end."""

    def __init__(self, failed: Callable[[str, int], None] = lambda _part, _count: None) -> None:
        self._failed = failed  # reports a failed part of theirs, and how often
        self._failures: dict[int, dict[str, int]] = {}  # of each, by part
        self._totals = Totals()
        self._living: dict[int, Conversation] = {}
        self._next = 0
        self._readable = True  # could the last one's counts be read?

    async def added(self, counters: Counters) -> Counters:
        """`counters` plus the counts of the predecessors."""
        return await self._totals.added(counters) if self._next else counters

    def parts(self) -> list[CountsByListen]:
        """Their counts, according to their last reports."""
        return self._totals.parts()

    def add(self, conversation: Conversation, counts: Iterable[Mapping[str, Any]]) -> int:
        """Add one with the `counts` it sent, before any sum is read: its past would look like a burst. Returns a number."""
        self._next = number = self._next + 1
        self._living[number] = conversation
        counts = list(counts)
        self._failures[number] = next((found for said in reversed(counts) if (found := _failures(said))), {})
        self._readable = self._hear(number, *counts)
        return number

    async def follow(self, number: int) -> None:
        """Read its messages until it ends. May be called again after a failure of ours."""
        readable = self._readable
        try:
            while True:
                said, _ = await self._living[number].hear()
                self._hear_failures(number, said)
                readable = readable and self._hear(number, said)
        except (Refusal, asyncio.CancelledError) as end:
            self.remove(number)
            if not isinstance(end, Refusal):
                raise

    def remove(self, number: int) -> None:
        """Note that it has ended; its counts remain."""
        self._living.pop(number).close()
        self._failures.pop(number, None)
        self._totals.retire(number)

    def _hear_failures(self, number: int, said: Mapping[str, Any]) -> None:
        before = self._failures[number]
        self._failures[number] = before | _failures(said)
        for part, count in self._failures[number].items():
            if (more := count - before.get(part, 0)) > 0:
                self._failed(part, more)

    def _hear(self, number: int, *counts: Mapping[str, Any]) -> bool:
        """Take a report. False: its version counts in another form."""
        try:
            for said in counts:
                self._totals.heard(number, report_of(said))
        except (Malformed, BadFrame) as error:
            log.warning("the previous pylb's counters have another form, so counting starts at zero: %s", error)
            return False
        return True

    def stop(self, deadline: float) -> None:
        """Tell all to end their sessions by `deadline` (monotonic)."""
        for conversation in self._living.values():
            conversation.say("stop", deadline=deadline)

    async def ended(self, *, at_once: asyncio.Event) -> None:
        """Wait until all are gone, or `at_once` is set."""
        while self._living and not at_once.is_set():  # noqa: ASYNC110 - one of two conditions, and a delay does no harm
            await asyncio.sleep(0.05)


def _failures(said: Mapping[str, Any]) -> dict[str, int]:
    """The failures of the old process's tasks; older versions do not send them."""
    found = said.get("failures")
    return {part: count for part, count in found.items() if isinstance(count, int)} if isinstance(found, dict) else {}
