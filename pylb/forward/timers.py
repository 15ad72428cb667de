"""Deadlines without a timer per session.

Sessions with a near deadline (a dial, a flush) are few and looked at on every tick. All others are swept: each is visited once
per period, a slice per tick, and its byte counters are compared with the last visit. No clock is read per chunk.
"""

from pylb.core.session import Cause, Event, State
from pylb.forward.accounts import settle
from pylb.forward.faults import Faults
from pylb.forward.lifecycle import Lifecycle
from pylb.forward.session import Half, ServerState, Session
from pylb.forward.sockets import keep_alive, transmission, unacknowledged

TICK = 0.1  # seconds between two ticks, as the loop calls them
LONGEST_PERIOD = 5.0  # seconds in which every session is visited once
_HALF_CLOSED = (State.CLIENT_DONE, State.SERVER_DONE)
DRAIN_RATE = 100.0  # sessions a second that are ended when the time of a drained server is over: clients come back as slowly
RESET_RATE = 5000.0  # where nobody is to be spared: each reset takes its 20 µs


class Eviction:
    """The sessions of one server are to end from `at` on, `rate` a second."""

    def __init__(self, server: ServerState, cause: Cause, at: float, rate: float) -> None:
        self.server = server
        self.cause = cause
        self.at = at  # monotonic
        self.rate = rate
        self.owed = 0.0
        self.sessions: list[Session] | None = None  # once it has begun; the last one is the next


class Timers:
    def __init__(self, life: Lifecycle, faults: Faults, unanswered: float) -> None:
        self._life = life
        self._faults = faults
        self._unanswered = unanswered
        self._last_tick: float | None = None
        self.period = LONGEST_PERIOD
        self._owed = 0.0  # sessions the sweep is behind, a fraction included
        self._evictions: dict[ServerState, Eviction] = {}

    def tick(self, now: float) -> float:
        """Returns the seconds since the last one."""
        self._hurry(now)
        elapsed = TICK if self._last_tick is None else max(0.0, now - self._last_tick)
        self._last_tick = now
        for eviction in list(self._evictions.values()):
            self._faults.guard("the sessions of a server could not be ended", self._evict, eviction, now, elapsed)
        self._sweep(now, elapsed)
        return elapsed

    def evict(self, server: ServerState, cause: Cause, at: float, rate: float) -> None:
        """End the sessions that `server` has at `at` (monotonic), idle ones first. Replaces an earlier word about it."""
        self._evictions[server] = Eviction(server, cause, at, rate)

    def spare(self, server: ServerState) -> None:
        """Let its sessions live on. Idempotent."""
        self._evictions.pop(server, None)

    def _evict(self, eviction: Eviction, now: float, elapsed: float) -> None:
        if now < eviction.at:
            return
        if eviction.sessions is None:
            server = eviction.server
            eviction.sessions = [session for session in self._life.sessions if session.server is server and session.connected]
            eviction.sessions.sort(key=lambda session: session.quiet_since, reverse=True)
        eviction.owed += eviction.rate * elapsed
        while eviction.owed >= 1 and eviction.sessions:
            session = eviction.sessions.pop()
            if session.state is not State.CLOSED:
                eviction.owed -= 1
                self._life.fire_safely(session, Event.KILLED, eviction.cause)
        if not eviction.sessions:
            self._evictions.pop(eviction.server, None)

    def _hurry(self, now: float) -> None:
        for session in list(self._life.hurried):
            try:
                self._look_at(session, now)
            except Exception as error:  # noqa: BLE001 - the boundary of one session, as in Engine.on_ready
                self._life.fault(session, error)
        for frontend in list(self._life.dialer.queues):
            # In the order they came; only the first can be due.
            while frontend.queue and now >= (session := next(iter(frontend.queue))).deadline:
                self._life.fire_safely(session, Event.TIMED_OUT, Cause.SERVER_TIMEOUT)

    def _look_at(self, session: Session, now: float) -> None:
        if session.state is State.DIALING:
            if now >= session.deadline:
                self._life.dialer.fail_connect(session, "timeout")
            return
        if session.state is State.AWAITING_HEADER:
            if now >= session.deadline:
                self._life.fire(session, Event.TIMED_OUT, Cause.CLIENT_TIMEOUT)
            return
        self._life.look_again(session)
        if session.state is State.CLOSED:
            return
        if (delivered := _delivered(session)) != session.delivered:  # a flush that moves is not cut
            session.delivered = delivered
            session.deadline = now + session.frontend.frontend.policy.timeouts.flush
        elif now >= session.deadline:
            self._life.fire(session, Event.TIMED_OUT, _blocked_on(session))

    def _sweep(self, now: float, elapsed: float) -> None:
        sessions = self._life.sessions
        self._owed = min(self._owed + len(sessions) * elapsed / self.period, len(sessions))
        while self._owed >= 1 and sessions:
            self._owed -= 1
            session = next(iter(sessions))
            sessions.move_to_end(session)  # the next visit comes after all others
            try:
                self._visit(session, now)
            except Exception as error:  # noqa: BLE001 - the boundary of one session, as in Engine.on_ready
                self._life.fault(session, error)

    def _visit(self, session: Session, now: float) -> None:
        upstream = session.upstream
        if not session.seen and session.connected and upstream is not None:
            # Here and not at the dial: short connections, the many, are spared four system calls.
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
        if quiet >= longest - 3 * self.period and _drains(session):
            session.quiet_since = now
        elif quiet >= longest:
            self._life.fire(session, Event.TIMED_OUT, _waited_for(session))

    def _find_dead(self, session: Session, now: float) -> bool:
        """End the session if a peer is gone: keep-alive is no help while data is on its way to it."""
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
        """Not one that reads nothing: its window is shut, and the kernel's probes of it may be two minutes apart."""
        sent = transmission(half.sock)
        if not sent.unacknowledged or not sent.window:
            half.silence = None
        elif half.silence is None or half.silence[1] != sent.heard:
            half.silence = (now, sent.heard)
        else:
            return now - half.silence[0] >= self._unanswered
        return False


def _drains(session: Session) -> bool:
    """Does a slow reader still empty its kernel's queue, from which we hear nothing until a third of it is free?

    Asked only in the last visits before a deadline: it costs two system calls. The first answer is the mark for the next.
    """
    before, session.delivered = session.delivered, _delivered(session)
    return before not in (None, session.delivered)


def _undelivered(half: Half | None) -> int:
    """Bytes on their way to `half`: those its kernel did not take yet, and those its peer did not confirm."""
    if half is None or half.peer is None:
        return 0
    pipe = half.peer.pipe
    return len(half.pending or b"") + (pipe.count if pipe is not None else 0) + unacknowledged(half.sock)


def _delivered(session: Session) -> int:
    """Bytes that reached a peer, both ways: a number that changes whenever something moves."""
    client, upstream = session.client, session.upstream
    received = (client.received if client else 0) + (upstream.received if upstream else 0)
    return received - _undelivered(client) - _undelivered(upstream)


def _blocked_on(session: Session) -> Cause:
    client = session.client
    return Cause.CLIENT_TIMEOUT if client is not None and client.blocked else Cause.SERVER_TIMEOUT


def _waited_for(session: Session) -> Cause:
    """Who let a session starve: the one that does not read, else the one that is not done, else the one whose turn it was."""
    client, upstream = session.client, session.upstream
    if client is not None and client.blocked:
        return Cause.CLIENT_TIMEOUT
    if upstream is not None and upstream.blocked:
        return Cause.SERVER_TIMEOUT
    if session.state in _HALF_CLOSED:
        return Cause.SERVER_TIMEOUT if session.state is State.CLIENT_DONE else Cause.CLIENT_TIMEOUT
    return Cause.SERVER_TIMEOUT if session.last_from_client else Cause.CLIENT_TIMEOUT
