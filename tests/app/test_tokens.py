"""Tokens by `pylb token`: made, used by a real phone-home through a join string, rotated, revoked, restored from a backup."""

import errno
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from click.testing import CliRunner

from phonehome.controller import options
from pylb.app.tokens import TOKEN_FILE, TokenStore
from pylb.cli.main import main
from pylb.config import load
from pylb.config.generated_tokens import FOLDER, GeneratedToken, read_generated, write_generated
from tests.app.instance import SECRET, Instance, cli, token
from tests.app.test_cli import INC
from tests.support.peers import need_root
from tests.support.ports import free_port, refusing_port
from tests.support.processes import python
from tests.support.waiting import eventually

NOBODY = 65534


@pytest.fixture
def tls(pylb: Instance) -> Instance:
    """Without tokens in its config, and self-signed."""
    configure(pylb)
    return pylb


def configure(pylb: Instance) -> None:
    pylb.configure(webhook={"listen": f"127.0.0.1:{pylb.webhook}", "tls": "self-signed"}, tokens=None)


def create(pylb: Instance, name: str = "app", *more: str) -> str:
    ended = pylb.ask("token", "create", name, "--ports", "20000-29999", "--targets", "127.0.0.0/8", *more)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("PYLB_JOIN=")
    return ended.stdout.strip().removeprefix("PYLB_JOIN=")


def phone(pylb: Instance, **environ: str) -> subprocess.CompletedProcess[str]:
    """`phonehome once` for the test's port."""
    environ = {
        "PATH": os.environ["PATH"],
        "PYLB_FRONTENDS": f"{pylb.port}:{refusing_port()}",
        "PYLB_ADDRESS": "127.0.0.1",
    } | environ
    return subprocess.run(python("phonehome", "once"), check=False, env=environ, capture_output=True, text=True, timeout=30)


def test_one_join_string_is_all_that_a_phone_home_needs(tls: Instance) -> None:
    tls.start()
    join = create(tls)
    assert re.fullmatch(rf"pylb://app:[\w-]{{32}}@127\.0\.0\.1:{tls.webhook}(/[\w-]{{43}}){{2}}", join)
    ended = phone(tls, PYLB_JOIN=join)
    assert ended.returncode == 0, ended.stdout
    [row] = tls.routes()
    assert row["held_by"][0].startswith("app/app/")
    kept = tls.state_dir / FOLDER / "app"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert json.loads(kept.read_text())["secrets"][0] not in tls.running.text()


def test_a_join_string_with_another_key_sends_nothing(tls: Instance) -> None:
    tls.start()
    join = create(tls)
    where = join.split("/")
    ended = phone(tls, PYLB_JOIN="/".join([*where[:3], "A" * 43, "B" * 43]))
    assert ended.returncode == 1
    assert "not the key of the join string" in ended.stdout
    assert json.loads(tls.ask("routes", "--rejected", "--json").stdout) == []  # not one call came


def test_a_rotation_accepts_both_secrets_until_it_is_done(tls: Instance) -> None:
    tls.start()
    old = create(tls)
    new = tls.ask("token", "rotate", "app").stdout.strip().removeprefix("PYLB_JOIN=")
    assert new != old
    assert phone(tls, PYLB_JOIN=old).returncode == phone(tls, PYLB_JOIN=new).returncode == 0
    assert "the old secret is refused" in tls.ask("token", "rotate", "app", "--done").stdout
    assert "401" in phone(tls, PYLB_JOIN=old).stdout
    assert phone(tls, PYLB_JOIN=new).returncode == 0
    again = tls.ask("token", "rotate", "app", "--done")
    assert (again.returncode, "nothing is being rotated" in again.stderr) == (1, True)


def test_a_second_rotation_waits_for_the_end_of_the_first_and_the_list_says_who_is_used(tls: Instance) -> None:
    tls.start()
    old = create(tls)
    new = tls.ask("token", "rotate", "app").stdout.strip().removeprefix("PYLB_JOIN=")
    assert phone(tls, PYLB_JOIN=old).returncode == 0
    [row] = [row for row in json.loads(tls.ask("token", "list", "--json").stdout) if row["name"] == "app"]
    assert (row["last_used"][0], isinstance(row["last_used"][1], float)) == (None, True)
    assert "the old secret: used" in tls.ask("token", "list").stdout
    again = tls.ask("token", "rotate", "app")
    assert (again.returncode, "its old secret would be refused at once (used" in again.stderr) == (1, True)
    assert phone(tls, PYLB_JOIN=old).returncode == phone(tls, PYLB_JOIN=new).returncode == 0
    assert "(used" in tls.ask("token", "rotate", "app", "--done").stdout
    assert tls.ask("token", "rotate", "app").returncode == 0


def test_an_app_gets_a_token_of_its_own_without_a_gap(tls: Instance) -> None:
    tls.start()
    generated = (tls.state_dir / TOKEN_FILE).read_text().strip()
    pin = create(tls, "other").split("/", 3)[3]
    first = f"pylb://generated:{generated}@127.0.0.1:{tls.webhook}/{pin}"
    environ = {"PYLB_NAME": "web", "PYLB_INSTANCE": "pod-1"}
    assert phone(tls, PYLB_JOIN=first, **environ).returncode == 0
    join = create(tls, "web", "--from", "generated", "--target-ports", "1024-65535")
    [row] = tls.routes()
    assert row["held_by"] == ["web/web/pod-1"]
    for one in (first, join, first):  # pods with the old secret and pods with the new one, in any order
        ended = phone(tls, PYLB_JOIN=one, **environ)
        assert ended.returncode == 0, ended.stdout
    assert [row["held_by"] for row in tls.routes()] == [["web/web/pod-1"]]
    assert tls.ask("token", "revoke", "generated").returncode == 0
    assert "401" in phone(tls, PYLB_JOIN=first, **environ).stdout
    assert phone(tls, PYLB_JOIN=join, **environ).returncode == 0
    kinds = [event["kind"] for event in json.loads(tls.get("/v1/events").body)["events"]]
    assert {"token_added", "passed_on", "token_removed"} <= set(kinds)


def test_the_key_is_changed_without_an_outage_for_whoever_pins_the_next_one(tls: Instance) -> None:
    tls.start()
    join = create(tls)
    _, _, _, old, following = join.split("/")
    alone = join.removesuffix(f"/{following}")  # as an older pylb made them
    assert phone(tls, PYLB_JOIN=alone).returncode == 0
    before = (tls.state_dir / "tls" / "cert.pem").read_bytes()
    ended = tls.ask("token", "switch-key", "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == {"key": following}
    assert (tls.state_dir / "tls" / "cert.pem").read_bytes() != before
    eventually(lambda: "not the key of the join string" in phone(tls, PYLB_JOIN=alone).stdout, what="the new key is served")
    assert phone(tls, PYLB_JOIN=join).returncode == 0
    new = tls.ask("token", "rotate", "app").stdout.strip().split("/")
    assert new[3] == following
    assert new[4] not in (old, following)
    assert phone(tls, PYLB_JOIN="/".join(new).removeprefix("PYLB_JOIN=")).returncode == 0


def test_no_key_is_switched_to_that_no_join_string_pins(tls: Instance) -> None:
    tls.start()
    before = (tls.state_dir / "tls" / "key.pem").read_bytes()
    ended = tls.ask("token", "switch-key")
    assert (ended.returncode, "no join string pins a next key yet" in ended.stderr) == (1, True)
    assert (tls.state_dir / "tls" / "key.pem").read_bytes() == before


def test_a_revoked_token_is_refused_at_once_and_its_port_goes_on(tls: Instance) -> None:
    tls.start()
    join = create(tls)
    phone(tls, PYLB_JOIN=join)
    assert json.loads(tls.ask("token", "revoke", "app", "--json").stdout) == {"name": "app", "in_force": True}
    assert "401" in phone(tls, PYLB_JOIN=join).stdout
    assert [row["port"] for row in tls.routes()] == [tls.port]


def test_a_token_made_while_pylb_is_down_counts_from_its_start(tls: Instance) -> None:
    join = create(tls)
    tls.start()
    assert phone(tls, PYLB_JOIN=join).returncode == 0


def test_a_backup_as_the_page_says_serves_everything_on_another_machine(tls: Instance, tmp_path: Path) -> None:
    """docs/security.md, Backup: its own commands, on other folders. No phone-home calls before all of it is looked at."""
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text().split("## Backup")[1]
    back_up, restore = (next(line for line in page.splitlines() if flag in line) for flag in SAVES)
    tls.start()
    join = create(tls)
    assert phone(tls, PYLB_JOIN=join, PYLB_INSTANCE="pod-1").returncode == 0
    old = tmp_path / "old.inc"
    old.write_text(INC.format(port=free_port(), target=30001))
    done = tls.ask("import", "--token", "generated", str(old))
    assert done.returncode == 0, done.stdout + done.stderr
    assert tls.ask("ctl", "drain", "127.0.0.1").returncode == 0
    before = {row["port"]: (row["address"], row["state"], row["held_by"]) for row in tls.routes()}
    assert {state for _, state, _ in before.values()} == {"drain"}
    files = {name: (tls.state_dir / name).read_bytes() for name in (TOKEN_FILE, "tls/key.pem", f"{FOLDER}/app")}
    as_root_says(back_up, tls.state_dir, tmp_path)
    tls.running.stop()
    shutil.rmtree(tls.state_dir)
    elsewhere = tmp_path / "another-machine"
    elsewhere.mkdir()
    as_root_says(restore.split(" && ")[0], elsewhere, tmp_path)
    shutil.copytree(elsewhere, tls.state_dir)
    tls.start()
    assert {row["port"]: (row["address"], row["state"], row["held_by"]) for row in tls.routes()} == before
    assert {name: (tls.state_dir / name).read_bytes() for name in files} == files
    assert phone(tls, PYLB_JOIN=join, PYLB_INSTANCE="pod-1").returncode == 0


SAVES = ("-czf pylb-state.tar.gz", "-xzf pylb-state.tar.gz")


def as_root_says(command: str, state_dir: Path, folder: Path) -> None:
    words = [str(state_dir) if word == "/var/lib/pylb" else word for word in shlex.split(command.removeprefix("sudo "))]
    subprocess.run(words, cwd=folder, check=True, timeout=30)


def test_the_first_runs_token_counts_until_it_is_revoked_and_is_not_made_again(tls: Instance) -> None:
    tls.start()
    first = json.loads(tls.ask("token", "list", "--json").stdout)
    assert [row["name"] for row in first] == ["generated"]
    alone = tls.ask("token", "revoke", "generated")
    assert (alone.returncode, "`pylb token create` comes first" in alone.stderr) == (1, True)
    create(tls)
    assert [row["name"] for row in json.loads(tls.ask("token", "list", "--json").stdout)] == ["app", "generated"]
    assert tls.ask("token", "revoke", "generated").returncode == 0
    assert not (tls.state_dir / TOKEN_FILE).exists()
    tls.running.stop()
    tls.start()
    assert [row["name"] for row in json.loads(tls.ask("token", "list", "--json").stdout)] == ["app"]


def test_a_secret_file_that_changes_counts_without_a_reload(pylb: Instance) -> None:
    file = pylb.folder / "secret"
    file.write_text(SECRET + "\n")
    file.chmod(0o600)
    entry = token() | {"secret_file": str(file)}
    del entry["secret"]
    pylb.configure(tokens=[entry])
    pylb.start()
    new = "another-secret-of-some-length"
    assert pylb.register(pylb.port, 30000, secret=new).status == 401
    file.write_text(f"{new}\n{SECRET}\n")
    eventually(lambda: pylb.register(pylb.port, 30000, secret=new).status == 201, what="the new secret counts")
    assert pylb.register(pylb.port, 30000).status == 200
    file.write_text("short\n")
    pylb.running.has_said("the secret of token 'app' stays as it was")
    assert pylb.register(pylb.port, 30000, secret=new).status == 200


def test_made_tokens_whose_directory_cannot_be_read_stay_in_force_and_are_not_said_to_be_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them were revoked by one EMFILE, and `pylb token list` of a plain user showed the config's alone."""
    made = GeneratedToken.model_validate({"name": "app", "secrets": [SECRET], "ports": ["8443"]})
    write_generated(tmp_path, made)
    (tmp_path / "pylb.yaml").write_text(f"state_dir: {tmp_path}\n")
    store = TokenStore(load(tmp_path / "pylb.yaml", {}))
    assert [one.name for one in store.keyring().tokens if one.name == "app"] == ["app"]

    def closed(_folder: Path) -> Iterator[Path]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "iterdir", closed)
    store.read_again()
    assert [one.name for one in store.keyring().tokens if one.name == "app"] == ["app"]
    assert tmp_path / TOKEN_FILE in store.files()
    ended = CliRunner().invoke(main, ["token", "list", "-c", str(tmp_path / "pylb.yaml")])
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert (
        f"{tmp_path / FOLDER} cannot be read: Permission denied (ask as root or as the user that pylb runs as)" in ended.stderr
    )
    monkeypatch.undo()
    store.read_again()
    assert store.generated.listed


def test_a_broken_file_of_a_made_token_costs_nobody_and_is_said(tls: Instance) -> None:
    tls.start()
    join = create(tls)
    kept = tls.state_dir / FOLDER / "app"
    kept.write_text("{")
    tls.running.has_said(f"{kept} is left out")
    assert phone(tls, PYLB_JOIN=join).returncode == 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("create", "b ad", "--ports", "443"), "name: 'b ad' is not a name"),
        (("create", "app", "--ports", "99999"), "ports: '99999' is not a port"),
        (("create", "app", "--ports", "443", "--sources", "nowhere"), "sources: 'nowhere' is not a network"),
        (("create", "app", "--ports", "20-30", "--kubernetes"), '--frontends "443:30443" is needed'),
        (("create", "app", "--ports", "443", "--kubernetes", "--frontends", "443:443"), "NodePorts are 30000-32767"),
        (("create", "app", "--ports", "443", "--kubernetes", "--frontends", "443:\u00b2"), "NodePorts are 30000-32767"),
        (("create", "app", "--ports", "443", "--kubernetes", "--frontends", "443:" + "9" * 5000), "NodePorts are 30000-32767"),
        (("create", "app", "--ports", "443", "--kubernetes", "--app", "a: b"), "--app: 'a: b' is not a valid label value"),
        (("create", "app", "--ports", "443", "--kubernetes", "--namespace", "a\nb"), "is not a valid name in Kubernetes"),
        (("create", "a" * 60, "--ports", "443", "--kubernetes"), "NAME: "),
        (("create", "app"), "Missing option '--ports'"),
        (("create", "kube", "--kubernetes-controller"), "--targets is needed: the networks of your nodes"),
        (("create", "kube", "--kubernetes-controller", "--kubernetes", "--targets", "::/0"), "two ways to open a port"),
        (
            ("create", "kube", "--kubernetes-controller", "--targets", "::/0", "--public-address", "203.0.113.999"),
            "--public-address: '203.0.113.999' is neither an IP address nor a host name",
        ),
        (("create", "app", "--ports", "443", "--from", "nobody"), "there is no token called 'nobody'"),
        (("rotate", "nobody"), "there is no token called 'nobody'"),
        (("revoke", "nobody"), "there is no token called 'nobody'"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(tls: Instance, args: tuple[str, ...], says: str) -> None:
    ended = tls.ask("token", *args)
    assert ended.returncode in (1, 2)
    assert says in ended.stderr
    assert not (tls.state_dir / FOLDER).exists()


def test_a_config_that_is_named_before_the_verb_counts(tls: Instance) -> None:
    """Or the secret would be written to the default state directory, where nobody looks for it."""
    ended = cli(tls.folder, "token", "-c", str(tls.file), "create", "app", "--ports", "20000-29999")
    assert ended.returncode == 0, ended.stderr
    assert (tls.state_dir / FOLDER / "app").exists()


def test_a_join_string_with_loopback_comes_with_a_warning_and_one_with_a_name_does_not(tls: Instance) -> None:
    warning = "the join string says 127.0.0.1, which on every machine is that machine itself: set `advertise`, or --host"
    assert warning in tls.ask("token", "create", "app", "--ports", "443").stderr
    ended = tls.ask("token", "rotate", "app", "--host", "lb.example.net")
    assert ("the join string says" in ended.stderr, "@lb.example.net:" in ended.stdout) == (False, True)


def test_without_tls_there_is_no_join_string(pylb: Instance) -> None:
    pylb.configure(tokens=None)
    ended = pylb.ask("token", "create", "app", "--ports", "443")
    assert (ended.returncode, "no webhook listener has TLS" in ended.stderr) == (1, True)


def test_tokens_of_the_config_are_listed_and_left_to_their_file(pylb: Instance) -> None:
    [row] = json.loads(pylb.ask("token", "list", "--json").stdout)
    assert (row["name"], row["from"], row["ports"]) == ("app", "config", "20000-29999")
    ended = pylb.ask("token", "rotate", "app")
    assert (ended.returncode, "is of the config" in ended.stderr) == (1, True)


def test_kubernetes_gets_everything_in_one_piece(tls: Instance) -> None:
    ended = tls.ask("token", "create", "Web_1", "--ports", "443,8443", "--kubernetes", "--namespace", "apps", "--app", "web")
    assert ended.returncode == 0, ended.stderr
    documents = {one["kind"]: one for one in yaml.safe_load_all(ended.stdout)}
    assert set(documents) == {"Secret", "Service", "DaemonSet", "ConfigMap"}
    for one in documents.values():
        kubernetes_validate.validate(one, "1.31", strict=True)
        assert one["metadata"]["namespace"] == "apps"
    service = documents["Service"]["spec"]
    assert service["selector"] == {"app": "web"}
    assert [(port["port"], port["nodePort"]) for port in service["ports"]] == [(443, 30443), (8443, 30843)]
    [container] = documents["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    environ = {one["name"]: one.get("value") for one in container["env"]}
    assert environ["PYLB_FRONTENDS"] == "443:30443 8443:30843"
    assert documents["Secret"]["stringData"]["join"].startswith("pylb://Web_1:")


def test_the_controller_of_a_cluster_comes_in_one_piece_with_a_token_of_the_right_scope(tls: Instance) -> None:
    ended = tls.ask(
        *("token", "create", "kubernetes", "--kubernetes-controller", "--targets", "198.51.100.0/24"),
        *("--host", "lb.example.net", "--public-address", "203.0.113.9,2001:db8::9", "--namespace", "1e3"),
        *("--server-names", "git.example.net,*.apps.example.net"),
    )
    assert ended.returncode == 0, ended.stderr
    documents = {one["kind"]: one for one in yaml.safe_load_all(ended.stdout)}
    kinds = {"Namespace", "Secret", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "ConfigMap", "Deployment"}
    assert documents.keys() == kinds
    for one in documents.values():
        kubernetes_validate.validate(one, "1.31", strict=True)
    namespaces = {one["metadata"].get("namespace") for kind, one in documents.items() if not kind.startswith("Cluster")}
    assert namespaces - {None} == {documents["Namespace"]["metadata"]["name"]} == {"1e3"}
    assert documents["ClusterRoleBinding"]["subjects"][0]["namespace"] == "1e3"
    [container] = documents["Deployment"]["spec"]["template"]["spec"]["containers"]
    environ = {one["name"]: one["value"] for one in container["env"]}
    files = {environ["PYLB_JOIN_FILE"]: documents["Secret"]["stringData"]["join"]}
    understood = options.read({**environ, "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, files.__getitem__)
    assert [one.address for one in understood.addresses] == ["203.0.113.9", "2001:db8::9"]
    assert [one.label for one in understood.settings.endpoints] == [f"lb.example.net:{tls.webhook}"]
    made = read_generated(tls.state_dir).tokens["kubernetes"]
    assert list(map(str, made.ports)) == ["1-21", "23-65535", "1-65535/udp"]
    assert (made.names, list(map(str, made.target_ports))) == (("*",), ["30000-32767", "10256"])
    assert made.token().server_names == ("git.example.net", "*.apps.example.net")
    assert list(map(str, made.targets)) == ["198.51.100.0/24"]


def test_a_service_shows_the_host_of_the_join_string_where_nothing_else_is_said(tls: Instance) -> None:
    asked = ("token", "create", "kubernetes", "--kubernetes-controller", "--targets", "::/0", "--host")
    shown = yaml.safe_load_all(tls.ask(*asked, "2001:db8::7").stdout)
    [deployment] = [one for one in shown if one["kind"] == "Deployment"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    assert {"name": "PYLB_PUBLIC_ADDRESS", "value": "2001:db8::7"} in container["env"]


@pytest.mark.parametrize(
    "name", ["yes", "no", "null", "True", "1234", "0x10", "0o17", "1e3", "1_000", "2024-01-01", "12.5", "Y"]
)
def test_a_name_that_yaml_has_a_meaning_for_stays_a_name(tls: Instance, name: str) -> None:
    """Whatever the reader's list of such texts is: each stands in quotes."""
    ended = tls.ask("token", "create", name, "--ports", "443", "--kubernetes", "--namespace", "1e3")
    assert ended.returncode == 0, ended.stderr
    documents = list(yaml.safe_load_all(ended.stdout))
    for one in documents:
        kubernetes_validate.validate(one, "1.31", strict=True)
    texts = {name, "1e3", *(one["metadata"]["name"] for one in documents if one["kind"] != "ConfigMap")}
    nodes = [node for root in yaml.compose_all(ended.stdout, yaml.SafeLoader) for node in scalars(root)]
    found = [node for node in nodes if node.value in texts]
    assert {node.value for node in found} == texts
    assert {node.style for node in found} == {'"'}
    service = next(one for one in documents if one["kind"] == "Service")
    assert service["spec"]["selector"] == {"app": name}
    assert re.fullmatch(r"[a-z][a-z0-9-]*", service["metadata"]["name"])


def scalars(node: yaml.Node) -> list[yaml.ScalarNode]:
    if isinstance(node, yaml.ScalarNode):
        return [node]
    inside = [one for pair in node.value for one in pair] if isinstance(node, yaml.MappingNode) else node.value
    return [found for one in inside for found in scalars(one)]


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """That every user reaches. `tmp_path` is below a folder that each run of pytest makes its user's alone again."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.root
def test_root_makes_tokens_as_the_services_user_and_follows_no_link_of_its(tls: Instance, public_folder: Path) -> None:
    need_root()
    tls.state_dir = public_folder / "state"
    configure(tls)
    tls.state_dir.mkdir(mode=0o700)
    os.chown(tls.state_dir, NOBODY, NOBODY)
    create(tls)
    made = [tls.state_dir / FOLDER / "app", tls.state_dir / "tls/key.pem"]
    assert [(path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) for path in made] == [(NOBODY, 0o600)] * 2
    shutil.rmtree(tls.state_dir / FOLDER)
    roots = public_folder / "roots"
    roots.mkdir(mode=0o755)
    (tls.state_dir / FOLDER).symlink_to(roots)
    ended = tls.ask("token", "create", "evil", "--ports", "443")
    assert ended.returncode == 2
    assert list(roots.iterdir()) == []


def test_a_new_secret_needs_no_pylb(tmp_path: Path) -> None:
    assert len(cli(tmp_path, "token").stdout.strip()) == 32
