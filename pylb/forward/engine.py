"""The engine: one edge-triggered epoll, the ports of the table in force, and the sessions they brought.

A plain object for whoever owns the loop: watch `fileno()`, call `on_ready()` when it is readable (again soon while it returns
True) and `tick()` every 100 ms. Or let the engine be the loop: `watch` the other descriptors, and call `on_ready(seconds)` for
ever. Decisions come in only through `apply(table)`.
"""

import errno
import os
import random
import select
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import attrgetter
from socket import SocketType
from typing import TYPE_CHECKING

from pylb.core.address import TCP, UDP, Address, Listen
from pylb.core.flow import FlowBatch
from pylb.core.recorder import SCAN, Coverage, Query, Recorder, SessionTrace, first_number, trace_of
from pylb.core.session import Cause, Event, Observer, SessionView
from pylb.core.table import Frontend, Table, diff, differing
from pylb.forward.accounts import Accounts
from pylb.forward.counters import Counters
from pylb.forward.faults import Faults, Report
from pylb.forward.lifecycle import Lifecycle
from pylb.forward.listener import RESERVE, ListeningPort, ListeningPorts, connection_limit
from pylb.forward.live import view
from pylb.forward.live_sessions import LiveSessions
from pylb.forward.own_dials import OwnDials
from pylb.forward.pipes import PIPES, Pipes
from pylb.forward.relay import Relay
from pylb.forward.routes import Routes
from pylb.forward.run_queue import BUDGET, EVENT, RunQueue
from pylb.forward.session import FrontendState, Half
from pylb.forward.shared_limits import OtherProcesses
from pylb.forward.sockets import Opener, open_each, open_listener
from pylb.forward.timers import LONGEST_PERIOD, RESET_RATE, Timers
from pylb.forward.watched import Watched

if TYPE_CHECKING:
    from pylb.forward.datagram_port import DatagramPorts
    from pylb.forward.flow import DatagramPort, Flow
    from pylb.forward.flow_handover import FlowHandover
    from pylb.forward.flows import Flows

EVENTS = 64  # per poll; later ones come first in the next poll, because the kernel's list is in order (epoll(7))
MAX_BUFFERED = 256 << 20  # bytes
RAMP_STEP = 1.0  # seconds between two steps of a slow start


def _no_twin(_listen: Listen) -> SocketType | None:
    """By default a port has one socket, for both families."""
    return None


class Engine:
    """Forwards the sessions of all ports.

    `splice=False`: only recv and send are used. `sweep_period`: seconds in which every session is visited once.
    `max_buffered`: bytes in memory and pipes, over all sessions, that may wait for blocked destinations. Above it nothing is
    read before its destination takes it. `unanswered`: a peer counts as dead if for so many seconds it acknowledges nothing of
    what was sent to it, although its window is open (the kernel itself takes about 15 minutes, tcp_retries2 in tcp(7)).
    `nofile`: the process's limit of descriptors. Each listener takes one from the sessions, and `reserve` are for other
    things. 0: no such limit. `worker`: this worker's number, part of its sessions' ids. `processes`: how many share the local
    ports that flows take. `own_dials`: shared with the other workers. `recorded`: how many ended sessions are remembered.
    """

    def __init__(
        self,
        *,
        observer: Observer,
        max_connections: int,
        max_pipes: int = PIPES,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
        on_fault: Report,
        splice: bool = True,
        max_buffered: int = MAX_BUFFERED,
        sweep_period: float = LONGEST_PERIOD,
        unanswered: float = 30.0,
        opener: Opener = open_listener,
        twin: Callable[[Listen], SocketType | None] = _no_twin,
        nofile: int = 0,
        reserve: int = RESERVE,
        worker: int = 0,
        processes: int = 1,
        own_dials: OwnDials | None = None,
        recorded: int = 0,
    ) -> None:
        self.counters = Counters(max_connections)
        self._most, self._nofile, self._reserve, self._processes = max_connections, nofile, reserve, processes
        self.table = Table()
        self._unserved: tuple[Listen, ...] = ()  # ports of the table that could not be opened
        self._epoll = select.epoll()
        self._pipes = Pipes(max_pipes)
        self._run_queue = RunQueue()
        self._relay = Relay(self._run_queue, self.counters, self._pipes, splice=splice, max_buffered=max_buffered)
        self.faults = Faults(self.counters, on_fault)
        self._accounts = Accounts(
            counters=self.counters,
            faults=self.faults,
            observer=observer,
            recorder=Recorder(recorded, wall()) if recorded else None,
            clock=clock,
            wall=wall,
        )
        self._life = Lifecycle(
            epoll=self._epoll,
            relay=self._relay,
            sessions=LiveSessions(sweep_period),
            run_queue=self._run_queue,
            counters=self.counters,
            faults=self.faults,
            accounts=self._accounts,
            clock=clock,
            unique_id=partial(os.urandom, 16),
            own_dials=own_dials or OwnDials(worker),
            number=first_number(worker),
        )
        self._random, self._opener = draw, opener
        self._ports = ListeningPorts(self._epoll, self.counters, self.faults, self._life.begin, opener, twin, self._run_queue)
        self._life.on_end = self._ports.session_ended
        self._life.on_exhausted = self._ports.exhausted
        self._life.dialer.our_ports = self._ports.numbers
        self._routes = Routes(self._ports, draw)
        self.other_processes = OtherProcesses(self._ports, self._life.dialer, self._state)
        self._timers = Timers(self._life, self._run_queue, self.faults, unanswered)
        self._clock = clock
        self._drain_at: float | None = None
        self._ramping: dict[FrontendState, None] = {}  # those with servers in their slow start
        self._ramp_at = 0.0  # monotonic
        self._udp_by_fd: dict[int, Flow | DatagramPort] = {}
        self._flows: Flows | None = None  # until there is a frontend of UDP
        self._watched = Watched(self._epoll, self.faults)

    def fileno(self) -> int:
        """Readable (level-triggered) while any of the engine's sockets has an event."""
        return self._epoll.fileno()

    def watch(self, fd: int, on_ready: Callable[[], None]) -> None:
        """From this epoll too, call `on_ready` as long as `fd` is readable, until the descriptor is closed."""
        self._watched.add(fd, on_ready)

    def unwatch(self, fd: int) -> None:
        self._watched.remove(fd)

    @property
    def busy(self) -> bool:
        """There is more work: call `on_ready` soon."""
        return bool(self._run_queue.queue)

    def on_ready(self, wait: float = 0.0) -> bool:
        """Do one turn of the work there is, or that comes within `wait` seconds. True: there is more, call again soon."""
        life, run_queue = self._life, self._run_queue
        halves, on_event = life.halves, life.on_event
        batch = self._epoll.poll(wait, EVENTS)
        run_queue.budget = BUDGET - EVENT * len(batch)
        for fd, events in batch:
            if (half_or_none := halves.get(fd)) is not None:
                try:
                    on_event(half_or_none, events)
                except Exception as error:  # noqa: BLE001 - the boundary of one session
                    life.fault(half_or_none.session, error)
            elif (port := self._ports.by_fd.get(fd)) is not None:
                run_queue.add(port)
            elif (watched := self._watched.by_fd.get(fd)) is not None:
                self._watched.call(fd, watched)
            elif self._flows is not None and (one := self._udp_by_fd.get(fd)) is not None:
                self._flows.on_event(one, events)
        self._run()
        life.end_batch()
        return self.busy

    def _run(self) -> None:
        """Serve the run queue from what is left of the turn: at least one entry, and none of them twice."""
        life, run_queue = self._life, self._run_queue
        for _ in range(len(run_queue.queue)):
            one = run_queue.take()
            if isinstance(one, Half):
                try:
                    life.run(one)
                except Exception as error:  # noqa: BLE001 - the boundary of one session
                    life.fault(one.session, error)
            elif isinstance(one, ListeningPort):
                if self._ports.by_fd.get(one.fd) is one and self._ports.accept(one):
                    run_queue.add(one)
            elif isinstance(one, FrontendState):
                if life.dialer.serve_queue(one):
                    run_queue.add(one)
            elif one is self._timers:
                if self._timers.run():
                    run_queue.add(one)
            elif self._flows is not None:
                self._flows.run(one)
            if run_queue.budget <= 0:
                return

    def tick(self, now: float) -> bool:
        """Deadlines, the sweep, and ports that were paused because descriptors ran out. `now` is the clock's.

        True: there is more work, call `on_ready` soon.
        """
        self._timers.kill = self._drain_at is not None and now >= self._drain_at
        elapsed = self._timers.tick(now)
        self.faults.tick(elapsed)
        self.faults.guard("a descriptor could not be watched again", self._watched.wake)
        self._ports.resume(elapsed)
        if self._flows is not None:
            self._flows.tick(now, elapsed, kill=self._timers.kill)
        if self._ramping and now >= self._ramp_at:
            self._ramp_at = now + RAMP_STEP
            self._ramping = {frontend: None for frontend in self._ramping if frontend.ramp(now)}
        self._life.end_batch()
        self.counters.pipes_lent, self.counters.runnable = self._pipes.lent, len(self._run_queue.queue)
        return self.busy

    def open(self, listen: Listen, *, freebind: bool = False) -> None:
        """Bind a port and listen on it before the table that needs it comes; accept nothing yet. Idempotent. Raises OSError.

        Of a range, one call for each port: a thousand at once would hold the loop for 40 ms.
        `freebind`: allow an address that this machine does not have yet.
        """
        self._of(listen).open(listen, freebind=freebind)

    def discard(self, listen: Listen) -> None:
        """Close what `open` opened, unless the table in force serves it. Idempotent."""
        if listen not in self.table.frontends:
            for one in listen.each():
                self._of(listen).close(one)

    def apply(self, table: Table) -> dict[Listen, OSError]:
        """Put `table` in force and return the ports that could not be opened (the rest is served all the same).

        The next apply tries a failed port again. Live sessions are not touched: those of a removed frontend end by themselves
        or at timeouts.drain. Not atomic across ports: each serves its new servers as soon as it has been updated.
        """
        if self._drain_at is not None:
            return {}
        self._life.dialer.generation = table.generation
        change = diff(self.table, table)
        regroup = False
        for old in change.closed:
            try:
                regroup |= self._remove(old.listen)
            except Exception as error:  # noqa: BLE001 - the boundary of one port: the rest of the table is in force
                self.faults.add(f"{old.listen} was closed, but not all of its state could be removed", error)
        failed: dict[Listen, OSError] = {}
        again = (table.frontends[listen] for listen in self._unserved if listen in table.frontends)
        for frontend in sorted((*change.opened, *again), key=attrgetter("listen")):  # a port before its routes
            listen = frontend.listen
            try:
                self._serve(listen, frontend)
            except OSError as error:
                failed[listen] = error
            except Exception as error:  # noqa: BLE001 - the boundary of one port: the rest of the table is served
                self.faults.add(f"{listen} is not served", error)
                failed[listen] = OSError(errno.EIO, f"a fault of pylb: {error!r}")
        for _old, new in change.changed:
            regroup |= self._change_safely(new)
        if change.opened or change.closed or self._unserved:
            if self._nofile:
                others = len(self._ports.by_listen) + (self._flows.descriptors if self._flows is not None else 0)
                limit = connection_limit(self._nofile, others, self._reserve)
                self.counters.max_connections = min(self._most, limit)
            self._ports.set_guarantee()
        self.table, self._unserved = table, tuple(failed)
        if regroup:
            self._timers.regroup()
        return failed

    def drain(self, deadline: float, *, accept: bool = True) -> None:
        """Close the ports, so that new clients are refused and try elsewhere. Clients already in a backlog are still accepted.

        Without `accept` they are not: use that when the next process, or systemd on its behalf, has the same sockets. Sessions
        still live at `deadline` (the clock's) are reset. A second call only moves the deadline. No later table opens a port.
        """
        self._drain_at = deadline
        for listen, port in list(self._ports.by_listen.items()):
            if accept:
                self.faults.guard(f"clients waiting for {listen} were not accepted", self._ports.empty, port)
            self._ports.close(listen)
        if self._flows is not None:
            self._flows.drain()

    @property
    def flow_handover(self) -> "FlowHandover | None":
        """How flows pass from one pylb to the next; None: there was no frontend of UDP. `drain` leaves what it described."""
        return self._flows.handover if self._flows is not None else None

    def take_flows(self, batches: Iterable[FlowBatch]) -> None:
        """Take over the previous pylb's flows; call it before the first table."""
        for flows, fds in batches:
            self._of_udp().handover.passed.add(flows, fds)

    def close(self) -> None:
        """Reset all live sessions and close everything."""
        self._kill_all()
        self._ports.close_all()
        if self._flows is not None:
            self._flows.close()
        self._life.end_batch()
        self._accounts.forget()
        self._run_queue.queue.clear()
        self._pipes.close()
        self._epoll.close()

    def live(self) -> Iterator[list[SessionView]]:
        """Every live session and flow, as of now, in steps, between which other work may run."""
        sessions = [*self._life.sessions, *(self._flows.flows if self._flows is not None else ())]
        for start in range(0, len(sessions), SCAN):
            now = self._clock()
            yield [seen for one in sessions[start : start + SCAN] if (seen := view(one, now)) is not None]

    @property
    def recording(self) -> bool:
        """Are ended sessions recorded?"""
        return self._accounts.recorder is not None

    def ended(self, query: Query) -> Iterator[list[SessionTrace]]:
        """The ended sessions that match, newest first, in steps; none without a recorder."""
        recorder = self._accounts.recorder
        return iter(()) if recorder is None else recorder.search(query)

    @property
    def reach(self) -> Coverage:
        """How far back `ended` goes."""
        recorder = self._accounts.recorder
        return Coverage(0.0) if recorder is None else recorder.reach

    def trace(self, number: int) -> SessionTrace | None:
        """All that is known of one session, live or ended, including the servers that it might have had."""
        for session in self._life.sessions:
            if session.number == number:
                return trace_of(self._accounts.live(session), whole=True)
        for flow in self._flows.flows if self._flows is not None else ():
            if flow.number == number:
                return trace_of(self._accounts.live_flow(flow), whole=True)
        recorder = self._accounts.recorder
        return None if recorder is None else recorder.find(number)

    def expect(self, client: Address) -> None:
        """The next connection from there is pylb's own check of a port: it is closed at once, neither counted nor recorded."""
        self._life.dialer.expect(client)

    def shutdown_session(self, number: int) -> int:
        """Reset the session with that number, code KD. Returns how many were reset: 0 or 1."""
        found = [session for session in self._life.sessions if session.number == number]
        for session in found:
            self._life.fire_safely(session, Event.KILLED, Cause.KILLED)
        ended = self._flows.shutdown(number) if self._flows is not None and not found else 0
        self._life.end_batch()
        return len(found) + ended

    def shutdown_sessions(self, listen: Listen, server: Address) -> int:
        """Reset a frontend's sessions on that server, code KD, from the next tick on. Returns how many there are."""
        if listen.protocol == UDP:
            return self._of_udp().shutdown_server(listen, server)
        states = {
            session.server: None
            for session in self._life.sessions
            if session.frontend.frontend.listen == listen
            and session.server is not None
            and session.server.server.address == server
        }
        for state in states:
            self._timers.evict(state, Cause.KILLED, self._clock(), RESET_RATE)
        return sum(state.sessions for state in states)

    def _serve(self, listen: Listen, frontend: Frontend) -> None:
        """Raises OSError if the port cannot be opened."""
        if listen.protocol == UDP:
            self._of_udp().serve(listen, frontend)
            return
        ports = self._ports
        open_each(listen, ports.by_listen, partial(ports.open, freebind=frontend.policy.freebind), ports.close)
        state = self._routes.open(frontend) if listen.server_name else FrontendState(frontend, self._random)
        state.sweep_group = self._timers.sweep_group(frontend.policy.timeouts, removed=False)
        self.counters.frontends[listen] = state.counters
        self._life.dialer.know((), frontend.servers)
        for port in ports.of(listen):
            ports.serve(port, state)

    def _state(self, listen: Listen) -> FrontendState | None:
        return self._routes.find(listen) if listen.server_name else self._of(listen).frontend(listen)

    def _change_safely(self, new: Frontend) -> bool:
        """True: live sessions have to move to another sweep group."""
        fault = f"{new.listen} could not be changed"
        if new.listen.protocol == UDP:
            self.faults.guard(fault, self._change_udp, new)
        elif (state := self._state(new.listen)) is not None:
            self.faults.guard(fault, self._change, state, new)
            return self._regroup(state, removed=False)
        return False

    def _change_udp(self, new: Frontend) -> None:
        state = self._of_udp().change(new)
        if state is not None and state.ramping:
            self._ramping[state] = None

    def _change(self, state: FrontendState, new: Frontend) -> None:
        self._life.dialer.know(*differing(state.frontend.servers, new.servers))
        for server, before in state.update(new):
            self._timers.state_changed(state, server, before, self._clock())
        if state.ramping:
            self._ramping[state] = None
        self._life.dialer.make_room(state)
        for port in self._ports.of(new.listen):
            self._ports.serve(port, state)

    def _regroup(self, state: FrontendState, *, removed: bool) -> bool:
        """True: the frontend's live sessions have to move to another sweep group."""
        before, state.sweep_group = state.sweep_group, self._timers.sweep_group(state.frontend.policy.timeouts, removed=removed)
        return state.sweep_group is not before and state.counters.sessions > 0

    def _remove(self, listen: Listen) -> bool:
        regroup = False
        if listen.protocol == UDP:
            self._of_udp().remove(listen)
            return False
        try:
            if (state := self._state(listen)) is not None:
                self._life.dialer.know(state.frontend.servers, ())
                state.kill_at = self._clock() + state.frontend.policy.timeouts.drain
                regroup = self._regroup(state, removed=True)
        finally:
            self.counters.frontends.pop(listen, None)
            self._routes.close(listen)
            for one in listen.each():
                self._ports.close(one)
        return regroup

    def _of_udp(self) -> "Flows":
        """Made by the first frontend of UDP."""
        if self._flows is None:
            from pylb.forward.flows import Flows  # noqa: PLC0415 - a pylb without UDP loads none of it

            parts = self._epoll, self._udp_by_fd, self._life, self._run_queue, self.counters, self.faults, self._opener
            self._flows = Flows(*parts, self._clock, self._random, self._nofile, self._processes)
        return self._flows

    def _of(self, listen: Listen) -> "ListeningPorts | DatagramPorts":
        return self._ports if listen.protocol == TCP else self._of_udp().ports

    def _kill_all(self) -> None:
        for session in list(self._life.sessions):
            self._life.fire_safely(session, Event.KILLED, Cause.KILLED)
