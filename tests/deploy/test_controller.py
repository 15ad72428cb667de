"""deploy/kubernetes/controller: that the controller understands its manifest, and has no more rights than it needs.

That these rights are enough is tried in tests/kubernetes against a real API server.
"""

from __future__ import annotations

import base64
import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from phonehome.controller import objects
from phonehome.controller.desired import Rules, plan
from phonehome.controller.options import read
from phonehome.controller.status import Address
from pylb.cli.joins import for_controller
from tests.deploy.manifests import ROOT, documents, header, parse
from tests.deploy.manifests import read as read_file

FOLDER = ROOT / "controller"
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}  # what the kubelet sets


def one(kind: str) -> Any:
    (found,) = [document for file, document in documents(kind, "controller") if file.parent == FOLDER]
    return found


def container() -> Any:
    (found,) = one("Deployment")["spec"]["template"]["spec"]["containers"]
    return found


def test_the_controller_understands_its_environment() -> None:
    environ = {entry["name"]: entry["value"] for entry in container()["env"]}
    files = {"/run/secrets/pylb/join": one("Secret")["stringData"]["join"]}
    found = read({**environ, **POD}, files.__getitem__)
    assert found.access.endpoint.label == "10.0.0.1:443"
    assert found.addresses == (Address("203.0.113.9", "lb.example.net:9000"),)
    assert found.rules.default_class


def test_its_rights_are_these_and_no_more() -> None:
    rules = {tuple(rule["resources"]): set(rule["verbs"]) for rule in one("ClusterRole")["rules"]}
    assert rules == {
        ("services",): {"get", "list", "watch"},
        ("nodes",): {"list", "watch"},
        ("services/status",): {"patch"},
        ("events",): {"create"},
    }
    account = one("ServiceAccount")["metadata"]
    binding = one("ClusterRoleBinding")
    assert binding["roleRef"]["name"] == one("ClusterRole")["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}]
    assert one("Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == account["name"]


def test_there_is_one_that_ends_before_the_next_begins() -> None:
    spec = one("Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert {each["tolerationSeconds"] for each in spec["template"]["spec"]["tolerations"]} == {30}


def test_it_has_no_rights_on_its_node() -> None:
    assert container()["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_the_program_in_its_config_map_runs_and_names_what_is_missing(tmp_path: Path) -> None:
    (config_map,) = parse((FOLDER / "configmap.yaml").read_text())
    volumes = {each["name"]: each for each in one("Deployment")["spec"]["template"]["spec"]["volumes"]}
    assert volumes["controller"]["configMap"]["name"] == config_map["metadata"]["name"]
    program = tmp_path / "controller.pyz"
    program.write_bytes(base64.b64decode(config_map["binaryData"]["controller.pyz"]))
    done = subprocess.run(
        [sys.executable, "-I", program], env={}, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 2, done.stderr
    for variable in ("PYLB_URL", "PYLB_KUBE_API"):
        assert variable in done.stderr
    assert "PYLB_FRONTENDS" not in done.stderr
    assert "Traceback" not in done.stderr


def test_the_token_of_the_header_is_the_one_that_the_verb_makes() -> None:
    """Ports of UDP and kube-proxy's health port, which a token does not have unless they are named."""
    asked = dict.fromkeys(("kubernetes", "public_address", "ports", "names", "target_ports", "namespace"))
    made = for_controller({**asked, "targets": ["198.51.100.0/24"]})
    text = header(FOLDER / "base.yaml")
    assert f"--ports {','.join(made['ports'])} " in text
    assert f"--target-ports {','.join(made['target_ports'])}\n" in text
    assert {"1-65535/udp", "10256"} <= {*made["ports"], *made["target_ports"]}


def test_the_network_policy_is_of_the_controllers_pod_and_lets_it_call_pylb() -> None:
    [policy], deployment = list(read_file(FOLDER / "variants" / "networkpolicy.yaml")), one("Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert policy["metadata"]["namespace"] == deployment["metadata"]["namespace"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    ports = {(port["protocol"], port["port"]) for rule in policy["spec"]["egress"] for port in rule["ports"]}
    webhook = int(one("Secret")["stringData"]["join"].rpartition(":")[2])
    assert ports == {("TCP", webhook), ("TCP", 6443), ("UDP", 53), ("TCP", 53)}
    assert policy["spec"]["ingress"] == []


APPS = ("mosquitto", "traefik", "unifi")


def without_phonehome(app: str) -> list[Any]:
    """The files of an app with a sidecar, and what they would be without it."""
    found = [copy.deepcopy(document) for name in ("base", "deployment") for document in read_file(ROOT / app / f"{name}.yaml")]
    made = []
    for document in found:
        spec = document.get("spec", {})
        if document["kind"] == "Deployment":
            pod = spec["template"]["spec"]
            del pod["initContainers"]
            pod["volumes"] = [one for one in pod["volumes"] if one["name"] not in ("phonehome", "pylb-token")]
        if spec.get("type") == "NodePort":
            spec.update(type="LoadBalancer", loadBalancerClass="pylb.io/pylb")
            for port in spec["ports"]:
                del port["nodePort"]
            made += of_udp(app, document)
    return [document for document in [*found, *made] if document["kind"] != "Secret"]


def of_udp(app: str, service: Any) -> list[Any]:
    """Take the ports of UDP out of a Service, into one of their own: before Kubernetes 1.26 a Service of type LoadBalancer
    with both protocols is refused."""
    ports = [port for port in service["spec"]["ports"] if port["protocol"] == "UDP"]
    service["spec"]["ports"] = [port for port in service["spec"]["ports"] if port not in ports]
    if not ports:
        return []
    name = f"{app}-{ports[0]['name']}"
    return [{**service, "metadata": {**service["metadata"], "name": name}, "spec": {**service["spec"], "ports": ports}}]


@pytest.mark.parametrize("app", APPS)
def test_an_example_is_the_app_with_a_sidecar_without_its_sidecar(app: str) -> None:
    found = copy.deepcopy(list(read_file(FOLDER / "examples" / f"{app}.yaml")))
    for document in found:
        document.get("spec", {}).pop("loadBalancerSourceRanges", None)  # what it adds
    assert by_name(found) == by_name(without_phonehome(app))


@pytest.mark.parametrize("app", APPS)
def test_no_service_of_an_example_needs_a_new_kubernetes_for_its_protocols(app: str) -> None:
    for document in read_file(FOLDER / "examples" / f"{app}.yaml"):
        if document["kind"] == "Service":
            assert len({port["protocol"] for port in document["spec"]["ports"]}) == 1, document["metadata"]["name"]


def by_name(found: list[Any]) -> dict[tuple[str, str], Any]:
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


def test_the_examples_open_the_ports_of_the_design() -> None:
    found = [document for app in APPS for document in read_file(FOLDER / "examples" / f"{app}.yaml")]
    services = [copy.deepcopy(document) for document in found if document["kind"] == "Service"]
    for each in services:
        for number, port in enumerate(each["spec"]["ports"]):
            port["nodePort"] = 30000 + number  # as the API server does
    addresses = [{"type": "InternalIP", "address": "198.51.100.7"}]
    nodes = [objects.node({"metadata": {"name": "a"}, "status": {"addresses": addresses}})]
    planned = plan(map(objects.service, services), nodes, Rules())
    opened = {name: [frontend.key for frontend in each.frontends] for name, each in planned.wanted.items()}
    assert opened == {
        "mosquitto.mosquitto": [("TCP", 8443)],
        "traefik.traefik": [("TCP", 443), ("TCP", 80)],
        "unifi.unifi-inform": [("TCP", 8080)],
        "unifi.unifi-stun": [("UDP", 3478)],
    }
    assert not any(planned.problems.values())
