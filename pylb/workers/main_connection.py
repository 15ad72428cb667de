"""A worker's side of the channel: messages from main become calls of the engine, the engine's reports become messages.

Nothing here waits for main. Messages that main does not take queue up to a bound; beyond it session lines are dropped and
counted.
"""

import os
import select
import time
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from socket import SocketType
from typing import Any

from pylb.core.address import Listen
from pylb.core.policy import Policy, Timeouts
from pylb.core.recorder import SessionTrace
from pylb.core.session import SessionRecord
from pylb.core.table import Frontend, Server
from pylb.forward.engine import Engine
from pylb.logs.formats import LineBatch
from pylb.workers.channel import BadFrame, Channel, ChannelClosed, Frame
from pylb.workers.messages import (
    VERSION,
    Applied,
    ChangedCounters,
    ConnectEnded,
    Drain,
    FaultReport,
    Hello,
    LimitUse,
    LogLines,
    NumberedFrontend,
    OtherWorkerUse,
    PassedSockets,
    Ready,
    ReportAllUse,
    Request,
    Response,
    TableChange,
    TablePart,
    decoded,
    encoded,
    frontend_count,
    report,
)

MOST_LINES = 8192  # lines that wait for the next tick
MOST_BACKLOG = 4 << 20  # bytes that main has not taken: above it lines are dropped
MOST_CONNECTS = 256  # reported at once; a flood of failures says no more than its first ones
REPORT = 1.0  # seconds


class MainConnection:
    """A worker's connection to main; also the engine's observer and opener. `gathered`: the sessions that become log lines."""

    def __init__(self, channel: Channel, hello: Hello, gathered: LineBatch) -> None:
        self._channel = channel
        self._hello = hello
        self._gathered = gathered
        self._listeners: dict[Listen, SocketType] = {}
        self._policies: dict[int, Policy] = {}
        self._timeouts = Timeouts()  # of the latest policy; those that are used here are the same in all policies
        self._parts: list[NumberedFrontend] = []  # of the next table
        self._failed: Mapping[Listen, OSError] = {}  # ports that the last table could not open
        self._frames: deque[Frame] = deque()  # from main, not processed yet
        self._texts: list[str] = []  # lines that wait for the next tick
        self._waiting = 0  # their number
        self._dropped = 0
        self.connects: list[ConnectEnded] = []  # reported after the turn
        self._changes = ChangedCounters()
        self._asked: list[int] = []  # questions that are answered after everything was reported
        self._reporting = False
        self._bad: BadFrame | None = None  # the last bad frame on the channel
        self._searches: deque[Iterator[Response]] = deque()  # long answers in progress
        self._report_at = 0.0
        self._lag = 0.0
        self.draining = False
        self.orphaned = False  # main is gone
        self._hastened = False

    def begin(self, engine: Engine) -> None:
        """Start the connection. Call it before anything else."""
        self._engine = engine
        engine.watch(self._channel.fileno(), self.on_readable)
        self._say(Ready(VERSION))

    # ------------------------------------------------------------ the engine's

    def open_listener(self, listen: Listen, *, freebind: bool = False) -> SocketType:  # noqa: ARG002 - main has bound it
        """The socket that main sent for it. Raises OSError."""
        sock = self._listeners.pop(listen, None)
        if sock is None:
            raise FileNotFoundError(f"main sent no socket for {listen}")
        return sock

    @property
    def wants_records(self) -> bool:
        return self._gathered.wants_records

    def session_ended(self, record: SessionRecord) -> None:
        if self._gathered.add(record):
            self._make_lines()

    def _make_lines(self) -> None:
        text, count = self._gathered.take()
        if self._waiting >= MOST_LINES:
            self._dropped += count
        elif count:
            self._texts.append(text)
            self._waiting += count

    def connect_ended(self, listen: Listen, server: Server, failure: str | None) -> None:
        if len(self.connects) < MOST_CONNECTS:
            self.connects.append(ConnectEnded(listen, server, failure))

    def fault(self, what: str, error: Exception) -> None:
        self._say(FaultReport(what, "".join(traceback.format_exception(error))))

    # ------------------------------------------------------------ from main

    def on_readable(self) -> None:
        try:
            self._frames.extend(self._channel.receive())
        except ChannelClosed:
            while self._frames:
                self._process_frame(self._frames.popleft())
            self._be_orphan()
        except BadFrame as error:
            self._engine.unwatch(self._channel.fileno())
            self._bad = error

    @property
    def has_work(self) -> bool:
        return self._reporting or bool(self._frames) or bool(self._searches) or self._bad is not None

    def work(self) -> None:
        """Do a piece of the work: a large table, a report of many frontends or a long answer at once would delay the bytes.

        Raises BadFrame: main and this worker do not understand each other, which only a new worker can repair.
        """
        if self._frames:
            self._process_frame(self._frames.popleft())
        elif self._bad is not None:
            raise self._bad
        if self._reporting and not self._engine.faults.guard("a report failed", self._report_some):
            self._reporting = False
        if self._searches and not self._engine.faults.guard("an answer to main failed", self._search_some):
            self._searches.popleft()

    def _process_frame(self, frame: Frame) -> None:
        """Raises BadFrame."""
        try:
            self._carry_out(frame)
        finally:
            frame.close()  # descriptors that nobody has taken

    def _carry_out(self, frame: Frame) -> None:
        """Raises BadFrame."""
        message = decoded(frame)
        if isinstance(message, PassedSockets):
            self._take(message, frame.fds)
        elif isinstance(message, TablePart):
            self._policies.update(message.policies)
            for policy in message.policies.values():
                self._timeouts = policy.timeouts
            self._parts += message.frontends
        elif isinstance(message, TableChange):
            self._apply(message)
        elif isinstance(message, Request):
            self._engine.faults.guard("an answer to main failed", self._answer, message)
        elif isinstance(message, OtherWorkerUse):
            self._engine.faults.guard("the report of another worker's use of limits failed", self._take_uses, message)
        elif isinstance(message, ReportAllUse):
            self._say(LimitUse(self._engine.other_processes.uses(whole=True)))
        elif isinstance(message, Drain):
            self.drain(message.deadline, accept=message.accept)
        else:
            raise BadFrame(f"main sent {type(message).__name__}")

    def _take(self, message: PassedSockets, fds: list[int]) -> None:
        if len(message.listens) != len(fds):
            raise BadFrame(f"{len(fds)} sockets for {len(message.listens)} ports")
        for listen in message.listens:
            try:
                self._listeners[listen] = SocketType(-1, -1, -1, fds[0])  # the kernel knows its family and type
            except OSError as error:
                raise BadFrame(f"no socket for {listen}: {error.strerror}") from None
            del fds[0]  # the socket owns it now

    def _apply(self, change: TableChange) -> None:
        if change.base != self._engine.table.generation:
            raise BadFrame(f"a table on top of {change.base}, while {self._engine.table.generation} is in force")
        edits: dict[Listen, Frontend | None] = dict.fromkeys(change.closed)
        for one in self._parts:
            edits[one.listen] = Frontend(one.name, one.listen, self._policies[one.policy], one.servers)
        self._parts = []
        for number in change.forget:
            del self._policies[number]
        failed = self._engine.apply(self._engine.table.edited(change.generation, edits))
        for listen, error in failed.items():
            self.fault(f"{listen} could not be opened", error)
        if self._hello.workers > 1:
            self._engine.other_processes.follow({**edits, **self._failed})
        self._failed = failed
        self._say(Applied(change.generation))

    def _answer(self, ask: Request) -> None:
        engine, touched = self._engine, 0
        ended: tuple[SessionTrace, ...] = ()
        if ask.what == "sessions":
            self._searches.append(Response(ask.number, 0, tuple(some), (), more=True) for some in engine.live())
            self._searches.append(iter((Response(ask.number, 0, ()),)))
            return
        if ask.what == "ended" and ask.query is not None:
            found = engine.ended(ask.query)
            self._searches.append(Response(ask.number, 0, (), tuple(some), more=True) for some in found)
            self._searches.append(iter((Response(ask.number, 0, (), reach=engine.reach),)))
            return
        if ask.what == "trace":
            trace = engine.trace(ask.session)
            ended = () if trace is None else (trace,)
        elif ask.what == "counters":
            self._asked.append(ask.number)
            self._begin_report()
            return
        elif ask.what == "expect" and ask.address is not None:
            engine.expect(ask.address)
        elif ask.what == "shutdown session":
            touched = engine.shutdown_session(ask.session)
        elif ask.what == "shutdown sessions" and ask.listen is not None and ask.address is not None:
            touched = engine.shutdown_sessions(ask.listen, ask.address)
        else:
            raise BadFrame(f"main asks {ask.what!r:.40}")
        self._say(Response(ask.number, touched, (), ended))

    def _take_uses(self, others: OtherWorkerUse) -> None:
        if others.gone:
            self._engine.other_processes.forget(others.worker)
        else:
            self._engine.other_processes.take_report(others.worker, others.uses, time.monotonic())

    def drain(self, deadline: float, *, accept: bool = True) -> None:
        self.draining = True
        self._engine.drain(deadline, accept=accept)

    def hasten(self) -> None:
        """Called at SIGTERM. As long as main lives, it decides what a stop means; an orphan decides at its next tick."""
        self._hastened = True

    def _be_orphan(self) -> None:
        """Main is gone: no new clients (its successor has them), and the live sessions get their time."""
        self.orphaned = True
        self._engine.unwatch(self._channel.fileno())
        self._channel.close()
        if not self.draining:
            self.drain(time.monotonic() + self._timeouts.upgrade)

    # ------------------------------------------------------------ to main

    def tell_connects(self) -> None:
        """Report failed servers now: that cannot wait for the tick."""
        connects, self.connects = self.connects, []
        if self._channel.backlog < MOST_BACKLOG:
            for one in connects:
                self._say(one)

    def tick(self, now: float, lag: float) -> None:
        """`lag`: seconds by which the loop's recent turns were late."""
        self._lag = lag
        if self._hastened:
            self._hastened = False
            if self.orphaned:
                self.drain(now + self._timeouts.shutdown)
        self._flush()
        self._make_lines()
        if self._waiting or self._dropped:
            self._send_lines()
        if self._hello.workers > 1 and self._channel.backlog < MOST_BACKLOG and (uses := self._engine.other_processes.uses()):
            self._say(LimitUse(uses))
        if now >= self._report_at:
            self._report_at = now + REPORT
            if self._channel.backlog < MOST_BACKLOG:
                self._begin_report()

    def _begin_report(self) -> None:
        self._changes.look(self._engine.counters)
        self._reporting = True

    def _report_some(self) -> None:
        """Report the state of the worker, and some of what changed: a thousand busy frontends at once would delay the bytes."""
        counters, some = self._engine.counters, self._changes.waiting()
        found = tuple(frontend_count(listen, counters.frontends[listen]) for listen in some if listen in counters.frontends)
        self._say(report(counters, self._lag, found))
        self._changes.reported(some)
        if not self._changes:
            self._reporting = False
            while self._asked:
                self._say(Response(self._asked.pop(), 0, ()))

    def _search_some(self) -> None:
        """Send a piece of a long answer: ten thousand sessions at once would delay the bytes."""
        answer = next(self._searches[0], None)
        if answer is None:
            self._searches.popleft()
        else:
            self._say(answer)

    def _send_lines(self) -> None:
        text, count = "\n".join(self._texts), self._waiting
        self._texts, self._waiting = [], 0
        if self.orphaned:
            _to_stdout(deque(text.split("\n") if count else ()))
        elif self._channel.backlog > MOST_BACKLOG:
            self._dropped += count
        else:
            self._say(LogLines(text, count, self._dropped))
            self._dropped = 0

    def _say(self, message: Any) -> None:
        if not self.orphaned:
            try:
                self._channel.send(*encoded(message))
            except ChannelClosed:
                pass  # the end of the channel is read next

    def _flush(self) -> None:
        if self._channel.backlog:
            try:
                self._channel.flush()
            except ChannelClosed:
                pass

    @property
    def is_over(self) -> bool:
        """Whether nothing remains to be done."""
        return self.draining and not (self._engine.counters.open_sessions or self._engine.counters.open_flows)

    def close(self) -> None:
        """Send the last messages and close."""
        self.tick(time.monotonic(), self._lag)
        self._begin_report()
        while self._reporting:
            self._report_some()
        self._flush()


def _to_stdout(lines: deque[str]) -> None:
    """Without main: write what stdout takes at once, drop the rest. A pipe with room takes PIPE_BUF bytes whole (pipe(7))."""
    room = select.poll()
    room.register(1, select.POLLOUT)
    while lines and room.poll(0):
        batch: list[str] = []
        size = 0
        while lines and (not batch or size + len(lines[0]) < select.PIPE_BUF // 2):
            batch.append(lines.popleft())
            size += len(batch[-1]) + 1
        try:
            os.write(1, ("\n".join(batch) + "\n").encode("utf-8", "backslashreplace"))
        except OSError:
            return
