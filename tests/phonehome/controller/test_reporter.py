"""Statuses and events against an API server that refuses some of them. Each turn is taken by the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from phonehome.controller.desired import CLASS
from phonehome.controller.events import FAILED, Event
from phonehome.controller.kube import Access, Api
from phonehome.controller.objects import Ingress, PortStatus
from phonehome.controller.reporter import Report, Reporter
from phonehome.credentials import read_file
from phonehome.values import parse_url
from tests.phonehome.controller.cluster import Cluster
from tests.phonehome.controller.made import service
from tests.phonehome.controller.scripted import Step, status

SHOWN = (Ingress("198.51.100.1", "Proxy", (PortStatus(443, "TCP", ""),)),)
REASONS = (Event(FAILED, "port_owned"),)
NAMES = ("one", "two", "three")

RIGHTS = 'services "one" is forbidden: User "pylb-controller" cannot patch resource "services/status"'
ADMISSION = 'admission webhook "policy.example.net" denied the request: no addresses here'
ENDING = 'events "one.1" is forbidden: unable to create new content in namespace default because it is being terminated'


class Reporting:
    """A reporter of three Services, each with one address to show and one event to send."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        (folder / "token").write_text("a-token-of-kubernetes\n")
        for name in NAMES:
            cluster.service(name, 443, cls=CLASS)
        self.cluster, self.lines = cluster, list[str]()
        api = Api(Access(parse_url(cluster.url), str(folder / "token"), None), read_file)
        self.reporter = Reporter(api, self.lines.append, lambda low, _high: low, lambda *_: None)
        self.reports = {name: Report(service(name, (443, 30443)), SHOWN, REASONS) for name in NAMES}

    def turn(self) -> float | None:
        """Seconds until the next try, if one failed."""
        return self.reporter._turn(self.reports, ())

    def refuse(self, step: Step, *, method: str = "PATCH", part: str = "") -> list[str]:
        """Requests of this method get this answer if their path has `part`; returns the paths of all of this method."""
        paths: list[str] = []

        def answer(called: str, path: str) -> Step | None:
            if called != method:
                return None
            paths.append(path)
            return step if part in path else None

        self.cluster.refuse = answer
        return paths

    def shown(self) -> list[str]:
        return [name for name in NAMES if self.cluster.shown(name)]

    def said(self) -> list[str]:
        return [name for name, _, _ in self.cluster.events()]


@pytest.fixture
def reporting(cluster: Cluster, tmp_path: Path) -> Reporting:
    return Reporting(cluster, tmp_path)


def everything(reporting: Reporting) -> None:
    """It is well again, and goes on where it was."""
    reporting.cluster.refuse = lambda _method, _path: None
    assert reporting.turn() is None
    assert (reporting.shown(), sorted(reporting.said())) == (list(NAMES), sorted(NAMES))
    assert reporting.turn() is None
    assert len(reporting.said()) == len(NAMES), "nothing is said twice"


def test_it_waits_as_long_as_the_api_server_asks_for(reporting: Reporting) -> None:
    paths = reporting.refuse(status(429, "too many requests", Retry_After="7"))
    wait = reporting.turn()
    assert wait is not None
    assert 7 < wait < 8.1
    assert len(paths) == 1, "the others would get the same answer"
    assert reporting.lines == ["Kubernetes API, status and events: 429 too many requests"]
    everything(reporting)


@pytest.mark.parametrize("code", [500, 503])
def test_an_ill_api_server_is_asked_less_and_less(reporting: Reporting, code: int) -> None:
    reporting.reporter._pace._uniform = lambda _low, high: high
    paths = reporting.refuse(status(code, "etcd is away"))
    assert [reporting.turn() for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert (len(paths), len(reporting.lines)) == (7, 1), "one call each time, and one line"
    everything(reporting)


def test_a_missing_right_is_said_with_what_to_apply(reporting: Reporting) -> None:
    paths = reporting.refuse(status(403, RIGHTS))
    assert reporting.turn() is not None
    assert len(paths) == 1
    [line] = reporting.lines
    assert line.endswith("(apply deploy/kubernetes/controller/base.yaml)")
    everything(reporting)


@pytest.mark.parametrize("step", [status(403, ADMISSION), status(422, "status is invalid"), status(400, "bad")])
def test_a_status_that_is_refused_stops_neither_the_others_nor_the_events(reporting: Reporting, step: Step) -> None:
    paths = reporting.refuse(step, part="/one/")
    assert reporting.turn() is None
    assert (reporting.shown(), sorted(reporting.said())) == (["two", "three"], sorted(NAMES))
    [line] = reporting.lines
    assert line.startswith("Kubernetes API, status of default.one: 4")
    assert reporting.turn() is None
    assert sum("/one/" in path for path in paths) == 1, "it would be refused again"


def test_a_conflict_is_tried_again_with_the_next_look(reporting: Reporting) -> None:
    reporting.refuse(status(409, "the object has been modified"), part="/one/")
    assert reporting.turn() is None
    assert reporting.shown() == ["two", "three"]
    assert reporting.lines == []
    everything(reporting)


def test_a_service_that_went_meanwhile_is_no_trouble(reporting: Reporting) -> None:
    reporting.cluster.delete("services", "default/one")
    assert reporting.turn() is None
    assert (reporting.lines, [name for name, _ in reporting.cluster.patches]) == ([], list(NAMES))


def test_a_namespace_that_ends_takes_no_events_and_the_others_go_on(reporting: Reporting) -> None:
    ending = service("four", (443, 30443))._replace(namespace="ending")
    reporting.cluster.service("four", 443, namespace="ending", cls=CLASS)
    reporting.reports = {"four": Report(ending, SHOWN, REASONS), **reporting.reports}
    paths = reporting.refuse(status(403, ENDING), method="POST", part="/ending/")
    assert reporting.turn() is None
    assert sorted(reporting.said()) == sorted(NAMES)
    assert reporting.cluster.shown("four", "ending")
    assert reporting.turn() is None
    assert sum("/ending/" in path for path in paths) == 1


def test_an_event_that_was_not_taken_is_sent_when_it_can_be(reporting: Reporting) -> None:
    reporting.refuse(status(429, "too many requests", Retry_After="1"), method="POST")
    assert reporting.turn() is not None
    assert (reporting.shown(), reporting.said()) == (list(NAMES), [])
    everything(reporting)
