"""deploy/kubernetes/controller: that the controller understands its manifest, and has no more rights than it needs.

That these rights are enough is tried in tests/kubernetes against a real API server.
"""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path
from typing import Any

from phonehome.controller.options import read
from phonehome.controller.status import Address
from tests.deploy.manifests import ROOT, documents, header, parse

FOLDER = ROOT / "controller"
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}  # what the kubelet sets


def one(kind: str) -> Any:
    (found,) = [document for _, document in documents(kind, "controller")]
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


def test_the_token_of_the_header_may_ask_kube_proxy() -> None:
    """10256 is where policy Cluster is checked, and the default of a token's target ports is the NodePorts alone."""
    assert "--target-ports 30000-32767,10256" in header(FOLDER / "base.yaml")
