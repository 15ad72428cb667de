"""A successor: a new pylb that takes over listening sockets, state and counters from the one that started it.

The messages, each a frame (workers/channel.py) of one JSON object; they stay the same from version to version:

    new  {"say": "ready", "protocol": 1}        its code is loaded, its config is valid; it has changed nothing
    old  {"say": "listeners"} + descriptors      as often as needed; by now the state is on disk and released
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
import errno
import json
import logging
import os
import select
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pylb.core.codec import Malformed, made, plain
from pylb.forward.counters import Counters
from pylb.workers.channel import MOST_FDS, BadFrame, Channel, ChannelClosed, Frame
from pylb.workers.messages import Counted, Report
from pylb.workers.totals import Tally

log = logging.getLogger("pylb")

PROTOCOL = 1
VARIABLE = "PYLB_UPGRADE_FD"
# Forks once more and reports the pid: so the successor is a child of process 1 from the start, which reaps it.
_LAUNCHER = """
import os, signal, sys
tell = int(sys.argv[1])
for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, signal.SIG_IGN)  # until the new one handles them: by default they kill, and exec keeps this
if pid := os.fork():
    os.write(tell, b"%d" % pid)
    os._exit(0)
os.close(tell)
os.execvp(sys.argv[2], sys.argv[2:])
"""
READY = 30.0  # seconds for a successor to load its code and read its config
SERVING = 20.0  # and from then on until it serves: it may have a thousand ports to open
ENDED = 10.0  # until a killed process is gone
ANSWER = 30.0  # seconds for an answer of the old process
REPORT = 1.0
LAST = 5.0  # seconds for a successor to take the last counts


class Refusal(Exception):  # noqa: N818 - a condition that one line describes
    """Why the old pylb stays in charge."""


class Talk:
    """One end of the conversation between the two processes."""

    def __init__(self, sock: socket.socket) -> None:
        self._channel = Channel(sock)
        self._heard: asyncio.Queue[tuple[dict[str, Any], list[int]] | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._channel.fileno(), self._on_readable)
        self._open = True

    def say(self, word: str, fds: Sequence[int] = (), **more: Any) -> None:
        """Send a message. It is no error if the other process is gone: `hear` reports that."""
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
            raise Refusal(f"it was silent for {within:g} s") from None
        if said is None:
            self._heard.put_nowait(None)  # for the next caller
            raise Refusal("it has ended")
        return said

    async def taken(self, within: float | None = None) -> None:
        """Wait until the other one has taken everything. Raises Refusal: it is gone, or took nothing for that many seconds."""
        try:
            async with asyncio.timeout(within):
                await self._flushed()
        except TimeoutError:
            raise Refusal(f"it has not read its messages for {within:g} s") from None

    async def expect(self, word: str, within: float | None) -> tuple[dict[str, Any], list[int]]:
        """The next message, which must be `word`. Raises Refusal."""
        said, fds = await self.hear(within)
        while fds:  # this message has no descriptors
            os.close(fds.pop())
        if said.get("say") != word:
            raise Refusal(f"it sent {said.get('say')!r:.40} instead of {word!r}")
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
                raise Refusal("it has ended") from None
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


class Running(Protocol):
    """What the old process can do."""

    async def hold(self) -> None:
        """From here on nothing changes, and everything is on disk. Raises OSError: then nothing is held."""

    async def take_back(self) -> None:
        """Undo `hold`."""

    def descriptors(self) -> list[int]:
        """All listening sockets."""

    def counted(self) -> AsyncIterator[Report]:
        """What changed in the counters since the last call, in pieces."""

    def totals(self) -> Mapping[str, Mapping[str, int]]:
        """Like Registry.totals."""

    def failures(self) -> Mapping[str, int]:
        """Failures of tasks beside the single writer, by part."""


async def hand_over(old: Running, environ: Mapping[str, str], introduce: Callable[[int], None]) -> "Successor":
    """Start a successor and give it everything: it is in charge when this returns, and nothing was awaited since it is.

    `introduce`: tells systemd the successor's pid. Raises Refusal; whatever is raised, the old process is still in charge.
    """
    if os.getpid() == 1:
        raise Refusal("this pylb is process 1 of a container: start a new container instead")
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise Refusal(f"no channel to a successor: {error.strerror}") from None
    try:
        successor = Successor(await _start(theirs, environ), ours)
    except OSError as error:
        ours.close()
        raise Refusal(f"{command()[0]} cannot be started: {error.strerror}") from None
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


class Successor:
    """The successor's process, which is not our child, and the channel to it."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        """Raises OSError: it has ended already. The channel is taken over only if the process lives."""
        self.pid = pid
        self._fd = os.pidfd_open(pid)
        self.talk = Talk(channel)

    def signal(self, number: signal.Signals) -> bool:
        """False: it has ended. Never hits another process that was given its number."""
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:
            return False
        return True

    async def end(self) -> None:
        """Kill it: it is not the service, and its workers end with their sessions. Idempotent."""
        self.signal(signal.SIGKILL)
        await asyncio.to_thread(_wait_for, self._fd, ENDED)

    def close(self) -> None:
        self.talk.close()
        os.close(self._fd)


def _wait_for(pidfd: int, seconds: float) -> None:
    """Wait for the end of a process. Not select(2): it takes no descriptor above 1023, and ours may be a hundred thousand."""
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    waiting.poll(seconds * 1000)


async def _give(old: Running, successor: Successor, introduce: Callable[[int], None]) -> None:
    """Give the successor everything. Raises Refusal."""
    talk = successor.talk
    said, _ = await talk.expect("ready", READY)
    if said.get("protocol") != PROTOCOL:
        raise Refusal(f"it speaks version {said.get('protocol')} of the hand-over, this pylb {PROTOCOL}: restart instead")
    try:
        await old.hold()
    except OSError as error:
        raise Refusal(f"the state cannot be written ({error.strerror or error}), and would be lost") from None
    try:
        fds = old.descriptors()
        for start in range(0, len(fds), MOST_FDS):
            talk.say("listeners", fds[start : start + MOST_FDS])
        await tell(talk, old)
        talk.say("yours", totals=old.totals())
        await talk.expect("serving", SERVING)
        introduce(successor.pid)
        try:
            talk.say("go")  # nothing may be awaited after this: two would be in charge
        except BaseException:
            introduce(os.getpid())
            raise
    except BaseException:
        try:
            await successor.end()  # its lock on the state is released with it, maybe after the channel has closed
        finally:
            await old.take_back()
        raise


async def _start(channel: socket.socket, environ: Mapping[str, str]) -> int:
    """The pid of the successor. Raises OSError."""
    left_out = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID")  # these are about this process
    environment = {key: value for key, value in environ.items() if key not in left_out}
    environment[VARIABLE] = str(channel.fileno())
    heard, told = os.pipe()
    argv = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(told), *command()]
    try:
        try:
            launcher = await asyncio.create_subprocess_exec(*argv, pass_fds=(channel.fileno(), told), env=environment)
        finally:
            os.close(told)
        pid = await asyncio.to_thread(os.read, heard, 20)  # empty if the launcher failed before that
        await launcher.wait()
        if not pid:
            raise OSError(errno.ECHILD, "its launcher has failed")
        return int(pid)
    finally:
        os.close(heard)


def command() -> list[str]:
    """How this pylb was started. A script is started by its path, so that a link to a new version takes effect."""
    script = Path(sys.argv[0])
    if script.name != "__main__.py" and os.access(script, os.X_OK):
        return [str(script), *sys.argv[1:]]
    return [sys.executable, *sys.orig_argv[1:]]


# ---------------------------------------------------------------- the new process


class Left(NamedTuple):
    """What the previous pylb passed on."""

    talk: Talk
    descriptors: list[int]
    counts: list[dict[str, Any]]  # messages that are not evaluated yet
    totals: Mapping[str, Mapping[str, int]]


async def inherit(environ: Mapping[str, str]) -> Left | None:
    """What the previous pylb passed on, once it has released it; None: none was. Raises Refusal: it is still in charge."""
    text = environ.get(VARIABLE, "")
    if not text:
        return None
    try:
        fd = int(text[:9])
        os.set_inheritable(fd, False)
        talk = Talk(socket.socket(fileno=fd))
    except (OSError, ValueError):
        raise Refusal(f"{VARIABLE} is set, and no channel to another pylb") from None
    talk.say("ready", protocol=PROTOCOL)
    descriptors: list[int] = []
    counts: list[dict[str, Any]] = []
    while True:
        said, fds = await talk.hear(ANSWER)
        descriptors += fds
        if said.get("say") == "count":
            counts.append(said)
        if said.get("say") == "yours":
            return Left(talk, descriptors, counts, said.get("totals") or {})


class Predecessors:
    """Previous pylbs that only end their sessions, each a process: their counts, and their end."""

    def __init__(self, failed: Callable[[str, int], None] = lambda _part, _count: None) -> None:
        self._failed = failed  # reports a failed part of theirs, and how often
        self._failures: dict[int, dict[str, int]] = {}  # of each, by part
        self._tally = Tally()
        self._living: dict[int, Talk] = {}
        self._next = 0
        self._readable = True  # could the last one's counts be read?

    async def added(self, counters: Counters) -> Counters:
        """`counters` and theirs."""
        return await self._tally.added(counters) if self._next else counters

    def parts(self) -> list[Counted]:
        """Their counts, according to their last reports."""
        return self._tally.parts()

    def meet(self, talk: Talk, counts: Iterable[Mapping[str, Any]]) -> int:
        """Add one with the `counts` it sent, before any sum is read: its past would look like a burst. Returns a number."""
        self._next = number = self._next + 1
        self._living[number] = talk
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
            self.part(number)
            if not isinstance(end, Refusal):
                raise

    def part(self, number: int) -> None:
        """It has ended: its counts remain."""
        self._living.pop(number).close()
        self._failures.pop(number, None)
        self._tally.retire(number)

    def _hear_failures(self, number: int, said: Mapping[str, Any]) -> None:
        before = self._failures[number]
        self._failures[number] = before | _failures(said)
        for part, count in self._failures[number].items():
            if (more := count - before.get(part, 0)) > 0:
                self._failed(part, more)

    def _hear(self, number: int, *counts: Mapping[str, Any]) -> bool:
        """False: its version counts in another form."""
        try:
            for said in counts:
                self._tally.heard(number, report_of(said))
        except (Malformed, BadFrame) as error:
            log.warning("the previous pylb's counters have another form, so counting starts at zero: %s", error)
            return False
        return True

    def stop(self, deadline: float) -> None:
        """Tell all to end their sessions by `deadline` (monotonic)."""
        for talk in self._living.values():
            talk.say("stop", deadline=deadline)

    async def ended(self, *, at_once: asyncio.Event) -> None:
        """Wait until all are gone, or `at_once` is set."""
        while self._living and not at_once.is_set():  # noqa: ASYNC110 - one of two conditions, and a delay does no harm
            await asyncio.sleep(0.05)


def _failures(said: Mapping[str, Any]) -> dict[str, int]:
    """The failures of the old process's tasks; older versions do not send them."""
    found = said.get("failures")
    return {part: count for part, count in found.items() if isinstance(count, int)} if isinstance(found, dict) else {}


async def tell(talk: Talk, old: Running) -> None:
    async for report in old.counted():
        talk.say("count", count=plain(tuple(report)), failures=dict(old.failures()))


async def tell_the_last(talk: Talk, old: Running) -> None:
    """Send the last counts and close: what the successor does not take is lost."""
    await tell(talk, old)
    with suppress(Refusal):
        await talk.taken(LAST)
    talk.close()


async def report_to(successor: Talk, old: Running) -> None:
    """Send counts once a second, each after the previous was taken, until the process ends."""
    with suppress(Refusal):
        while True:
            await tell(successor, old)
            await successor.taken()
            await asyncio.sleep(REPORT)


def report_of(said: Mapping[str, Any]) -> Report:
    """Raises Malformed: its version counts in another form."""
    return made(Report, said.get("count"))
