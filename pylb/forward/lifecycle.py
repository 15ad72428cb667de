"""Sessions from accept to the last close: events become transitions of core's table, transitions become system calls.

Sockets of ended sessions are closed at the end of the batch (`end_batch`): a descriptor's number can therefore not be reused
while old events for it are still in the batch, and a new connection never gets a stranger's event.

One class over 300 lines: transitions and deliveries call each other both ways, cut apart they would only point at each other.
"""

import select
from collections import OrderedDict
from collections.abc import Callable
from select import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP
from socket import SHUT_WR, SocketType

from pylb.core.address import Address
from pylb.core.policy import ProxyProtocol
from pylb.core.proxy_protocol import header
from pylb.core.session import TRANSITIONS, Action, Cause, Event, Observer, SessionRecord, State, termination_code
from pylb.forward import sockets
from pylb.forward.counters import Counters, ServerCounters
from pylb.forward.relay import AGAIN, DESTINATION_RESET, FIN, WAIT, Relay
from pylb.forward.session import FrontendState, Half, ServerState, Session

# Registered once, for life. Nothing is ever re-armed, so a reset is always seen, even while a side is paused.
WATCHED = EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP | EPOLLET
_READ_ON = EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLPRI
_READABLE = EPOLLIN | _READ_ON
_FAILED = EPOLLERR | EPOLLHUP

# A class attribute of an enum is looked up through its metaclass, which costs as much as a call; these are read per event.
_DIALING, _RESETTING, _CLOSED = State.DIALING, State.RESETTING, State.CLOSED
_CONNECTED, _CLIENT_FIN, _SERVER_FIN = Event.CONNECTED, Event.CLIENT_FIN, Event.SERVER_FIN
_NORMAL, _NO_PROXY = Cause.NORMAL, ProxyProtocol.NONE

_CAUSE_OF_FAILURE = {"timeout": Cause.SERVER_TIMEOUT, "resource": Cause.RESOURCE}


class Lifecycle:
    """All live sessions of an engine. `now` is the time of the last tick, good to 100 ms; ends are read off the clock."""

    def __init__(
        self,
        *,
        epoll: select.epoll,
        relay: Relay,
        counters: Counters,
        observer: Observer,
        clock: Callable[[], float],
        wall: Callable[[], float],
        on_fault: Callable[[Exception], None],
    ) -> None:
        self._epoll = epoll
        self._relay = relay
        self._counters = counters
        self._observer = observer
        self._clock = clock
        self._wall = wall
        self._on_fault = on_fault
        self.halves: dict[int, Half] = {}
        # In the order of their last sweep. A plain dict finds its first key by walking over all that were deleted before it.
        self.sessions: OrderedDict[Session, None] = OrderedDict()
        self.hurried: dict[Session, None] = {}  # those with a deadline: dialing, resetting
        self.runnable: dict[Half, None] = {}  # used up their budget; each once, or the fastest would get the most turns
        self._fins: list[Half] = []  # whose peer's stream is delivered
        self._graveyard: list[tuple[SocketType, bool]] = []
        self.on_end: Callable[[], None] = lambda: None  # tells the ports that there is room again
        self.on_exhausted: Callable[[], bool] = lambda: False  # asks the ports for a descriptor
        self._act = {
            Action.DIAL: self._dial,
            Action.RELAY: self._start,
            Action.FIN_TO_SERVER: self._fin_to_server,
            Action.FIN_TO_CLIENT: self._fin_to_client,
            Action.FLUSH_TO_SERVER: self._flush_to_server,
            Action.FLUSH_TO_CLIENT: self._flush_to_client,
            Action.CLOSE: self._close,
            Action.RESET: self._reset,
        }

    # ------------------------------------------------------------ from the loop

    def begin(self, frontend: FrontendState, sock: SocketType, address: tuple[str, int]) -> None:
        """A client was accepted: dial at once, the server may be the one who speaks first (SMTP, SSH)."""
        session = Session(frontend, address, self._clock())
        client = session.client = Half(sock, session, True)
        self.halves[client.fd] = client
        self.sessions[session] = None
        self._counters.open_sessions += 1
        frontend.sessions += 1
        frontend.counters.sessions += 1
        frontend.counters.sessions_total += 1
        try:
            self._epoll.register(client.fd, WATCHED)
            self._dial(session)
        except Exception as error:  # noqa: BLE001 - the boundary of one session, as in Engine.on_ready
            self.fault(session, error)

    def on_event(self, half: Half, events: int) -> None:
        session = half.session
        if session.state is _DIALING:
            self._on_dialing(session, half, events)
            return
        if events & _READ_ON:
            half.read_on = True
            if events & EPOLLERR:
                self._broke(session, half)
                return
        if half.blocked and events & EPOLLOUT:
            self._unblock(session, half)
        if events & _READABLE:
            self.advance(half)

    def advance(self, source: Half) -> None:
        """Move what `source` has to its peer, and tell the table how that ended."""
        session = source.session
        if source.eof or session.state is _CLOSED:
            return
        if session.state is _RESETTING and not source.broken:
            return  # nobody is left to read what the living half says
        outcome = self._relay.pump(source)
        if outcome == WAIT:
            return
        if outcome == AGAIN:
            self.runnable[source] = None
        elif outcome == FIN:
            source.eof = True
            self.fire(session, _CLIENT_FIN if source.is_client else _SERVER_FIN)
        elif outcome == DESTINATION_RESET:
            if source.peer is not None:
                self._broke(session, source.peer)
        else:
            source.eof = True
            if session.state is _RESETTING:
                self._delivered(session, source.peer)
            else:
                self._broke(session, source)

    def fire(self, session: Session, event: Event, cause: Cause = _NORMAL) -> None:
        state = session.state
        session.state, actions = TRANSITIONS[state, event]
        if cause is not _NORMAL and not session.code:
            session.code = termination_code(cause, state)
        for action in actions:
            self._act[action](session)

    def fail_connect(self, session: Session, reason: str) -> None:
        """The server under dial refused, was unreachable or did not answer in time."""
        upstream, server = session.upstream, session.server
        if upstream is not None and server is not None:
            session.upstream = None
            self._part(upstream, in_order=False)
            server.sessions -= 1
            self._note_failure(session, server, reason)
        self.fire(session, Event.CONNECT_FAILED)

    def fault(self, session: Session, error: Exception) -> None:
        """An exception of our own: this session ends with code I, the loop and all others go on."""
        self._counters.faults += 1
        self._on_fault(error)
        if session.state is not _CLOSED:
            session.code = session.code or termination_code(Cause.INTERNAL, session.state)
            session.state = State.CLOSED
        if session in self.sessions:
            self._end(session, in_order=False)

    def look_again(self, session: Session) -> None:
        """A reset that waits for the living side's kernel to deliver what came before it."""
        for half in (session.client, session.upstream):
            if half is not None and half.broken and half.eof:
                self._delivered(session, half.peer)

    def give_back_pipes(self, session: Session) -> None:
        """A quiet session keeps no empty pipe: two descriptors that another could use."""
        for half in (session.client, session.upstream):
            if half is not None and half.pipe is not None and not half.pipe.count:
                self._relay.release(half)

    def end_batch(self) -> None:
        """Send the FINs that became due, then close the sockets of sessions that ended.

        A FIN waits for the end of its batch because often the other side's is in there too, and then close() sends both:
        two system calls less for a short connection.
        """
        while self._fins:
            half = self._fins.pop()
            if half.peer is None:
                continue  # ended meanwhile: the close is the FIN, or a reset has overtaken it
            try:
                half.sock.shutdown(SHUT_WR)
            except OSError:  # ENOTCONN: reset a moment ago
                self._broke(half.session, half)
        while self._graveyard:
            sock, in_order = self._graveyard.pop()
            if in_order:
                sockets.close_in_order(sock)
            else:
                sock.close()  # SO_LINGER is armed: this is the reset

    # ------------------------------------------------------------ dialing

    def _on_dialing(self, session: Session, half: Half, events: int) -> None:
        if half.is_client:
            half.early |= events  # read once a server is there; until then the kernel's buffer is the back-pressure
            if events & EPOLLERR:
                half.broken = True
                self.fire(session, Event.CLIENT_RESET, Cause.CLIENT)
            return
        if events & _FAILED:
            error = sockets.connect_error(half.sock)
            if error and error not in sockets.AFTER_ACCEPT:
                self.fail_connect(session, sockets.failure_name(error))
                return
            half.broken = error != 0
        elif not events & EPOLLOUT:
            return
        half.early = events
        self.fire(session, _CONNECTED)

    def _dial(self, session: Session) -> None:
        frontend, now = session.frontend, self._clock()
        policy = frontend.frontend.policy
        while True:
            tries = len(session.tried) if session.tried is not None else 0
            server = frontend.pick(session.tried) if tries <= policy.retries else None
            if server is None:
                self.fire(session, Event.NO_SERVER_LEFT, _CAUSE_OF_FAILURE.get(session.failure, Cause.SERVER))
                return
            session.server = server
            sock, error = sockets.dial(server.server.address)
            if sock is None and error in sockets.NO_DESCRIPTOR and self.on_exhausted():
                sock, error = sockets.dial(server.server.address)
            if sock is not None:
                break
            self._note_failure(session, server, sockets.failure_name(error))
        server.sessions += 1
        upstream, client = Half(sock, session, False), session.client
        session.upstream = upstream
        upstream.peer = client
        if client is not None:
            client.peer = upstream
        self.halves[upstream.fd] = upstream
        # After connect(): an unconnected socket would report HUP at once.
        self._epoll.register(upstream.fd, WATCHED)
        session.deadline = now + policy.timeouts.connect
        self.hurried[session] = None

    def _note_failure(self, session: Session, server: ServerState, reason: str) -> None:
        server.counters.failures[reason] += 1
        if reason != "resource":  # a want of our own says nothing about the server
            server.failing = True
        session.failure = reason
        session.tried = [*(session.tried or ()), server]
        self._observer.connect_ended(session.frontend.frontend.listen, server.server, reason)

    def _start(self, session: Session) -> None:
        """A server accepted: from here on no retry. Its PROXY header goes first, then whatever has come meanwhile."""
        client, upstream, server = session.client, session.upstream, session.server
        if client is None or upstream is None or server is None:
            return
        del self.hurried[session]
        session.connected = session.quiet_since = self._clock()
        session.frontend.counters.connect_seconds.add(session.connected - session.accepted)
        server.counters.sessions += 1
        server.counters.sessions_total += 1
        if server.failing:
            server.failing = False
            self._observer.connect_ended(session.frontend.frontend.listen, server.server, None)
        client.read_on = client.early & _READ_ON != 0
        upstream.read_on = upstream.early & _READ_ON != 0
        if server.server.send_proxy is not _NO_PROXY:
            ours = client.sock.getsockname()
            local, peer = (
                Address(sockets.folded(ours[0]), ours[1]),
                Address(sockets.folded(session.address[0]), session.address[1]),
            )
            upstream.pending = header(server.server.send_proxy, peer, local)
            upstream.blocked = True
            self._unblock(session, upstream)
        elif client.early & _READABLE:
            self.advance(client)
        if upstream.early & _READABLE and session.state is not _CLOSED:
            if upstream.broken:
                self._broke(session, upstream)
            else:
                self.advance(upstream)

    # ------------------------------------------------------------ delivering

    def _unblock(self, session: Session, destination: Half) -> None:
        """`destination` may be written again: what waited goes first, then the source is read on."""
        if self._relay.flush(destination) == DESTINATION_RESET:
            self._broke(session, destination)
        elif not destination.blocked and (source := destination.peer) is not None:
            if source.broken and source.eof:
                self._delivered(session, destination)
            else:
                self.advance(source)

    def _fin_to_server(self, session: Session) -> None:
        if session.upstream is not None:
            self._fins.append(session.upstream)

    def _fin_to_client(self, session: Session) -> None:
        if session.client is not None:
            self._fins.append(session.client)

    def _delivered(self, session: Session, destination: Half | None) -> None:
        """All that the broken half said is with `destination`'s kernel, unless it is blocked: then `_unblock` comes back."""
        # The reset would destroy what its kernel still has to send. No event tells when that is done: the tick looks again.
        if destination is not None and not destination.blocked and not sockets.unacknowledged(destination.sock):
            self.fire(session, Event.FLUSHED)

    def _broke(self, session: Session, half: Half) -> None:
        """`half` is in error. Its last words are delivered (bounded by timeouts.flush), then the other side is reset."""
        if session.state is _CLOSED:
            return
        if session.state is _RESETTING and half.broken:
            self.advance(half)  # a second error event of the same half says nothing new
            return
        half.broken = True
        if half.is_client:
            self.fire(session, Event.CLIENT_RESET, Cause.CLIENT)
        else:
            self.fire(session, Event.SERVER_RESET, Cause.SERVER)

    def _flush_to_client(self, session: Session) -> None:
        self._flush(session, session.upstream, session.client)

    def _flush_to_server(self, session: Session) -> None:
        self._flush(session, session.client, session.upstream)

    def _flush(self, session: Session, dead: Half | None, living: Half | None) -> None:
        if dead is None or living is None:
            return
        dead.pending = None
        self._relay.free(dead)
        self._relay.release(living)  # bytes in its pipe were for the dead
        session.delivered = None
        session.deadline = self._clock() + session.frontend.frontend.policy.timeouts.flush
        self.hurried[session] = None
        if dead.eof:
            self._delivered(session, living)
        else:
            self.advance(dead)

    # ------------------------------------------------------------ the end

    def _close(self, session: Session) -> None:
        self._end(session, in_order=True)

    def _reset(self, session: Session) -> None:
        self._end(session, in_order=False)

    def _part(self, half: Half, *, in_order: bool) -> None:
        """Cut `half` out of everything that knows it: map, pipe, peer. epoll forgets it with its close."""
        self.halves.pop(half.fd, None)
        self._relay.release(half)
        if half.held:
            self._relay.free(half)
        self._graveyard.append((half.sock, in_order))
        if half.peer is not None:
            half.peer.peer = None
            half.peer = None

    def _end(self, session: Session, *, in_order: bool) -> None:
        """Descriptors, pipes, references and counters of the session are settled in this call."""
        client, upstream, server = session.client, session.upstream, session.server
        del self.sessions[session]
        self.hurried.pop(session, None)
        settle(session)
        now = self._clock()
        frontend = session.frontend
        code = session.code or "--"
        closed = self._closed_counter(frontend, server)
        closed.closed[code] += 1
        frontend.counters.session_seconds.add(now - session.accepted)
        record = self._record(session, code, now)
        if server is not None and upstream is not None:
            server.sessions -= 1
            if session.connected:
                server.counters.sessions -= 1
        frontend.sessions -= 1
        frontend.counters.sessions -= 1
        self._counters.open_sessions -= 1
        session.client = session.upstream = None
        for half in (client, upstream):
            if half is not None:
                self._part(half, in_order=in_order)
        self.on_end()
        try:
            self._observer.session_ended(record)
        except Exception as error:  # noqa: BLE001 - the session is over and settled: nothing is left to end
            self._counters.faults += 1
            self._on_fault(error)

    def _closed_counter(self, frontend: FrontendState, server: ServerState | None) -> ServerCounters:
        if server is not None:
            return server.counters
        return frontend.counters.servers.setdefault("", ServerCounters())

    def _record(self, session: Session, code: str, now: float) -> SessionRecord:
        frontend, server, tried = session.frontend, session.server, session.tried
        client, upstream = session.client, session.upstream
        retries = len(tried) if tried is not None else 0
        if upstream is None and retries:
            retries -= 1  # the first attempt is no retry
        # By position: a NamedTuple takes keywords at twice the cost, and this is paid per session.
        return SessionRecord(
            frontend.frontend.name,
            server.server.name if server is not None else "",
            sockets.folded(session.address[0]),
            session.address[1],
            frontend.frontend.listen.port,
            self._wall() - (now - session.accepted),
            0,
            round((session.connected - session.accepted) * 1000) if session.connected else -1,
            round((now - session.accepted) * 1000),
            client.received if client is not None else 0,
            upstream.received if upstream is not None else 0,
            code,
            retries,
            retries > 0,
            self._counters.open_sessions,
            frontend.sessions,
            server.sessions if server is not None else 0,
        )


def settle(session: Session) -> bool:
    """Add the live bytes to the frontend's counters. True if any moved since the last time."""
    client, upstream, counters = session.client, session.upstream, session.frontend.counters
    moved_in = (client.received if client is not None else 0) - session.seen_in
    moved_out = (upstream.received if upstream is not None else 0) - session.seen_out
    if not (moved_in or moved_out):
        return False
    session.seen_in += moved_in
    session.seen_out += moved_out
    session.last_from_client = not moved_out
    counters.bytes_in += moved_in
    counters.bytes_out += moved_out
    return True
