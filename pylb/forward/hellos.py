"""Sessions on a port with routes, until their ClientHello says which route they belong to.

The hello is looked at with MSG_PEEK and never taken: the server gets it whole, and so does the next one if that fails. Each
segment raises an event, because the socket is registered edge-triggered, and an event that finds nothing new costs one recv.
"""

from collections.abc import Callable
from select import EPOLLRDHUP
from socket import MSG_DONTWAIT, MSG_PEEK, SHUT_WR
from typing import Protocol

from pylb.core.client_hello import MOST_BYTES, HelloReader, Verdict
from pylb.core.server_names import MOST, find_route
from pylb.core.session import Cause, Event, State
from pylb.core.text import visible
from pylb.forward.admission import Admission
from pylb.forward.counters import FrontendCounters
from pylb.forward.deadlines import Deadlines
from pylb.forward.session import FrontendState, Half, Session
from pylb.forward.source_share import SourceShare

# A record of type alert, TLS 1.2 or later: fatal, unrecognized_name (RFC 8446, 6; RFC 6066, 3).
ALERT = bytes((21, 3, 3, 0, 2, 2, 112))
DISCARD = 1.0  # seconds in which the client may take the alert and close
MOST_DISCARDED = 128 * 1024  # bytes for one event, beside the budget of a turn; whoever sends more does not wait for an alert
_READ = 64 * 1024
_PEEK = int(MSG_PEEK | MSG_DONTWAIT)  # here and not at each look: combining two flags takes as many calls as the look itself


class LifecycleCalls(Protocol):
    """The part of the lifecycle that is needed here."""

    deadlines: Deadlines
    source_share: SourceShare

    def fire(self, session: Session, event: Event, cause: Cause = ...) -> None: ...


class Hellos:
    """Finds the route for each session of an engine whose port has some."""

    def __init__(
        self,
        life: LifecycleCalls,
        clock: Callable[[], float],
        deny: Callable[[Session, str, Event], None],
        dial: Callable[[Session], None],
    ) -> None:
        self._life = life
        self._clock = clock
        self._deny = deny
        self._dial = dial

    def must_speak_first(self, session: Session, *, awaits_header: bool) -> bool:
        """Is a server chosen for this client only when its PROXY header, or its TLS hello, is there?"""
        frontend = session.frontend
        if frontend.routes and session.admission is not None:
            # It is not in the total of any frontend before it has a route, or is over.
            session.admission.hello = HelloReader()
            frontend.counters.sessions_total -= 1
        if awaits_header:
            session.state = State.AWAITING_HEADER
            self._life.deadlines.set(session, frontend.frontend.policy.accept_proxy.timeout, session.accepted)
        return awaits_header

    def header_read(self, session: Session) -> None:
        """Its PROXY header is read and taken."""
        waits = session.admission is not None and session.admission.hello is not None
        self._life.fire(session, Event.HELLO_EXPECTED if waits else Event.HEADER_READ)

    def begin(self, session: Session) -> None:
        """It is accepted, and the delay that the dial of some is put off by is over: dial, or find the route first."""
        if session.admission is not None and session.admission.hello is not None:
            session.state = State.AWAITING_HELLO
            self.await_hello(session)
        else:
            self._dial(session)

    def await_hello(self, session: Session) -> None:
        """Look at once: what is there already raises no further event, after a PROXY header least of all."""
        timeouts = session.frontend.frontend.policy.timeouts
        self._life.deadlines.set(session, timeouts.hello, self._clock())
        if session.client is not None:
            self.look(session, session.client)

    def look(self, session: Session, client: Half) -> None:
        admission = session.admission
        if admission is None or admission.hello is None:
            return
        try:
            data = client.sock.recv(MOST_BYTES, _PEEK)
        except BlockingIOError:
            return
        except OSError:
            self._life.fire(session, Event.CLIENT_RESET, Cause.CLIENT)
            return
        verdict = admission.hello.feed(data)
        if verdict is Verdict.TOO_LONG:
            self._deny(session, "hello", Event.REFUSED)
        elif verdict is not Verdict.MORE:
            self._route(session, admission.hello.name)
        elif not data or client.early & EPOLLRDHUP:  # the client has sent its last byte
            self.give_up(session)

    def give_up(self, session: Session) -> None:
        """No more of a hello comes: its time is over, or the client has sent its FIN.

        With nothing at all from the client the server may be the one to speak. Half a hello is no use to any server.
        """
        admission = session.admission
        if admission is not None and admission.hello is not None and admission.hello.begun:
            self._deny(session, "hello", Event.REFUSED)
        else:
            self._route(session, "")

    def _route(self, session: Session, name: str) -> None:
        """By the table that is in force now. `name`: what the client asks for; "" if it does not say."""
        port, admission = session.frontend, session.admission
        self._life.deadlines.clear(session)
        if admission is None:
            return
        admission.asked = visible(name[:MOST])
        route = find_route(port.routes, name) if name else None
        if route is None and not port.frontend.servers:
            self._deny(session, "server_name", Event.NO_ROUTE)
            return
        admission.hello = None
        if route is not None:
            _move(session, route)
            admission.port = port
        session.frontend.counters.sessions_total += 1
        self._life.fire(session, Event.ROUTED)

    def alert(self, session: Session) -> None:
        """Say why, then FIN, then read what the client still sends: a close over unread bytes would be a reset, which destroys
        the alert on its way."""
        client = session.client
        if client is None:
            return
        self._life.deadlines.set(session, DISCARD, self._clock())
        try:
            client.sock.send(ALERT, MSG_DONTWAIT)
            client.sock.shutdown(SHUT_WR)
        except OSError:
            self._life.fire(session, Event.CLIENT_RESET, Cause.CLIENT)
            return
        self.discard(session, client)

    def discard(self, session: Session, client: Half) -> None:
        left = MOST_DISCARDED
        try:
            while left > 0 and (data := client.sock.recv(_READ, MSG_DONTWAIT)):
                left -= len(data)
        except BlockingIOError:
            return
        except OSError:
            self._life.fire(session, Event.CLIENT_RESET, Cause.CLIENT)
            return
        self._life.fire(session, Event.CLIENT_FIN if left > 0 else Event.TIMED_OUT)


def _move(session: Session, route: FrontendState) -> None:
    """From here on the session is the route's. It still takes one of the connections that its port may have, and therefore
    counts there, too, as a session that is live."""
    session.frontend = route
    route.counters.sessions += 1


def leave_route(session: Session, admission: Admission) -> FrontendCounters:
    """Those of the port of a session that ends, among whose live sessions it counts."""
    frontend = session.frontend
    if admission.hello is not None:
        admission.hello = None
        frontend.counters.sessions_total += 1
    if admission.port is None:
        return frontend.counters
    frontend.counters.sessions -= 1
    return admission.port.counters
