"""All workers as control sees them: one sink for tables. Main keeps every listening socket and hands it to a successor.

A port has one socket per worker (SO_REUSEPORT), so the kernel spreads clients evenly, and a dead worker's accept queue waits
for its successor. With one worker there is nothing to share, and listen() is the probe for a taken port.
"""

import asyncio
import logging
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from socket import SocketType
from typing import Any, Protocol

from pylb.core.address import Address, Listen
from pylb.core.policy import Policy
from pylb.core.recorder import Ended, Query, Story, joined
from pylb.core.session import SessionView
from pylb.core.table import Diff, Frontend, Server, Table, diff
from pylb.core.text import counted
from pylb.forward.counters import Counters, FrontendCounters
from pylb.forward.sockets import share
from pylb.workers.archive import Program
from pylb.workers.channel import BadFrame
from pylb.workers.messages import (
    PIECE,
    Answer,
    Applied,
    Ask,
    Connect,
    Counted,
    Drain,
    Fault,
    Hello,
    Lines,
    Others,
    Ready,
    Report,
    Retell,
    TableChange,
    TablePart,
    Uses,
    encoded,
    lines_of,
)
from pylb.workers.process import Seat
from pylb.workers.totals import Tally

log = logging.getLogger("pylb")

APPLY = 1.0  # seconds that a call waits for the workers
SILENT = 2.5  # seconds without a word: reported; reports come once a second
DEAF = 6.0  # seconds without a word: replaced
START = 10.0  # seconds for the first word
BACKOFF = 10.0  # seconds between two starts of a worker that does not live, at most
SETTLED = 10.0  # seconds after which a worker counts as one that lives
_LOOK = 0.25  # seconds between two looks at who is silent


@dataclass(frozen=True, slots=True)
class Told:
    """Who is told what the workers say and do."""

    connect_ended: Callable[[Listen, Server, str | None], None]
    lines: Callable[[str, int], None]  # of the session log: a text, and how many are in it
    started: Callable[[int], None]  # a worker of that pid


class PortSource(Protocol):
    """Where listening sockets come from."""

    def open(self, listen: Listen, *, freebind: bool = ..., shared: bool = ...) -> SocketType:
        """Raises OSError."""

    def closed(self, listen: Listen) -> None:
        """In whatever process still holds them."""

    def give_back(self, listen: Listen) -> None:
        """Those that were opened there are of no use: others that hold them are not to notice."""


class Policies:
    """The numbers under which policies travel: they are large, few, and shared by many frontends."""

    def __init__(self) -> None:
        self._numbers: dict[int, tuple[int, Policy]] = {}  # by identity: to hash ten thousand rules costs more
        self._next = 0
        self._uses: Counter[int] = Counter()  # by how many frontends of the table in force; by identity, too

    def number(self, policy: Policy) -> tuple[int, bool]:
        """Its number, and whether it is new."""
        known = self._numbers.get(id(policy))
        if known is not None:
            return known[0], False
        self._next += 1
        self._numbers[id(policy)] = (self._next, policy)
        return self._next, True

    def unused(self, change: Diff) -> tuple[int, ...]:
        """The numbers of those that no frontend has any more, which are forgotten. To be asked of each change, once its new
        policies have their numbers."""
        come, gone = (Counter(id(frontend.policy) for frontend in some) for some in _sides(change))
        self._uses.update(come)
        self._uses.subtract(gone)
        ended = [key for key in gone if not self._uses[key]]
        for key in ended:
            del self._uses[key]
        return tuple(self._numbers.pop(key)[0] for key in ended)


def _sides(change: Diff) -> tuple[list[Frontend], list[Frontend]]:
    """What comes and what goes."""
    come, gone = [new for _, new in change.changed], [old for old, _ in change.changed]
    return [*change.opened, *come], [*change.closed, *gone]


class Fleet:
    """`hello` for each worker's index. `told`: what they say; nothing of it before `start`."""

    def __init__(self, count: int, hello: Callable[[int], Hello], told: Told, ports: PortSource, program: Program) -> None:
        self._program = program
        self._hello = hello
        self._told = told
        self._ports = ports
        self._seats = [Seat(index, self._program, self._on_message, self._on_end) for index in range(1, count + 1)]
        self._given = Table()  # the last one that `apply` was given
        self._unopened: tuple[Listen, ...] = ()  # its ports that could not be opened
        self._table = Table()  # without the ports that could not be opened
        self._policies = Policies()
        self._tally = Tally()
        self._news = asyncio.Event()  # a worker applied a table, started, or ended
        self._answers: dict[int, list[Answer]] = {}
        self._next_question = 0
        self._tries: dict[Seat, int] = {}  # starts in a row that did not last
        self._restarting: dict[Seat, asyncio.TimerHandle] = {}
        self._draining = False
        self._looked_at = 0.0
        self.lines_dropped = 0
        self.restarts = 0

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """All workers serve, or as many as do within START seconds. Raises OSError."""
        for seat in self._seats:
            self._start(seat)
        self._look()
        try:
            async with asyncio.timeout(START):
                while not all(seat.serves for seat in self._seats):
                    await self._changed()
        except TimeoutError:
            log.error("not all workers have started within %g s: %s", START, self.state())

    def drain(self, deadline: float, *, accept: bool = True) -> None:
        """As Engine.drain. Sockets that a successor or systemd has too stay open there."""
        self._draining = True
        for timer in self._restarting.values():
            timer.cancel()
        for seat in self._seats:
            seat.say(Drain(deadline, accept))
            seat.release()

    async def drained(self, *, at_once: asyncio.Event) -> None:
        """Until the last worker has ended: by itself, or at once when that is set."""
        hurried = False
        while any(seat.runs for seat in self._seats):
            if at_once.is_set() and not hurried:
                hurried = True
                self.drain(time.monotonic())
            await asyncio.sleep(0.05)

    def close(self) -> None:
        """Ends what lives. Idempotent."""
        self._draining = True
        if self._looked_at:
            self._timer.cancel()
        for timer in self._restarting.values():
            timer.cancel()
        for seat in self._seats:
            seat.close()
        self._program.close()

    def state(self) -> str:
        serving = sum(seat.serves for seat in self._seats)
        return f"{serving} of {len(self._seats)} workers serve"

    # ------------------------------------------------------------ the sink

    def open(self, listen: Listen, *, freebind: bool) -> None:
        """Binds and listens, for all workers. Idempotent. Raises OSError."""
        if listen in self._seats[0].sockets:
            return
        shared = len(self._seats) > 1
        opened: list[SocketType] = []
        try:
            # The first one without sharing: so the kernel says whether the port is somebody else's.
            opened.append(self._ports.open(listen, freebind=freebind))
            if shared:
                share(opened[0])
            opened += [self._ports.open(listen, freebind=freebind, shared=True) for _ in self._seats[1:]]
        except OSError:
            self._ports.give_back(listen)
            raise
        for seat, sock in zip(self._seats, opened, strict=True):
            seat.sockets[listen] = sock

    def discard(self, listen: Listen) -> None:
        if listen not in self._table.frontends:
            self._close(listen)

    def apply(self, table: Table) -> Mapping[Listen, OSError]:
        """Opens and closes here, tells the workers. `applied` waits for them."""
        if self._draining:
            return {}
        before, asked = self._table, diff(self._given, table)
        edits: dict[Listen, Frontend | None] = {new.listen: new for _, new in asked.changed}
        for frontend in asked.closed:
            if frontend.listen in before.frontends:
                self._close(frontend.listen)
            edits[frontend.listen] = None
        failed: dict[Listen, OSError] = {}
        again = (table.frontends[listen] for listen in self._unopened if listen in table.frontends)
        for frontend in (*asked.opened, *again):
            try:
                self.open(frontend.listen, freebind=frontend.policy.freebind)
            except OSError as error:
                failed[frontend.listen] = error
                edits.pop(frontend.listen, None)  # it may have changed while it is not open
            else:
                edits[frontend.listen] = frontend
        self._given, self._unopened = table, tuple(failed)
        self._table = before.edited(table.generation, edits)
        change = diff(before, self._table)
        opened = [frontend.listen for frontend in change.opened]
        pieces = self._parts([*change.opened, *(new for _, new in change.changed)])
        closed = tuple(frontend.listen for frontend in change.closed)
        pieces.append(encoded(TableChange(before.generation, table.generation, self._policies.unused(change), closed)))
        for seat in self._seats:
            if seat.serves:
                seat.tell(pieces, opened)
        self._tally.follow(self._table, change)
        return failed

    async def applied(self) -> None:
        """Until every worker that serves has applied what `apply` was given, for at most APPLY seconds."""
        try:
            async with asyncio.timeout(APPLY):
                while any(seat.pending for seat in self._seats):
                    await self._changed()
        except TimeoutError:
            for seat in self._seats:
                if seat.pending:
                    log.error("worker %d (pid %d) has not applied the table within %g s", seat.index, seat.pid, APPLY)

    def _parts(self, frontends: Iterable[Frontend], *, whole: bool = False) -> list[tuple[int, bytes]]:
        """These, encoded once for all. `whole`: for one who knows no policy yet."""
        pieces, told = [], set[int]()
        rest = iter(frontends)
        while some := tuple(islice(rest, PIECE)):
            lines, policies = [], {}
            for frontend in some:
                number, is_new = self._policies.number(frontend.policy)
                if is_new or (whole and number not in told):
                    told.add(number)
                    policies[number] = frontend.policy
                lines.append(lines_of(frontend, number))
            pieces.append(encoded(TablePart(policies, tuple(lines))))
        return pieces

    def _close(self, listen: Listen) -> None:
        # In all processes that hold it: a worker that stands still must not keep a closed port open.
        self._ports.closed(listen)
        for seat in self._seats:
            sock = seat.sockets.pop(listen, None)
            if sock is not None:
                sock.close()

    # ------------------------------------------------------------ what they know

    @property
    def open_sessions(self) -> int:
        """As of their last reports."""
        return self._tally.open_sessions()

    @property
    def recording(self) -> bool:
        """Are ended sessions kept?"""
        return self._hello(1).recorded > 0

    async def counters(self) -> Counters:
        await self._ask("counters")
        blank = Counters(sum(self._hello(seat.index).max_connections for seat in self._seats))
        blank.frontends = {listen: FrontendCounters(one.name) for listen, one in self._table.frontends.items()}
        return await self._tally.added(blank)

    def parts(self) -> list[Counted]:
        """The counts whose sum `counters` is, as the workers reported them last: they do so once a second."""
        return self._tally.parts()

    async def sessions(self) -> list[SessionView]:
        return [view for answer in await self._ask("sessions") for view in answer.sessions]

    async def ended(self, query: Query) -> Ended:
        """Those that are meant, the newest first. Of workers that live; what a dead one had recorded went with it."""
        answers = await self._ask("ended", query=query)
        found = sorted((story for answer in answers for story in answer.ended), key=lambda one: -one.ended_at)
        reach = joined((answer.reach for answer in answers if answer.reach is not None), query.codes)
        return Ended(found[: query.limit], reach)

    async def story(self, number: int) -> Story | None:
        """All that is known of one session, live or ended."""
        found = [story for answer in await self._ask("story", session=number) for story in answer.ended]
        return found[0] if found else None

    async def expect(self, client: Address) -> None:
        await self._ask("expect", address=client)

    async def shutdown_session(self, number: int) -> int:
        return sum(answer.touched for answer in await self._ask("shutdown session", session=number))

    async def shutdown_sessions(self, listen: Listen, server: Address) -> int:
        return sum(answer.touched for answer in await self._ask("shutdown sessions", listen, server))

    def workers(self) -> dict[str, tuple[int, float]]:
        """Of each worker that runs: its pid and its loop's lag in seconds."""
        return {f"worker-{seat.index}": (seat.pid, self._tally.lag(seat.pid)) for seat in self._seats if seat.runs}

    async def _ask(
        self,
        what: str,
        listen: Listen | None = None,
        address: Address | None = None,
        query: Query | None = None,
        session: int = 0,
    ) -> list[Answer]:
        """What those say that serve, within APPLY seconds."""
        self._next_question = number = (self._next_question + 1) & 0xFFFFFFFF
        asked = [seat for seat in self._seats if seat.serves]
        answers: list[Answer] = []
        self._answers[number] = answers
        try:
            for seat in asked:
                seat.say(Ask(number, what, listen, address, query, session))
            async with asyncio.timeout(APPLY):
                while sum(not answer.more for answer in answers) < sum(seat.serves for seat in asked):
                    await self._changed()
        except TimeoutError:
            log.error("a worker has not answered within %g s: %s", APPLY, what)
        finally:
            del self._answers[number]  # also if nobody waits for it any more
        return answers

    async def _changed(self) -> None:
        """Until a worker says something that somebody may wait for."""
        self._news.clear()
        await self._news.wait()

    # ------------------------------------------------------------ what they say

    def _on_message(self, seat: Seat, message: Any) -> None:
        """Raises BadFrame."""
        match message:
            case Report():
                self._tally.heard(seat.pid, message)
            case Lines():
                if message.lines:
                    self._told.lines(message.text, message.lines)
                self.lines_dropped += message.dropped
            case Connect():
                self._told.connect_ended(message.listen, message.server, message.failure)
            case Applied():
                seat.pending -= 1
                self._news.set()
            case Answer():
                if message.number in self._answers:
                    self._answers[message.number].append(message)
                self._news.set()
            case Ready():
                if self._draining:  # its sockets are gone
                    seat.say(Drain(time.monotonic(), accept=False))
                else:
                    frontends = self._table.frontends
                    change = TableChange(0, self._table.generation, (), ())
                    seat.tell([*self._parts(frontends.values(), whole=True), encoded(change)], list(frontends))
                    self._tell_others(seat, Retell())
                self._news.set()
            case Uses():
                self._tell_others(seat, Others(seat.index, message.uses, gone=False))
            case Fault():
                log.error("worker %d: %s:\n%s", seat.index, message.what, message.text)
            case _:
                raise BadFrame(f"{type(message).__name__} from a worker")

    def _tell_others(self, seat: Seat, message: Others | Retell) -> None:
        for other in self._seats:
            if other is not seat and other.serves:
                other.say(message)

    def _on_end(self, seat: Seat, status: int, fault: str) -> None:
        lost = counted(self._tally.open_sessions(seat.pid), "session")
        self._tally.retire(seat.pid)
        self._program.origins.forget(seat.index)
        self._tell_others(seat, Others(seat.index, (), gone=True))
        self._news.set()
        if self._draining:
            if status:
                log.error("worker %d (pid %d) ended with %d; reset: about %s", seat.index, seat.pid, status, lost)
            return
        loop = asyncio.get_running_loop()
        lived = loop.time() - seat.started >= SETTLED
        tries = self._tries[seat] = 1 if lived else self._tries.get(seat, 0) + 1
        wait = 0.0 if tries == 1 else min(BACKOFF, 0.1 * 2.0**tries)
        self.restarts += 1
        how = f"ended by signal {-status}" if status < 0 else f"ended with {status}"
        again = "another takes its place" if not wait else f"start {tries} in a row that did not last: again in {wait:g} s"
        log.error(
            "worker %d (pid %d) %s%s; reset: about %s; %s",
            seat.index,
            seat.pid,
            how,
            f", {fault}" if fault else "",
            lost,
            again,
        )
        self._restarting[seat] = loop.call_later(wait, self._restart, seat)

    def _start(self, seat: Seat) -> None:
        """Raises OSError."""
        seat.start(self._hello(seat.index))
        self._told.started(seat.pid)

    def _restart(self, seat: Seat) -> None:
        self._restarting.pop(seat, None)
        try:
            self._start(seat)
        except Exception as error:
            bug = None if isinstance(error, OSError) else error
            log.error("worker %d cannot be started: %s; again in %g s", seat.index, error, BACKOFF, exc_info=bug)
            self._restarting[seat] = asyncio.get_running_loop().call_later(BACKOFF, self._restart, seat)

    def _look(self) -> None:
        """At who is silent. A main that stood still itself hears what was said meanwhile first."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        stalled = self._looked_at and now - self._looked_at > 4 * _LOOK
        self._looked_at = now
        self._timer = loop.call_later(_LOOK, self._look)
        for seat in self._seats:
            if seat.runs:
                if stalled:
                    seat.heard = max(seat.heard, now - SILENT)
                seat.flush()
                self._judge(seat, now - seat.heard)

    def _judge(self, seat: Seat, silence: float) -> None:
        deaf = DEAF if seat.serves else START
        if silence > deaf + 1:
            seat.signal(signal.SIGKILL)  # it does not even heed the other one
        elif silence > deaf and seat.doubts < 2:
            seat.doubts = 2
            log.error("worker %d (pid %d) stands still: replaced; its stacks follow on stderr", seat.index, seat.pid)
            seat.signal(signal.SIGABRT)  # faulthandler writes where it stands, and that is its end
        elif silence > SILENT and seat.serves and not seat.doubts:
            seat.doubts = 1
            log.error("worker %d (pid %d) has said nothing for %g s", seat.index, seat.pid, SILENT)
