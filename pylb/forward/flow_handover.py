"""One pylb follows another: its flows stop without an end, and go on there. passed_flows.py has what passes between the two."""

from collections.abc import Callable, Iterator
from select import epoll
from typing import TYPE_CHECKING

from pylb.core.flow import FlowBatch, FlowState
from pylb.core.policy import AdminState
from pylb.core.session import Cause
from pylb.forward.admission import Admission
from pylb.forward.datagram_port import count_kernel_drops
from pylb.forward.faults import Faults
from pylb.forward.flow import DatagramPort, Flow, FrontendFlows
from pylb.forward.homes import WATCHED
from pylb.forward.passed_flows import PassedFlow, PassedFlows, described

if TYPE_CHECKING:
    from pylb.forward.flows import Flows


class FlowHandover:
    """Takes flows over at the start of an engine, and passes them on at its end."""

    def __init__(
        self,
        flows: "Flows",
        events: epoll,
        by_fd: "dict[int, Flow | DatagramPort]",
        faults: Faults,
        clock: Callable[[], float],
    ) -> None:
        self._flows = flows
        self._events = events
        self._by_fd = by_fd
        self._faults = faults
        self._clock = clock
        self.passed = PassedFlows()  # by the previous pylb, until their ports are open
        self.paused = False  # the next pylb reads now, or is about to

    # ------------------------------------------------------------ the old process

    def pause(self) -> None:
        """Read nothing, from clients or servers, and end nothing: the kernel holds it for the next pylb, or until `resume`."""
        if self.paused:
            return
        self.paused = True
        for port in self._flows.ports.by_listen.values():
            self._flows.ports.unwatch(port)
        for flow in self._flows.flows:
            if flow.sock is not None:
                self._by_fd.pop(flow.fd, None)
                self._events.unregister(flow.fd)
            self._flows.accounts.settle_flow(flow)  # what moves from here on, the next pylb counts

    def resume(self) -> None:
        """There is no next pylb after all."""
        if not self.paused:
            return
        self.paused = False
        for flow in list(self._flows.flows):
            if flow.sock is not None:
                self._watch(flow)
        for port in self._flows.ports.by_listen.values():
            if port.frontend is not None:
                self._flows.ports.watch(port)

    def _watch(self, flow: Flow) -> None:
        """One that cannot be watched would get no answer any more: it ends, and its client's next datagram begins another."""
        try:
            self._events.register(flow.fd, WATCHED)
        except Exception as error:  # noqa: BLE001 - the boundary of one flow
            self._flows.fault(flow, error)
        else:
            self._by_fd[flow.fd] = flow

    def described(self) -> Iterator[FlowBatch]:
        """Describe all flows for the next pylb, in batches."""
        return described(self._flows.flows, self._clock())

    def leave(self) -> None:
        """The next pylb serves: what it got, lives on there."""
        if self.paused:
            self.paused = False
            for group in self._flows.groups.values():  # mostly of the time in which nobody read
                self._faults.guard("what the kernel dropped was not counted", count_kernel_drops, group)
            for flow in list(self._flows.flows):
                self._faults.guard("a flow could not be left to the next pylb", self._forget, flow)

    def _forget(self, flow: Flow) -> None:
        self._flows.release(flow)
        flow.state = FlowState.CLOSED
        self._flows.homes.leave(flow, lives_on=True)
        if flow.admission is not None:
            flow.admission.leave()
        flow.port = None
        del flow.frontend

    # ------------------------------------------------------------ the new process

    def take(self, group: FrontendFlows) -> None:
        """Take over the flows of a frontend whose port is open and not read yet."""
        for passed in self.passed.take(group.frontend.frontend.listen):
            self._faults.guard("a flow of the previous pylb could not be taken over", self._take, group, passed)
        for server in group.frontend.servers.values():
            if server.sessions and server.server.admin is AdminState.DRAIN:
                until = self._clock() + group.frontend.frontend.policy.timeouts.drain
                self._flows.sweep.evict(group, server, Cause.KILLED, until)

    def _take(self, group: FrontendFlows, passed: PassedFlow) -> None:
        """One whose server has left begins anew with its next datagram."""
        flows, frontend, sock, now = self._flows, group.frontend, passed.sock, self._clock()
        port = next((one for one in group.ports if one.listen.port == passed.port), None)
        server = frontend.servers.get((passed.server, passed.address))
        is_known = port is not None and (passed.client, passed.local) in port.flows
        if port is None or server is None or is_known or len(flows.flows) >= flows.most:
            sock.close()
            return
        try:
            self._events.register(sock.fileno(), WATCHED)
        except OSError:
            sock.close()
            raise
        flow = flows.make(port, frontend, passed.client, passed.local)
        flow.accepted -= passed.age
        flow.quiet_since -= passed.quiet
        flow.datagrams_in, flow.datagrams_out, flow.bytes_in, flow.bytes_out = flow.counted = passed.moved
        flows.homes.enter(flow, server, sock)
        server.counters.sessions_total -= 1  # the previous pylb has counted it
        flow.state, flow.answered, flow.single, flow.header = passed.state, passed.answered, passed.single, passed.header
        if (rules := frontend.admission_rules) is not None:
            flow.admission = flow.admission or Admission()
            rules.admit(passed.client[0], flow.admission, now)  # for its place; whatever the answer, it lives
        if flow.state is FlowState.SETTLED:
            flows.settle(flow)
