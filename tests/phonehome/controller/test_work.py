"""What is said to one pylb, in which order, and what its answers lead to."""

from __future__ import annotations

from typing import Any

import pytest

from phonehome.controller.desired import Rules, Wanted, plan
from phonehome.controller.sets import Outcome
from phonehome.controller.work import DELETE, LOOK, LOOK_EVERY, PUT, Job, Work
from phonehome.message import Accepted, Refused
from tests.phonehome.controller.made import node, service

NODES = (node("a", "i:10.1.0.1"),)


def wanted(*services: Any, nodes: Any = NODES) -> dict[str, Wanted]:
    return dict(plan(services, nodes, Rules()).wanted)


def high(_low: float, high: float) -> float:
    return high


def accepted(result: str = "updated", generation: int = 1, ttl: int | None = 900) -> Outcome:
    return Outcome(Accepted(result, generation, True, ttl, ()))


def refused(status: int, error: str, *ports: int, wait: float | None = None) -> Outcome:
    return Outcome(Refused(status, error, "", "", wait), frozenset(("TCP", port) for port in ports))


def started(*services: Any) -> Work:
    """Has looked; nothing is said yet."""
    work = Work(high)
    work.aim(wanted(*services), ())
    assert work.next(0) == Job(LOOK)
    work.looked(frozenset(), 0)
    return work


def all_jobs(work: Work, now: float) -> list[tuple[str, str]]:
    """Every job is accepted."""
    found = []
    while isinstance(job := work.next(now), Job) and job.kind != LOOK:
        found.append((job.kind, job.name.rpartition(".")[2]))
        work.answered(job, accepted(), now)
    return found


def put(work: Work, now: float) -> Job:
    job = work.next(now)
    assert isinstance(job, Job)
    assert job.kind == PUT
    return job


def test_everything_is_said_once_and_again_after_a_third_of_the_lease() -> None:
    work = started(service("web", (443, 30443)), service("mail", (25, 30025)))
    assert sorted(all_jobs(work, 1)) == [(PUT, "mail"), (PUT, "web")]
    assert work.next(1) == pytest.approx(LOOK_EVERY - 1)
    work.looked(frozenset({"default.web", "default.mail"}), 300)
    assert all_jobs(work, 300) == []
    work.looked(frozenset({"default.web", "default.mail"}), 301)
    assert len(all_jobs(work, 301)) == 2


def test_a_new_version_of_a_service_that_asks_for_the_same_is_no_call() -> None:
    work = started(service("web", (443, 30443)))
    all_jobs(work, 1)
    work.aim(wanted(service("web", (443, 30443), version="2")), ())
    assert all_jobs(work, 2) == []
    work.aim(wanted(service("web", (443, 30444), version="3")), ())
    assert all_jobs(work, 2) == [(PUT, "web")]


def test_a_port_is_freed_before_its_next_owner_asks_for_it() -> None:
    work = started(service("gone", (22, 30022)), service("shrinks", (80, 30080), (443, 30443)))
    all_jobs(work, 1)
    work.aim(wanted(service("grows", (22, 30001), (443, 30002)), service("shrinks", (80, 30080))), ["default.gone"])
    assert all_jobs(work, 2) == [(DELETE, "gone"), (PUT, "shrinks"), (PUT, "grows")]


def test_without_servers_nothing_is_said() -> None:
    work = started(service("web", (443, 30443)))
    all_jobs(work, 1)
    work.aim(wanted(service("web", (443, 30443)), nodes=()), ())
    assert all_jobs(work, 2) == []
    assert work.records["default.web"].open == {("TCP", 443)}


def test_the_other_ports_are_served_at_once_and_the_refused_one_is_tried_again() -> None:
    work = started(service("mail", (25, 30025), (587, 30587)))
    work.answered(put(work, 1), refused(409, "port_owned", 25), 1)
    job = put(work, 1)
    assert job.without == {("TCP", 25)}
    work.answered(job, accepted(), 1)
    record = work.records["default.mail"]
    assert record.open == {("TCP", 587)}
    assert [why.error for why in record.refused.values()] == ["port_owned"]

    work.looked(frozenset({"default.mail"}), 60)
    assert isinstance(work.next(60), float)
    job = put(work, 61)
    assert job.without == set()
    work.answered(job, accepted(), 61)
    assert record.open == {("TCP", 25), ("TCP", 587)}
    assert record.refused == {}


def test_a_refusal_of_everything_is_repeated_ever_more_slowly_but_a_change_is_tried_at_once() -> None:
    work = started(service("web", (443, 30443)))
    waits = []
    now = 1.0
    for _ in range(12):
        work.looked(frozenset(), now)
        work.answered(put(work, now), refused(403, "port_forbidden", 443), now)
        waits.append(work.records["default.web"].due - now)
        now = work.records["default.web"].due
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    work.looked(frozenset(), now)
    work.answered(put(work, now), refused(403, "port_forbidden", 443), now)
    work.aim(wanted(service("web", (8443, 30443))), ())
    work.looked(frozenset(), now)
    assert put(work, now).wanted is not None


@pytest.mark.parametrize(
    ("answer", "wait"),
    [
        (refused(429, "too_many_requests", wait=7), 8.0),
        (refused(503, "unavailable"), 1.0),
        (refused(401, "unauthorized"), 1.0),
        (refused(403, "source_forbidden"), 1.0),
        (refused(404, "not_found"), 1.0),
        (refused(200, "not_pylb"), 1.0),
    ],
)
def test_what_any_call_would_get_stops_all_calls_for_a_while(answer: Outcome, wait: float) -> None:
    work = started(service("web", (443, 30443)), service("mail", (25, 30025)))
    work.answered(put(work, 1), answer, 1)
    assert work.next(1) == pytest.approx(wait)
    assert work.trouble
    assert len(all_jobs(work, 1 + wait)) == 2
    assert work.trouble == ""


def test_a_pylb_that_lost_its_state_gets_everything_again() -> None:
    work = started(service("web", (443, 30443)), service("mail", (25, 30025)))
    all_jobs(work, 1)
    work.looked(frozenset({"default.mail"}), 60)
    assert work.records["default.web"].open == frozenset()
    assert all_jobs(work, 60) == [(PUT, "web")]


def test_a_generation_that_goes_back_means_the_same() -> None:
    work = started(service("web", (443, 30443)), service("mail", (25, 30025)))
    for _ in range(2):
        work.answered(put(work, 1), accepted(generation=9), 1)
    work.aim(wanted(service("web", (443, 30444)), service("mail", (25, 30025))), ())
    work.answered(put(work, 2), accepted(generation=1), 2)
    assert put(work, 2).name == "default.mail"


def test_what_an_earlier_controller_left_is_known_and_can_be_released() -> None:
    work = Work(high)
    work.looked(frozenset({"default.old", "default.web"}), 0)
    assert work.names == {"default.old", "default.web"}
    work.aim(wanted(service("web", (443, 30443))), ["default.old"])
    assert all_jobs(work, 1) == [(DELETE, "old"), (PUT, "web")]
    assert work.names == {"default.web"}


def test_a_release_that_is_refused_is_repeated() -> None:
    work = started()
    work.looked(frozenset({"default.old"}), 0)
    work.aim({}, ["default.old"])
    job = work.next(1)
    assert isinstance(job, Job)
    work.answered(job, refused(403, "name_forbidden"), 1)
    assert work.next(1) == pytest.approx(1.0)
    assert all_jobs(work, 2) == [(DELETE, "old")]


def test_a_registration_of_which_no_server_answers_is_repeated_soon_until_one_does() -> None:
    work = started(service("web", (443, 30443)))
    silent = {("TCP", 443): "nothing listens there yet"}
    work.answered(put(work, 1), accepted()._replace(silent=silent), 1)
    assert work.records["default.web"].silent == silent
    assert work.next(1) == pytest.approx(60 - 1)  # the next look
    work.looked(frozenset({"default.web"}), 60.5)
    assert work.next(60.5) == pytest.approx(0.5)
    work.answered(put(work, 61), accepted("unchanged"), 61)
    assert work.records["default.web"].silent == {}
    work.looked(frozenset({"default.web"}), 300)
    assert work.next(300) == pytest.approx(60)
