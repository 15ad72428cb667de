"""Health of a server and proof of an address, given the clock."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylb.core.address import Address
from pylb.core.health import (
    PROBE_MAX,
    PROVEN,
    UP,
    YES,
    Health,
    Record,
    answered,
    checked,
    failed,
    judge,
    prove,
    request,
    turned,
    unproven,
    watched,
)
from pylb.core.policy import CONNECT, Check, CheckKind, HealthMode, HealthPolicy

PASSIVE = HealthPolicy()
ACTIVE = HealthPolicy(mode=HealthMode.ACTIVE)
NONE = HealthPolicy(mode=HealthMode.NONE)


def fails(health: Health, times: int, policy: HealthPolicy = PASSIVE, *, now: float = 0.0, probe: bool = False) -> Health:
    for _ in range(times):
        health = failed(health, policy, "refused", now, probe=probe, jitter=1.0)
    return health


def test_fall_failures_in_a_row_take_a_server_out() -> None:
    assert not fails(UP, 2).down
    assert fails(UP, 3).down
    assert not fails(answered(fails(UP, 2), PASSIVE, 0.0, jitter=1.0), 2).down


def test_in_passive_mode_only_a_server_that_is_out_is_probed() -> None:
    assert watched(PASSIVE, 0.0, 1.0).probe_at == inf
    assert fails(UP, 2).probe_at == inf
    assert fails(UP, 3, now=10.0).probe_at == 12.0


def test_in_active_mode_every_server_is_probed() -> None:
    assert watched(ACTIVE, 10.0, 1.1).probe_at == 10.0 + 2.2
    assert fails(UP, 1, ACTIVE, now=10.0).probe_at == 12.0
    assert answered(UP, ACTIVE, 10.0, jitter=1.0).probe_at == 12.0


def test_probes_of_a_dead_server_back_off_to_half_a_minute() -> None:
    health, waits = fails(UP, 3), []
    for _ in range(6):
        health = fails(health, 1, probe=True)
        waits.append(health.probe_at)
    assert waits == [4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_a_client_that_meets_a_server_that_is_out_does_not_move_its_probe() -> None:
    out = fails(UP, 3)
    after = failed(out, PASSIVE, "timeout", 1.0, probe=False, jitter=1.0)
    assert (after.probe_at, after.reason) == (out.probe_at, "timeout")


def test_rise_answers_in_a_row_bring_it_back() -> None:
    once = answered(fails(fails(UP, 3), 3, probe=True), PASSIVE, 5.0, jitter=1.0)
    assert once.down
    assert once.probe_at == 7.0
    assert fails(once, 1, probe=True).answers == 0
    assert answered(once, PASSIVE, 7.0, jitter=1.0) == UP


def test_what_is_our_own_fault_or_unwanted_does_not_count() -> None:
    assert failed(UP, PASSIVE, "resource", 0.0, probe=False, jitter=1.0) is UP
    assert fails(UP, 9, NONE) is UP


@given(st.lists(st.booleans()), st.integers(1, 5), st.integers(1, 5))
def test_it_is_out_exactly_between_fall_failures_and_rise_answers(ends: list[bool], fall: int, rise: int) -> None:
    policy = HealthPolicy(fall=fall, rise=rise)
    health, down, row = UP, False, 0
    for ok in ends:
        health = (
            answered(health, policy, 0.0, jitter=1.0) if ok else failed(health, policy, "reset", 0.0, probe=True, jitter=1.0)
        )
        row = row + 1 if ok is down else 0
        if row >= (rise if down else fall):
            down, row = not down, 0
        assert health.down is down
        assert health.wait <= PROBE_MAX


def test_an_address_that_answered_once_is_proven_for_good() -> None:
    assert prove(None, "yes", 2.0, 0.0, jitter=1.0) is PROVEN
    assert prove(PROVEN, "timeout", 2.0, 0.0, jitter=1.0) is PROVEN
    assert PROVEN.reachable == "yes"
    assert PROVEN.hint == ""


def test_an_address_never_dialled_is_due_now_and_then_backs_off() -> None:
    proof = unproven(100.0)
    assert (proof.reachable, proof.probe_at) == ("unknown", 100.0)
    waits = []
    for _ in range(6):
        proof = prove(proof, "timeout", 2.0, 0.0, jitter=1.0)
        waits.append(proof.probe_at)
    assert waits == [2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert "firewall" in proof.hint


def test_unreachable_is_said_as_a_refusal_with_a_hint_of_its_own() -> None:
    proof = prove(None, "unreachable", 2.0, 0.0, jitter=1.0)
    assert proof.reachable == "refused"
    assert "no route" in proof.hint


def test_a_lack_of_our_own_says_nothing_of_the_target() -> None:
    proof = prove(None, "resource", 2.0, 0.0, jitter=1.0)
    assert (proof.reachable, proof.probe_at) == ("unknown", 2.0)
    assert "pylb could not try" in proof.hint


# ---------------------------------------------------------------- what is asked, and what the answer says

SERVER = Address("192.0.2.7", 30443)


def test_a_connect_sends_nothing_and_text_is_sent_as_it_is() -> None:
    assert request(CONNECT, SERVER) == b""
    assert request(Check(CheckKind.SEND, send=b"PING"), SERVER) == b"PING"


def test_a_get_names_its_host() -> None:
    asked = request(Check(CheckKind.HTTP, path="/up"), SERVER)
    assert asked.startswith(b"GET /up HTTP/1.0\r\nHost: 192.0.2.7:30443\r\n")
    assert asked.endswith(b"\r\n\r\n")
    assert b"Host: app\r\n" in request(Check(CheckKind.HTTP, host="app"), SERVER)


HTTP = Check(CheckKind.HTTP, status=(200, 299))


@pytest.mark.parametrize(
    ("check", "answer", "ended", "verdict"),
    [
        (CONNECT, b"", False, YES),
        (Check(CheckKind.SEND, expect=b"PONG"), b"+PO", False, None),
        (Check(CheckKind.SEND, expect=b"PONG"), b"+PONG", False, YES),
        (Check(CheckKind.SEND, expect=b"PONG"), b"-ERR", True, "wrong answer: b'PONG' is not in b'-ERR'"),
        (HTTP, b"HTTP/1.1 20", False, None),
        (HTTP, b"HTTP/1.1 204 No Content\r\n", False, YES),
        (HTTP, b"HTTP/1.0 200", True, YES),
        (HTTP, b"HTTP/1.1 301 Moved\r\n", False, "wrong answer: HTTP status 301"),
        (HTTP, b"HTTP/2 200\r\n", False, "wrong answer: b'HTTP/2 200' is no status line"),
        (HTTP, b"", True, "wrong answer: closed without an answer"),
    ],
)
def test_an_answer_is_judged_as_soon_as_it_tells(check: Check, answer: bytes, ended: bool, verdict: str | None) -> None:
    assert judge(check, answer, ended=ended) == verdict


def test_a_record_counts_checks_that_failed_and_keeps_the_last_finding() -> None:
    record = Record(changed_at=10.0)
    for found in ("refused", "wrong answer: HTTP status 503", "resource", YES):
        record = checked(record, found, 0.25)
    assert record == Record(changed_at=10.0, failures=2, found=YES, seconds=0.25)


def test_a_record_adds_up_the_times_that_a_server_was_down() -> None:
    record = Record(changed_at=10.0)
    for now, down in ((12.0, True), (15.0, False), (20.0, True)):
        record = turned(record, now, down=down)
    assert (record.downs, record.down_seconds, record.changed_at) == (2, 3.0, 20.0)
