"""Health of a server and proof of an address, given the clock."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylb.core.address import Address
from pylb.core.health import (
    PROVEN,
    UP,
    WRONG,
    YES,
    Health,
    HealthStats,
    Reachability,
    answered,
    check_hint,
    checked,
    conversation,
    failed,
    judge,
    prove,
    remembered,
    turned,
    unasked,
    unproven,
    watched,
)
from pylb.core.policy import CONNECT, Check, CheckKind, HealthMode, HealthOverride, HealthPolicy, Step, WhenAllDown

PASSIVE = HealthPolicy()
ACTIVE = HealthPolicy(HealthMode.ACTIVE)
NONE = HealthPolicy(HealthMode.NONE)


HTTP_CHECK = Check(CheckKind.HTTP, path="/primary")


def fails(
    health: Health,
    times: int,
    policy: HealthPolicy = PASSIVE,
    *,
    now: float = 0.0,
    probe: bool = False,
    reason: str = "refused",
) -> Health:
    for _ in range(times):
        health = failed(health, policy, reason, now, probe=probe, jitter=1.0)
    return health


def passes(health: Health, policy: HealthPolicy = PASSIVE, now: float = 0.0, *, probe: bool = True) -> Health:
    return answered(health, policy, now, probe=probe, jitter=1.0)


@pytest.mark.parametrize(
    ("policy", "mode"),
    [
        (HealthPolicy(), HealthMode.PASSIVE),
        (HealthPolicy(check=HTTP_CHECK), HealthMode.ACTIVE),
        (HealthPolicy(check=Check(CheckKind.SEND, (Step(b"PING", b"PONG"),))), HealthMode.ACTIVE),
        (HealthPolicy(check=Check(port=8008)), HealthMode.ACTIVE),
        (HealthPolicy(HealthMode.PASSIVE, HTTP_CHECK), HealthMode.PASSIVE),
        (HealthPolicy(HealthMode.NONE, HTTP_CHECK), HealthMode.NONE),
        (HealthPolicy(when_all_down=WhenAllDown.REFUSE), HealthMode.PASSIVE),
    ],
)
def test_a_check_that_is_more_than_a_connect_makes_health_active_unless_the_mode_is_said(
    policy: HealthPolicy, mode: HealthMode
) -> None:
    assert policy.mode is mode


def test_a_servers_own_health_is_put_over_its_frontends() -> None:
    base = HealthPolicy(check=HTTP_CHECK, interval=5.0, fall=4)
    assert HealthOverride().over(base) is None
    own = HealthOverride(port=8008, interval=1.0, rise=1, when_all_down=WhenAllDown.REFUSE).over(base)
    check = Check(CheckKind.HTTP, path="/primary", port=8008)
    assert own == HealthPolicy(None, check, interval=1.0, rise=1, fall=4, when_all_down=WhenAllDown.REFUSE)
    asked = HealthOverride(Check(port=1), fall=1).over(base)
    assert asked == HealthPolicy(None, Check(port=1), interval=5.0, fall=1)


def test_without_checks_nobody_is_refused_for_not_having_passed_one() -> None:
    assert HealthPolicy(when_all_down=WhenAllDown.REFUSE).refuses
    assert not HealthPolicy(HealthMode.NONE, when_all_down=WhenAllDown.REFUSE).refuses
    assert not HealthPolicy().refuses


def test_fall_failures_in_a_row_take_a_server_out() -> None:
    assert not fails(UP, 2).down
    assert fails(UP, 3).down
    assert not fails(passes(fails(UP, 2), probe=False), 2).down


def test_in_passive_mode_only_a_server_that_is_out_is_probed() -> None:
    assert watched(PASSIVE, 0.0, 1.0).probe_at == inf
    assert fails(UP, 2).probe_at == inf
    assert fails(UP, 3, now=10.0).probe_at == 12.0


def test_in_active_mode_every_server_is_probed() -> None:
    assert watched(ACTIVE, 10.0, 1.1).probe_at == 10.0 + 2.2
    assert fails(UP, 1, ACTIVE, now=10.0, probe=True).probe_at == 12.0
    assert passes(UP, ACTIVE, 10.0).probe_at == 12.0


@pytest.mark.parametrize("reason", ["refused", "unreachable", "reset", "wrong answer: HTTP status 503"])
def test_a_server_that_answers_is_asked_at_the_interval_however_long_its_answers_are_wrong(reason: str) -> None:
    policy = HealthPolicy(max_interval=30.0)
    health = fails(UP, 3, policy, reason=reason)
    for _ in range(20):
        health = fails(health, 1, policy, probe=True, reason=reason)
        assert health.probe_at == policy.interval


def test_a_black_hole_is_asked_less_and_less_often_up_to_max_interval() -> None:
    policy, waits = HealthPolicy(max_interval=30.0), []
    health = fails(UP, 3, policy, reason="timeout")
    for _ in range(6):
        health = fails(health, 1, policy, probe=True, reason="timeout")
        waits.append(health.probe_at)
    assert waits == [4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert fails(health, 1, policy, probe=True, reason="refused").probe_at == 2.0


def test_without_max_interval_a_black_hole_is_asked_like_all_others() -> None:
    assert fails(UP, 9, probe=True, reason="timeout").probe_at == PASSIVE.interval


def test_a_connect_is_no_answer_to_a_check_that_asks_for_more() -> None:
    policy = HealthPolicy(check=HTTP_CHECK)
    out = fails(UP, 3, policy, probe=True, reason="wrong answer: HTTP status 503")
    assert passes(out, policy, probe=False) is out
    failing = fails(UP, 2, policy, probe=True)
    assert passes(failing, policy, probe=False) is failing
    assert passes(fails(UP, 2, HealthPolicy(HealthMode.PASSIVE, HTTP_CHECK)), policy, probe=True).failures == 0


def test_in_active_mode_clients_move_no_probe() -> None:
    known = watched(ACTIVE, 0.0, 1.0)
    after = fails(known, 2, ACTIVE, now=1.9)
    assert (after.failures, after.probe_at) == (2, known.probe_at)
    after = passes(after, ACTIVE, 1.9, probe=False)
    assert (after.failures, after.probe_at) == (0, known.probe_at)


def test_a_server_that_must_pass_first_is_asked_now_and_its_first_answer_counts() -> None:
    policy = HealthPolicy(check=HTTP_CHECK, rise=3, when_all_down=WhenAllDown.REFUSE)
    fresh = unasked(policy, 10.0)
    assert (fresh.down, fresh.probe_at) == (True, 10.0)
    assert not passes(fresh, policy).down
    out = fails(fresh, 1, policy, probe=True)
    assert passes(passes(out, policy), policy).down
    assert not passes(passes(passes(out, policy), policy), policy).down


def test_a_server_that_was_down_before_a_restart_still_is() -> None:
    known = remembered(PASSIVE, 10.0, 0.5)
    assert (known.down, known.probe_at) == (True, 11.0)
    assert passes(known).down
    assert not passes(passes(known)).down


def test_a_client_that_meets_a_server_that_is_out_does_not_move_its_probe() -> None:
    out = fails(UP, 3)
    after = failed(out, PASSIVE, "timeout", 1.0, probe=False, jitter=1.0)
    assert (after.probe_at, after.reason) == (out.probe_at, "timeout")


def test_rise_answers_in_a_row_bring_it_back() -> None:
    once = passes(fails(fails(UP, 3), 3, probe=True), now=5.0)
    assert once.down
    assert once.probe_at == 7.0
    assert fails(once, 1, probe=True).answers == 0
    assert passes(once, now=7.0) == UP


def test_what_is_our_own_fault_or_unwanted_does_not_count() -> None:
    assert failed(UP, PASSIVE, "resource", 0.0, probe=False, jitter=1.0) is UP
    assert fails(UP, 9, NONE) is UP


@given(st.lists(st.booleans()), st.integers(1, 5), st.integers(1, 5))
def test_it_is_out_exactly_between_fall_failures_and_rise_answers(ends: list[bool], fall: int, rise: int) -> None:
    policy = HealthPolicy(fall=fall, rise=rise)
    health, down, row = UP, False, 0
    for ok in ends:
        failure = failed(health, policy, "reset", 0.0, probe=True, jitter=1.0)
        health = passes(health, policy) if ok else failure
        row = row + 1 if ok is down else 0
        if row >= (rise if down else fall):
            down, row = not down, 0
        assert health.down is down
        assert health.wait <= policy.interval


def test_an_address_that_answered_once_is_proven_for_good() -> None:
    assert prove(None, "yes", PASSIVE, 0.0, jitter=1.0) is PROVEN
    assert prove(PROVEN, "timeout", PASSIVE, 0.0, jitter=1.0) is PROVEN
    assert PROVEN.reachable == "yes"
    assert PROVEN.hint == ""


def test_an_address_never_dialled_is_due_now_and_then_backs_off() -> None:
    proof = unproven(100.0)
    assert (proof.reachable, proof.probe_at) == ("unknown", 100.0)
    waits = []
    for _ in range(6):
        proof = prove(proof, "timeout", HealthPolicy(max_interval=30.0), 0.0, jitter=1.0)
        waits.append(proof.probe_at)
    assert waits == [2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert "firewall" in proof.hint


@pytest.mark.parametrize("found", ["refused", "unreachable"])
def test_an_address_that_refuses_is_dialled_at_the_interval_until_it_answers(found: str) -> None:
    proof: Reachability | None = None
    for _ in range(6):
        proof = prove(proof, found, HealthPolicy(max_interval=30.0), 0.0, jitter=1.0)
        assert proof.probe_at == 2.0


def test_unreachable_is_said_as_a_refusal_with_a_hint_of_its_own() -> None:
    proof = prove(None, "unreachable", PASSIVE, 0.0, jitter=1.0)
    assert proof.reachable == "refused"
    assert "no route" in proof.hint


def test_a_check_at_another_port_that_gets_no_answer_has_a_hint_about_that_port() -> None:
    assert check_hint(10256, "timeout").startswith("port 10256 is kube-proxy's health")
    assert check_hint(31999, "refused") == "its check asks port 31999 of the server's machine: open that to this machine, too"
    assert [check_hint(0, "refused"), check_hint(10256, YES), check_hint(10256, f"{WRONG}503")] == ["", "", ""]


def test_a_lack_of_our_own_says_nothing_of_the_target() -> None:
    proof = prove(None, "resource", PASSIVE, 0.0, jitter=1.0)
    assert (proof.reachable, proof.probe_at) == ("unknown", 2.0)
    assert "pylb could not try" in proof.hint


# ---------------------------------------------------------------- what is asked, and what the answer says

SERVER = Address("192.0.2.7", 30443)


def test_a_connect_sends_nothing_and_text_is_sent_as_it_is() -> None:
    assert conversation(CONNECT, SERVER) == ()
    steps = (Step(b"PING", b"PONG"), Step(b"QUIT"))
    assert conversation(Check(CheckKind.SEND, steps), SERVER) == steps


def sent(check: Check) -> bytes:
    [step] = conversation(check, SERVER)
    return step.send


def test_a_get_names_its_host() -> None:
    asked = sent(Check(CheckKind.HTTP, path="/up"))
    assert asked.startswith(b"GET /up HTTP/1.0\r\nHost: 192.0.2.7:30443\r\n")
    assert asked.endswith(b"\r\n\r\n")
    assert b"Host: app\r\n" in sent(Check(CheckKind.HTTP, host="app"))


HTTP = Check(CheckKind.HTTP, status=(200, 299))
PONG = Check(CheckKind.SEND, (Step(expect=b"PONG"),))


@pytest.mark.parametrize(
    ("check", "answer", "ended", "verdict"),
    [
        (CONNECT, b"", False, YES),
        (PONG, b"+PO", False, None),
        (PONG, b"+PONG", False, YES),
        (PONG, b"-ERR", True, "wrong answer: b'PONG' is not in b'-ERR'"),
        (HTTP, b"HTTP/1.1 20", False, None),
        (HTTP, b"HTTP/1.1 204 No Content\r\n", False, YES),
        (HTTP, b"HTTP/1.0 200", True, YES),
        (HTTP, b"HTTP/1.1 301 Moved\r\n", False, "wrong answer: HTTP status 301"),
        (HTTP, b"HTTP/2 200\r\n", False, "wrong answer: b'HTTP/2 200' is not a status line"),
        (HTTP, b"", True, "wrong answer: closed without an answer"),
    ],
)
def test_an_answer_is_judged_as_soon_as_it_tells(check: Check, answer: bytes, ended: bool, verdict: str | None) -> None:
    step = check.steps[0] if check.steps else Step()
    assert judge(check, step, answer, ended=ended)[0] == verdict


@pytest.mark.parametrize(
    ("check", "answer", "verdict"),
    [
        (Check(CheckKind.HTTP), b"HTTP/1.0 204\r\n", YES),
        (Check(CheckKind.HTTP), b"HTTP/1.1 503 Service Unavailable\r\n", f"{WRONG}HTTP status 503"),
        (Check(CheckKind.HTTP), b"SSH-2.0-OpenSSH_9.2\r\n", f"{WRONG}b'SSH-2.0-OpenSSH_9.2' is not a status line"),
        (Check(CheckKind.SEND, (Step(expect=b"220 "),)), b"220 ", YES),
    ],
)
def test_the_segments_an_answer_comes_in_change_nothing(check: Check, answer: bytes, verdict: str) -> None:
    (step,) = check.steps or (Step(),)
    found, so_far = judge(check, step, b"", ended=False)
    for byte in answer:
        assert found is None, so_far
        found, so_far = judge(check, step, so_far + bytes([byte]), ended=False)
    assert found == verdict


def test_what_comes_after_the_text_of_a_step_is_the_next_steps() -> None:
    steps = Step(b"PING", b"+PONG\r\n"), Step(b"info", b"role:master")
    check = Check(CheckKind.SEND, steps)
    verdict, rest = judge(check, steps[0], b"+PONG\r\nrole:", ended=False)
    assert (verdict, rest) == (YES, b"role:")
    assert judge(check, steps[1], rest + b"slave", ended=False) == (None, b"role:slave")
    verdict, _ = judge(check, steps[1], rest + b"slave", ended=True)
    assert verdict == "wrong answer: step 2: b'role:master' is not in b'role:slave'"


def test_a_record_counts_checks_that_failed_and_keeps_the_last_finding() -> None:
    record = HealthStats(changed_at=10.0)
    for found in ("refused", "wrong answer: HTTP status 503", "resource", YES):
        record = checked(record, found, 0.25)
    assert record == HealthStats(changed_at=10.0, failures=2, found=YES, seconds=0.25)


def test_a_record_adds_up_the_times_that_a_server_was_down() -> None:
    record = HealthStats(changed_at=10.0)
    for now, down in ((12.0, True), (15.0, False), (20.0, True)):
        record = turned(record, now, down=down)
    assert (record.downs, record.down_seconds, record.changed_at) == (2, 3.0, 20.0)
