"""Services and Nodes in, registrations and problems out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from phonehome.controller import objects
from phonehome.controller.desired import Rules, body, plan
from tests.phonehome.controller.made import node, service

NODES = (node("a", "i:10.1.0.1", "e:203.0.113.1"), node("b", "i:10.1.0.2"))
EVERYBODY = Rules(default_class=True)


def addresses(*services: Any, nodes: Any = NODES, rules: Rules = EVERYBODY) -> dict[str, str]:
    found = plan(services, nodes, rules).wanted
    return {one.instance: one.address for wanted in found.values() for one in wanted.servers}


@pytest.mark.parametrize(
    ("spec", "default", "taken"),
    [
        ({}, False, True),
        ({"loadBalancerClass": None}, False, False),
        ({"loadBalancerClass": None}, True, True),
        ({"loadBalancerClass": "other.example/lb"}, True, False),
        ({"type": "NodePort"}, True, False),
        ({"deleting": True}, True, False),
    ],
)
def test_whose_service_it_is(spec: dict[str, Any], default: bool, taken: bool) -> None:
    found = plan([service("web", (443, 30443), **spec)], NODES, Rules(default_class=default))
    assert ("default.web" in found.wanted) is taken
    assert ("default.web" in found.ours) is taken


def test_a_registration_says_everything_in_one_call() -> None:
    one = service(
        "web", (443, 30443), (25, 30025), version="17",
        loadBalancerSourceRanges=["10.0.0.0/8", " 192.0.2.7/24"],
        annotations={"proxy-protocol": "25=v1", "idle-timeout": "2h"},
    )  # fmt: skip
    wanted = plan([one], NODES, EVERYBODY).wanted["default.web"]
    assert wanted.sequence == "17"
    check = {"http": "/healthz", "port": 10256}
    assert json.loads(body(wanted, 900)) == {
        "frontends": [
            {"port": 443, "target_port": 30443, "health": check},
            {"port": 25, "target_port": 30025, "proxy_protocol": "v1", "health": check},
        ],
        "servers": [{"instance": "a", "address": "203.0.113.1"}, {"instance": "b", "address": "10.1.0.2"}],
        "ttl": 900,
        "access": [{"allow": "10.0.0.0/8"}, {"allow": "192.0.2.0/24"}],
        "idle_timeout": 7200,
    }
    assert [each["port"] for each in json.loads(body(wanted, 900, [("TCP", 25)]))["frontends"]] == [443]


@pytest.mark.parametrize(
    ("nodes", "rules", "expected"),
    [
        (NODES, EVERYBODY, {"a": "203.0.113.1", "b": "10.1.0.2"}),
        (NODES, EVERYBODY._replace(external=False), {"a": "10.1.0.1", "b": "10.1.0.2"}),
        ((node("a", "h:a.example.net", "i:10.1.0.1"),), EVERYBODY, {"a": "10.1.0.1"}),
        ((node("a", "i:fd00::1", "i:10.1.0.1"),), EVERYBODY, {"a": "10.1.0.1"}),
        ((node("a", "i:fd00::1"),), EVERYBODY, {}),
        ((node("a", "i:10.1.0.1", meta={"deletionTimestamp": "now"}), NODES[1]), EVERYBODY, {"b": "10.1.0.2"}),
        ((node("a", "i:10.1.0.1", labels={objects.EXCLUDED: "false"}), NODES[1]), EVERYBODY, {"b": "10.1.0.2"}),
        ((node("a", "i:10.1.0.1", taints=[{"key": objects.AUTOSCALER_TAINT}]), NODES[1]), EVERYBODY, {"b": "10.1.0.2"}),
        ((node("a", "i:10.1.0.1", labels={"pool": "edge"}), NODES[1]), Rules(True, (("pool", "edge"),)), {"a": "10.1.0.1"}),
    ],
)  # fmt: skip
def test_which_nodes_are_servers_and_at_which_address(nodes: Any, rules: Rules, expected: dict[str, str]) -> None:
    assert addresses(service("web", (443, 30443)), nodes=nodes, rules=rules) == expected


def test_the_first_family_of_a_service_decides() -> None:
    both = (node("a", "i:10.1.0.1", "i:fd00::1"),)
    assert addresses(service("web", (443, 30443), ipFamilies=["IPv6", "IPv4"]), nodes=both) == {"a": "fd00::1"}


def test_a_node_that_is_not_ready_stays() -> None:
    """KEP-3458: pylb's own checks decide."""
    found = {"metadata": {"name": "a"}, "status": {"conditions": [{"type": "Ready", "status": "False"}]}}
    assert objects.node(found).out == ""


def test_the_weight_of_a_node() -> None:
    nodes = (node("a", "i:10.1.0.1", annotations={"weight": "10"}), node("b", "i:10.1.0.2", annotations={"weight": "much"}))
    wanted = plan([service("web", (443, 30443))], nodes, EVERYBODY).wanted["default.web"]
    assert [one.weight for one in wanted.servers] == [10, 1]


def test_a_local_service_is_checked_where_its_pods_are() -> None:
    local = service("web", (443, 30443), externalTrafficPolicy="Local", healthCheckNodePort=31999)
    wanted = plan([local], NODES, EVERYBODY).wanted["default.web"]
    assert wanted.frontends[0].health == {"http": "/healthz", "port": 31999}
    assert len(wanted.servers) == 2


@pytest.mark.parametrize(
    ("text", "checks"),
    [
        ("tcp", ["tcp", "tcp"]),
        ('{"http": "/ready"}', [{"http": "/ready"}, {"http": "/ready"}]),
        ('{"25": {"expect": "220"}}', [{"http": "/healthz", "port": 10256}, {"expect": "220"}]),
    ],
)
def test_a_check_of_ones_own(text: str, checks: list[object]) -> None:
    one = service("web", (443, 30443), (25, 30025), annotations={"health": text})
    assert [each.health for each in plan([one], NODES, EVERYBODY).wanted["default.web"].frontends] == checks


def test_a_port_goes_to_the_oldest_service_then_to_the_lowest_uid() -> None:
    young = service("a", (443, 30001), (80, 30080), created="2026-11-26T10:00:01Z")
    old, as_old = service("z", (443, 30002)), service("zz", (443, 30003))
    found = plan([young, as_old, old], NODES, EVERYBODY)
    assert {name: one.ports for name, one in found.wanted.items()} == {
        "default.z": {("TCP", 443)},
        "default.a": {("TCP", 80)},
    }
    assert [(one.reason, one.port) for one in found.problems["default.zz"]] == [("port_owned", ("TCP", 443))]


def test_a_port_that_cannot_be_served_is_free_for_others() -> None:
    without = service("a", (443, 0))
    found = plan([without, service("b", (443, 30443), created="2026-11-26T11:00:00Z")], NODES, EVERYBODY)
    assert list(found.wanted) == ["default.b"]
    assert [one.reason for one in found.problems["default.a"]] == ["no_node_port"]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"sessionAffinity": "ClientIP"}, "session_affinity"),
        ({"externalTrafficPolicy": "Local"}, "no_health_port"),
        ({"ipFamilies": ["IPv6"]}, "no_nodes"),
        ({"annotations": {"proxy-protocol": "v3"}}, "invalid_annotation"),
        ({"annotations": {"proxy-protocol": "26=v2"}}, "invalid_annotation"),
        ({"annotations": {"proxy_protocol": "v2"}}, "invalid_annotation"),
        ({"annotations": {"weight": "2"}}, "invalid_annotation"),
        ({"annotations": {"health": "{}"}}, "invalid_annotation"),
        ({"annotations": {"idle-timeout": "soon"}}, "invalid_annotation"),
        ({"annotations": {"server-names": "80=a.example.net"}}, "invalid_annotation"),
    ],
)
def test_what_is_wrong_is_said_and_the_rest_is_served(more: dict[str, Any], reason: str) -> None:
    found = plan([service("web", (443, 30443), **more)], NODES, EVERYBODY)
    assert [one.reason for one in found.problems["default.web"]] == [reason]
    assert found.wanted["default.web"].ports == {("TCP", 443)}


@pytest.mark.parametrize(
    ("ports", "text", "names"),
    [
        ((443,), "Git.example.net", {443: ["git.example.net"]}),
        ((80, 443), "git.example.net, *.apps.example.net git.example.net", {443: ["git.example.net", "*.apps.example.net"]}),
        ((8443,), "git.example.net", {8443: ["git.example.net"]}),
        ((443, 8443), "8443=a.example.net 443=b.example.net c.example.net", {
            8443: ["a.example.net"], 443: ["b.example.net", "c.example.net"],
        }),
        ((80, 8443), "8443=allowed", {8443: "allowed"}),
    ],
)  # fmt: skip
def test_server_names_are_of_port_443_or_the_only_one_or_the_one_that_is_named(
    ports: tuple[int, ...], text: str, names: dict[int, object]
) -> None:
    one = service("web", *((port, 30000 + port % 1000) for port in ports), annotations={"server-names": text})
    found = plan([one], NODES, EVERYBODY)
    assert found.problems["default.web"] == ()
    sent = json.loads(body(found.wanted["default.web"], 900))["frontends"]
    assert {each["port"]: each.get("server_names") or each.get("names") for each in sent} == {
        port: names.get(port) for port in ports
    }


@pytest.mark.parametrize(
    "text",
    ["git.example.net", "443=git.example.net", "0=a.example.net", "8443=", "", "8443=allowed 8443=a.example.net"],
)
def test_server_names_that_are_not_understood_change_nothing(text: str) -> None:
    """Without them the Service would ask for the clients of all names."""
    found = plan([service("web", (80, 30080), (8443, 30443), annotations={"server-names": text})], NODES, EVERYBODY)
    assert found.wanted["default.web"].servers == ()
    (problem,) = found.problems["default.web"]
    assert problem.text.endswith("; until it is corrected, nothing of this Service is changed")


@pytest.mark.parametrize(
    ("old", "young", "text"),
    [
        ("a.example.net", "b.example.net", ""),
        ("a.example.net", "A.example.net", "a.example.net on port 443/TCP belongs to the older Service default/old"),
        ("allowed", "a.example.net", ""),
        ("a.example.net", "allowed", ""),
        (None, "a.example.net",
         "port 443/TCP belongs to the older Service default/old, whose pylb.io/server-names does not say allowed"),
        ("a.example.net", None,
         ("port 443/TCP: a.example.net belongs to the older Service default/old; "
          "pylb.io/server-names: allowed makes room for it")),
        ("allowed", None, "port 443/TCP belongs to the older Service default/old"),
    ],
)  # fmt: skip
def test_services_share_a_port_by_their_server_names(old: str | None, young: str | None, text: str) -> None:
    services = [
        service(name, (443, 30443), created=f"2026-11-26T1{number}:00:00Z", annotations={"server-names": said} if said else {})
        for number, (name, said) in enumerate((("old", old), ("young", young)))
    ]
    found = plan(services, NODES, EVERYBODY)
    assert found.problems["default.old"] == ()
    assert "".join(one.text for one in found.problems["default.young"]) == text
    assert ("default.young" in found.wanted) is (not text)


def test_names_count_as_much_as_ports() -> None:
    names = " ".join(f"443=n{number}.example.net" for number in range(64))
    one = service("web", (443, 30443), (80, 30080), annotations={"server-names": names})
    assert [each.text for each in plan([one], NODES, EVERYBODY).problems["default.web"]] == [
        "port 80: a Service can have 64 ports and server names here; split it"
    ]


def test_a_protocol_that_pylb_does_not_forward() -> None:
    one = service("web", (443, 30443))
    found = plan([one._replace(ports=(one.ports[0]._replace(protocol="SCTP"),))], NODES, EVERYBODY)
    assert found.wanted == {}
    assert [each.reason for each in found.problems["default.web"]] == ["unsupported_protocol"]


KUBE_PROXY = {"http": "/healthz", "port": 10256}


@pytest.mark.parametrize(
    ("annotations", "tcp", "udp"),
    [
        ({}, {"health": KUBE_PROXY}, {"health": KUBE_PROXY}),
        ({"proxy-protocol": "v1"}, {"health": KUBE_PROXY, "proxy_protocol": "v1"}, {"health": KUBE_PROXY}),
        (
            {"proxy-protocol": "443=v2", "server-names": "git.example.net"},
            {"health": KUBE_PROXY, "proxy_protocol": "v2", "server_names": ["git.example.net"]},
            {"health": KUBE_PROXY, "proxy_protocol": "v2"},
        ),
        ({"health": "tcp"}, {"health": "tcp"}, {}),
        ({"health": '{"http": "/up"}'}, {"health": {"http": "/up"}}, {"health": KUBE_PROXY}),
        ({"health": '{"port": 9000}'}, {"health": {"port": 9000}}, {"health": {"port": 9000}}),
        ({"health": '{"send": "a"}'}, {"health": {"send": "a"}}, {"health": {"send": "a"}}),
    ],
)
def test_a_port_of_tcp_and_udp_is_two_frontends_and_udp_gets_what_it_has_a_use_for(
    annotations: dict[str, str], tcp: dict[str, object], udp: dict[str, object]
) -> None:
    one = service("web", (443, 30443), (443, 30444), annotations=annotations)
    one = one._replace(ports=(one.ports[0], one.ports[1]._replace(protocol="UDP")))
    found = plan([one], NODES, EVERYBODY)
    assert found.problems["default.web"] == ()
    assert json.loads(body(found.wanted["default.web"], 900))["frontends"] == [
        {"port": 443, "target_port": 30443, **tcp},
        {"port": 443, "protocol": "udp", "target_port": 30444, **udp},
    ]


def test_a_port_of_udp_has_an_owner_of_its_own() -> None:
    old, young = service("old", (443, 30443)), service("young", (443, 30444), created="2026-11-26T11:00:00Z")
    found = plan([old, young._replace(ports=(young.ports[0]._replace(protocol="UDP"),))], NODES, EVERYBODY)
    assert {name: one.ports for name, one in found.wanted.items()} == {
        "default.old": {("TCP", 443)},
        "default.young": {("UDP", 443)},
    }


def test_five_hundred_services_on_fifty_nodes_fit_into_their_calls() -> None:
    nodes = [node(f"node-{number:03}.cluster.example.net", f"i:10.1.{number}.1") for number in range(50)]
    wanted = plan([service("web", (443, 30443))], nodes, EVERYBODY).wanted["default.web"]
    assert len(body(wanted, 900)) < 8 * 1024


@pytest.mark.parametrize(
    "found", [{}, {"metadata": None, "spec": [], "status": 3}, {"spec": {"type": "LoadBalancer", "ports": [1]}}]
)
def test_a_strange_object_harms_nobody(found: Any) -> None:
    assert plan([objects.service(found)], [objects.node(found)], EVERYBODY).wanted == {}
