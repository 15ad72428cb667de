"""All flows of an engine: from the first datagram of a client to the end, and the frontends of UDP that they belong to.

Flows have limits of their own, which never take places of TCP. A client that has shown that it gets the answers is never put
out for others: those that have not, *unsettled* ones, make room, the oldest first.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from select import EPOLLERR, epoll
from socket import SocketType

from pylb.core.address import Address, Listen
from pylb.core.flow import FlowEvent, FlowState
from pylb.core.session import Cause, State, termination_code
from pylb.core.table import Frontend
from pylb.forward.accounts import Accounts
from pylb.forward.admission import Admission
from pylb.forward.counters import Counters, DatagramCounters
from pylb.forward.datagram_port import DatagramPorts
from pylb.forward.datagram_sockets import Client, local_ports, reply_from, take_error
from pylb.forward.datagrams import Datagrams
from pylb.forward.faults import Faults
from pylb.forward.flow import DatagramPort, Flow, FrontendFlows, LoggedSources
from pylb.forward.flow_handover import FlowHandover
from pylb.forward.flow_sweep import FlowSweep, visit_period
from pylb.forward.homes import Homes, moved
from pylb.forward.lifecycle import Lifecycle
from pylb.forward.run_queue import ACCEPT, END, QUANTUM, RunQueue
from pylb.forward.session import FrontendState
from pylb.forward.sockets import Opener, folded, open_each
from pylb.forward.timers import ends_of_sessions

FIRST = 64 * 1024  # units of a flow at an event; the run queue does the rest
_UNSETTLED, _CLOSED = FlowState.UNSETTLED, FlowState.CLOSED


class Flows:
    """`by_fd`: the engine's map from descriptors to what has events. `most`: flows at once."""

    def __init__(  # noqa: PLR0917 - the parts of one engine, each of another type
        self,
        events: epoll,
        by_fd: "dict[int, Flow | DatagramPort]",
        life: Lifecycle,
        run_queue: RunQueue,
        counters: Counters,
        faults: Faults,
        opener: Opener,
        clock: Callable[[], float],
        draw: Callable[[], float],
        nofile: int,
        processes: int = 1,
    ) -> None:
        self._life = life
        self._run_queue = run_queue
        self._counters = counters
        self._faults = faults
        self.accounts: Accounts = life.accounts
        self._clock = clock
        self._draw = draw
        self.ports = DatagramPorts(events, by_fd, opener, faults)
        self.groups: dict[FrontendState, FrontendFlows] = {}
        self.flows: dict[Flow, None] = {}
        self._unsettled: OrderedDict[Flow, None] = OrderedDict()  # the oldest first
        self.homes = Homes(events, by_fd, life.accounts, run_queue, clock, self._close_later)
        self.homes.make_room = lambda flow: self._replace(self.groups[flow.frontend].unsettled, flow)
        self.homes.generation = lambda: life.dialer.generation
        self.homes.is_ours = lambda port: port in self.ports.numbers
        self._datagrams = Datagrams(run_queue, self)
        self._ranges = local_ports() // 2 // processes
        self._descriptors = nofile // 4 if nofile else 1 << 30
        self.most = 0
        self._logged = LoggedSources()
        self.sweep = FlowSweep(self, self.groups, life.accounts, run_queue, faults)
        self.handover = FlowHandover(self, events, by_fd, faults, clock)

    # ------------------------------------------------------------ from the engine

    def on_event(self, one: Flow | DatagramPort, events: int) -> None:
        """Never raises."""
        if isinstance(one, DatagramPort):
            self._run_queue.add(one)
            return
        try:
            if events & EPOLLERR and one.sock is not None:
                # First what is wrong: a read would report it in place of an answer. The answers before it are still there.
                self.homes.on_error(one, take_error(one.sock))
            if not one.queued and self._datagrams.from_server(one, FIRST):
                self._run_queue.add(one)
        except Exception as error:  # noqa: BLE001 - the boundary of one flow
            self.fault(one, error)

    def run(self, one: object) -> None:
        """An entry of the run queue has its share. Never raises."""
        if self.handover.paused:
            return
        run_queue = self._run_queue
        share = QUANTUM if run_queue.queue else max(QUANTUM, run_queue.budget)
        if isinstance(one, DatagramPort):
            try:
                if one.watched and self._datagrams.from_clients(one, share):
                    run_queue.add(one)
            except Exception as error:  # noqa: BLE001 - the boundary of one port
                self._faults.add(f"datagrams of {one.listen} have to wait", error)
                self.ports.back_off(one)
        elif isinstance(one, Flow):
            try:
                if self._datagrams.from_server(one, share):
                    run_queue.add(one)
            except Exception as error:  # noqa: BLE001 - the boundary of one flow
                self.fault(one, error)
        elif one is self.sweep and self.sweep.run(share):
            run_queue.add(one)

    def serve(self, listen: Listen, frontend: Frontend) -> None:
        """Raises OSError if the port, or one of the range, cannot be opened."""
        opened = self.ports
        open_each(listen, opened.by_listen, partial(opened.open, freebind=frontend.policy.freebind), opened.close)
        ports = list(opened.of(listen))
        state = FrontendState(frontend, self._draw)
        state.counters.datagrams = DatagramCounters()
        self._counters.frontends[listen] = state.counters
        group = self.groups[state] = FrontendFlows(state, ports)
        group.period = visit_period(frontend)
        self._set_most()
        for port in ports:
            port.frontend = state
        self.handover.take(group)
        for port in ports:
            opened.watch(port)

    def change(self, new: Frontend) -> FrontendState | None:
        """Another table has other servers or another policy for a frontend. None: its port is not open."""
        group = self._group(new.listen)
        if group is None:
            return None
        state = group.frontend
        for server, before in state.update(new):
            for end in ends_of_sessions(before, server.server, new.policy):
                if end is None:
                    self.sweep.spare(server)
                else:
                    cause, delay = end
                    self.sweep.evict(group, server, cause, self._clock() + delay)
        group.period = visit_period(new)
        for flow in group.flows:
            flow.check_in = flow.check_out = True  # the next datagram looks at its server and its policy again
        self._set_most()
        return state

    def remove(self, listen: Listen) -> None:
        """Close the port. Its flows pass nothing on from here on, and end in the turns that come."""
        group = self._group(listen)
        for one in listen.each():
            self.ports.close(one)
        if group is not None:
            self._counters.frontends.pop(listen, None)
            self.sweep.close(group)
        self._set_most()

    def drain(self) -> None:
        """Read nothing more from clients. What servers still send goes out, until the flows are idle or killed.

        Flows that the next pylb has got leave without a record, since they have not ended.
        """
        self.handover.leave()
        for port in self.ports.by_listen.values():
            self.ports.unwatch(port)

    def close(self) -> None:
        """End all flows and close all ports."""
        self.handover.passed.close()
        for listen in list(self.ports.by_listen):
            self.ports.close(listen)
        for flow in list(self.flows):
            self._faults.guard("a flow could not be ended", self.end, flow, FlowEvent.KILLED, Cause.KILLED)
        for state in self.groups:
            self._counters.frontends.pop(state.frontend.listen, None)
            state.break_cycles()
        self.groups.clear()

    def fault(self, flow: Flow, error: Exception) -> None:
        """An exception of pylb: this flow ends with code I, all others go on. Never raises."""
        self._faults.add("a flow ended by a fault of pylb (code I)", error)
        if flow.state is not _CLOSED:
            self._faults.guard("a flow could not be ended", self.end, flow, FlowEvent.KILLED, Cause.INTERNAL)

    def shutdown(self, number: int) -> int:
        """End the flow of that number, code KD. Returns how many: 0 or 1."""
        found = [flow for flow in self.flows if flow.number == number]
        for flow in found:
            self.end(flow, FlowEvent.KILLED, Cause.KILLED)
        return len(found)

    def shutdown_server(self, listen: Listen, server: Address) -> int:
        """End a frontend's flows on that server, code KD, from the next tick on. Returns how many there are."""
        group = self._group(listen)
        if group is None:
            return 0
        states = {flow.server: None for flow in group.flows if flow.server and flow.server.server.address == server}
        for state in states:
            self.sweep.evict(group, state, Cause.KILLED, self._clock())
        return sum(state.sessions for state in states)

    def _group(self, listen: Listen) -> FrontendFlows | None:
        return self.groups.get(state) if (state := self.ports.frontend(listen)) is not None else None

    def _set_most(self) -> None:
        """connect takes a local port that is unique over all destinations, for each source address by itself."""
        sources: set[str] = set()
        for state in self.groups:
            sources.update(state.frontend.policy.source_addresses or ("",))
        self.most = max(1, min(self._descriptors, self._ranges * max(1, len(sources))))

    @property
    def descriptors(self) -> int:
        """What TCP cannot have, once there is a frontend of UDP."""
        return (min(self.most, self._descriptors) if self.ports.by_listen else 0) + len(self.ports.by_listen)

    def tick(self, now: float, elapsed: float, *, kill: bool) -> None:
        """`kill`: end all flows."""
        if self.handover.paused:
            return
        self.ports.resume(elapsed)
        self._logged.tick(now)
        self.sweep.tick(now, elapsed, kill=kill)

    # ------------------------------------------------------------ from the hot path

    def find(self, port: DatagramPort, flow: Flow | None, client: Client, local: bytes, count: int) -> Flow | None:
        """The flow for a datagram that belongs to none, or to one that needs a look. None: it is dropped, and counted."""
        try:
            if flow is not None and self._is_over(flow):
                flow = None
            if flow is None:
                flow = self._begin(port, client, local, count)
                if flow is None:
                    return None
            return self._look(flow, count)
        except Exception as error:  # noqa: BLE001 - the boundary of one flow
            if flow is not None:
                self.fault(flow, error)
            else:
                self._faults.add("a datagram was dropped by a fault of pylb", error)
            self.dropped(port, "fault", count)
            return None

    def _is_over(self, flow: Flow) -> bool:
        """Has it got all the datagrams that its policy lets one flow have? The next one begins another flow."""
        policy = flow.frontend.frontend.policy
        if policy.responses == 0 and flow.datagrams_in:
            self.end(flow, FlowEvent.ANSWERED)
            return True
        if policy.requests and flow.datagrams_in >= policy.requests:
            if flow.port is not None:
                del flow.port.flows[flow.key]  # answers may still come
            return True
        return False

    def _look(self, flow: Flow, count: int) -> Flow | None:
        if flow.answered and flow.state is _UNSETTLED:
            moved(flow, FlowEvent.SPOKE_AGAIN)
            self.settle(flow)
        if flow.failed or self.homes.is_lost(flow):
            self.rehome(flow)
        policy = flow.frontend.frontend.policy
        flow.check_in = flow.sock is None or flow.failed or policy.requests > 0 or policy.responses == 0
        if flow.sock is None:
            self.dropped(flow.port, "no_server", count)
            return None
        if flow.state is FlowState.NEW:
            moved(flow, FlowEvent.SENT)
        return flow

    def rehome(self, flow: Flow) -> None:
        """Look for another server. The flow stays where it is, or has none, if there is no better one."""
        if not self.homes.find(flow):
            return
        if flow.state is not FlowState.NEW:
            self._unsettle(flow)
            moved(flow, FlowEvent.REHOMED)
            flow.check_in = True
        counters = flow.frontend.counters.datagrams
        if counters is not None:
            counters.rehomed += 1

    def on_header_sent(self, flow: Flow) -> None:
        if not flow.frontend.frontend.policy.send_proxy_each:
            flow.header = b""

    def on_answer(self, flow: Flow) -> None:
        """The first answer of its server, or one that may be the last that its policy asks for."""
        self.homes.on_answer(flow)
        policy = flow.frontend.frontend.policy
        if not flow.answered:
            flow.answered = flow.check_in = True
        responses, requests = policy.responses, policy.requests
        flow.check_out = bool(responses)
        if not responses or flow.datagrams_out < responses * flow.datagrams_in or flow.datagrams_in < requests:
            return
        self.end(flow, FlowEvent.ANSWERED)

    def on_error(self, flow: Flow, error: int) -> None:
        self.homes.on_error(flow, error)

    def on_port_error(self, port: DatagramPort, error: OSError) -> None:
        self.ports.back_off(port, error)

    def dropped(self, port: DatagramPort | None, reason: str, count: int) -> None:
        counters = port.frontend.counters.datagrams if port is not None and port.frontend is not None else None
        if counters is not None:
            counters.dropped[reason] += count

    # ------------------------------------------------------------ the beginning, and the limits

    def _begin(self, port: DatagramPort, client: Client, local: bytes, count: int) -> Flow | None:
        frontend = port.frontend
        if frontend is None or frontend not in self.groups:
            return None
        group, ip = self.groups[frontend], client[0]
        self._run_queue.budget -= ACCEPT
        frontend.counters.connections += 1
        admission, refusal = None, ""
        if self.homes.own and (folded(ip), client[1]) in self.homes.own:  # a dual-stack port gives IPv4 clients in IPv6
            refusal = "loop"
        elif (rules := frontend.admission_rules) is not None:
            admission = Admission()
            refusal = rules.admit(ip, admission, self._clock())
        if not refusal:
            refusal = self._no_room(group)
        if refusal:
            if admission is not None:
                admission.leave()
            self._deny(port, frontend, client, refusal, count)
            return None
        flow = self.make(port, frontend, client, local, admission)
        frontend.counters.sessions_total += 1
        return flow

    def make(
        self, port: DatagramPort, frontend: FrontendState, client: Client, local: bytes, admission: Admission | None = None
    ) -> Flow:
        """A flow that is in all lists, without a server."""
        self._life.number += 1
        flow = Flow(port, frontend, client, local, reply_from(local, client), self._clock(), self._life.number)
        if frontend.frontend.listen.last:
            admission = admission or Admission()
            admission.called = port.listen.port
        flow.admission = admission
        port.flows[flow.key] = flow
        self.flows[flow] = self.groups[frontend].flows[flow] = None
        self._unsettle(flow)
        frontend.counters.sessions += 1
        self._counters.open_flows += 1
        return flow

    def _no_room(self, group: FrontendFlows) -> str:
        """Why there is no room for one more flow (a metric's label), or "". The oldest unsettled flow makes room."""
        frontend, policy = group.frontend, group.frontend.frontend.policy
        if policy.limits.rate:
            if frontend.allowance < 1:
                return "rate"
            frontend.allowance -= 1
            frontend.accepted += 1
        most = policy.max_connections
        if most and frontend.counters.sessions + frontend.others >= most and not self._replace(group.unsettled):
            return "max_connections"
        if len(self.flows) >= self.most and not self._replace(self._unsettled):
            return "flows"
        return ""

    def _replace(self, among: OrderedDict[Flow, None], but: Flow | None = None) -> bool:
        """End the oldest of these. False: there is none."""
        oldest = next(iter(among), None)
        if oldest is None or oldest is but:
            return False
        self.end(oldest, FlowEvent.REPLACED, Cause.RESOURCE)
        return True

    def _deny(self, port: DatagramPort, frontend: FrontendState, client: Client, reason: str, count: int) -> None:
        self.dropped(port, "access" if reason == "access" else "limit", count)
        if not self._logged.is_first(frontend, client[0]):
            frontend.counters.denied[reason] += 1
            return
        self._life.number += 1
        self.accounts.refused(frontend, client[:2], port.listen.port, reason, self._life.number, self._life.dialer.generation)

    def settle(self, flow: Flow) -> None:
        """It never makes room for others."""
        self._unsettled.pop(flow, None)
        self.groups[flow.frontend].unsettled.pop(flow, None)

    def _unsettle(self, flow: Flow) -> None:
        self._unsettled[flow] = self.groups[flow.frontend].unsettled[flow] = None

    # ------------------------------------------------------------ the end

    def end(self, flow: Flow, event: FlowEvent, cause: Cause = Cause.NORMAL) -> None:
        """Release everything, then count and report. No other code is called before that."""
        flow.first = event
        flow.code = _code(flow, cause)
        moved(flow, event)
        self.release(flow)
        self._run_queue.budget -= END
        server = flow.server
        self.homes.leave(flow)
        if flow.admission is not None:
            self._faults.guard("a source's slot could not be released", flow.admission.leave)
        quiet = event is FlowEvent.REPLACED and not self._logged.is_first(flow.frontend, flow.client[0])
        self._faults.guard("the end of a flow could not be counted", self.accounts.flow_ended, flow, server, quiet)
        flow.port = None
        del flow.frontend

    def release(self, flow: Flow) -> None:
        """Take it out of all lists."""
        port, frontend = flow.port, flow.frontend
        if port is not None and port.flows.get(flow.key) is flow:
            del port.flows[flow.key]
        del self.flows[flow]
        self._unsettled.pop(flow, None)
        if (group := self.groups.get(frontend)) is not None:
            group.flows.pop(flow, None)
            group.unsettled.pop(flow, None)
        frontend.counters.sessions -= 1
        self._counters.open_flows -= 1

    def _close_later(self, sock: SocketType) -> None:
        """At the end of the batch: until then its descriptor's number cannot come back, with old events for it in the batch."""
        self._life.to_close.append(sock)


def _code(flow: Flow, cause: Cause) -> str:
    """The two letters. A flow that ended by silence says what it was waiting for."""
    if cause is not Cause.NORMAL:
        return termination_code(cause, State.RELAYING)
    if flow.first is FlowEvent.TIMED_OUT:
        if flow.sock is None or flow.failed:
            return termination_code(Cause.RESOURCE if flow.failure == "resource" else Cause.SERVER, State.DIALING)
        if flow.frontend.frontend.policy.responses and not flow.datagrams_out:
            return termination_code(Cause.SERVER_TIMEOUT, State.RELAYING)
    return "--"
