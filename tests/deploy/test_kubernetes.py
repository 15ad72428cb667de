"""deploy/kubernetes: each document against the API's schema, and what the schema cannot know."""

from __future__ import annotations

import copy
import re
import subprocess
from pathlib import Path

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from phonehome import settings
from phonehome.values import parse_join
from pylb import __version__
from tests.deploy.manifests import (
    FILES,
    ROOT,
    ZIPAPP,
    Document,
    Workload,
    documents,
    header,
    parse,
    token_command,
    validate,
    workloads,
)
from tests.support.peers import need

NEWEST = "1.37"  # the newest schema of the pinned kubernetes-validate
NATIVE = "1.29"  # the first version with native sidecars by default
OLD = "1.25"  # before sidecars: restartPolicy of a container is unknown

# The ports of the original design: public port -> nodePort, and where the PROXY header travels.
PORTS = {
    "mosquitto": {8443: 30843},
    "traefik": {443: 30443, 80: 30080},
    "unifi": {8080: 30808, 3478: 30478},
    "mail": {25: 30025, 110: 30110, 465: 30465, 587: 30587, 993: 30993, 995: 30995},
    "pod-affinity": {8443: 30843},
    "daemonset": {80: 30080, 443: 30443, 8080: 30808, 8443: 30843, 3478: 30478},
}
PROXY = {
    "mail/deployment.yaml": {25: "v1", 110: "v1", 993: "v1", 995: "v1"},
    "mail/variants/plain-container.yaml": {25: "v1", 110: "v1", 993: "v1", 995: "v1"},
    "traefik/variants/proxy-v2.yaml": {443: "v2", 80: "v2"},
}
# Which folders' Services a folder's phone-home stands for.
SERVES = {"pod-affinity": ("mosquitto",), "daemonset": ("traefik", "unifi", "mosquitto")}

ALL = [pytest.param(file, document, id=f"{file.relative_to(ROOT)}:{document['kind']}") for file, document in documents()]
PODS = [pytest.param(workload, id=workload.id) for workload in workloads()]
each_pod = pytest.mark.parametrize("workload", PODS)


def parsed(workload: Workload) -> settings.Settings:
    """The phone-home's own reading of its environment, with the Secret of the same namespace as its join file."""
    secrets = [
        document["stringData"]["join"]
        for _, document in documents("Secret")
        if document["metadata"]["namespace"] == workload.document["metadata"]["namespace"]
    ]
    return settings.parse(
        workload.environ, hostname="host", read_file=lambda path: {"/run/secrets/pylb/join": secrets[0]}[path]
    )


# ---------------------------------------------------------------- schema


@pytest.mark.parametrize(("file", "document"), ALL)
@pytest.mark.parametrize("version", [NATIVE, NEWEST])
def test_every_document_follows_the_schema(file: Path, document: Document, version: str) -> None:
    validate(document, version)


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(document, id=f"{file.relative_to(ROOT)}:{document['kind']}")
        for file, document in documents()
        if file.name in ("plain-container.yaml", "base.yaml") or file.parts[-2] in ("daemonset", "pod-affinity")
    ],
)
def test_what_is_meant_for_old_clusters_follows_an_old_schema(document: Document) -> None:
    validate(document, OLD)


def test_the_old_schema_refuses_a_native_sidecar_so_the_plain_variant_is_needed() -> None:
    ((_, deployment),) = [
        item for item in documents("Deployment", "mosquitto") if item[0] == ROOT / "mosquitto/deployment.yaml"
    ]
    with pytest.raises(kubernetes_validate.ValidationError, match="restartPolicy"):
        validate(deployment, OLD)


def test_a_key_given_twice_is_noticed_by_the_loader_all_these_tests_use() -> None:
    assert parse("a: {b: 1, c: 2}") == [{"a": {"b": 1, "c": 2}}]
    with pytest.raises(yaml.YAMLError, match="twice"):
        parse("a: {b: 1, b: 2}")


# ---------------------------------------------------------------- ports


@each_pod
def test_the_phonehome_itself_understands_its_environment(workload: Workload) -> None:
    found = parsed(workload)
    assert [endpoint.label for endpoint in found.endpoints] == ["lb.example.net:9000"]
    assert found.instance == ("spec.nodeName" if workload.document["kind"] == "DaemonSet" else "metadata.name")
    assert found.ttl == 60
    assert not found.once


@each_pod
def test_the_frontends_are_the_ports_of_the_design(workload: Workload) -> None:
    frontends = parsed(workload).frontends
    assert {frontend.port: frontend.target_port for frontend in frontends} == PORTS[workload.folder]
    proxied = {
        frontend.port: frontend.proxy_protocol for frontend in frontends if frontend.proxy_protocol not in (None, "none")
    }
    assert proxied == PROXY.get(workload.id, {})


@each_pod
def test_every_target_port_is_a_node_port_of_a_service_and_reaches_a_container(workload: Workload) -> None:
    folders = SERVES.get(workload.folder, (workload.folder,))
    entries = [
        entry
        for folder in folders
        for _, service in documents("Service", folder)
        if service["spec"].get("type") == "NodePort"
        for entry in service["spec"]["ports"]
    ]
    assert {entry["port"]: entry["nodePort"] for entry in entries} == PORTS[workload.folder]
    reachable = {
        port["containerPort"]
        for other in workloads()
        if other.folder in folders
        for container in other.apps
        for port in container.get("ports", ())
    }
    assert {entry["targetPort"] for entry in entries} <= reachable


def test_a_service_finds_the_pods_of_its_folder() -> None:
    for file, service in documents("Service"):
        folder = file.relative_to(ROOT).parts[0]
        for workload in workloads():
            if workload.folder == folder:
                labels = workload.document["spec"]["template"]["metadata"]["labels"]
                assert service["spec"]["selector"].items() <= labels.items(), file
                assert workload.document["spec"]["selector"]["matchLabels"].items() <= labels.items()


@each_pod
def test_the_wait_address_is_a_port_of_the_app_that_takes_no_proxy_header(workload: Workload) -> None:
    found = parsed(workload)
    if not workload.apps:
        assert found.wait == ()
        return
    ((host, port),) = found.wait
    assert host == "127.0.0.1"
    assert port in {entry["containerPort"] for app in workload.apps for entry in app["ports"]}
    if workload.folder == "mail":
        assert port not in PROXY[workload.id]


def test_the_proxy_variant_trusts_the_sender_on_both_entry_points() -> None:
    ((_, service),) = [item for item in documents("Service", "traefik") if item[0].name == "proxy-v2.yaml"]
    assert service["spec"]["externalTrafficPolicy"] == "Local"
    (workload,) = [workload for workload in workloads() if workload.id == "traefik/variants/proxy-v2.yaml"]
    trusted = [arg for arg in workload.apps[0]["args"] if "trustedips" in arg]
    assert [arg.partition("=")[0] for arg in trusted] == [
        "--entrypoints.web.proxyprotocol.trustedips",
        "--entrypoints.websecure.proxyprotocol.trustedips",
    ]


# ---------------------------------------------------------------- the phone-home container


@each_pod
def test_the_phonehome_has_no_rights_and_small_limits(workload: Workload) -> None:
    assert workload.pod["automountServiceAccountToken"] is False
    context = workload.phonehome["securityContext"]
    assert context == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert workload.phonehome["resources"] == {
        "requests": {"cpu": "5m", "memory": "25Mi"},
        "limits": {"memory": "64Mi"},
    }


@each_pod
def test_the_phonehome_says_goodbye_and_no_probe_can_restart_it_or_hold_up_the_app(workload: Workload) -> None:
    assert workload.phonehome["lifecycle"]["preStop"]["exec"]["command"] == ["python3", ZIPAPP, "drain"]
    assert not {"livenessProbe", "readinessProbe", "startupProbe"} & workload.phonehome.keys()
    assert workload.native == (workload.phonehome.get("restartPolicy") == "Always")


@each_pod
def test_the_app_sleeps_before_it_stops_and_then_has_most_of_the_grace_period_left(workload: Workload) -> None:
    for app in workload.apps:
        program, seconds = app["lifecycle"]["preStop"]["exec"]["command"]
        assert program == "sleep"
        assert 2 <= int(seconds) <= 10
        assert workload.pod["terminationGracePeriodSeconds"] >= 3 * int(seconds)


@each_pod
def test_the_zipapp_comes_from_the_config_map_or_from_our_image(workload: Workload) -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in workload.phonehome["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in workload.pod["volumes"]}
    assert mounts["pylb-token"] == "/run/secrets/pylb"
    assert volumes["pylb-token"] == {"name": "pylb-token", "secret": {"secretName": "pylb-token"}}
    if "own-image" in workload.id:
        assert workload.phonehome["image"] == f"pylb-phonehome:{__version__}"
        assert "phonehome" not in volumes
        assert "docker build --target phonehome" in header(workload.file)
    else:
        assert workload.phonehome["image"] == "docker.io/library/python:3.13-alpine"
        assert mounts["phonehome"] == "/opt/phonehome"
        assert volumes["phonehome"]["configMap"] == {"name": "phonehome"}


def test_only_the_phonehome_sees_pylbs_token() -> None:
    for workload in workloads():
        for app in workload.apps:
            assert "pylb-token" not in {mount["name"] for mount in app.get("volumeMounts", ())}, workload.id


@pytest.mark.parametrize("folder", ["mosquitto", "traefik", "unifi", "mail"])
def test_the_plain_variant_differs_from_the_native_one_in_the_sidecars_place_only(folder: str) -> None:
    native, plain = (
        next(workload for workload in workloads() if workload.id == f"{folder}/{name}")
        for name in ("deployment.yaml", "variants/plain-container.yaml")
    )
    assert native.native
    assert not plain.native
    moved = copy.deepcopy(native.document)
    pod = moved["spec"]["template"]["spec"]
    (sidecar,) = pod.pop("initContainers")
    del sidecar["restartPolicy"]
    pod["containers"].append(sidecar)
    assert moved == plain.document


# ---------------------------------------------------------------- the three forms


def test_the_daemon_set_calls_from_the_nodes_own_address() -> None:
    for workload in workloads():
        if workload.document["kind"] == "DaemonSet":
            assert workload.pod["hostNetwork"] is True
            assert workload.pod["dnsPolicy"] == "Default"


def test_the_affinity_form_follows_the_host_name_and_names_its_trap() -> None:
    (workload,) = [workload for workload in workloads() if workload.folder == "pod-affinity"]
    (term,) = workload.pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert "affinity is judged when this pod is scheduled and never again" in " ".join(header(workload.file).split())


# ---------------------------------------------------------------- everything named exists


@each_pod
def test_every_volume_is_defined_in_the_folder_or_asked_of_the_user(workload: Workload) -> None:
    namespace = workload.document["metadata"]["namespace"]
    defined = {
        (document["kind"], document["metadata"]["name"])
        for _, document in documents()
        if document["metadata"].get("namespace") == namespace
    } | {("ConfigMap", "phonehome")}
    asked = header(ROOT / SERVES.get(workload.folder, (workload.folder,))[0] / "base.yaml")
    for volume in workload.pod["volumes"]:
        match volume:
            case {"configMap": {"name": name}}:
                assert ("ConfigMap", name) in defined
            case {"persistentVolumeClaim": {"claimName": name}}:
                assert ("PersistentVolumeClaim", name) in defined
            case {"secret": {"secretName": name}}:
                assert ("Secret", name) in defined or re.search(rf"create secret \S+ {name} ", asked)
            case _:
                assert "projected" in volume
    mounted = {mount["name"] for box in [workload.phonehome, *workload.apps] for mount in box.get("volumeMounts", ())}
    assert mounted == {volume["name"] for volume in workload.pod["volumes"]}


def test_the_join_string_is_a_placeholder_nobody_can_mistake() -> None:
    found = [document["stringData"]["join"] for _, document in documents("Secret")]
    assert len(found) == 6
    for join in found:
        name, endpoint = parse_join(join)
        assert (name, endpoint.host) == ("replace-me", "lb.example.net")
        assert endpoint.token == "with-what-pylb-token-create-printed"


@each_pod
def test_the_header_shows_a_token_that_allows_exactly_what_the_pod_asks(workload: Workload) -> None:
    name, ports = token_command(workload.folder)
    found = parsed(workload)
    assert name == found.name
    assert sorted(ports) == sorted(frontend.port for frontend in found.frontends)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_header_says_how_to_apply_and_names_files_that_exist(file: Path) -> None:
    text = header(file)
    paths = re.findall(r"kubectl apply .*-f (\S+)", text)
    assert paths
    for path in paths:
        assert (ROOT.parents[1] / path).is_file(), path


def test_every_namespaced_document_names_a_namespace_that_a_base_file_makes() -> None:
    made = {document["metadata"]["name"] for _, document in documents("Namespace")}
    cluster_wide = {"Namespace", "ClusterRole", "ClusterRoleBinding", "IngressClass"}
    for file, document in documents():
        if document["kind"] not in cluster_wide and file.name != "phonehome-configmap.yaml":
            assert document["metadata"]["namespace"] in made, file


# ---------------------------------------------------------------- the page


def test_the_table_of_ports_in_the_readme_is_the_one_tested_here() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \| ([\d, ]+) \| .* \| (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    shown: dict[str, dict[int, int]] = {}
    for public, node, folder in rows:
        ports = [[int(port) for port in text.split(", ")] for text in (public, node)]
        shown.setdefault(folder, {}).update(zip(*ports, strict=True))
    assert shown == {folder: PORTS[folder] for folder in ("mosquitto", "traefik", "unifi", "mail")}


@pytest.mark.root
def test_the_firewall_recipe_in_the_readme_is_valid() -> None:
    (recipe,) = re.findall(r"```nft\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    result = subprocess.run(
        [need("nft"), "--check", "--file", "-"], input=recipe, capture_output=True, text=True, check=False, timeout=30
    )
    assert (result.returncode, result.stderr) == (0, "")
