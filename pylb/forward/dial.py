"""A session until a server has accepted it: the PROXY header of a trusted client, the queue, the dials.

Everything here ends in an event for the state table; the lifecycle carries out what follows from it.
"""

import errno
import os
import select
from collections import Counter
from collections.abc import Callable, Container, Iterable
from select import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP
from socket import MSG_DONTWAIT, MSG_PEEK, SocketType
from typing import NamedTuple, Protocol

from pylb.core.address import Address
from pylb.core.connect_failures import RESOURCE, TIMEOUT, failure_name
from pylb.core.proxy_protocol import MOST_HEADER, PATH_ID, BadHeader, goes_in_circles, parse
from pylb.core.recorder import Attempt
from pylb.core.session import Cause, Event, State
from pylb.core.table import Server
from pylb.forward import sockets
from pylb.forward.accounts import Accounts
from pylb.forward.admission import Admission
from pylb.forward.deadlines import Deadlines
from pylb.forward.faults import Faults
from pylb.forward.hellos import Hellos
from pylb.forward.live_sessions import LiveSessions
from pylb.forward.own_dials import OwnDials
from pylb.forward.run_queue import DIAL, QUANTUM, RunQueue
from pylb.forward.session import FULL, FrontendState, Half, ServerState, Session
from pylb.forward.source_share import SourceShare

# Registered once, for life. Nothing is ever re-armed, so a reset is always noticed, even while a side is paused.
WATCHED = EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP | EPOLLET
READ_ON = EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLPRI
READABLE = EPOLLIN | READ_ON
_FAILED = EPOLLERR | EPOLLHUP

# A class attribute of an enum is looked up through its metaclass, which costs as much as a call; these are read per event.
_AWAITING_HEADER, _DIALING = State.AWAITING_HEADER, State.DIALING
_AWAITING_HELLO, _REJECTING = State.AWAITING_HELLO, State.REJECTING
_CONNECTED = Event.CONNECTED
PROBE, MOST_PROBES = 10.0, 64  # an accept follows its connect within so many seconds; most probes at a time
SUSPICION = 10.0  # seconds; a connection that goes around resets a thousand times as often
MANY_RESETS, FORGOTTEN = 50, 10  # resets by one client; and how many of them are forgotten per second
PUT_OFF = 0.1  # seconds, plus up to one tick
_CAUSE_OF_FAILURE = {TIMEOUT: Cause.SERVER_TIMEOUT, RESOURCE: Cause.RESOURCE}


class ResettingClient(NamedTuple):
    at: float  # monotonic; of its last reset
    resets: float  # at that time, minus those that were forgotten

    def remembered(self, now: float) -> float:
        return self.resets - (now - self.at) * FORGOTTEN


_NOBODY = ResettingClient(0.0, 0.0)


class LifecycleCalls(Protocol):
    """The part of the lifecycle that is needed here."""

    halves: dict[int, Half]
    deadlines: Deadlines
    sessions: LiveSessions
    source_share: SourceShare
    on_exhausted: Callable[[], bool]

    def fire(self, session: Session, event: Event, cause: Cause = ...) -> None: ...

    def fault(self, session: Session, error: Exception) -> None: ...

    def part(self, half: Half, *, in_order: bool) -> None: ...


class Dialer:
    """Finds a server for each session of an engine."""

    def __init__(  # noqa: PLR0917 - the parts of one engine, each of another type
        self,
        life: LifecycleCalls,
        epoll: select.epoll,
        accounts: Accounts,
        faults: Faults,
        clock: Callable[[], float],
        run_queue: RunQueue,
        own_dials: OwnDials,
    ) -> None:
        self._life = life
        self._epoll = epoll
        self._accounts = accounts
        self._faults = faults
        self._clock = clock
        self._run_queue = run_queue
        self.queues: dict[FrontendState, None] = {}  # frontends with a queue: their servers are full
        self._offered: Session | None = None  # the session from a queue that is trying right now
        self._freed: dict[FrontendState, None] = {}  # those of `queues` that may have room, until they have been served
        self.generation = 0  # of the table in force
        self.our_ports: Container[int] = ()  # ports that we listen on
        self.own_dials = own_dials  # sources of dials to a port that is also ours; all other dials are spared the system call
        self.server_ips: Counter[str] = Counter()  # IPs of the servers in force, as accept() writes them
        self.resetting_clients: dict[str, ResettingClient] = {}  # those of `server_ips` that, as a client, reset a session
        self.probes: dict[tuple[str, int], float] = {}  # our own connects that only check a port; until when expected
        self.hellos = Hellos(life, clock, self._deny, self.dial)
        self.own_id = os.urandom(PATH_ID)  # in PROXY headers between proxies, see core/proxy_protocol

    def know(self, before: Iterable[Server], after: Iterable[Server]) -> None:
        """The servers of a frontend have changed."""
        for servers, step in ((after, 1), (before, -1)):
            for server in servers:
                ip = server.address.ip
                for written in (ip,) if ":" in ip else (ip, f"::ffff:{ip}"):
                    self.server_ips[written] += step
                    if not self.server_ips[written]:
                        del self.server_ips[written]
                        self.resetting_clients.pop(written, None)

    def note_reset(self, session: Session) -> None:
        """Its client reset the session. If that has a server's address, its next sessions are dialled a turn later."""
        ip = session.address[0]
        if ip in self.server_ips:
            now = self._clock()
            before = self.resetting_clients.get(ip, _NOBODY)
            self.resetting_clients[ip] = ResettingClient(now, 1 + max(0.0, before.remembered(now)))

    def is_to_wait(self, session: Session) -> bool:
        """Is the dial for this client, one of `resetting_clients`, to be delayed? See `on_early`."""
        ip, now = session.address[0], session.accepted
        client_resets = self.resetting_clients[ip]
        if now >= client_resets.at + SUSPICION:
            del self.resetting_clients[ip]
            return False
        if client_resets.remembered(now) > MANY_RESETS:
            self._life.deadlines.set(session, PUT_OFF, now)
        return True

    def on_early(self, session: Session, half: Half, events: int) -> None:
        """Handle an event of a session that has no server yet.

        Normally a server is dialled at the accept. The dial waits for epoll's first report on the client if another session
        from the same address was just reset by its client, and the address is one of our servers'. The client may be a pod that
        calls its own node; then this costs one turn. Or two pylbs send to each other, and this is a connection of ours that
        came around. The reset by the client that left passes a hop per turn, and with this delay the growing end of the chain
        needs two turns per hop, so the reset catches up with it and the whole chain ends. If both took one turn, a client that
        leaves at once would leave behind a piece of the chain that goes around for ever. Such a piece resets all the time, so
        every pylb that it passes remembers it until it is gone.

        Turns are not time, though: on a busy machine a process has several in a row, and the end may grow as fast as the reset
        follows. So the dial for a client with more than MANY_RESETS recent resets waits for PUT_OFF: a reset that is on its
        way arrives within that. This bounds the connections that one client of a chain can cause.
        """
        if half.is_client:
            half.early |= events  # read once a server is there; until then the kernel's buffer is the back-pressure
            if events & EPOLLERR:
                half.broken = True
                self._life.fire(session, Event.CLIENT_RESET, Cause.CLIENT)
            elif session.server is None:
                self._on_waiting(session, half, events)
            return
        if events & _FAILED:
            error = sockets.connect_error(half.sock)
            if error and error not in sockets.AFTER_ACCEPT:
                self.fail_connect(session, failure_name(error), error)
                return
            half.broken = error != 0
        elif not events & EPOLLOUT:
            return
        half.early = events
        self._life.fire(session, _CONNECTED)

    def _on_waiting(self, session: Session, client: Half, events: int) -> None:
        """An event of a client for which no server was ever dialled."""
        state = session.state
        if state is _DIALING:
            if session.waits_among is None:
                self.hellos.begin(session)
        elif not events & READABLE:
            return
        elif state is _AWAITING_HEADER:
            self._read_header(session, client)
        elif state is _AWAITING_HELLO:
            self.hellos.look(session, client)
        elif state is _REJECTING:
            self.hellos.discard(session, client)

    def _read_header(self, session: Session, client: Half) -> None:
        """Peek until the header is whole, then take it from the kernel's buffer: what follows it belongs to the server."""
        rules, admission = session.frontend.admission_rules, session.admission
        try:
            data = client.sock.recv(MOST_HEADER, MSG_PEEK | MSG_DONTWAIT)
            found = parse(data)
        except BlockingIOError:
            return
        except OSError:
            self._life.fire(session, Event.CLIENT_RESET, Cause.CLIENT)
            return
        except BadHeader:
            self._deny(session, "proxy_header")
            return
        if found is None:
            if not data or client.early & EPOLLRDHUP:  # the client has sent its last byte: the header stays incomplete
                self._life.fire(session, Event.CLIENT_RESET, Cause.CLIENT)
            return
        if not self._take(session, client, found.size):
            return
        if admission is None or rules is None:  # the policy has changed since: no header is asked for any more
            self.hellos.header_read(session)
            return
        if found.client is not None:
            session.address = (found.client.ip, found.client.port)
            admission.local = found.local
        admission.unique_id, admission.path = found.unique_id, found.path
        admission.tlvs, admission.crc32c = found.tlvs, found.crc32c
        if goes_in_circles(found.path, self.own_id):
            self._deny(session, "loop")
            return
        refusal = rules.admit(session.address[0], admission, self._clock())
        source_share = self._life.source_share
        if refusal := refusal or source_share.refusal(session.frontend, session.address[0]):
            self._deny(session, refusal)
            return
        if source_share.counting:
            source_share.enter(session)
        self.hellos.header_read(session)

    def _take(self, session: Session, client: Half, size: int) -> bool:
        """Take `size` bytes, seen by a peek before, from the kernel's buffer. False: the client is gone."""
        try:
            client.sock.recv(size, MSG_DONTWAIT)
        except OSError:
            self._life.fire(session, Event.CLIENT_RESET, Cause.CLIENT)
            return False
        return True

    def expect(self, client: Address) -> None:
        """A connection from there within PROBE seconds is our own check of a port, not a client."""
        while len(self.probes) >= MOST_PROBES:
            del self.probes[next(iter(self.probes))]
        self.probes[client.ip, client.port] = self._clock() + PROBE

    def is_probe(self, address: tuple[str, int]) -> bool:
        """Is this accept one of the expected `probes`? True once for each."""
        now = self._clock()
        for place in [place for place, until in self.probes.items() if until < now]:
            del self.probes[place]
        return self.probes.pop((sockets.folded(address[0]), address[1]), None) is not None

    def _deny(self, session: Session, reason: str, event: Event = Event.REFUSED) -> None:
        session.frontend.counters.denied[reason] += 1
        session.failure = reason
        self._life.fire(session, event, Cause.PROXY)

    def queue(self, session: Session) -> None:
        """All servers are full: the session waits in the queue, in the order of the accepts."""
        frontend, now = session.frontend, self._clock()
        policy, queue = frontend.frontend.policy, frontend.queue
        if session in queue:
            return  # it has found no room, and keeps its place
        self._life.deadlines.clear(session)
        if policy.max_queue and len(queue) >= policy.max_queue:
            self._deny(session, "queue")
            return
        admission = session.admission
        if admission is None:
            admission = session.admission = Admission()
        session.deadline = now - admission.waited + policy.timeouts.queue
        admission.queued_at = now
        ahead = queue.add(session)
        if not admission.waited:
            admission.ahead = ahead
        frontend.counters.queued = len(queue)
        self.queues[frontend] = None

    def unqueue(self, session: Session) -> None:
        """Take the session out of its queue. Idempotent."""
        frontend, admission = session.frontend, session.admission
        if session not in frontend.queue:
            return
        frontend.queue.remove(session)
        frontend.counters.queued = len(frontend.queue)
        if not frontend.queue:
            self.queues.pop(frontend, None)
        if admission is not None:
            waited = self._clock() - admission.queued_at
            admission.waited += waited
            _note(session, Attempt("", None, "waited", "", round(waited * 1000)))

    def make_room(self, frontend: FrontendState) -> None:
        """Many servers of the frontend may have room at once: the run queue lets the waiting sessions try, a few per turn."""
        if frontend.queue:
            self._freed[frontend] = None
            self._run_queue.add(frontend)

    def serve_queue(self, frontend: FrontendState, share: int = QUANTUM) -> bool:
        """Let waiting sessions look for room, until `share` units are spent. True: some have not looked yet.

        After that no session waits while a place is free. The cost is in the dials: a session that finds no room costs a few
        microseconds, and only one is asked for each set of servers that waiting sessions have tried.
        """
        self._freed.pop(frontend, None)
        end = self._run_queue.budget - share
        for session in frontend.queue.offers():
            if self._run_queue.budget <= end:
                self._freed[frontend] = None
                break
            self._offer(session)
        return frontend in self._freed

    def _offer(self, session: Session) -> None:
        """Let the session try. It keeps its place in the queue until it has found a server."""
        before, self._offered = self._offered, session
        try:
            self._life.fire(session, Event.ROOM)
        except Exception as error:  # noqa: BLE001 - the boundary of one session, as in Engine.on_ready
            self._life.fault(session, error)
        finally:
            self._offered = before

    def leave(self, session: Session, server: ServerState) -> None:
        """`server` has one session fewer."""
        server.sessions -= 1
        if session.dialed_from is not None:
            self.own_dials.remove(*session.dialed_from)
            session.dialed_from = None
        if session.frontend in self.queues:
            self._freed[session.frontend] = None
        if server.pool is not None:
            server.pool.ended(server)

    def dial(self, session: Session) -> None:
        frontend = session.frontend
        session.picked_from = frontend.frontend
        session.generation = self.generation
        session.dialed = self._clock()
        policy = frontend.frontend.policy
        if frontend in self._freed and self._offered is None and self.serve_queue(frontend, DIAL):
            self._life.fire(session, Event.SERVERS_FULL)  # the waiting sessions come before a new one
            return
        while True:
            tries = len(session.tried) if session.tried is not None else 0
            server = frontend.pick(session.address[0], session.tried) if tries <= policy.retries else None
            if server is None:
                self._life.fire(session, Event.NO_SERVER_LEFT, _CAUSE_OF_FAILURE.get(session.failure, Cause.SERVER))
                return
            if server is FULL:
                self._life.fire(session, Event.SERVERS_FULL)
                return
            if session is self._offered:
                self.unqueue(session)
            session.server = server
            self._run_queue.budget -= DIAL
            server.counters.attempts += 1
            if session.tried:
                session.tried[-1].counters.redispatches += 1
            target = server.target if not server.in_range else _target_in_range(session, server)
            sock, error = self._connect(frontend, server, target)
            if sock is None and error in sockets.NO_DESCRIPTOR and self._life.on_exhausted():
                sock, error = self._connect(frontend, server, target)
            if sock is not None:
                break
            self._note_failure(session, server, failure_name(error), error)
        server.sessions += 1
        upstream, client = Half(sock, session, False), session.client
        session.upstream = upstream
        upstream.peer = client
        if client is not None:
            client.peer = upstream
        self._life.halves[upstream.fd] = upstream
        if target[1] in self.our_ports:
            session.dialed_from = sock.getsockname()[:2]
            self.own_dials.add(*session.dialed_from)
        # After connect(): an unconnected socket would report HUP at once.
        self._epoll.register(upstream.fd, WATCHED)
        if session.tried or session.waits_among is not None or session.sweep_group is not None:
            self._refresh(session)

    def _refresh(self, session: Session) -> None:
        """The dial is not the session's first step: an earlier deadline is over, and the next tick looks at it again."""
        self._life.deadlines.clear(session)
        self._life.sessions.move(session, None)

    def _connect(self, frontend: FrontendState, server: ServerState, target: tuple[str, int]) -> tuple[SocketType | None, int]:
        """Like `sockets.dial`, from each of the frontend's source addresses until one has a free port."""
        if not frontend.frontend.policy.source_addresses:
            return sockets.dial(server.family, target)
        error = 0
        for source in frontend.sources(server.family):
            sock, error = sockets.dial(server.family, target, source)
            if error != errno.EADDRNOTAVAIL:
                return sock, error
        return None, error

    def _note_failure(self, session: Session, server: ServerState, reason: str, error: int) -> None:
        server.counters.failures[reason] += 1
        if reason != RESOURCE:  # a shortage on our side says nothing about the server
            server.failing = True
        session.failure = reason
        session.tried = [*(session.tried or ()), server]
        took = round((self._clock() - session.dialed) * 1000)
        _note(session, Attempt(server.server.name, server.server.address, reason, errno.errorcode.get(error, ""), took))
        self._accounts.connect_ended(session.frontend, server.server, reason)

    def fail_connect(self, session: Session, reason: str, error: int = 0) -> None:
        """The server refused, was unreachable or did not answer in time. `error`: errno; 0 for our own timeout."""
        upstream, server = session.upstream, session.server
        if upstream is not None and server is not None:
            session.upstream = None
            self._life.part(upstream, in_order=False)
            self.leave(session, server)
            self._note_failure(session, server, reason, error)
        self._life.fire(session, Event.CONNECT_FAILED)

    def end_batch(self) -> None:
        """Offer the places that became free to the waiting sessions."""
        if not self._freed:
            return
        for frontend in list(self._freed):
            if not frontend.queued and self.serve_queue(frontend):
                self._run_queue.add(frontend)


def _target_in_range(session: Session, server: ServerState) -> tuple[str, int]:
    """The server's port for the port that the client has called. Raises OSError if its socket has no address any more."""
    admission = session.admission = session.admission or Admission()
    if not admission.called and session.client is not None:
        admission.called = session.client.sock.getsockname()[1]
    ip, first = server.target
    return ip, first + admission.called - session.frontend.frontend.listen.port if server.server.address.last else first


def _note(session: Session, attempt: Attempt) -> None:
    """Add the attempt. Waits in a row become one: the next session of the queue may look for room many times."""
    attempts = session.attempts
    if attempts is None:
        session.attempts = [attempt]
    elif attempt.result == attempts[-1].result == "waited":
        attempts[-1] = attempt._replace(ms=attempts[-1].ms + attempt.ms)
    else:
        attempts.append(attempt)
