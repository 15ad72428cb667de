"""Every document of deploy/kubernetes and deploy/kustomize, and what `pylb token create` prints, before a real kube-apiserver.

`dryRun=All` is all that an API server does with a document (read, default, validate, admit, allocate) but storing it, so the
folders do not take each other's names and nodePorts. Version 1.20 drops fields that it does not know in silence: each document
must therefore come back with all that was sent.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.manifests import DEPLOY, FILES, Document, parse, read
from tests.deploy.test_kustomize import EXAMPLES, PLAIN, rendered
from tests.support.kubernetes import ApiServer, KubernetesError
from tests.support.processes import python

PLURALS = {"NetworkPolicy": "networkpolicies", "IngressClass": "ingressclasses", "Ingress": "ingresses"}
CLUSTER_WIDE = {"Namespace", "ClusterRole", "ClusterRoleBinding", "IngressClass"}
LATER = {".spec.loadBalancerClass"}  # of Kubernetes 1.22; without it such a Service is the default class's


def path_of(document: Document) -> str:
    group, kind = document["apiVersion"], document["kind"]
    where = "" if kind in CLUSTER_WIDE else f"/namespaces/{namespace_of(document)}"
    base = "/api/v1" if group == "v1" else f"/apis/{group}"
    return f"{base}{where}/{PLURALS.get(kind, kind.lower() + 's')}"


def namespace_of(document: Document) -> str:
    return str(document["metadata"].get("namespace", "default"))


def lost(sent: Any, got: Any, where: str = "") -> Iterator[str]:
    """What was sent and has not come back, by its place."""
    if isinstance(sent, dict):
        for key, value in sent.items():
            if not isinstance(got, dict) or key not in got:
                if value not in ({}, [], None, "", False):  # these are what a server leaves out
                    yield f"{where}.{key}"
            else:
                yield from lost(value, got[key], f"{where}.{key}")
    elif isinstance(sent, list) and isinstance(got, list) and len(sent) == len(got):
        for number, (one, other) in enumerate(zip(sent, got, strict=True)):
            yield from lost(one, other, f"{where}[{number}]")
    elif sent != got:
        yield f"{where}: {sent!r} is {got!r}"


class DryRun:
    """Shows documents to an API server in which their namespaces exist, and nothing else of them."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._namespaces: list[str] = []

    def __call__(self, document: Document) -> Document:
        if document["kind"] not in CLUSTER_WIDE:
            self._has_namespace(namespace_of(document))
        path = path_of(document)
        try:
            answer: Document = self._server.call("POST", f"{path}?dryRun=All", document)
        except KubernetesError as error:
            if error.status != 409:
                raise
            # Made by another test here, or a namespace of ours: then it is changed to this.
            answer = self._server.call("PUT", f"{path}/{document['metadata']['name']}?dryRun=All", document)
        return answer

    def _has_namespace(self, name: str) -> None:
        try:
            self._server.call("GET", f"/api/v1/namespaces/{name}")
        except KubernetesError:
            self._server.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
            self._namespaces.append(name)

    def close(self) -> None:
        """No controller-manager is here that would end a namespace."""
        for name in self._namespaces:
            self._server.call("DELETE", f"/api/v1/namespaces/{name}")
            left = self._server.call("GET", f"/api/v1/namespaces/{name}")
            self._server.call("PUT", f"/api/v1/namespaces/{name}/finalize", {**left, "spec": {"finalizers": []}})


@pytest.fixture
def dry_run(cluster: ApiServer) -> Iterator[DryRun]:
    found = DryRun(cluster)
    yield found
    found.close()


def is_sidecar(container: Document) -> bool:
    return container.get("restartPolicy") == "Always"


def pod_of(document: Document) -> Document:
    found: Document = document.get("spec", {}).get("template", {}).get("spec", {}) if "spec" in document else {}
    return found


def accepted(dry_run: DryRun, documents: Sequence[Document]) -> None:
    for document in documents:
        what = f"{document['kind']} {document['metadata']['name']}"
        sent = document
        if any(is_sidecar(one) for one in pod_of(document).get("initContainers", ())):
            assert objections(dry_run, document) == {"spec.template.spec.initContainers[0].lifecycle"}, what
            sent = without_sidecars(document)
        got = dry_run(sent)
        sent = {key: value for key, value in sent.items() if key != "stringData"}  # comes back as `data`, in base64
        for part in {"binaryData", *({"data"} if sent["kind"] == "Secret" else ())} & sent.keys():
            sent[part] = {key: "".join(value.split()) for key, value in sent[part].items()}  # base64 without its line breaks
        assert set(lost(sent, got)) <= LATER, what
        assert document.get("stringData", {}).keys() <= got.get("data", {}).keys(), what


def objections(dry_run: DryRun, document: Document) -> set[str]:
    """The fields for which it is refused: the server names all."""
    with pytest.raises(KubernetesError) as refused:
        dry_run(document)
    assert refused.value.status == 422
    return set(re.findall(r"'field': '([^']+)'", str(refused.value)))


def without_sidecars(document: Document) -> Document:
    """The same with plain containers in their place, which any version knows."""
    copy: Document = json.loads(json.dumps(document))
    pod = pod_of(copy)
    sidecars = [one for one in pod["initContainers"] if is_sidecar(one)]
    pod["initContainers"] = [one for one in pod["initContainers"] if not is_sidecar(one)]
    for one in sidecars:
        del one["restartPolicy"]
    pod["containers"] += sidecars
    return copy


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(DEPLOY / "kubernetes")))
def test_a_file_is_accepted_with_all_that_it_says(dry_run: DryRun, file: Path) -> None:
    accepted(dry_run, read(file))


@pytest.mark.parametrize("folder", [*PLAIN, *EXAMPLES], ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_what_a_kustomization_renders_is_accepted_with_all_that_it_says(dry_run: DryRun, folder: Path) -> None:
    accepted(dry_run, rendered(folder))


@pytest.mark.parametrize(
    "options",
    [
        ("Web_1", "--ports", "443,8443,3478/udp", "--kubernetes", "--namespace", "apps", "--app", "web"),
        ("kubernetes", "--kubernetes-controller", "--targets", "198.51.100.0/24", "--public-address", "203.0.113.9"),
    ],
    ids=["join.yaml.in", "controller"],
)
def test_what_token_create_prints_is_accepted_with_all_that_it_says(
    dry_run: DryRun, options: tuple[str, ...], tmp_path: Path
) -> None:
    config = tmp_path / "pylb.yaml"
    config.write_text(
        json.dumps({"state_dir": str(tmp_path / "state"), "webhook": {"listen": "127.0.0.1:9000", "tls": "self-signed"}})
    )
    command = python("pylb", "token", "create", *options, "--host", "lb.example.net", "-c", str(config))
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    documents = parse(ended.stdout)
    assert len(documents) >= 4
    accepted(dry_run, documents)


def test_a_fault_is_refused_and_what_the_server_does_not_know_is_noticed(dry_run: DryRun) -> None:
    """Else the tests above could not fail."""
    ports = [{"port": 443, "targetPort": 70000}]
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"type": "NodePort", "ports": ports}}
    assert objections(dry_run, service) == {"spec.ports[0].targetPort"}
    ports[0] = {"port": 443, "targetPort": 443, "nodeprot": 30443}
    assert list(lost(service, dry_run(service))) == [".spec.ports[0].nodeprot"]
