"""The controller's environment: what each variable means, and what each mistake says."""

from __future__ import annotations

import pytest

from phonehome.controller.desired import Rules
from phonehome.controller.options import POD_FOLDER, Options, read
from phonehome.controller.status import Address
from phonehome.settings import SettingsError

ENVIRON = {
    "PYLB_URL": "https://lb.example.net:9000",
    "PYLB_TOKEN": "a-token-that-is-long-enough",
    "PYLB_KUBE_API": "https://198.51.100.2:6443",
}


def options(**given: str) -> Options:
    return read({**ENVIRON, **given}, {}.__getitem__)


def mistakes(**given: str) -> list[str]:
    with pytest.raises(SettingsError) as found:
        options(**given)
    return list(found.value.problems)


@pytest.mark.parametrize(
    ("given", "rules"),
    [
        ({}, Rules(default_class=False, node_selector=(), external=True)),
        ({"PYLB_DEFAULT_CLASS": " True "}, Rules(default_class=True)),
        ({"PYLB_NODE_ADDRESS": "internal"}, Rules(external=False)),
        ({"PYLB_NODE_SELECTOR": "pool=edge, zone == a,,"}, Rules(node_selector=(("pool", "edge"), ("zone", "a")))),
        ({"PYLB_NODE_SELECTOR": "node-role.kubernetes.io/edge="}, Rules(node_selector=(("node-role.kubernetes.io/edge", ""),))),
    ],
)
def test_which_services_and_nodes(given: dict[str, str], rules: Rules) -> None:
    assert options(**given).rules == rules


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"PYLB_DEFAULT_CLASS": "yes"}, "PYLB_DEFAULT_CLASS: 'yes' is neither false nor true"),
        ({"PYLB_NODE_ADDRESS": "public"}, "PYLB_NODE_ADDRESS: 'public' is neither external nor internal"),
        (
            {"PYLB_NODE_SELECTOR": "pool=edge,zone"},
            "PYLB_NODE_SELECTOR: 'zone' is not LABEL=VALUE; example: PYLB_NODE_SELECTOR=pool=edge",
        ),
        (
            {"PYLB_PUBLIC_ADDRESS": "203.0.113.900"},
            "PYLB_PUBLIC_ADDRESS: '203.0.113.900' is neither an IP address nor a host name",
        ),
        (
            {"PYLB_KUBE_API": ""},
            "PYLB_KUBE_API: missing, and this does not run in a pod; example: PYLB_KUBE_API=https://198.51.100.2:6443",
        ),
    ],
)
def test_a_mistake_is_named_with_its_variable(given: dict[str, str], text: str) -> None:
    assert mistakes(**given) == [text]


def test_all_mistakes_are_named_at_once() -> None:
    found = mistakes(PYLB_TOKEN="", PYLB_NODE_ADDRESS="public", PYLB_NODE_SELECTOR="zone")
    assert [one.partition(":")[0] for one in found[-2:]] == ["PYLB_NODE_SELECTOR", "PYLB_NODE_ADDRESS"]
    assert any("PYLB_TOKEN" in one for one in found)


def test_in_a_pod_the_api_server_and_its_files_are_known() -> None:
    found = options(PYLB_KUBE_API="", KUBERNETES_SERVICE_HOST="2001:db8::1", KUBERNETES_SERVICE_PORT="6443").access
    assert (found.endpoint.host, found.endpoint.port, found.endpoint.secure) == ("2001:db8::1", 6443, True)
    assert (found.token_file, found.ca_file) == (f"{POD_FOLDER}/token", f"{POD_FOLDER}/ca.crt")


@pytest.mark.parametrize(
    ("given", "addresses"),
    [
        ("", (Address("one.example.net", "one.example.net:9000"), Address("two.example.net", "two.example.net:9000"))),
        ("203.0.113.1, 203.0.113.2", (
            Address("203.0.113.1", "one.example.net:9000"), Address("203.0.113.2", "two.example.net:9000"))),
        ("203.0.113.9", (Address("203.0.113.9", None),)),
    ],
)  # fmt: skip
def test_the_addresses_are_of_each_pylb_or_of_all(given: str, addresses: tuple[Address, ...]) -> None:
    urls = "https://one.example.net:9000,https://two.example.net:9000"
    assert options(PYLB_URL=urls, PYLB_PUBLIC_ADDRESS=given).addresses == addresses
