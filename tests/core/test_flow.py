"""The table of a flow's life."""

from pylb.core.flow import FLOW_TRANSITIONS, FlowEvent, FlowState


def test_every_flow_can_be_killed_and_can_end_by_silence() -> None:
    for state in set(FlowState) - {FlowState.CLOSED}:
        for event in (FlowEvent.KILLED, FlowEvent.TIMED_OUT):
            assert FLOW_TRANSITIONS[state, event] is FlowState.CLOSED


def test_a_settled_flow_never_makes_room_for_others() -> None:
    assert (FlowState.SETTLED, FlowEvent.REPLACED) not in FLOW_TRANSITIONS


def test_nothing_happens_to_a_flow_that_is_closed() -> None:
    assert not [event for state, event in FLOW_TRANSITIONS if state is FlowState.CLOSED]


def test_every_event_and_every_state_occurs() -> None:
    assert {event for _, event in FLOW_TRANSITIONS} == set(FlowEvent)
    assert set(FLOW_TRANSITIONS.values()) | {FlowState.NEW} == set(FlowState)
