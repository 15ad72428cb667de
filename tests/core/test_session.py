"""The literal table: it is complete, it ends, and nothing comes after the end."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylb.core.session import TRANSITIONS, Action, Cause, Event, State, termination_code

POSSIBLE = {state: [event for (at, event) in TRANSITIONS if at is state] for state in State}


BEGINNINGS = {State.DIALING, State.AWAITING_HEADER, State.AWAITING_HELLO}
BEFORE_A_SERVER = {*BEGINNINGS, State.QUEUED, State.REJECTING}


def test_an_unknown_key_is_a_bug_and_raises() -> None:
    with pytest.raises(KeyError):
        TRANSITIONS[State.DIALING, Event.SERVER_FIN]


def test_closed_has_no_way_out() -> None:
    assert POSSIBLE[State.CLOSED] == []


def test_every_state_can_be_reached_and_every_event_and_action_is_used() -> None:
    assert {target for target, _ in TRANSITIONS.values()} | BEGINNINGS == set(State)
    assert {event for _, event in TRANSITIONS} == set(Event)
    assert {action for _, action in TRANSITIONS.values()} == set(Action)


def test_a_live_session_can_be_killed_in_any_state() -> None:
    for state in State:
        if state is not State.CLOSED:
            assert TRANSITIONS[state, Event.KILLED] == (State.CLOSED, Action.RESET)


def test_whatever_closes_closes_or_resets_both_sides() -> None:
    for target, action in TRANSITIONS.values():
        assert (target is State.CLOSED) == (action in (Action.CLOSE, Action.RESET))


def test_only_two_fins_close_in_order_or_the_end_of_an_alert() -> None:
    ways = [key for key, (_, action) in TRANSITIONS.items() if action is Action.CLOSE]
    alert = [(State.REJECTING, Event.CLIENT_FIN), (State.REJECTING, Event.TIMED_OUT)]
    assert ways == [*alert, (State.CLIENT_DONE, Event.SERVER_FIN), (State.SERVER_DONE, Event.CLIENT_FIN)]


def test_the_two_sides_mirror_each_other() -> None:
    def swap(text: str) -> str:
        table = {"CLIENT": "SERVER", "SERVER": "CLIENT"}
        return "_".join(table.get(word, word) for word in text.split("_"))

    for (state, event), (target, action) in TRANSITIONS.items():
        if state in BEFORE_A_SERVER:
            continue
        twin = TRANSITIONS[State[swap(state.name)], Event[swap(event.name)]]
        assert twin == (State[swap(target.name)], Action[swap(action.name)])


@given(st.lists(st.integers(0, 100), max_size=30))
def test_any_sequence_of_events_ends_in_closed(picks: list[int]) -> None:
    state, fins = State.AWAITING_HEADER, []
    for pick in picks:
        if state is State.CLOSED:
            break
        event = POSSIBLE[state][pick % len(POSSIBLE[state])]
        state, action = TRANSITIONS[state, event]
        fins += [action] if action in (Action.FIN_TO_CLIENT, Action.FIN_TO_SERVER) else []
    assert len(fins) == len(set(fins)), "a FIN was forwarded twice"
    if state is not State.CLOSED:
        state, _ = TRANSITIONS[state, Event.KILLED]
    assert state is State.CLOSED


@given(st.sampled_from(State))
def test_from_anywhere_the_end_is_a_few_events_away(state: State) -> None:
    front = {state}
    for _ in range(4):
        front |= {target for (at, _), (target, _) in TRANSITIONS.items() if at in front}
    assert State.CLOSED in front


def test_the_two_letters_are_haproxys() -> None:
    assert termination_code(Cause.NORMAL, State.SERVER_DONE) == "--"
    assert termination_code(Cause.SERVER, State.DIALING) == "SC"
    assert termination_code(Cause.SERVER_TIMEOUT, State.DIALING) == "sC"
    assert termination_code(Cause.RESOURCE, State.DIALING) == "RC"
    assert termination_code(Cause.CLIENT, State.RELAYING) == "CD"
    assert termination_code(Cause.CLIENT_TIMEOUT, State.CLIENT_DONE) == "cD"
    assert termination_code(Cause.KILLED, State.RELAYING) == "KD"
    assert termination_code(Cause.DOWN, State.RELAYING) == "DD"
    assert termination_code(Cause.SERVER_TIMEOUT, State.QUEUED) == "sQ"
    assert termination_code(Cause.CLIENT, State.QUEUED) == "CQ"
    assert termination_code(Cause.PROXY, State.AWAITING_HEADER) == "PR"
    assert termination_code(Cause.CLIENT_TIMEOUT, State.AWAITING_HEADER) == "cR"
    assert termination_code(Cause.CLIENT_TIMEOUT, State.CLIENT_DONE, last=True) == "cL"


def test_the_diagram_has_one_arrow_per_transition() -> None:
    page = Path(__file__).parents[2] / "docs/engine.md"  # generated: tests/contract/test_docs.py
    text = page.read_text().split("```mermaid\n")[1].split("```")[0]
    assert text.startswith("stateDiagram-v2\n    [*] --> dialing: accepted\n    [*] --> awaiting_header: ")
    assert text.endswith("    closed --> [*]\n")
    assert text.count("-->") == len(TRANSITIONS) + 4
    assert "    relaying --> client_done: client FIN / FIN to the server, behind the last byte\n" in text
