"""What an old and a new pylb say to each other while the new one takes over sockets, state and counters.

The messages, each a frame (workers/channel.py) of one JSON object; they stay the same from version to version:

    new  {"say": "ready", "protocol": 1}        its code is loaded, its config is valid; it has changed nothing
    old  {"say": "listeners"} + descriptors      as often as needed; by now the state is on disk and released
    old  {"say": "flows", "flows": [...]} + one descriptor of each   flows of UDP, whose sockets nobody reads by now
    old  {"say": "count", "count": [...]}        the counters so far, in pieces
    old  {"say": "yours", "totals": {...}}       everything has been passed on
    new  {"say": "serving"}                      its ports serve
    old  {"say": "go"}                           systemd knows the new service; the old one only ends its sessions
    old  {"say": "count", "count": [...]}        what changes, once a second until it ends; and "failures", see below
    new  {"say": "stop", "deadline": SECONDS}    end your sessions by then (monotonic)

If either ends before "go", the other one stays in charge. Each count also has the "failures" of tasks since the old process's
start, by part (control/tasks.py): only the old process knows them.
"""

import asyncio
import json
import os
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from pylb.core.codec import from_plain
from pylb.workers.channel import BadFrame, Channel, ChannelClosed, Frame
from pylb.workers.messages import Report

PROTOCOL = 1
VARIABLE = "PYLB_UPGRADE_FD"  # of the environment: the descriptor of the new one's end
ANSWER = 30.0  # seconds for an answer of the old process


class Refusal(Exception):  # noqa: N818 - a condition that one line describes
    """Why the old pylb stays in charge."""


class Conversation:
    """One end of the conversation between the two processes."""

    def __init__(self, sock: socket.socket) -> None:
        self._channel = Channel(sock)
        self._heard: asyncio.Queue[tuple[dict[str, Any], list[int]] | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._channel.fileno(), self._on_readable)
        self._open = True

    def say(self, word: str, fds: Sequence[int] = (), **more: Any) -> None:
        """Send a message. It is not an error if the other process is gone: `hear` reports that."""
        try:
            self._channel.send(0, json.dumps({"say": word, **more}, separators=(",", ":")).encode(), fds)
        except ChannelClosed:
            pass

    @property
    def backlog(self) -> int:
        """Bytes that the other process has not taken."""
        return self._channel.backlog

    async def hear(self, within: float | None = None) -> tuple[dict[str, Any], list[int]]:
        """The next message and its descriptors. Raises Refusal: the other one is gone, or silent for that many seconds."""
        try:
            async with asyncio.timeout(within):
                await self._flushed()
                said = await self._heard.get()
        except TimeoutError:
            raise Refusal(f"the other process was silent for {within:g} s") from None
        if said is None:
            self._heard.put_nowait(None)  # for the next caller
            raise Refusal("the other process has ended")
        return said

    async def taken(self, within: float | None = None) -> None:
        """Wait until the other one has taken everything. Raises Refusal: it is gone, or took nothing for that many seconds."""
        try:
            async with asyncio.timeout(within):
                await self._flushed()
        except TimeoutError:
            raise Refusal(f"the other process has not read its messages for {within:g} s") from None

    async def expect(self, word: str, within: float | None) -> tuple[dict[str, Any], list[int]]:
        """The next message, which must be `word`. Raises Refusal."""
        said, fds = await self.hear(within)
        while fds:  # this message has no descriptors
            os.close(fds.pop())
        if said.get("say") != word:
            raise Refusal(f"the other process sent {said.get('say')!r:.40} instead of {word!r}")
        return said, fds

    def close(self) -> None:
        """Idempotent."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._channel.fileno())
            self._channel.close()
            while not self._heard.empty():
                for fd in (self._heard.get_nowait() or ({}, []))[1]:
                    os.close(fd)

    async def _flushed(self) -> None:
        """Raises Refusal."""
        while self.backlog:
            try:
                self._channel.flush()
            except ChannelClosed:
                raise Refusal("the other process has ended") from None
            await asyncio.sleep(0.01)

    def _on_readable(self) -> None:
        try:
            frames = deque(self._channel.receive())
            try:
                while frames:
                    frame = frames.popleft()
                    self._heard.put_nowait((word(frame), frame.fds))
            finally:
                for frame in frames:  # those after a bad one
                    frame.close()
        except (ChannelClosed, BadFrame):
            self._loop.remove_reader(self._channel.fileno())
            self._heard.put_nowait(None)


def word(frame: Frame) -> dict[str, Any]:
    """The content of a message. Raises BadFrame if it is not one of ours; then its descriptors are closed."""
    try:
        said = json.loads(frame.body)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        frame.close()
        raise BadFrame("not a message of a hand-over")
    return said


def report_of(said: Mapping[str, Any]) -> Report:
    """Raises Malformed: its version counts in another form."""
    return from_plain(Report, said.get("count"))
