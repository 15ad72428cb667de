"""The bookkeeping of sessions: counters, the recorder of ended sessions, and one record per session for the observer.

All of it may fail without harm to forwarding: a session's descriptors and slots are free before anything here is called.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from pylb.core.recorder import RecordedSession, Recorder
from pylb.core.session import Cause, Event, Observer, SessionRecord, State, termination_code
from pylb.core.table import Server
from pylb.forward import sockets
from pylb.forward.counters import Counters, ServerCounters
from pylb.forward.faults import Faults
from pylb.forward.session import End, FrontendState, ServerState, Session

if TYPE_CHECKING:
    from pylb.forward.flow import Flow

SHORT = 0.1  # seconds
_CLOSED, _CLIENT_DONE = State.CLOSED, State.CLIENT_DONE
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
        self._clock_offset = 0.0  # unix time minus monotonic time, as of the last batch in which a session ended
        self.unreported: list[Session | Flow] = []  # they ended in this batch

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
            self.connect_ended(session.frontend, server.server, None)

    def connect_ended(self, frontend: FrontendState, server: Server, failure: str | None) -> None:
        """Report the outcome to the observer. If the observer fails, the session goes on."""
        listen = frontend.frontend.listen
        self._faults.guard(
            "the outcome of a connect could not be passed on", self._observer.connect_ended, listen, server, failure
        )

    def ended(self, session: Session) -> None:
        """Count a session that is over. Its resources are released, but its halves still know what they moved.

        What there is to report of it is only noted: `report` makes the record, and only for an observer that wants it.
        """
        server, frontend = session.server, session.frontend
        if server is None or session.upstream is None:
            closed = self._closed_counter(frontend, server)
        else:
            closed = server.counters
            if session.connected:
                closed.sessions -= 1
        settle(session)
        code = session.code = session.code or "--"
        now = self._read_clocks(session)
        total = now - session.accepted
        closed.closed[code] += 1
        frontend.counters.session_seconds.add(total)
        closed.total_seconds += total
        if total > closed.longest_total:  # noqa: PLR1730 - as above
            closed.longest_total = total
        # The two system calls are 3 % of a short connection (python -m bench recorder). A session this short that ended well
        # cannot have waited for a retransmission: the shortest timeout is 200 ms (TCP_RTO_MIN, include/net/tcp.h).
        ask = self.recorder is not None and (total >= SHORT or code != "--")
        session.end = self._end(session, now, ended=True, ask=ask)
        self.unreported.append(session)
        if self.recorder is not None:
            self.recorder.add(session)

    def _read_clocks(self, session: "Session | Flow") -> float:
        """The time. If a clock is broken, the session is counted all the same."""
        try:
            now = self._clock()
            if not self.unreported:  # the first of its batch
                self._clock_offset = self._wall() - now
        except Exception as error:  # noqa: BLE001 - as the docstring says
            self._faults.add("the clock failed", error)
            return session.accepted
        return now

    def _end(self, session: Session, now: float, *, ended: bool, ask: bool) -> End:
        """`ask`: the kernel too, while the sockets are open."""
        client, upstream, server, tried = session.client, session.upstream, session.server, session.tried
        retries = len(tried) if tried is not None else 0
        end = (
            now,
            self._clock_offset,
            session.frontend.frontend,
            server.server if server is not None else None,
            retries - 1 if retries and upstream is None else retries,  # the first attempt is not a retry
            client.received if client is not None else 0,
            upstream.received if upstream is not None else 0,
            self._counters.open_sessions + ended,
            session.frontend.counters.sessions + ended,
            server.sessions - (upstream is not None and not ended) if server is not None else 0,
            sockets.tcp_info(client.sock) if ask and client is not None else b"",
            sockets.tcp_info(upstream.sock) if ask and upstream is not None else b"",
        )
        return tuple.__new__(End, end)  # the same as End(…), in half the time: this is paid per session

    def report(self) -> None:
        """Pass the sessions that ended in this batch to the observer. Never raises."""
        ended, self.unreported = self.unreported, []
        if self._observer.wants_records:
            for session in ended:
                self._faults.guard("an ended session could not be reported", self._report, session)

    def _report(self, session: "Session | Flow") -> None:
        if session.end is not None:
            self._observer.session_ended(session.record(session.end, session.code))

    def flow_ended(self, flow: "Flow", server: ServerState | None, quiet: bool) -> None:
        """Like `ended`. `server`: what it had at last; it has left it. `quiet`: counted, but neither logged nor recorded."""
        self.settle_flow(flow, server)
        now, frontend = self._read_clocks(flow), flow.frontend
        total = now - flow.accepted
        closed = self._closed_counter(frontend, server)
        closed.closed[flow.code] += 1
        frontend.counters.session_seconds.add(total)
        closed.total_seconds += total
        closed.longest_total = max(closed.longest_total, total)
        if quiet:
            return
        flow.end = self._flow_end(flow, server, now, ended=True)
        self.unreported.append(flow)
        if self.recorder is not None:
            self.recorder.add(flow)

    def _flow_end(self, flow: "Flow", server: ServerState | None, now: float, *, ended: bool) -> End:
        frontend = flow.frontend
        return End(
            now,
            self._clock_offset,
            frontend.frontend,
            server.server if server is not None else None,
            len(flow.attempts or ()),
            flow.bytes_in,
            flow.bytes_out,
            self._counters.open_flows + ended,
            frontend.counters.sessions + ended,
            server.sessions - (not ended) if server is not None else 0,
            b"",
            b"",
        )

    def live_flow(self, flow: "Flow") -> RecordedSession:
        """Like `live`."""
        now = self._clock()
        self._clock_offset = self._wall() - now
        return flow.story(self._flow_end(flow, flow.server, now, ended=False), "")

    @staticmethod
    def settle_flow(flow: "Flow", server: ServerState | None = None) -> bool:
        """Like `settle`, with its datagrams. `server`: the one it has left just now."""
        now = flow.datagrams_in, flow.datagrams_out, flow.bytes_in, flow.bytes_out
        if now == flow.counted:
            return False
        ins, outs, bytes_in, bytes_out = (new - old for new, old in zip(now, flow.counted, strict=True))
        flow.counted = now
        counters, server = flow.frontend.counters, server or flow.server
        if counters.datagrams is not None:
            counters.datagrams.relayed_in += ins
            counters.datagrams.relayed_out += outs
        for one in (counters, server.counters) if server is not None else (counters,):
            one.bytes_in += bytes_in
            one.bytes_out += bytes_out
        return True

    def forget(self) -> None:
        """The engine is closed."""
        if self.recorder is not None:
            self.recorder.clear()

    def live(self, session: Session) -> RecordedSession:
        """All that is known of a session that has not ended."""
        now = self._clock()
        self._clock_offset = self._wall() - now
        return session.story(self._end(session, now, ended=False, ask=True), "")

    def refused(  # noqa: PLR0917 - each of another type
        self, frontend: FrontendState, address: tuple[str, int], port: int, reason: str, number: int, generation: int
    ) -> None:
        """Count a client as denied, and log it: it called `port` and was reset right after the accept."""
        frontend.counters.denied[reason] += 1
        name, now = frontend.frontend.name, self._wall()
        client, times, moved = (sockets.folded(address[0]), address[1]), (-1, -1, 0), (0, 0)
        active = (self._counters.open_sessions + 1, frontend.counters.sessions + 1, 0)  # this one included
        record = SessionRecord(name, "", *client, port, now, *times, *moved, _DENIED, 0, False, *active, 0, "", number)
        if self.recorder is not None:
            self.recorder.add(
                RecordedSession(
                    record, _CLOSED, frontend.frontend, generation, None, (), None, Event.REFUSED, 0.0, b"", b"", reason
                )
            )
        if self._observer.wants_records:
            self._observer.session_ended(record)

    def _closed_counter(self, frontend: FrontendState, server: ServerState | None) -> ServerCounters:
        """Where a session is counted that has no connection to a server."""
        # A server that refused, and left the table while the session waited, has no counters any more.
        if server is not None and frontend.counters.servers.get(server.server.name) is server.counters:
            return server.counters
        return frontend.counters.servers.setdefault("", ServerCounters())


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


def is_last(session: Session, state: State, cause: Cause) -> bool:
    """Has the server sent everything and its FIN, while we do not read it because the client takes no more?"""
    upstream = session.upstream
    if state is not _CLIENT_DONE or upstream is None or cause in (Cause.SERVER, Cause.SERVER_TIMEOUT):
        return False
    return sockets.has_finished(upstream.sock)
