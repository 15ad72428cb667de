"""A successor: a new pylb that takes over listening sockets, state and counters from the one that started it.

The words, each a frame (workers/channel.py) of one JSON object; they stay as they are from version to version:

    new  {"say": "ready", "protocol": 1}        its code is loaded, its config is valid; it has touched nothing
    old  {"say": "listeners"} + descriptors      as often as needed; the state is on disk and let go of by now
    old  {"say": "count", "count": [...]}        what was counted so far, in pieces
    old  {"say": "yours", "totals": {...}}       that was all
    new  {"say": "serving"}                      its ports serve
    old  {"say": "go"}                           systemd knows who the service is; the old one only ends its sessions
    old  {"say": "count", "count": [...]}        what changes, once a second until it ends; and "failures", see below
    new  {"say": "stop", "deadline": SECONDS}    end them by then (monotonic)

Whoever of the two ends before "go" leaves the other one in charge. With each count go the "failures" of tasks since the old
one's start, by part (control/tasks.py): nobody else can ask it for them.
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
# Forks once more and tells the pid: so the successor is a child of process 1 from the start, which alone is told of its death.
_LAUNCHER = """
import os, signal, sys
tell = int(sys.argv[1])
for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, signal.SIG_IGN)  # until the new one heeds them: by default they kill, and exec keeps this
if pid := os.fork():
    os.write(tell, b"%d" % pid)
    os._exit(0)
os.close(tell)
os.execvp(sys.argv[2], sys.argv[2:])
"""
READY = 30.0  # seconds for a successor to load its code and read its config
SERVING = 20.0  # and to serve from then on: it may have a thousand ports to open
ENDED = 10.0  # for a killed process to be gone
ANSWER = 30.0  # seconds for the old one's answers
REPORT = 1.0
LAST = 5.0  # seconds for a successor to take the last counts


class Refusal(Exception):  # noqa: N818 - a condition, told in one line
    """Why the old pylb stays in charge."""


class Talk:
    """One end between the two."""

    def __init__(self, sock: socket.socket) -> None:
        self._channel = Channel(sock)
        self._heard: asyncio.Queue[tuple[dict[str, Any], list[int]] | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._channel.fileno(), self._on_readable)
        self._open = True

    def say(self, word: str, fds: Sequence[int] = (), **more: Any) -> None:
        """Nobody there is no error: what follows from that is told by `hear`."""
        try:
            self._channel.send(0, json.dumps({"say": word, **more}, separators=(",", ":")).encode(), fds)
        except ChannelClosed:
            pass

    @property
    def backlog(self) -> int:
        """Bytes that the other one has not taken."""
        return self._channel.backlog

    async def hear(self, within: float | None = None) -> tuple[dict[str, Any], list[int]]:
        """The next word and its descriptors. Raises Refusal: the other one is gone, or silent for that many seconds."""
        try:
            async with asyncio.timeout(within):
                await self._flushed()
                said = await self._heard.get()
        except TimeoutError:
            raise Refusal(f"nothing was heard of it for {within:g} s") from None
        if said is None:
            self._heard.put_nowait(None)  # for whoever asks again
            raise Refusal("it has ended")
        return said

    async def taken(self, within: float | None = None) -> None:
        """Until the other one has all that was said. Raises Refusal: it is gone, or takes nothing for that many seconds."""
        try:
            async with asyncio.timeout(within):
                await self._flushed()
        except TimeoutError:
            raise Refusal(f"it has not taken what was said for {within:g} s") from None

    async def expect(self, word: str, within: float | None) -> tuple[dict[str, Any], list[int]]:
        """Raises Refusal."""
        said, fds = await self.hear(within)
        while fds:  # none is wanted with it
            os.close(fds.pop())
        if said.get("say") != word:
            raise Refusal(f"it said {said.get('say')!r:.40} where {word!r} was to come")
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
                for frame in frames:  # behind one that is bad
                    frame.close()
        except (ChannelClosed, BadFrame):
            self._loop.remove_reader(self._channel.fileno())
            self._heard.put_nowait(None)


def word(frame: Frame) -> dict[str, Any]:
    """What the other one says. Raises BadFrame: nothing of ours, and its descriptors are closed."""
    try:
        said = json.loads(frame.body)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        frame.close()
        raise BadFrame("no word of a hand-over")
    return said


class Running(Protocol):
    """What the old one can do."""

    async def hold(self) -> None:
        """Nothing changes from here on, and everything is on disk. Raises OSError: nothing was held."""

    async def take_back(self) -> None:
        """As if `hold` had not been."""

    def descriptors(self) -> list[int]:
        """All listening sockets."""

    def counted(self) -> AsyncIterator[Report]:
        """What changed in the counters since the last time, in pieces."""

    def totals(self) -> Mapping[str, Mapping[str, int]]:
        """As Registry.totals."""

    def failures(self) -> Mapping[str, int]:
        """Of work beside the single writer, by part."""


async def hand_over(old: Running, environ: Mapping[str, str], introduce: Callable[[int], None]) -> "Successor":
    """Start a successor and leave it everything: it is in charge when this returns, and nothing was awaited since it is.

    `introduce`: tells systemd its pid. Raises Refusal; whatever it raises, the old one is in charge as before.
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
    """Its process, which is nobody's child of ours, and the way to it."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        """Raises OSError: it has ended already. The channel is taken over only if there is somebody at its other end."""
        self.pid = pid
        self._fd = os.pidfd_open(pid)
        self.talk = Talk(channel)

    def signal(self, number: signal.Signals) -> bool:
        """False: it has ended. Never another process that was given its number."""
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:
            return False
        return True

    async def end(self) -> None:
        """It is not the service, and its workers end with their sessions. Idempotent."""
        self.signal(signal.SIGKILL)
        await asyncio.to_thread(_wait_for, self._fd, ENDED)

    def close(self) -> None:
        self.talk.close()
        os.close(self._fd)


def _wait_for(pidfd: int, seconds: float) -> None:
    """The end of a process. Not select(2): it takes no descriptor above 1023, and ours may be a hundred thousand."""
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    waiting.poll(seconds * 1000)


async def _give(old: Running, successor: Successor, introduce: Callable[[int], None]) -> None:
    """Raises Refusal."""
    talk = successor.talk
    said, _ = await talk.expect("ready", READY)
    if said.get("protocol") != PROTOCOL:
        raise Refusal(f"it speaks version {said.get('protocol')} of the hand-over, this pylb {PROTOCOL}: restart instead")
    try:
        await old.hold()
    except OSError as error:
        raise Refusal(f"the state cannot be written ({error.strerror or error}), and must not be lost") from None
    try:
        fds = old.descriptors()
        for start in range(0, len(fds), MOST_FDS):
            talk.say("listeners", fds[start : start + MOST_FDS])
        await tell(talk, old)
        talk.say("yours", totals=old.totals())
        await talk.expect("serving", SERVING)
        introduce(successor.pid)
        try:
            talk.say("go")  # with nothing awaited behind it: two would be in charge
        except BaseException:
            introduce(os.getpid())
            raise
    except BaseException:
        try:
            await successor.end()  # its lock on the state goes with it, and that may be after its end of the talk
        finally:
            await old.take_back()
        raise


async def _start(channel: socket.socket, environ: Mapping[str, str]) -> int:
    """Its pid. Raises OSError."""
    left_out = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID")  # all about this process
    environment = {key: value for key, value in environ.items() if key not in left_out}
    environment[VARIABLE] = str(channel.fileno())
    heard, told = os.pipe()
    argv = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(told), *command()]
    try:
        try:
            launcher = await asyncio.create_subprocess_exec(*argv, pass_fds=(channel.fileno(), told), env=environment)
        finally:
            os.close(told)
        pid = await asyncio.to_thread(os.read, heard, 20)  # nothing if it did not come so far
        await launcher.wait()
        if not pid:
            raise OSError(errno.ECHILD, "its launcher has failed")
        return int(pid)
    finally:
        os.close(heard)


def command() -> list[str]:
    """How this pylb was started. A script is started by its path, so that a link that leads to a new version counts."""
    script = Path(sys.argv[0])
    if script.name != "__main__.py" and os.access(script, os.X_OK):
        return [str(script), *sys.argv[1:]]
    return [sys.executable, *sys.orig_argv[1:]]


# ---------------------------------------------------------------- the new one


class Left(NamedTuple):
    """What the pylb before left."""

    talk: Talk
    descriptors: list[int]
    counts: list[dict[str, Any]]  # words not looked into yet
    totals: Mapping[str, Mapping[str, int]]


async def inherit(environ: Mapping[str, str]) -> Left | None:
    """Once it has let go of it; None: there was none before. Raises Refusal: it is still in charge."""
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
    """Those that only end their sessions still, each with a process of its own: what they count, and their end."""

    def __init__(self, failed: Callable[[str, int], None] = lambda _part, _count: None) -> None:
        self._failed = failed  # a part of theirs, so many times
        self._failures: dict[int, dict[str, int]] = {}  # of each, by part
        self._tally = Tally()
        self._living: dict[int, Talk] = {}
        self._next = 0
        self._readable = True  # what the last one met has said

    async def added(self, counters: Counters) -> Counters:
        """`counters` and theirs."""
        return await self._tally.added(counters) if self._next else counters

    def parts(self) -> list[Counted]:
        """Their counts, as they reported them last."""
        return self._tally.parts()

    def meet(self, talk: Talk, counts: Iterable[Mapping[str, Any]]) -> int:
        """One more, which has said `counts`: before anybody looks at a sum, or its past were read as a burst. Its number."""
        self._next = number = self._next + 1
        self._living[number] = talk
        counts = list(counts)
        self._failures[number] = next((found for said in reversed(counts) if (found := _failures(said))), {})
        self._readable = self._hear(number, *counts)
        return number

    async def follow(self, number: int) -> None:
        """Hear what it says until its end. After a failure of ours it may be called again."""
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
        """It has ended: what it had counted stays."""
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
        """False: of a version that counts otherwise."""
        try:
            for said in counts:
                self._tally.heard(number, report_of(said))
        except (Malformed, BadFrame) as error:
            log.warning("the counters of the pylb before are of another form, and begin anew: %s", error)
            return False
        return True

    def stop(self, deadline: float) -> None:
        """End your sessions by `deadline` (monotonic)."""
        for talk in self._living.values():
            talk.say("stop", deadline=deadline)

    async def ended(self, *, at_once: asyncio.Event) -> None:
        """Until all are gone, or `at_once` is set."""
        while self._living and not at_once.is_set():  # noqa: ASYNC110 - one of two things, and nobody is in a hurry
            await asyncio.sleep(0.05)


def _failures(said: Mapping[str, Any]) -> dict[str, int]:
    """Of the old one's tasks; older versions do not say them."""
    found = said.get("failures")
    return {part: count for part, count in found.items() if isinstance(count, int)} if isinstance(found, dict) else {}


async def tell(talk: Talk, old: Running) -> None:
    async for report in old.counted():
        talk.say("count", count=plain(tuple(report)), failures=dict(old.failures()))


async def tell_the_last(talk: Talk, old: Running) -> None:
    """And end the talk: what is not taken by then is lost with us."""
    await tell(talk, old)
    with suppress(Refusal):
        await talk.taken(LAST)
    talk.close()


async def report_to(successor: Talk, old: Running) -> None:
    """Once a second, and not before it has taken the last one; until it has ended."""
    with suppress(Refusal):
        while True:
            await tell(successor, old)
            await successor.taken()
            await asyncio.sleep(REPORT)


def report_of(said: Mapping[str, Any]) -> Report:
    """Raises Malformed: from a version that counts otherwise."""
    return made(Report, said.get("count"))
