"""Which events are due."""

from __future__ import annotations

from phonehome.controller.events import ENSURED, FAILED, REPEAT, Event, Events, document
from tests.phonehome.controller.made import service

GOOD, BAD = Event(ENSURED, "open"), Event(FAILED, "port_owned")


def test_an_event_on_change_and_trouble_again_after_ten_minutes() -> None:
    events = Events()
    assert events.due("uid", [BAD], 0) == [BAD]
    assert events.due("uid", [BAD], REPEAT - 1) == []
    assert events.due("uid", [BAD], REPEAT) == [BAD]
    assert events.due("uid", [GOOD], REPEAT + 1) == [GOOD]
    assert events.due("uid", [GOOD], 9 * REPEAT) == []
    assert events.due("uid", [BAD], 9 * REPEAT) == [BAD]


def test_an_event_that_was_not_sent_is_due_again() -> None:
    events = Events()
    events.due("uid", [BAD], 0)
    events.not_sent("uid", BAD)
    assert events.due("uid", [BAD], 1) == [BAD]


def test_old_good_news_is_not_told_again_after_a_restart() -> None:
    events = Events()
    events.known("uid")
    assert events.due("uid", [GOOD, BAD], 0) == [BAD]
    events.known("uid")
    assert events.due("uid", [BAD], 1) == []
    assert events.due("uid", [GOOD], 2) == [GOOD]


def test_the_services_that_are_gone_are_forgotten() -> None:
    events = Events()
    events.due("uid", [GOOD], 0)
    events.forget_all_but(())
    assert events.due("uid", [GOOD], 1) == [GOOD]


def test_the_document_has_what_kubectl_describe_shows() -> None:
    found = document(service("web"), Event(FAILED, "x" * 2000), "2026-11-26T10:00:00Z", "1234")
    assert found["metadata"] == {"name": "web.1234", "namespace": "default"}
    assert found["involvedObject"]["uid"] == "uid-web"
    assert (found["type"], found["reason"], len(found["message"])) == ("Warning", FAILED, 1000)
