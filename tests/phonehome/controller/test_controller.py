"""A whole controller between a small API server and a pylb that only remembers: what 1.20 does not know, and what is missing.

The other sentences about it are in tests/kubernetes, against a real API server.
"""

from __future__ import annotations

from typing import Any

import pytest

from phonehome.controller import belief
from phonehome.controller.controller import Controller
from phonehome.controller.desired import CLASS
from tests.phonehome.controller.cluster import Cluster
from tests.phonehome.controller.conftest import ADDRESS, Start
from tests.phonehome.controller.pylb import Pylb
from tests.support.waiting import eventually

OTHER = "other.example/lb"


def has(controller: Controller, *names: str) -> None:
    """Its plan has exactly these Services."""
    eventually(lambda: set(controller._wanted) == {f"default.{name}" for name in names}, what=f"the plan has {names}")


def shown(*ports: int) -> list[dict[str, Any]]:
    return [{"ip": ADDRESS, "ipMode": "Proxy", "ports": [{"port": port, "protocol": "TCP"} for port in ports]}]


@pytest.mark.parametrize(("default", "taken"), [("false", ["ours"]), ("true", ["none", "ours"])])
def test_the_class_says_whose_a_service_is(cluster: Cluster, pylb: Pylb, start: Start, default: str, taken: list[str]) -> None:
    cluster.service("other", 25, cls=OTHER)
    cluster.service("none", 80)
    cluster.service("ours", 443, cls=CLASS)
    controller = start(PYLB_DEFAULT_CLASS=default)
    has(controller, *taken)
    for name in taken:
        eventually(lambda: cluster.shown(name))  # noqa: B023  used at once
        eventually(lambda: name in [service for service, _, _ in cluster.events()])  # noqa: B023
    assert sorted(pylb.registrations) == [f"default.{name}" for name in taken]
    assert {name for name, _ in cluster.patches} == {name for name, _, _ in cluster.events()} == set(taken)


def test_a_service_that_goes_to_another_class_is_released_and_left_alone(cluster: Cluster, pylb: Pylb, start: Start) -> None:
    """The class can only change by way of another type: so the API server has it."""
    cluster.service("web", 443, cls=CLASS)
    start()
    pylb.opens(443, "default.web")
    eventually(lambda: cluster.shown("web") == shown(443))
    cluster.service("web", 443, type="NodePort")
    pylb.closes(443)
    eventually(lambda: cluster.shown("web") is None)
    assert [ingress for _, ingress in cluster.patches] == [shown(443), None]

    cluster.service("web", 443, cls=OTHER)
    cluster.shows("web", [{"ip": ADDRESS}])  # the other one may even show our address
    cluster.service("mail", 25, cls=CLASS)
    pylb.opens(25, "default.mail")
    eventually(lambda: cluster.shown("mail"))
    assert [name for name, _ in cluster.patches] == ["web", "web", "mail"]
    assert 443 not in pylb.ports


def test_a_service_that_comes_from_another_class_is_taken(cluster: Cluster, pylb: Pylb, start: Start) -> None:
    cluster.service("web", 443, cls=OTHER)
    controller = start()
    eventually(lambda: "default.web" in controller._services.objects)
    cluster.service("web", 443, cls=CLASS)
    pylb.opens(443, "default.web")
    eventually(lambda: cluster.shown("web") == shown(443))


def change(cluster: Cluster, controller: Controller, name: str, *ports: int, **spec: Any) -> None:
    """And wait until the controller has seen it and told its reporter."""
    before = controller._reporter._version
    cluster.service(name, *ports, cls=CLASS, **spec)
    eventually(lambda: controller._services.objects[f"default.{name}"].version == cluster.version(name))
    eventually(lambda: controller._reporter._version > before)


@pytest.mark.parametrize("drops", [(), ("ipMode",), ("ipMode", "ports")])
def test_a_status_is_written_once_whatever_the_server_drops_of_it(
    cluster: Cluster, pylb: Pylb, start: Start, drops: tuple[str, ...]
) -> None:
    """Else each event, and that of the PATCH itself, would cause the next PATCH."""
    cluster.drops = frozenset(drops)
    cluster.service("web", 443, cls=CLASS)
    controller = start()
    pylb.opens(443, "default.web")
    eventually(lambda: cluster.shown("web"))
    expected = [{key: value for key, value in one.items() if key not in drops} for one in shown(443)]
    assert cluster.shown("web") == expected
    for number in range(5):
        change(cluster, controller, "web", 443, sessionAffinity=("ClientIP", "None")[number % 2])
    cluster.service("mail", 25, cls=CLASS)
    eventually(lambda: cluster.shown("mail"))
    assert cluster.patches == [("web", shown(443)), ("mail", shown(25))]


def test_a_status_that_somebody_else_replaces_is_left_to_him_after_three_times(
    cluster: Cluster, pylb: Pylb, start: Start
) -> None:
    cluster.service("web", 443, cls=CLASS)
    controller = start()
    pylb.opens(443, "default.web")
    for count in range(1, 4):
        eventually(lambda: cluster.shown("web") == shown(443))
        assert len(cluster.patches) == count
        eventually(lambda: controller._services.objects["default.web"].version == cluster.version("web"))
        cluster.shows("web", [{"ip": "192.0.2.1"}])
    text = "another controller has replaced the status three times: it is left to that one. Set loadBalancerClass"
    eventually(lambda: ("web", "SyncLoadBalancerFailed", text) in cluster.events())
    cluster.service("mail", 25, cls=CLASS)
    eventually(lambda: cluster.shown("mail"))
    assert (cluster.shown("web"), len(cluster.patches)) == ([{"ip": "192.0.2.1"}], 4)
    assert pylb.ports == {443: "default.web", 25: "default.mail"}, "the port is not the other controller's"


def test_a_service_that_a_list_lacks_is_released_after_two_answers_that_it_does_not_exist(
    cluster: Cluster, pylb: Pylb, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was deleted while no controller ran."""
    cluster.service("web", 443, cls=CLASS)
    cluster.service("mail", 25, cls=CLASS)
    first = start()
    pylb.opens(443, "default.web")
    pylb.opens(25, "default.mail")
    first.stop()
    cluster.delete("services", "default/web")
    second = start()
    eventually(lambda: second._missing._confirmed, what="the first 404 has come")
    assert (cluster.gets, sorted(pylb.ports)) == (["web"], [25, 443])

    monkeypatch.setattr(belief, "CONFIRM_AGAIN", 0.0)  # the minute is over
    second._changes.note()
    pylb.closes(443)
    assert (cluster.gets, pylb.ports) == (["web", "web"], {25: "default.mail"})


def test_many_that_are_missing_at_once_stay_and_an_event_says_so(cluster: Cluster, pylb: Pylb, start: Start) -> None:
    names = ("a", "b", "c")
    pylb.registrations.update({f"default.{name}": {"frontends": [{"port": port}]} for port, name in enumerate(names, 7000)})
    cluster.service("web", 443, cls=CLASS)
    start()
    text = "3 Services are suddenly missing: their ports stay open for 60 min"
    eventually(lambda: ("web", "SyncLoadBalancerFailed", text) in cluster.events())
    eventually(lambda: len(cluster.gets) >= 3, what="each is asked about")
    assert sorted(pylb.ports) == [443, 7000, 7001, 7002]


def test_many_nodes_that_go_at_once_stay_and_an_event_says_so(cluster: Cluster, pylb: Pylb, start: Start) -> None:
    for number, name in enumerate("bcd", 2):
        cluster.node(name, f"10.1.0.{number}")
    cluster.service("web", 443, cls=CLASS)
    start()
    eventually(lambda: sorted(pylb.servers("default.web")) == list("abcd"))
    cluster.lose("nodes", *"bcd")
    text = "3 nodes are suddenly missing or unusable: they stay servers for up to 60 min"
    eventually(lambda: ("web", "SyncLoadBalancerFailed", text) in cluster.events())
    assert sorted(pylb.servers("default.web")) == list("abcd")
