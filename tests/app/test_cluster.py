"""Running pylbs that share their table through the real etcd: what a person configures, sees and types."""

import json
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.app.instance import SECRET, Answer, Instance, fetch, token
from tests.support.certificate import self_signed
from tests.support.etcd import Member, one_member
from tests.support.ports import free_port
from tests.support.processes import Processes
from tests.support.waiting import eventually

NODE = "198.51.100.1"


@pytest.fixture
def member() -> Iterator[Member]:
    with one_member("--bcrypt-cost", "4") as found:
        yield found


@pytest.fixture
def made(processes: Processes, tmp_path: Path) -> Callable[..., Instance]:
    """A balancer of that name, with its own address on loopback."""

    def make(name: str, number: int, member: Member, **etcd: Any) -> Instance:
        (tmp_path / name).mkdir()
        one = Instance(processes, tmp_path / name)
        one.configure(
            tokens=[token(targets=["198.51.100.0/24"], names=["*"])],
            defaults={"bind": f"127.0.0.{number}", "timeouts": {"shutdown": "1s"}},
            cluster={"name": name, "etcd": {"endpoints": [member.url], **etcd}},
        )
        return one

    return make


def register(one: Instance, port: int, name: str = "app", address: str = NODE) -> Answer:
    body = {"frontends": [{"port": port, "target_port": 30000}], "ttl": 60, "address": address}
    headers = {"Authorization": f"Bearer {SECRET}", "Content-Type": "application/json"}
    return fetch(("127.0.0.1", one.webhook), "PUT", f"/v1/registrations/{name}/one", json.dumps(body), headers)


def status(one: Instance) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(one.ask("cluster", "status", "--json").stdout)
    return found


def connected(*several: Instance) -> None:
    for one in several:
        eventually(lambda one=one: one.get("/readyz").json["shared"], within=30, what=f"connected\n{one.running.text()}")


def served(one: Instance) -> dict[int, str]:
    found = one.get("/v1/registrations").json["registrations"]
    return {item["port"]: row["address"] for row in found for item in row["frontends"]}


@pytest.mark.timeout(180)
def test_two_pylbs_serve_one_table(
    member: Member, made: Callable[..., Instance], successors: list[int], tmp_path: Path
) -> None:
    a, b = made("lb-a", 2, member, prefix="/test"), made("lb-b", 3, member, prefix="/test")
    for one in (a, b):
        one.start()
    connected(a, b)
    port = free_port()
    assert register(a, port).status == 201
    eventually(lambda: port in served(b), what=f"b serves it, too\n{b.running.text()}")
    assert a.get("/readyz").json == {"status": "ready", "durable": True, "unbound": [], "shared": True}
    shown = b.ask("cluster", "status").stdout
    assert shown.startswith(f"lb-b shares its table, by {member.url}: 0 registrations heard here, 1 by others\n")
    assert [(one["name"], one["present"]) for one in status(b)["members"]] == [("lb-a", True), ("lb-b", True)]
    same = b.ask("cluster", "diff")
    assert (same.returncode, same.stdout) == (0, "nothing differs\n")
    text = b.get("/metrics").body.decode()
    for line in (
        "pylb_cluster_connected 1.0",
        'pylb_cluster_member_present{member="lb-a"} 1.0',
        'pylb_cluster_registrations{heard="elsewhere"} 1.0',
    ):
        assert line in text.splitlines()
    assert [row["heard_by"] for row in b.routes()] == [["lb-a"]]
    explained = b.ask("explain", str(port)).stdout
    assert "app/app has port" in explained
    assert f"lb-a: app/app/one at {NODE}, fresh" in explained
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"frontends": [{"port": free_port(), "target_port": 30000}]}))
    plan = a.ask("plan", "--token", "app", "--name", "new", "--address", NODE, str(body)).stdout
    assert "lb-b serves it as well, if its own config allows it\n" in plan
    found = {one["what"]: one for one in json.loads(b.ask("doctor", "--json").stdout)}
    assert found["balancers"]["found"] == "present: lb-a, lb-b"
    assert found["etcd's keys"]["ok"]
    refused = b.ask("cluster", "forget", "lb-a")
    assert (refused.returncode, "'lb-a' is present" in refused.stderr) == (1, True)

    done = a.ask("upgrade")  # the presence is handed over: nobody takes the new one for another balancer
    assert done.returncode == 0, done.stderr
    successors.append(int(done.stdout.split()[1]))
    connected(a)
    assert "each needs a cluster.name" not in a.running.text()
    assert register(a, port, address="198.51.100.2").status == 200
    eventually(lambda: served(b)[port] == "198.51.100.2", what="the move is there, too")

    a.running.kill()
    member.kill()
    eventually(lambda: b.get("/readyz").json["status"] == "degraded", within=30, what="b has noticed")
    assert b.get("/readyz").status == 200
    assert port in served(b)
    answer = register(b, free_port(), name="other")
    assert (answer.status, answer.json["error"]) == (503, "store_unavailable")
    assert "the other balancers and this one do not hear of each other" in b.ask("status").stdout
    assert "pylb_cluster_connected 0.0" in b.get("/metrics").body.decode()


def test_etcd_with_users_and_tls(processes: Processes, made: Callable[..., Instance], member: Member, tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    folder.mkdir()
    files = self_signed(folder, "localhost")
    url = f"https://localhost:{free_port()}"
    options = ("--cert-file", str(files.certificate), "--key-file", str(files.key), "--bcrypt-cost", "4")
    secure = Member("secure", folder, processes, options, url)
    secure.tls = ssl.create_default_context(cafile=str(files.certificate))
    secure.start()
    secure.wait()
    secure.add_root("the password")
    password = folder / "password"
    password.write_text("the password\n")
    one = made("lb-a", 2, secure, ca=str(files.certificate), username="root", password_file=str(password), timeout="2s")
    one.start()
    connected(one)
    one.running.stop()
    password.write_text("another one\n")
    one.start()
    one.running.has_said("authentication failed")
    assert "authentication failed" in status(one)["trouble"]
    password.write_text("the password\n")
    connected(one)  # without a restart


def test_a_renewed_client_certificate_is_used_without_a_restart(
    processes: Processes, made: Callable[..., Instance], member: Member, tmp_path: Path
) -> None:
    """etcd accepts the second one only, so that it shows which of them is in use."""
    first, second = (self_signed(folder, "localhost") for folder in (tmp_path / "1", tmp_path / "2") if not folder.mkdir())
    url = f"https://localhost:{free_port()}"
    options = (
        "--cert-file",
        str(second.certificate),
        "--key-file",
        str(second.key),
        "--trusted-ca-file",
        str(second.certificate),
    )
    secure = Member("secure", tmp_path, processes, (*options, "--client-cert-auth"), url)
    secure.tls = ssl.create_default_context(cafile=str(second.certificate))
    secure.tls.load_cert_chain(second.certificate, second.key)
    secure.start()
    secure.wait()
    files = {"certificate": str(first.certificate), "key": str(first.key)}
    one = made("lb-a", 2, secure, ca=str(second.certificate), **files)
    one.start()
    one.running.has_said("etcd: ")
    assert not one.get("/readyz").json["shared"]
    first.certificate.write_bytes(second.certificate.read_bytes())
    one.running.has_said(f"{first.key} does not belong to {first.certificate}")
    first.key.write_bytes(second.key.read_bytes())
    connected(one)
    first.key.write_text("")
    one.running.has_said(f"{first.key} has no private key that can be read")
    assert one.get("/readyz").json["shared"]
    one.running.stop()
    first.key.unlink()
    one.start()  # with what it knows
    one.running.has_said("cannot be read: No such file or directory")
    assert one.get("/readyz").status == 200
    first.key.write_bytes(second.key.read_bytes())
    connected(one)


def test_a_pylb_without_a_cluster_says_so(pylb: Instance) -> None:
    pylb.start()
    refused = pylb.ask("cluster", "status")
    assert refused.returncode == 1
    assert "this pylb shares its table with nobody" in refused.stderr
    assert "pylb_cluster_connected" not in [line.split()[0] for line in pylb.get("/metrics").body.decode().splitlines()]
    pylb.configure(cluster={"etcd": {"endpoints": ["http://127.0.0.1:2379"]}})
    reloaded = pylb.ask("reload")
    assert "cluster.etcd cannot change while pylb runs" in reloaded.stderr
    assert "pylb upgrade" in reloaded.stderr
