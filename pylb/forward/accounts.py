"""The bookkeeping of sessions: counters, the recorder of ended sessions, and one record per session for the observer.

All of it may fail without harm to forwarding: a session's descriptors and slots are free before anything here is called.
"""

from collections.abc import Callable

from pylb.core.recorder import RecordedSession, Recorder
from pylb.core.session import Cause, Event, Observer, SessionRecord, State, termination_code
from pylb.core.table import Server
from pylb.forward import sockets
from pylb.forward.counters import Counters, ServerCounters
from pylb.forward.faults import Faults
from pylb.forward.session import FrontendState, ServerState, Session

SHORT = 100  # milliseconds
_CLOSED = State.CLOSED
_DENIED = termination_code(Cause.PROXY, State.AWAITING_HEADER)


class Accounts:
    """The bookkeeping of one engine. `recorder` is None if ended sessions are not recorded."""

    def __init__(
        self,
        *,
        counters: Counters,
        faults: Faults,
        observer: Observer,
        recorder: Recorder | None,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._counters = counters
        self._faults = faults
        self._observer = observer
        self.recorder = recorder
        self._clock = clock
        self._wall = wall

    def note_first(self, session: Session, event: Event) -> None:
        """Note `event` as the one that ended the session or began its end, unless there was one before it."""
        if session.first is None and self.recorder is not None:
            session.first = event
            session.first_at = self._clock()

    def connected(self, session: Session, server: ServerState) -> None:
        took, counters = session.connected - session.accepted, server.counters
        session.frontend.counters.connect_seconds.add(took)
        if session.admission is not None and (waited := session.admission.waited):
            took -= waited
            counters.queue_seconds += waited
            counters.longest_queue = max(counters.longest_queue, waited)
        counters.connect_seconds += took
        if took > counters.longest_connect:  # noqa: PLR1730 - max() is a call, and this is paid per session
            counters.longest_connect = took
        counters.last_at = session.connected
        counters.sessions += 1
        counters.sessions_total += 1
        if server.failing:
            server.failing = False
            self.connect_ended(session, server.server, None)

    def connect_ended(self, session: Session, server: Server, failure: str | None) -> None:
        """Report the outcome to the observer. If the observer fails, the session goes on."""
        listen = session.frontend.frontend.listen
        self._faults.guard(
            "the outcome of a connect could not be passed on", self._observer.connect_ended, listen, server, failure
        )

    def ended(self, session: Session) -> None:
        """Count and report a session that is over. Its resources are released, but its halves still know what they moved."""
        server, frontend = session.server, session.frontend
        if server is not None and session.connected:
            server.counters.sessions -= 1
        settle(session)
        code = session.code or "--"
        try:
            now = self._clock()
        except Exception as error:  # noqa: BLE001 - the clock is broken: the session is counted all the same
            self._faults.add("the clock failed", error)
            now = session.accepted
        total = now - session.accepted
        closed = self._closed_counter(frontend, server)
        closed.closed[code] += 1
        frontend.counters.session_seconds.add(total)
        closed.total_seconds += total
        if total > closed.longest_total:  # noqa: PLR1730 - as above
            closed.longest_total = total
        record = self.record(session, code, now, ended=True)
        if self.recorder is not None:
            self._faults.guard("an ended session could not be recorded", self._remember, session, record)
        self._observer.session_ended(record)

    def _remember(self, session: Session, record: SessionRecord) -> None:
        if self.recorder is not None:
            self.recorder.add(self.entry(session, record))

    def refused(self, frontend: FrontendState, address: tuple[str, int], reason: str, number: int, generation: int) -> None:
        """Count a client as denied, and log it: it was reset right after the accept and never became a session."""
        frontend.counters.denied[reason] += 1
        name, port, now = frontend.frontend.name, frontend.frontend.listen.port, self._wall()
        client, times, moved = (sockets.folded(address[0]), address[1]), (-1, -1, 0), (0, 0)
        active = (self._counters.open_sessions + 1, frontend.sessions + 1, 0)  # this one included
        record = SessionRecord(name, "", *client, port, now, *times, *moved, _DENIED, 0, False, *active, 0, "", number)
        if self.recorder is not None:
            self.recorder.add(
                RecordedSession(
                    record, _CLOSED, frontend.frontend, generation, None, (), None, Event.REFUSED, 0.0, b"", b"", reason
                )
            )
        self._observer.session_ended(record)

    def _closed_counter(self, frontend: FrontendState, server: ServerState | None) -> ServerCounters:
        # A server that refused, and left the table while the session waited, has no counters any more.
        if server is not None and frontend.counters.servers.get(server.server.name) is server.counters:
            return server.counters
        return frontend.counters.servers.setdefault("", ServerCounters())

    def record(self, session: Session, code: str, now: float, *, ended: bool) -> SessionRecord:
        """A record of a session that `ended` with `code`, or of a live one. Its counts of sessions include this one."""
        frontend, server, tried = session.frontend, session.server, session.tried
        client, upstream, admission = session.client, session.upstream, session.admission
        waited = admission.waited if admission is not None else 0.0
        retries = len(tried) if tried is not None else 0
        if upstream is None and retries:
            retries -= 1  # the first attempt is not a retry
        # By position: a NamedTuple takes keywords at twice the cost, and this is paid per session.
        return SessionRecord(
            frontend.frontend.name,
            server.server.name if server is not None else "",
            sockets.folded(session.address[0]),
            session.address[1],
            frontend.frontend.listen.port,
            self._wall() - (now - session.accepted),
            round(waited * 1000) if server is not None or waited else -1,
            round((session.connected - session.accepted - waited) * 1000) if session.connected else -1,
            round((now - session.accepted) * 1000),
            client.received if client is not None else 0,
            upstream.received if upstream is not None else 0,
            code,
            retries,
            retries > 0,
            self._counters.open_sessions + ended,
            frontend.sessions + ended,
            server.sessions - (upstream is not None and not ended) if server is not None else 0,
            admission.ahead if admission is not None else 0,
            admission.unique_id.hex() if admission is not None else "",
            session.number,
        )

    def entry(self, session: Session, record: SessionRecord) -> RecordedSession:
        """What the recorder stores about a session. Call it while the session's sockets are still open."""
        server, client, upstream = session.server, session.client, session.upstream
        client_tcp = server_tcp = b""
        # The two system calls are 3 % of a short connection (python -m bench recorder). A session this short that ended well
        # cannot have waited for a retransmission: the shortest timeout is 200 ms (TCP_RTO_MIN, include/net/tcp.h).
        if record.total_ms >= SHORT or record.code != "--":
            client_tcp = sockets.tcp_info(client.sock) if client is not None else b""
            server_tcp = sockets.tcp_info(upstream.sock) if upstream is not None else b""
        entry = (
            record,
            session.state,
            session.picked_from or session.frontend.frontend,
            session.generation,
            server.server.address if server is not None else None,
            session.attempts or (),
            session.connected - session.dialed if session.connected else None,
            session.first,
            session.first_at - session.accepted,
            client_tcp,
            server_tcp,
            session.failure,
        )
        return tuple.__new__(RecordedSession, entry)  # as RecordedSession(…), in half the time: this is paid per session


def settle(session: Session) -> bool:
    """Add the live bytes to the counters of the frontend and the server. True if any moved since the last call."""
    client, upstream, counters, server = session.client, session.upstream, session.frontend.counters, session.server
    moved_in = (client.received if client is not None else 0) - session.seen_in
    moved_out = (upstream.received if upstream is not None else 0) - session.seen_out
    if not (moved_in or moved_out):
        return False
    session.seen_in += moved_in
    session.seen_out += moved_out
    session.last_from_client = not moved_out
    counters.bytes_in += moved_in
    counters.bytes_out += moved_out
    if server is not None:
        server.counters.bytes_in += moved_in
        server.counters.bytes_out += moved_out
    return True
