"""The manifests of deploy/kubernetes as values: documents, pods, their phone-home."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import kubernetes_validate  # type: ignore[import-untyped]
import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
ROOT = DEPLOY / "kubernetes"
FILES = sorted(path for path in ROOT.rglob("*.yaml") if path.name != "kustomization.yaml")
ZIPAPP = "/opt/phonehome/phonehome.pyz"

Document = dict[str, Any]


class StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice; PyYAML keeps the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key!r} is given twice{node.start_mark}")
        return super().construct_mapping(node, deep)


# The package reads its schema files, some MiB of JSON, again for every document.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)


def validate(document: Document, version: str) -> None:
    """Raise kubernetes_validate.ValidationError unless the document follows this version's schema, unknown keys refused."""
    assert kubernetes_validate.validate(document, version, strict=True) == version


def parse(text: str) -> list[Document]:
    return [document for document in yaml.load_all(text, Loader=StrictLoader) if document is not None]


class Workload(NamedTuple):
    file: Path
    document: Document

    @property
    def id(self) -> str:
        return str(self.file.relative_to(ROOT))

    @property
    def folder(self) -> str:
        return self.file.relative_to(ROOT).parts[0]

    @property
    def pod(self) -> Document:
        spec: Document = self.document["spec"]["template"]["spec"]
        return spec

    @property
    def native(self) -> bool:
        return any(container["name"] == "phonehome" for container in self.pod.get("initContainers", ()))

    @property
    def phonehome(self) -> Document:
        everything = [*self.pod.get("initContainers", ()), *self.pod["containers"]]
        (container,) = [container for container in everything if container["name"] == "phonehome"]
        return dict(container)

    @property
    def apps(self) -> list[Document]:
        return [container for container in self.pod["containers"] if container["name"] != "phonehome"]

    @property
    def environ(self) -> dict[str, str]:
        """The phone-home's environment; a field of the pod shows as its path."""
        return {
            entry["name"]: entry["value"] if "value" in entry else entry["valueFrom"]["fieldRef"]["fieldPath"]
            for entry in self.phonehome["env"]
        }


@functools.cache
def read(file: Path) -> tuple[Document, ...]:
    """Parsed once for all tests: nobody may change what it returns."""
    return tuple(parse(file.read_text(encoding="utf-8")))


def documents(kind: str | None = None, folder: str | None = None) -> Iterator[tuple[Path, Document]]:
    for file in FILES:
        if folder is None or file.relative_to(ROOT).parts[0] == folder:
            for document in read(file):
                if kind in (None, document["kind"]):
                    yield file, document


def workloads() -> list[Workload]:
    """Those with a phone-home; the controller has a test file of its own."""
    found = [Workload(file, document) for file, document in documents() if document["kind"] in ("Deployment", "DaemonSet")]
    return [workload for workload in found if workload.folder != "controller"]


def header(file: Path) -> str:
    """The comment at the top, without its marks."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[2:])
    return "\n".join(lines)


def token_command(folder: str) -> tuple[str, list[int]]:
    """(name, ports) of the `pylb token create` that a folder's header shows."""
    for file in sorted((ROOT / folder).glob("*.yaml")):
        shown = r"^ *pylb token create (\S+) --ports ([0-9,/udp]+) -c /etc/pylb/pylb.yaml$"
        match = re.search(shown, header(file), re.MULTILINE)
        if match:
            return match[1], [int(port.removesuffix("/udp")) for port in match[2].split(",")]
    raise LookupError(f"{folder}: no header shows how to make the token")
