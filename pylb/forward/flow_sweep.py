"""The end of flows by time. The end of a flow is silence, and no clock is read per datagram.

Each flow is visited once in a period, a slice per tick, and its counts are compared with those of the last visit. What is due
is done as far as a turn's budget allows; the rest waits in the run queue.
"""

from typing import Protocol

from pylb.core.flow import FlowEvent, FlowState
from pylb.core.session import Cause
from pylb.core.table import Frontend
from pylb.forward.accounts import Accounts
from pylb.forward.datagram_port import count_kernel_drops
from pylb.forward.faults import Faults
from pylb.forward.flow import Flow, FrontendFlows
from pylb.forward.run_queue import BUDGET, QUANTUM, VISIT, RunQueue
from pylb.forward.session import FrontendState, ServerState

UNSETTLED = 30.0  # seconds of silence after which an unsettled flow ends
LONGEST_PERIOD = 5.0  # seconds in which each flow is visited once
LOOK = 1.0  # seconds between two looks at what the kernel has dropped


class FlowEnds(Protocol):
    """The part of `Flows` that is needed here."""

    def end(self, flow: Flow, event: FlowEvent, cause: Cause = ...) -> None: ...

    def fault(self, flow: Flow, error: Exception) -> None: ...


class FlowSweep:
    """Visits all flows of an engine."""

    def __init__(
        self,
        flows: FlowEnds,
        groups: dict[FrontendState, FrontendFlows],
        accounts: Accounts,
        run_queue: RunQueue,
        faults: Faults,
    ) -> None:
        self._flows = flows
        self._groups = groups
        self._accounts = accounts
        self._run_queue = run_queue
        self._faults = faults
        self._now = 0.0
        self._next_look = 0.0  # monotonic
        self._evictions: dict[ServerState, tuple[float, Cause]] = {}  # when the flows that a server has then end
        self._kill = False
        self.queued = False

    def evict(self, group: FrontendFlows, server: ServerState, cause: Cause, at: float) -> None:
        """End the flows that `server` has at `at` (monotonic). Replaces an earlier call for that server."""
        self._evictions = {one: due for one, due in self._evictions.items() if one.sessions}
        self._evictions[server] = (at, cause)
        group.owed = float(len(group.flows))

    def spare(self, server: ServerState) -> None:
        """Cancel `evict`. Idempotent."""
        self._evictions.pop(server, None)

    def close(self, group: FrontendFlows) -> None:
        """End all flows of a frontend whose ports are closed, and forget it: thousands at once would hold the loop."""
        group.closed = True
        self._run_queue.add(self)

    def tick(self, now: float, elapsed: float, *, kill: bool) -> None:
        """Find what is due. `kill`: all flows are."""
        self._now, self._kill = now, kill
        look, due = now >= self._next_look, False
        if look:
            self._next_look = now + LOOK
        for group in self._groups.values():
            rate = group.frontend.frontend.policy.limits.rate
            if rate:
                group.frontend.allowance = min(float(rate), group.frontend.allowance + rate * elapsed)
            if look:
                self._faults.guard("what the kernel dropped was not counted", count_kernel_drops, group)
            if group.closed:
                due = True
            elif group.flows:
                group.owed = min(group.owed + len(group.flows) * elapsed / group.period, len(group.flows))
                due |= group.owed >= 1
        if due or self._kill:
            self._run_queue.budget = max(self._run_queue.budget, BUDGET)
            if self.run(BUDGET):
                self._run_queue.add(self)

    def run(self, share: int = QUANTUM) -> bool:
        """Visit what is due. True: there is more."""
        end = self._run_queue.budget - share
        for group in list(self._groups.values()):
            kill = self._kill or group.closed
            if kill:
                group.owed = float(len(group.flows))
            while group.owed >= 1 and group.flows:
                group.owed -= 1
                flow = next(iter(group.flows))
                group.flows.move_to_end(flow)
                self._visit_safely(flow, kill=kill)
                if flow.state is FlowState.CLOSED:
                    group.flows.pop(flow, None)  # also if its end failed half-way
                    group.owed += 1  # the others' round takes as long as before, so no visit is late because flows end
                if self._run_queue.budget <= end:
                    return True
            if group.closed:
                del self._groups[group.frontend]
                group.frontend.break_cycles()
        return False

    def _visit_safely(self, flow: Flow, *, kill: bool) -> None:
        self._run_queue.budget -= VISIT
        try:
            self._visit(flow, kill=kill)
        except Exception as error:  # noqa: BLE001 - the boundary of one flow
            self._flows.fault(flow, error)

    def _visit(self, flow: Flow, *, kill: bool) -> None:
        if kill:
            self._flows.end(flow, FlowEvent.KILLED, Cause.KILLED)
            return
        if flow.server is not None and (eviction := self._evictions.get(flow.server)) is not None:
            at, cause = eviction
            if self._now >= at >= flow.homed_at:
                self._flows.end(flow, FlowEvent.KILLED, cause)
                return
        if self._accounts.settle_flow(flow):
            flow.quiet_since = self._now
            return
        longest = flow.frontend.frontend.policy.timeouts.udp_idle
        if flow.state is not FlowState.SETTLED:
            longest = min(longest, UNSETTLED)
        if self._now - flow.quiet_since >= longest:
            self._flows.end(flow, FlowEvent.TIMED_OUT)


def visit_period(frontend: Frontend) -> float:
    """Each flow ends at most a quarter of its timeout late: a visit may be as much late as the last datagram was after one."""
    return max(0.1, min(LONGEST_PERIOD, frontend.policy.timeouts.udp_idle / 8))
