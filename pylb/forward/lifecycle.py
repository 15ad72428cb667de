"""Sessions from accept to the last close: events become transitions of core's table, transitions become system calls.

Sockets of ended sessions are closed at the end of the batch (`end_batch`): a descriptor's number can therefore not be reused
while old events for it are still in the batch, and a new connection never gets a stranger's event.
"""

import select
from collections.abc import Callable
from select import EPOLLERR, EPOLLOUT
from socket import SHUT_WR, SocketType

from pylb.core.policy import ProxyProtocol
from pylb.core.session import TRANSITIONS, Action, Cause, Event, State, termination_code
from pylb.forward import linger, sockets
from pylb.forward.accounts import Accounts, is_last
from pylb.forward.admission import Admission
from pylb.forward.counters import Counters
from pylb.forward.deadlines import Deadlines
from pylb.forward.dial import READ_ON, READABLE, WATCHED, Dialer
from pylb.forward.faults import Faults
from pylb.forward.hellos import leave_route
from pylb.forward.live_sessions import LiveSessions
from pylb.forward.own_dials import OwnDials
from pylb.forward.proxy_header import header_to_server
from pylb.forward.relay import AGAIN, DESTINATION_RESET, FIN, FIRST, Relay
from pylb.forward.run_queue import END, QUANTUM, RunQueue
from pylb.forward.session import FrontendState, Half, Session
from pylb.forward.source_share import SourceShare

# A class attribute of an enum is looked up through its metaclass, which costs as much as a call; these are read per event.
_RESETTING, _CLOSED = State.RESETTING, State.CLOSED
_CLIENT_FIN, _SERVER_FIN, _CLIENT_RESET = Event.CLIENT_FIN, Event.SERVER_FIN, Event.CLIENT_RESET
_NORMAL, _NO_PROXY = Cause.NORMAL, ProxyProtocol.NONE


class Lifecycle:
    """All live sessions of an engine. `now` is the time of the last tick, accurate to 100 ms; ends are timed by the clock."""

    def __init__(
        self,
        *,
        epoll: select.epoll,
        relay: Relay,
        sessions: LiveSessions,
        run_queue: RunQueue,
        counters: Counters,
        faults: Faults,
        accounts: Accounts,
        clock: Callable[[], float],
        unique_id: Callable[[], bytes],
        own_dials: OwnDials,
        number: int,
    ) -> None:
        self._epoll = epoll
        self._relay = relay
        self.sessions = sessions
        self._run_queue = run_queue
        self._counters = counters
        self._faults = faults
        self.accounts = accounts
        self._clock = clock
        self._unique_id = unique_id
        self.number = number  # of the last session
        self.halves: dict[int, Half] = {}
        self.deadlines = Deadlines()
        self.source_share = SourceShare(counters, sessions)
        self.dialer = Dialer(self, epoll, accounts, faults, clock, run_queue, own_dials)
        self._fins: list[Half] = []  # halves whose peer's stream is delivered: a FIN is due
        self.to_close: list[SocketType] = []
        self.on_end: Callable[[], None] = lambda: None  # tells the ports that there is room again
        self.on_exhausted: Callable[[], bool] = lambda: False  # asks the ports for a descriptor
        act: dict[Action, Callable[[Session], None]] = {
            Action.AWAIT_HELLO: self.dialer.hellos.await_hello,
            Action.ALERT: self.dialer.hellos.alert,
            Action.QUEUE: self.dialer.queue,
            Action.DIAL: self.dialer.dial,
            Action.RELAY: self._start,
            Action.FIN_TO_SERVER: self._fin_to_server,
            Action.FIN_TO_CLIENT: self._fin_to_client,
            Action.FLUSH_TO_SERVER: self._flush_to_server,
            Action.FLUSH_TO_CLIENT: self._flush_to_client,
            Action.CLOSE: self._close,
            Action.RESET: self._reset,
        }
        # Core's table with calls in place of the actions' names. A pair as the key would be made and hashed at each event.
        self._transitions: dict[State, dict[Event, tuple[State, Callable[[Session], None]]]] = {state: {} for state in State}
        for (state, event), (target, action) in TRANSITIONS.items():
            self._transitions[state][event] = target, act[action]

    # ------------------------------------------------------------ from the loop

    def begin(self, frontend: FrontendState, sock: SocketType, address: tuple[str, int]) -> None:
        """A client was accepted: dial at once, because the server may speak first (SMTP, SSH). Never raises.

        The exception: a client that may be part of a chain that resets is dialled for in the next turn, see `Dialer.on_early`.
        """
        session, admission, awaits, waits, refusal = None, None, False, False, ""
        dialer, source_share, counters = self.dialer, self.source_share, self._counters
        frontend.counters.connections += 1
        try:
            if (dialer.probes or dialer.own_dials.owners[address[1]]) and self._turn_back(frontend, sock, address):
                return
            if (rules := frontend.admission_rules) is not None:
                admission = Admission()
                awaits = rules.awaits_header(address[0])
                waits = awaits or bool(frontend.routes)
                if not awaits:
                    refusal = rules.admit(address[0], admission, self._clock())
            if (source_share.counting or counters.open_sessions * 2 >= counters.max_connections) and not awaits and not refusal:
                refusal = source_share.refusal(frontend, address[0])
            if refusal:
                self._refuse(frontend, sock, address, refusal, admission)
                return
            session = self._enter(frontend, sock, address)
            session.admission = admission
            self._epoll.register(sock.fileno(), WATCHED)
            if waits and dialer.hellos.must_speak_first(session, awaits_header=awaits):
                return
            if source_share.counting:
                source_share.enter(session)
            if address[0] not in dialer.resetting_clients or not dialer.is_to_wait(session):
                dialer.hellos.begin(session) if waits else dialer.dial(session)
        except Exception as error:  # noqa: BLE001 - the boundary of one session, as in Engine.on_ready
            if session is not None:
                self.fault(session, error)
            else:
                sockets.close(sock)  # idempotent
                if admission is not None:
                    admission.leave()
                self._faults.add("a client was refused by a fault of pylb", error)

    def _turn_back(self, frontend: FrontendState, sock: SocketType, address: tuple[str, int]) -> bool:
        """Is this client one of our own connections, which is not to be served?"""
        if self.dialer.is_probe(address):
            frontend.counters.connections -= 1
            sockets.close(sock)
            return True
        if self.dialer.own_dials.has(address[0], address[1]):
            self._refuse(frontend, sock, address, "loop", None)
            return True
        return False

    def _refuse(
        self, frontend: FrontendState, sock: SocketType, address: tuple[str, int], reason: str, admission: Admission | None
    ) -> None:
        if admission is not None:
            admission.leave()
        listen = frontend.frontend.listen
        called = sock.getsockname()[1] if listen.last else listen.port
        sockets.close(sock)
        self.number += 1
        self.accounts.refused(frontend, address, called, reason, self.number, self.dialer.generation)

    def _enter(self, frontend: FrontendState, sock: SocketType, address: tuple[str, int]) -> Session:
        """From here on the client is a session, and ends as one."""
        counters = self._counters
        self.number += 1
        session = Session(frontend, address, self._clock(), self.number)
        client = session.client = Half(sock, session, True)
        self.halves[client.fd] = client
        self.sessions.fresh[session] = None
        counters.open_sessions += 1
        own = frontend.counters
        own.sessions_total += 1
        own.sessions += 1
        if own.sessions > counters.guaranteed:
            counters.shared += 1
        return session

    def on_event(self, half: Half, events: int) -> None:
        session = half.session
        if not session.connected:
            self.dialer.on_early(session, half, events)
            return
        if events & READ_ON:
            half.read_on |= events & READ_ON
            if events & EPOLLERR:
                self._broke(session, half)
                return
        if half.blocked and events & EPOLLOUT:
            if (source := half.peer) is not None and source.bulk:
                self._run_queue.add(source)
            else:
                self._unblock(session, half)
        # As `advance`, without its call: this is paid for each message.
        if events & READABLE and not half.eof and (outcome := self._relay.pump(half, FIRST)):
            self._act_on(half, outcome)

    def run(self, source: Half) -> None:
        """Use the half's share of a turn, or all that is left of the turn if nothing else waits."""
        run_queue, destination = self._run_queue, source.peer
        share = QUANTUM if run_queue.queue else max(QUANTUM, run_queue.budget)
        if destination is not None and destination.blocked:
            self._unblock(source.session, destination, share)
        else:
            self.advance(source, share)

    def advance(self, source: Half, most: int = FIRST) -> None:
        """Move what `source` has to its peer, and give the outcome to the state table. `most` exceeds FIRST only in `run`."""
        if not source.eof and (outcome := self._relay.pump(source, most)):
            self._act_on(source, outcome)

    def _act_on(self, source: Half, outcome: int) -> None:
        """Do what follows from the outcome of `pump`, which is not WAIT."""
        session = source.session
        if outcome == AGAIN:
            self._run_queue.add(source)
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
        session.state, act = self._transitions[state][event]
        if cause is not _NORMAL and not session.code:
            session.code = termination_code(cause, state, last=is_last(session, state, cause))
            self.accounts.note_first(session, event)
            if event is _CLIENT_RESET:
                self.dialer.note_reset(session)
        act(session)

    def fire_safely(self, session: Session, event: Event, cause: Cause = _NORMAL) -> None:
        """Like `fire`, for a caller that acts on several sessions in a row: a fault ends this one, and the next one follows."""
        try:
            self.fire(session, event, cause)
        except Exception as error:  # noqa: BLE001 - the boundary of one session, as in Engine.on_ready
            self.fault(session, error)

    def fault(self, session: Session, error: Exception) -> None:
        """An exception of pylb: this session ends with code I, the loop and all others go on. Never raises."""
        if session.state is not _CLOSED:
            session.code = session.code or termination_code(Cause.INTERNAL, session.state)
            session.state = _CLOSED
            self._faults.guard("the event of a fault could not be noted", self.accounts.note_first, session, Event.KILLED)
        if session in self.sessions:
            self._end(session, in_order=False)
        self._faults.add("a session ended by a fault of pylb (code I)", error)

    def look_again(self, session: Session) -> None:
        """Check on a reset that waits until the living side's kernel has delivered what came before it."""
        for half in (session.client, session.upstream):
            if half is not None and half.broken and half.eof:
                self._delivered(session, half.peer)

    def give_back_pipes(self, session: Session) -> None:
        """Take empty pipes from a quiet session: each is two descriptors that another session could use."""
        for half in (session.client, session.upstream):
            if half is not None and half.pipe is not None and not half.pipe.count:
                self._relay.release(half)

    def end_batch(self) -> None:
        """Send the FINs that are due, then close the sockets of sessions that ended, and report them.

        A FIN waits for the end of its batch because the other side's FIN is often in the same batch, and then close() sends
        both: two system calls less for a short connection.
        """
        self.dialer.end_batch()
        while self._fins:
            half = self._fins.pop()
            if half.peer is None:
                continue  # ended meanwhile: the close sends the FIN, or a reset has overtaken it
            try:
                self._shut(half)
            except Exception as error:  # noqa: BLE001 - the boundary of one session, as in Engine.on_ready
                self.fault(half.session, error)
        if self.to_close:
            for sock in self.to_close:
                sockets.close(sock)
            self.to_close.clear()
            self._faults.guard("the room that ended sessions left could not be used", self.on_end)
        if self.accounts.unreported:
            self.accounts.report()

    def _shut(self, half: Half) -> None:
        try:
            half.sock.shutdown(SHUT_WR)
        except OSError:  # ENOTCONN: reset a moment ago
            self._broke(half.session, half)

    def _start(self, session: Session) -> None:
        """A server accepted: from here on no retry. Its PROXY header goes first, then what the client has sent meanwhile."""
        client, upstream, server = session.client, session.upstream, session.server
        if client is None or upstream is None or server is None:
            return
        if session.waits_among is not None:
            self.deadlines.clear(session)
        session.connected = session.quiet_since = self._clock()
        self.accounts.connected(session, server)
        client.read_on = client.early & READ_ON
        upstream.read_on = upstream.early & READ_ON
        if server.server.send_proxy is not _NO_PROXY:
            upstream.pending = header_to_server(session, client, server.server.send_proxy, self.dialer.own_id, self._unique_id)
            upstream.blocked = True
            self._unblock(session, upstream)
        elif client.early & READABLE:
            self.advance(client)
        if upstream.early & READABLE and session.state is not _CLOSED:
            if upstream.broken:
                self._broke(session, upstream)
            else:
                self.advance(upstream)

    # ------------------------------------------------------------ delivering

    def _unblock(self, session: Session, destination: Half, most: int = FIRST) -> None:
        """`destination` can be written again: what waited goes first, then reading from the source goes on."""
        if self._relay.flush(destination) == DESTINATION_RESET:
            self._broke(session, destination)
        elif not destination.blocked and (source := destination.peer) is not None:
            if source.broken and source.eof:
                self._delivered(session, destination)
            else:
                self.advance(source, most)

    def _fin_to_server(self, session: Session) -> None:
        if self.accounts.recorder is not None:
            session.first = _CLIENT_FIN
            session.first_at = self._clock()
        if session.upstream is not None:
            self._fins.append(session.upstream)

    def _fin_to_client(self, session: Session) -> None:
        if self.accounts.recorder is not None:
            session.first = _SERVER_FIN
            session.first_at = self._clock()
        if session.client is not None:
            self._fins.append(session.client)

    def _delivered(self, session: Session, destination: Half | None) -> None:
        """Fire FLUSHED once `destination`'s peer has all that the broken half sent. While blocked, `_unblock` calls again."""
        # The reset would destroy what the kernel still has to send. No event says when that is done: the tick looks again.
        if destination is not None and not destination.blocked and not sockets.would_be_lost(destination.sock):
            self.fire(session, Event.FLUSHED)

    def _broke(self, session: Session, half: Half) -> None:
        """`half` is in error. What it sent last is delivered (bounded by timeouts.flush), then the other side is reset."""
        if session.state is _CLOSED:
            return
        if session.state is _RESETTING and half.broken:
            self.advance(half)  # a second error event of the same half is nothing new
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
        self._relay.release(living)  # the bytes in its pipe were for the dead half
        living.eof = True  # nobody reads what it sends
        session.delivered = None
        self.deadlines.flush(session, session.frontend.frontend.policy.timeouts.flush, self._clock())
        if dead.eof:
            self._delivered(session, living)
        else:
            self.advance(dead)

    # ------------------------------------------------------------ the end

    def _close(self, session: Session) -> None:
        self._end(session, in_order=True)

    def _reset(self, session: Session) -> None:
        self._end(session, in_order=False)

    def part(self, half: Half, *, in_order: bool) -> None:
        """Remove `half` from everything that refers to it: map, pipe, peer. epoll forgets it at its close."""
        self.halves.pop(half.fd, None)
        if half.armed is in_order:
            linger.change(half)
        self.to_close.append(half.sock)
        if half.peer is not None:
            half.peer.peer = None
            half.peer = None
        if half.held:
            self._relay.free(half)
        if half.pipe is not None:
            self._relay.release(half)

    def _end(self, session: Session, *, in_order: bool) -> None:
        """Release what others wait for, then count and report the end: a failure there leaks nothing."""
        self._release(session, in_order=in_order)
        try:
            self.accounts.ended(session)
        except Exception as error:  # noqa: BLE001 - as `Faults.guard`, without its call: this is paid per session
            self._faults.add("the end of a session could not be counted or reported", error)
        # It may be recorded for long. What its frontend and server were must not stay with it.
        session.client = session.upstream = session.server = session.tried = None
        del session.frontend

    def _release(self, session: Session, *, in_order: bool) -> None:
        """Release slots, descriptors, pipes and references. No other code is called before all of that is done."""
        client, upstream, server = session.client, session.upstream, session.server
        admission, counters = session.admission, self._counters
        self.sessions.remove(session)
        if session.waits_among is not None:
            self.deadlines.clear(session)
        self._run_queue.budget -= END
        own = session.frontend.counters if admission is None else leave_route(session, admission)
        if own.sessions > counters.guaranteed:
            counters.shared -= 1
        own.sessions -= 1
        counters.open_sessions -= 1
        if client is not None:
            self.part(client, in_order=in_order)
        if upstream is not None:
            self.part(upstream, in_order=in_order)
            if server is not None:
                try:
                    self.dialer.leave(session, server)
                except Exception as error:  # noqa: BLE001 - as in `_end`
                    self._faults.add("a server's slot could not be released", error)
        if session.source is not None:
            self.source_share.leave(session)
        if admission is not None:
            self._faults.guard("a place in the queue could not be released", self.dialer.unqueue, session)
            self._faults.guard("a source's slot could not be released", admission.leave)
