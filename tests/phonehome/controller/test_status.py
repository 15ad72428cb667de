"""What a Service shows, what is written, and what is not compared."""

from __future__ import annotations

from typing import Any

import pytest

from phonehome.controller.objects import Ingress, PortStatus
from phonehome.controller.status import ASK_AGAIN, Address, Rewrites, Server, desired, is_to_clear, patch
from tests.phonehome.controller.made import service

HTTPS, SMTP = ("TCP", 443), ("TCP", 25)
OWN = [Address("198.51.100.1", "one"), Address("198.51.100.2", "two")]
SHARED = [Address("198.51.100.9", None)]


def shown(addresses: list[Address], **opened: set[Any]) -> dict[str, dict[int, str]]:
    found = desired(addresses, opened, [(HTTPS, ""), (SMTP, "port_owned")])
    return {one.address: {port.port: port.error for port in one.ports} for one in found}


@pytest.mark.parametrize(
    ("addresses", "opened", "expected"),
    [
        (OWN, {"one": {HTTPS, SMTP}, "two": {HTTPS}}, {
            "198.51.100.1": {443: "", 25: ""}, "198.51.100.2": {443: "", 25: "pylb.io/port_owned"}}),
        (OWN, {"one": set(), "two": {SMTP}}, {"198.51.100.2": {443: "pylb.io/pending", 25: ""}}),
        (OWN, {"one": set(), "two": set()}, {}),
        (SHARED, {"one": {HTTPS}, "two": {SMTP}}, {"198.51.100.9": {443: "", 25: ""}}),
        (SHARED, {"one": set()}, {}),
    ],
)  # fmt: skip
def test_an_address_is_shown_where_a_port_is_open(
    addresses: list[Address], opened: dict[str, set[Any]], expected: dict[str, Any]
) -> None:
    assert shown(addresses, **opened) == expected


def test_an_address_stays_until_its_pylb_has_said_something() -> None:
    """Else each restart of the controller would clear every status for a moment."""
    before = tuple(Ingress(one.address, "Proxy", (PortStatus(443, "TCP", ""),)) for one in OWN)
    found = desired(OWN, {"one": None, "two": set()}, [(HTTPS, "")], before)
    assert [one.address for one in found] == ["198.51.100.1"]
    assert desired(SHARED, {"one": None, "two": set()}, [(HTTPS, "")], before) == ()


def test_the_mode_is_proxy_but_a_host_name_has_none() -> None:
    found = desired([Address("198.51.100.1", None), Address("lb.example.net", None)], {"one": {HTTPS}}, [(HTTPS, "")])
    ports = [{"port": 443, "protocol": "TCP"}]
    assert patch(found)["status"]["loadBalancer"]["ingress"] == [
        {"ip": "198.51.100.1", "ipMode": "Proxy", "ports": ports},
        {"hostname": "lb.example.net", "ports": ports},
    ]


def test_clearing_needs_a_null() -> None:
    assert patch(()) == {"status": {"loadBalancer": {"ingress": None}}}


@pytest.mark.parametrize(
    ("spec", "clear"),
    [
        ({"loadBalancerClass": None, "ingress": [{"ip": "198.51.100.1"}]}, True),
        ({"type": "NodePort", "ingress": [{"ip": "198.51.100.1"}]}, True),
        ({"loadBalancerClass": None, "ingress": [{"ip": "198.51.100.1"}, {"ip": "192.0.2.1"}]}, False),
        ({"loadBalancerClass": None}, False),
        ({"loadBalancerClass": "other.example/lb", "ingress": [{"ip": "198.51.100.1"}]}, False),
    ],
)
def test_only_our_own_status_is_cleared(spec: dict[str, Any], clear: bool) -> None:
    assert is_to_clear(service("web", **spec), OWN) is clear


WANTED = (Ingress("198.51.100.1", "Proxy", (PortStatus(443, "TCP", ""),)),)


def test_what_an_old_server_drops_is_not_compared() -> None:
    server = Server()
    stored = (WANTED[0]._replace(ip_mode=""),)
    assert not server.same(stored, WANTED, 0)
    server.stored(WANTED, stored, 0)
    assert server.same(stored, WANTED, 1)
    assert not server.same((stored[0]._replace(address="192.0.2.1"),), WANTED, 1)
    assert not server.same(stored, WANTED, ASK_AGAIN), "it may be a newer one by now"


def test_a_server_that_stores_everything_is_compared_in_full() -> None:
    server = Server()
    server.stored(WANTED, WANTED, 0)
    assert not server.same((WANTED[0]._replace(ip_mode="VIP"),), WANTED, 1)


def test_a_status_that_somebody_else_rewrites_is_left_to_him_after_three_times() -> None:
    rewrites = Rewrites()
    for count in range(3):
        assert not rewrites.has_given_up("uid-web"), count
        rewrites.written("uid-web", WANTED)
        rewrites.shown(service("web")._replace(ingress=WANTED))
        rewrites.shown(service("web", ingress=[{"ip": "192.0.2.1"}]))
    assert rewrites.has_given_up("uid-web")
    rewrites.forget_all_but({"uid-web"})
    assert rewrites.has_given_up("uid-web")
    rewrites.forget_all_but(())
    assert not rewrites.has_given_up("uid-web")
