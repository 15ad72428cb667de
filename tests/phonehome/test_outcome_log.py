"""Which answers are worth a line, and that a quiet phone-home is a healthy one."""

from __future__ import annotations

import pytest

from phonehome.message import DRAINING, READY, Accepted, Placed, Refused
from phonehome.outcome_log import REMEMBERED, REMIND, OutcomeLog

OWNED = Refused(409, "port_owned", "443 belongs to mqtt", "ask its owner", None)


def placed(address: str = "203.0.113.7", reachable: str = "yes", hint: str = "") -> Placed:
    return Placed(443, address, 30443, reachable, hint)


def answer(
    result: str = "unchanged", *frontends: Placed, generation: int = 1, durable: bool = True, note: str = ""
) -> Accepted:
    return Accepted(result, generation, durable, 60, frontends or (placed(),), note)


@pytest.fixture
def outcome_log() -> OutcomeLog:
    return OutcomeLog("lb:9000", "source")


def test_a_registration_says_what_goes_where_and_a_beat_says_nothing(outcome_log: OutcomeLog) -> None:
    assert outcome_log.accepted(answer("created"), READY, 0) == ["lb:9000: registered: 443 -> 203.0.113.7:30443"]
    assert outcome_log.accepted(answer(), READY, 20) == []


def test_a_move_names_both_addresses(outcome_log: OutcomeLog) -> None:
    outcome_log.accepted(answer("created"), READY, 0)
    lines = outcome_log.accepted(answer("moved", placed("203.0.113.8")), READY, 20)
    assert lines == ["lb:9000: moved: 443 -> 203.0.113.8:30443 (was 443 -> 203.0.113.7:30443)"]


def test_an_address_of_ipv6_is_written_in_brackets(outcome_log: OutcomeLog) -> None:
    assert outcome_log.accepted(answer("created", placed("2001:db8::7")), READY, 0) == [
        "lb:9000: registered: 443 -> [2001:db8::7]:30443"
    ]


def test_a_goodbye_and_a_return_are_said_once_each(outcome_log: OutcomeLog) -> None:
    outcome_log.accepted(answer("created"), READY, 0)
    assert "draining" in outcome_log.accepted(answer(), DRAINING, 1)[0]
    assert outcome_log.accepted(answer(), DRAINING, 20) == []
    assert "registered" in outcome_log.accepted(answer(), READY, 40)[0]


def test_a_refusal_that_repeats_is_said_once_and_again_after_ten_minutes(outcome_log: OutcomeLog) -> None:
    line = "lb:9000: refused: 409 port_owned: 443 belongs to mqtt (ask its owner)"
    assert outcome_log.refused(OWNED, 0) == [line]
    assert outcome_log.refused(OWNED, REMIND - 1) == []
    assert outcome_log.refused(OWNED, REMIND) == [line]
    assert outcome_log.refused(OWNED, REMIND + 1) == []


def test_two_refusals_that_alternate_are_each_said_once(outcome_log: OutcomeLog) -> None:
    other = OWNED._replace(error="port_denied")
    assert [len(outcome_log.refused(refusal, i)) for i, refusal in enumerate([OWNED, other] * 3)] == [1, 1, 0, 0, 0, 0]


def test_a_busy_server_is_one_line_even_if_its_words_count_down(outcome_log: OutcomeLog) -> None:
    said = [outcome_log.refused(Refused(429, "slow_down", f"{left} s left", "", None), 0) for left in (9, 8, 7)]
    assert [len(lines) for lines in said] == [1, 0, 0]


def test_recovery_is_said_and_the_next_trouble_is_news_again(outcome_log: OutcomeLog) -> None:
    outcome_log.accepted(answer("created"), READY, 0)
    outcome_log.failed("no connection", "203.0.113.9: Connection refused", "", 10)
    assert outcome_log.failed("no connection", "203.0.113.9: timed out", "", 12) == []
    assert outcome_log.accepted(answer(), READY, 25) == ["lb:9000: works again after 2 failed calls in 15 s"]
    assert len(outcome_log.failed("no connection", "", "", 30)) == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.6, "1 min"), (150, "2 min 30 s"), (43_200, "12 h"), (90_061, "25 h 1 min")]
)
def test_how_long_it_failed_is_written_as_people_do(seconds: float, text: str, outcome_log: OutcomeLog) -> None:
    outcome_log.failed("no connection", "", "", 100)
    first, *_more = outcome_log.accepted(answer(), READY, 100 + seconds)
    assert first == f"lb:9000: works again after one failed call in {text}"


def test_distinct_troubles_are_remembered_in_bounded_memory(outcome_log: OutcomeLog) -> None:
    for port in range(10 * REMEMBERED):
        assert len(outcome_log.refused(OWNED._replace(detail=str(port)), 0)) == 1
    assert len(outcome_log._said) == REMEMBERED


def test_a_pylb_that_forgot_or_restarted_is_noticed(outcome_log: OutcomeLog) -> None:
    outcome_log.accepted(answer("created", generation=9), READY, 0)
    assert "restarted (its generation went from 9 to 2)" in outcome_log.accepted(answer(generation=2), READY, 20)[0]
    assert "had forgotten" in outcome_log.accepted(answer("created", generation=3), READY, 40)[0]
    assert outcome_log.accepted(answer(generation=4), READY, 60) == []


@pytest.mark.parametrize("reachable", ["refused", "timeout", "unreachable"])
def test_a_target_that_does_not_answer_is_said_with_a_hint_and_so_is_its_return(
    outcome_log: OutcomeLog, reachable: str
) -> None:
    lines = outcome_log.accepted(answer("created", placed(reachable=reachable)), READY, 0)
    assert len(lines) == 2
    assert f"443 -> 203.0.113.7:30443 is not reachable from pylb: {reachable} (" in lines[1]
    assert outcome_log.accepted(answer("unchanged", placed(reachable=reachable)), READY, 20) == []
    assert outcome_log.accepted(answer(), READY, 40) == ["lb:9000: 443 -> 203.0.113.7:30443 is reachable now"]


def test_the_hint_of_pylb_comes_before_our_own(outcome_log: OutcomeLog) -> None:
    lines = outcome_log.accepted(answer("created", placed(reachable="refused", hint="it is Tuesday")), READY, 0)
    assert "(it is Tuesday)" in lines[1]


def test_a_call_over_ipv6_whose_nodeport_does_not_answer_is_noticed(outcome_log: OutcomeLog) -> None:
    lines = outcome_log.accepted(answer("created", placed("2001:db8::7", "refused")), READY, 0)
    assert any("PYLB_ADDRESS=source4" in line for line in lines)


@pytest.mark.parametrize(
    ("address", "target", "reachable"),
    [("source", "2001:db8::7", "yes"), ("source6", "2001:db8::7", "refused"), ("source", "203.0.113.7", "refused")],
)
def test_nobody_is_sent_to_source4_without_a_reason(address: str, target: str, reachable: str) -> None:
    lines = OutcomeLog("lb:9000", address).accepted(answer("created", placed(target, reachable)), READY, 0)
    assert not any("source4" in line for line in lines)


def test_what_is_not_durable_and_what_pylb_notes_is_said_once(outcome_log: OutcomeLog) -> None:
    weak = answer("created", durable=False, note="dst-ip not used")
    assert len(outcome_log.accepted(weak, READY, 0)) == 3
    assert outcome_log.accepted(weak._replace(result="unchanged"), READY, 20) == []


def test_dns_that_fails_says_what_is_kept_and_that_it_is_back(outcome_log: OutcomeLog) -> None:
    assert outcome_log.resolved("Name or service not known", ["203.0.113.9"]) == [
        "lb:9000: DNS failed (Name or service not known); keeping 203.0.113.9"
    ]
    assert outcome_log.resolved("no answer within 5 s", ["203.0.113.9"]) == []
    assert outcome_log.resolved("", ["203.0.113.9"]) == ["lb:9000: DNS answers again"]
    assert outcome_log.resolved("", []) == []
