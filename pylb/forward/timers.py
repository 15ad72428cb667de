"""Deadlines without a timer per session.

Dials and headers fall due in the order of their deadlines (deadlines.py). All sessions are swept: each is visited once per
period, a slice per tick, and its byte counters are compared with those of the last visit. No clock is read per chunk. Sessions
of a frontend with short timeouts are swept in a separate group, so that the others are not visited more often because of them.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

from pylb.core.policy import AdminState, OnDown, Policy, Timeouts
from pylb.core.session import Cause, Event, State
from pylb.core.table import DOWN, Server
from pylb.forward.accounts import settle
from pylb.forward.faults import Faults
from pylb.forward.lifecycle import Lifecycle
from pylb.forward.linger import arm
from pylb.forward.live_sessions import SweepGroup
from pylb.forward.run_queue import BUDGET, QUANTUM, VISIT, RunQueue
from pylb.forward.session import FrontendState, Half, ServerState, Session
from pylb.forward.sockets import keep_alive, transmission, unacknowledged

TICK = 0.1  # seconds between two ticks, as the loop calls them
SCAN = 1024  # units, for a look at one session in a long list
LONGEST_PERIOD = 5.0  # seconds in which every session is visited once
_HALF_CLOSED = (State.CLIENT_DONE, State.SERVER_DONE)
DRAIN_RATE = 100.0  # sessions ended per second once a drained server's time is over, so that clients come back at that rate
RESET_RATE = 5000.0  # where clients need no such care: each reset takes 20 µs


class Eviction:
    """The sessions of one server end from `at` on, `rate` per second."""

    def __init__(self, server: ServerState, cause: Cause, at: float, rate: float) -> None:
        self.server = server
        self.cause = cause
        self.at = at  # monotonic
        self.rate = rate
        self.owed = 0.0
        self.sessions: list[Session] | None = None  # None until it has begun; the last one is the next


def ends_of_sessions(before: Server, after: Server, policy: Policy) -> Iterator[tuple[Cause, float] | None]:
    """Why the sessions or flows that a server has end after a change, and in how many seconds; None: no longer."""
    if after.rank == DOWN != before.rank and policy.on_down is OnDown.CLOSE:
        yield Cause.DOWN, 0.0
    if after.admin is AdminState.DRAIN is not before.admin:
        yield Cause.KILLED, policy.timeouts.drain
    elif before.admin is AdminState.DRAIN is not after.admin:
        yield None


class Timers:
    """The work that is due, done in steps: a tick does as much as a turn's budget allows, the rest waits in the run queue.

    So nothing is lost after a stall, and no tick does all of it at once.
    """

    def __init__(self, life: Lifecycle, run_queue: RunQueue, faults: Faults, unanswered: float) -> None:
        self._life = life
        self._run_queue = run_queue
        self._faults = faults
        self._unanswered = unanswered
        self._now = 0.0
        self._last_tick: float | None = None
        self._sessions = life.sessions
        self._evictions: dict[ServerState, Eviction] = {}
        self._work: Iterator[None] | None = None  # what the last ticks found due and is not done yet
        self.kill = False  # end all live sessions now
        self.queued = False

    def tick(self, now: float) -> float:
        """Find what is due. Returns the seconds since the last tick."""
        elapsed = TICK if self._last_tick is None else max(0.0, now - self._last_tick)
        self._now = self._last_tick = now
        for session in list(self._sessions.fresh):
            self._take_over(session)
        for eviction in self._evictions.values():
            if now >= eviction.at:
                eviction.owed = min(eviction.owed + eviction.rate * elapsed, eviction.rate)
        for group in self._sessions.groups():
            group.owed = min(group.owed + len(group.sessions) * elapsed / group.period, len(group.sessions))
        if self._work is None:
            self._work = self._due()
        self._run_queue.budget = BUDGET
        if self.run(BUDGET):
            self._run_queue.add(self)
        return elapsed

    def run(self, share: int = QUANTUM) -> bool:
        """Do a share of what is due. True: there is more."""
        if self._work is None:
            return False
        end = self._run_queue.budget - share
        try:
            for _ in self._work:
                if self._run_queue.budget <= end:
                    return True
        except Exception as error:  # noqa: BLE001 - the next tick starts again
            self._faults.add("what is due waits for the next tick", error)
        self._work = None
        return False

    def sweep_group(self, timeouts: Timeouts, *, removed: bool) -> SweepGroup | None:
        """The group whose sessions end at most a quarter of a timeout late. None: the common sweep is enough."""
        shortest = min(timeouts.idle, timeouts.half_close, *([timeouts.drain] if removed else []))
        if shortest / 4 >= self._sessions.whole.period:
            return None
        period = TICK
        while period * 2 <= shortest / 4:  # few sweep groups, however many timeouts there are
            period *= 2
        return self._sessions.short.setdefault(period, SweepGroup(period, OrderedDict()))

    def regroup(self) -> None:
        """Some frontends have other sweep groups than before: move their live sessions."""
        for session in list(self._sessions):
            wanted = session.frontend.sweep_group or self._sessions.whole
            if session.sweep_group is not None and session.sweep_group is not wanted:
                self._sessions.move(session, wanted)

    def evict(self, server: ServerState, cause: Cause, at: float, rate: float) -> None:
        """End the sessions that `server` has at `at` (monotonic), idle ones first. Replaces an earlier call for that server."""
        self._evictions[server] = Eviction(server, cause, at, rate)

    def state_changed(self, frontend: FrontendState, server: ServerState, before: Server, now: float) -> None:
        """Apply what a server's new state means for its live sessions. A change by itself means nothing for them."""
        for end in ends_of_sessions(before, server.server, frontend.frontend.policy):
            if end is None:
                self._evictions.pop(server, None)
            else:
                cause, delay = end
                self.evict(server, cause, now + delay, RESET_RATE if cause is Cause.DOWN else DRAIN_RATE)

    def _take_over(self, session: Session) -> None:
        """The session has lasted until a tick since it began or dialled: see live_sessions.py."""
        self._sessions.move(session, session.frontend.sweep_group or self._sessions.whole)
        if session.upstream is not None:
            arm(session.upstream)
            if session.state is State.DIALING:
                self._life.deadlines.set(session, session.frontend.frontend.policy.timeouts.connect, session.dialed)

    # ------------------------------------------------------------ what is due, one step per yield

    def _due(self) -> Iterator[None]:
        if self.kill:
            # The expired ones first, so that no free place is spent on dialing for them.
            waiting = [session for frontend in self._life.dialer.queues for session in frontend.queue]
            yield from self._each([*waiting, *self._sessions], self._kill)
        deadlines = self._life.deadlines
        yield from self._each(deadlines.due(self._now), self._expire)
        yield from self._each(list(deadlines.flushing), self._look_at)
        for frontend in list(self._life.dialer.queues):
            yield from self._each(_overdue(frontend, self._now), self._unqueue)
        for eviction in list(self._evictions.values()):
            yield from self._evict(eviction)
        for group in self._sessions.groups():
            yield from self._sweep(group)
        for counted in self._life.source_share.tick():
            self._run_queue.budget -= counted * SCAN
            yield

    def _each(self, sessions: Iterable[Session], act: Callable[[Session], None]) -> Iterator[None]:
        for session in sessions:
            if session.state is State.CLOSED:
                continue
            self._run_queue.budget -= VISIT
            try:
                act(session)
            except Exception as error:  # noqa: BLE001 - the boundary of one session, as in Engine.on_ready
                self._life.fault(session, error)
            yield

    def _kill(self, session: Session) -> None:
        self._life.fire(session, Event.KILLED, Cause.KILLED)

    def _expire(self, session: Session) -> None:
        if session.state is State.DIALING and session.server is None:
            self._life.dialer.hellos.begin(session)  # its delay is over
        elif session.state is State.DIALING:
            self._life.dialer.fail_connect(session, "timeout")
        elif session.state is State.AWAITING_HELLO:
            self._life.dialer.hellos.give_up(session)
        else:
            self._life.fire(session, Event.TIMED_OUT, Cause.CLIENT_TIMEOUT)

    def _unqueue(self, session: Session) -> None:
        self._life.fire(session, Event.TIMED_OUT, Cause.SERVER_TIMEOUT)

    def _look_at(self, session: Session) -> None:
        self._life.look_again(session)
        if session.state is State.CLOSED:
            return
        if (delivered := _delivered(session)) != session.delivered:  # a flush that makes progress is not cut
            session.delivered = delivered
            session.deadline = self._now + session.frontend.frontend.policy.timeouts.flush
        elif self._now >= session.deadline:
            self._life.fire(session, Event.TIMED_OUT, _blocked_on(session))

    def _evict(self, eviction: Eviction) -> Iterator[None]:
        if self._now < eviction.at:
            return
        if eviction.sessions is None:
            server, sessions = eviction.server, self._sessions
            eviction.sessions = [session for session in sessions if session.server is server and session.connected]
            eviction.sessions.sort(key=lambda session: session.quiet_since, reverse=True)
            self._run_queue.budget -= len(sessions) * SCAN
            yield
        while eviction.owed >= 1 and eviction.sessions:
            session = eviction.sessions.pop()
            if session.state is not State.CLOSED:
                eviction.owed -= 1
                self._life.fire_safely(session, Event.KILLED, eviction.cause)
                yield
        if not eviction.sessions and self._evictions.get(eviction.server) is eviction:
            del self._evictions[eviction.server]

    def _sweep(self, group: SweepGroup) -> Iterator[None]:
        while group.owed >= 1 and group.sessions:
            group.owed -= 1
            session = next(iter(group.sessions))
            group.sessions.move_to_end(session)
            yield from self._each([session], self._visit)
            if session.state is State.CLOSED:
                group.owed += 1  # the others' round takes as long as before, so no visit is late because sessions end

    def _visit(self, session: Session) -> None:
        upstream, now = session.upstream, self._now
        if not session.seen and session.connected and upstream is not None:
            # Here and not at the dial, to spare short connections (most of them) four system calls.
            session.seen = True
            keep_alive(upstream.sock)
        kill_at = session.frontend.kill_at
        if kill_at is not None and now >= kill_at:
            self._life.fire(session, Event.KILLED, Cause.KILLED)
            return
        if settle(session):
            session.quiet_since = now
            session.delivered = None
            session.at_rest = False
            return
        self._life.give_back_pipes(session)
        half_closed = session.state in _HALF_CLOSED
        if not half_closed and session.state is not State.RELAYING:
            return
        if not session.at_rest and self._find_dead(session, now):
            return
        timeouts = session.frontend.frontend.policy.timeouts
        longest = timeouts.half_close if half_closed else timeouts.idle
        quiet = now - session.quiet_since
        if quiet >= longest - 3 * (session.sweep_group or self._sessions.whole).period and _drains(session):
            session.quiet_since = now
        elif quiet >= longest:
            self._life.fire(session, Event.TIMED_OUT, _waited_for(session))

    def _find_dead(self, session: Session, now: float) -> bool:
        """End the session if a peer is gone: keep-alive does not help while data is on its way to the peer."""
        client, upstream = session.client, session.upstream
        session.at_rest = not _undelivered(client) and not _undelivered(upstream)
        if session.at_rest:
            return False
        for half, cause in ((client, Cause.CLIENT_TIMEOUT), (upstream, Cause.SERVER_TIMEOUT)):
            if half is not None and self._is_dead(half, now):
                self._life.fire(session, Event.TIMED_OUT, cause)
                return True
        return False

    def _is_dead(self, half: Half, now: float) -> bool:
        """A peer that merely does not read is not dead: its window is closed, and its kernel's probes may be 2 min apart."""
        sent = transmission(half.sock)
        if not sent.unacknowledged or not sent.window:
            half.silence = None
        elif half.silence is None or half.silence[1] != sent.heard:
            half.silence = (now, sent.heard)
        else:
            return now - half.silence[0] >= self._unanswered
        return False


def _overdue(frontend: FrontendState, now: float) -> Iterator[Session]:
    """The expired sessions of its queue, each once. They expire in order, so only the first can be due."""
    last = None
    while (session := frontend.queue.first()) is not None and session is not last and now >= session.deadline:
        last = session
        yield session


def _drains(session: Session) -> bool:
    """Does a slow reader still empty its kernel's queue? epoll reports nothing before a third of it is free.

    Asked only in the last visits before a deadline, because it costs two system calls. The first answer serves as the mark.
    """
    before, session.delivered = session.delivered, _delivered(session)
    return before not in (None, session.delivered)


def _undelivered(half: Half | None) -> int:
    """Bytes on their way to `half`: those that its kernel has not taken yet, and those that its peer has not confirmed."""
    if half is None or half.peer is None:
        return 0
    pipe = half.peer.pipe
    return len(half.pending or b"") + (pipe.count if pipe is not None else 0) + unacknowledged(half.sock)


def _delivered(session: Session) -> int:
    """Bytes that reached a peer, in both directions: a number that changes whenever something moves."""
    client, upstream = session.client, session.upstream
    received = (client.received if client else 0) + (upstream.received if upstream else 0)
    return received - _undelivered(client) - _undelivered(upstream)


def _blocked_on(session: Session) -> Cause:
    client = session.client
    return Cause.CLIENT_TIMEOUT if client is not None and client.blocked else Cause.SERVER_TIMEOUT


def _waited_for(session: Session) -> Cause:
    """The side that starved the session: the one that does not read, else the one that is not done, else the one to speak."""
    client, upstream = session.client, session.upstream
    if client is not None and client.blocked:
        return Cause.CLIENT_TIMEOUT
    if upstream is not None and upstream.blocked:
        return Cause.SERVER_TIMEOUT
    if session.state in _HALF_CLOSED:
        return Cause.SERVER_TIMEOUT if session.state is State.CLIENT_DONE else Cause.CLIENT_TIMEOUT
    return Cause.SERVER_TIMEOUT if session.last_from_client else Cause.CLIENT_TIMEOUT
