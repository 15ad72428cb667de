"""The life of a flow as one literal table: what a session is for TCP, a flow is for UDP.

A flow is one client's datagrams to one of our addresses, and the server that they go to. It has no half-close and no dial that
takes time, so its table is much smaller than that of core/session. It sees a handful of events for each flow; datagrams do not
go through it. An unknown (state, event) is a bug and raises KeyError.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

FlowBatch = tuple[Sequence[Any], list[int]]  # flows as JSON, and a descriptor of each: from one pylb to the next


class FlowState(StrEnum):
    NEW = "new"  # no server has got a datagram of it yet, or none can be reached
    UNSETTLED = "unsettled"  # its client may be invented: it has not spoken again after an answer
    SETTLED = "settled"  # its client got an answer and went on: it lives until it is idle
    CLOSED = "closed"


class FlowEvent(StrEnum):
    SENT = "first datagram sent"
    SPOKE_AGAIN = "client spoke after an answer"
    REHOMED = "moved to another server"
    ANSWERED = "all answers came"
    TIMED_OUT = "timed out"
    REPLACED = "made room for a new flow"
    KILLED = "killed"


_S, _E = FlowState, FlowEvent

FLOW_TRANSITIONS: dict[tuple[FlowState, FlowEvent], FlowState] = {
    (_S.NEW, _E.SENT): _S.UNSETTLED,
    (_S.NEW, _E.TIMED_OUT): _S.CLOSED,
    (_S.NEW, _E.REPLACED): _S.CLOSED,
    (_S.NEW, _E.KILLED): _S.CLOSED,
    (_S.UNSETTLED, _E.SPOKE_AGAIN): _S.SETTLED,
    (_S.UNSETTLED, _E.REHOMED): _S.UNSETTLED,
    (_S.UNSETTLED, _E.ANSWERED): _S.CLOSED,
    (_S.UNSETTLED, _E.TIMED_OUT): _S.CLOSED,
    (_S.UNSETTLED, _E.REPLACED): _S.CLOSED,
    (_S.UNSETTLED, _E.KILLED): _S.CLOSED,
    (_S.SETTLED, _E.REHOMED): _S.UNSETTLED,
    (_S.SETTLED, _E.ANSWERED): _S.CLOSED,
    (_S.SETTLED, _E.TIMED_OUT): _S.CLOSED,
    (_S.SETTLED, _E.KILLED): _S.CLOSED,
}
