"""What a token may and may not: addresses, ports, names, sources, takeover, static frontends."""

import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.contract.instance import Pylb, answers, call, is_open, secret, serving, token, wants
from tests.support.peers import missing
from tests.support.ports import free_port, free_ports
from tests.support.processes import Processes

STATIC, OPEN_STATIC, EMPTY_STATIC, LEGACY_STATIC, LABEL, LABELLED = free_ports(6)
STATIC_SERVER = free_port()
OWN_IP = "127.0.0.1"


@pytest.fixture(scope="module")
def pylb(module_processes: Processes, module_folder: Path) -> Pylb:
    frontends = [
        {"name": "web", "listen": f"127.0.0.1:{STATIC}", "servers": [f"127.0.0.4:{STATIC_SERVER}"]},
        {"name": "any", "listen": f"127.0.0.1:{OPEN_STATIC}", "registrations": "any", "servers": []},
        {"name": "empty", "listen": f"127.0.0.1:{EMPTY_STATIC}"},
        {"name": "old", "listen": f"127.0.0.1:{LEGACY_STATIC}", "registrations": "legacy"},
        {"name": f"shop-{LABELLED}", "listen": f"127.0.0.1:{LABEL}"},
    ]
    tokens = [
        token("app"),
        token("boss", takeover=True),
        token("own-name", names=None) | {"names": ["own-name"]},
        {"name": "default", "secret": secret("default"), "ports": ["20000-29999"], "target_ports": ["1-65535"]},
        {"name": "narrow", "secret": secret("narrow"), "ports": [8443, "8883-8899"], "targets": ["203.0.113.0/24"]},
        token("abroad", sources=["198.51.100.0/24"]),
        token("near", sources=["127.0.0.5/32", "::1/128"]),
        token("wide", targets=["0.0.0.0/0", "::/0"]),
        token("default-ports", target_ports=["30000-32767"]),
        token("greedy", ports=["1-65535"], targets=["0.0.0.0/0", "::/0", "127.0.0.0/8", "::1/128"]),
        {"name": "weak", "secret": "short", "allow_weak": True}
        | {k: v for k, v in token("x").items() if k not in {"name", "secret"}},
    ]
    return Pylb(module_processes, module_folder, tokens=tokens, frontends=frontends).start()


def own_address() -> str | None:
    """An address of this machine that is not loopback."""
    listed = subprocess.run(["ip", "-4", "-o", "addr"], capture_output=True, text=True, check=False).stdout
    found = [line.split()[3].partition("/")[0] for line in listed.splitlines() if "127.0.0.1" not in line]
    return found[0] if found else None


# ---------------------------------------------------------------- addresses


def test_an_explicit_address_inside_targets_is_used(pylb: Pylb) -> None:
    port, target = free_ports(2)
    answer = pylb.put("explicit/one", wants((port, target), address="127.0.0.6"))
    assert answer.status == 201
    assert answer.json["frontends"][0]["address"] == "127.0.0.6"


def test_an_explicit_address_outside_targets_is_403(pylb: Pylb) -> None:
    answer = pylb.put("outside/one", wants((free_port(), 30001), address="203.0.113.9"))
    assert (answer.status, answer.error) == (403, "target_forbidden")


def test_without_targets_an_explicit_address_other_than_the_peers_is_403(pylb: Pylb) -> None:
    answer = pylb.put("default/one", wants((free_port(), 30001), address="203.0.113.9"), by="default")
    assert (answer.status, answer.error) == (403, "target_forbidden")


def test_loopback_is_refused_unless_targets_names_it(pylb: Pylb) -> None:
    answer = pylb.put("default/one", wants((free_port(), 30001)), by="default")
    assert (answer.status, answer.error) == (422, "target_refused")
    assert "loopback" in answer.json["detail"]


REFUSED = [
    "169.254.169.254",
    "::ffff:169.254.169.254",
    "fe80::1",
    "0.0.0.0",
    "::",
    "::ffff:0.0.0.0",
    "224.0.0.1",
    "239.255.255.250",
    "ff02::1",
    "::ffff:224.0.0.1",
    "255.255.255.255",
    "64:ff9b::169.254.169.254",
    "::169.254.169.254",
    "2002:a9fe:a9fe::",
    "0.1.2.3",
    "240.0.0.1",
    "100.100.100.200",
    "::ffff:100.100.100.200",
    "64:ff9b::100.100.100.200",
    "2002:6464:64c8::",
    "fd00:100::100:200",
    "168.63.129.16",
    "::ffff:168.63.129.16",
    "192.0.0.192",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fd20:ce::254",
    "fd00:c1::a9fe:a9fe",
    "fd00:42::42",
    "fd00:a9fe:a9fe::1",
]


@pytest.mark.parametrize("address", REFUSED)
def test_a_refused_class_is_422_whatever_targets_say(pylb: Pylb, address: str) -> None:
    port = free_port()
    answer = pylb.put("classes/one", wants((port, 30001), address=address), by="greedy")
    assert (answer.status, answer.error) == (422, "target_refused")
    assert not is_open(port)


@pytest.mark.parametrize("address", [None, "127.0.0.1", "127.0.0.6", "::ffff:127.0.0.1", "::1"])
def test_a_wide_network_of_targets_does_not_hold_loopback(pylb: Pylb, address: str | None) -> None:
    port, target = free_ports(2)
    with serving("never", target, "127.0.0.1") as app:
        answer = pylb.put("wide/one", wants((port, target), address=address), by="wide")
        assert (answer.status, answer.error) == (422, "target_refused")
        assert app.met == 0
    assert not is_open(port)


def test_nor_does_it_hold_an_address_of_pylbs_own_machine(pylb: Pylb) -> None:
    address = own_address()
    if address is None:
        missing("this machine has only loopback")
    port, target = free_ports(2)
    with serving("never", target, address) as app:
        answer = pylb.put("wide/one", wants((port, target), address=address), by="wide")
        assert (answer.status, answer.error) == (422, "target_refused")
        assert app.met == 0
    assert not is_open(port)


def test_nor_does_a_legacy_call_reach_loopback_through_it(pylb: Pylb) -> None:
    port, target = free_ports(2)
    body = {"frontend-port": str(port), "backend-port": str(target), "action": "add", "name": "w", "send-proxy": ""}
    with serving("never", target, "127.0.0.1") as app:
        for named in ("", "127.0.0.1", "127.0.0.6"):
            assert pylb.hook(body | {"dst-ip": named}, secret=secret("wide")).status == 422
        assert app.met == 0
    assert not is_open(port)


CHECKS = [{"port": 0}, {"http": "/", "port": 0}, {"send": "x", "expect": "SSH", "port": 0}]


@pytest.mark.parametrize("check", CHECKS, ids=["connect", "http", "text"])
def test_a_check_reaches_only_the_tokens_target_ports(pylb: Pylb, check: dict[str, Any]) -> None:
    """Else `reachable` and the server's state would say what any port of an allowed address is."""
    port, secret_port = free_ports(2)
    with serving("never", secret_port, "127.0.0.6") as app:
        body = wants((port, 30001), address="127.0.0.6")
        body["frontends"][0]["health"] = check | {"port": secret_port}
        answer = pylb.put("oracle/one", body, by="default-ports")
        assert (answer.status, answer.error) == (403, "target_forbidden")
        assert "health.port" in answer.json["detail"]
        assert app.met == 0
    assert not is_open(port)


@pytest.mark.parametrize("check", CHECKS, ids=["connect", "http", "text"])
def test_a_check_of_pylb_itself_is_a_loop(pylb: Pylb, check: dict[str, Any]) -> None:
    """Whatever pylb answers there would make a dead server count as up."""
    port = free_port()
    for own in (port, pylb.webhook, pylb.admin, STATIC):
        body = wants((port, 30001), address="127.0.0.1")
        body["frontends"][0]["health"] = check | {"port": own}
        answer = pylb.put("oracle/two", body, by="greedy")
        assert (answer.status, answer.error) == (422, "target_refused"), own
    assert not is_open(port)


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1"])
def test_a_loop_to_a_port_of_pylb_itself_is_422(pylb: Pylb, address: str) -> None:
    port, other = free_ports(2)
    for target in (port, pylb.webhook, pylb.admin, STATIC):
        answer = pylb.put("loop/one", wants((port, target), address=address), by="greedy")
        assert (answer.status, answer.error) == (422, "target_refused"), target
    assert pylb.put("behind/one", wants((other, 30001))).status in {200, 201}
    chained = pylb.put("loop/one", wants((port, other), address=address), by="greedy")
    assert (chained.status, chained.error) == (422, "target_refused")
    assert not is_open(port)


def test_a_loop_over_the_machines_own_address_is_422(pylb: Pylb) -> None:
    address = own_address() or "127.0.0.1"
    port = free_port()
    answer = pylb.put("loop/two", wants((port, port), address=address), by="greedy")
    assert (answer.status, answer.error) == (422, "target_refused")


def test_a_loop_over_a_public_address_behind_nat_is_422(processes: Processes, tmp_path: Path) -> None:
    """1:1 NAT: no interface of the machine has the address, yet it leads back here."""
    public = "198.51.100.9"
    greedy = token("greedy", targets=["0.0.0.0/0"])
    pylb = Pylb(processes, tmp_path, public_addresses=[public], tokens=[greedy]).start()
    port = free_port()
    answer = pylb.put("loop/nat", wants((port, port), address=public), by="greedy")
    assert (answer.status, answer.error) == (422, "target_refused")


def test_a_loop_over_a_floating_address_that_another_machine_has_is_422(processes: Processes, tmp_path: Path) -> None:
    floating = "198.51.100.9"
    greedy = token("greedy", targets=["0.0.0.0/0"])
    pylb = Pylb(processes, tmp_path, cluster={"addresses": [floating]}, tokens=[greedy]).start()
    port = free_port()
    answer = pylb.put("loop/floating", wants((port, port), address=floating), by="greedy")
    assert (answer.status, answer.error) == (422, "target_refused")


def test_two_ports_of_one_call_that_point_at_each_other_are_a_loop(pylb: Pylb) -> None:
    one, two = free_ports(2)
    answer = pylb.put("loop/three", wants((one, two), (two, one)), by="greedy")
    assert (answer.status, answer.error) == (422, "target_refused")


def test_a_mapped_ipv4_address_is_the_ipv4_address(pylb: Pylb) -> None:
    answer = pylb.put("mapped/one", wants((free_port(), 30001), address="::ffff:127.0.0.6"))
    assert answer.json["frontends"][0]["address"] == "127.0.0.6"


# ---------------------------------------------------------------- ports, names, sources, tokens


@pytest.mark.parametrize("port", [443, 8444, 8882, 8900])
def test_a_port_outside_the_tokens_ports_is_403(pylb: Pylb, port: int) -> None:
    answer = pylb.put("narrow/one", wants((port, 30001), address="203.0.113.9"), by="narrow")
    assert (answer.status, answer.error) == (403, "port_forbidden")


@pytest.mark.parametrize("target", [22, 29999, 32768])
def test_target_ports_are_30000_to_32767_unless_said_otherwise(pylb: Pylb, target: int) -> None:
    answer = pylb.put("narrow/one", wants((8443, target), address="203.0.113.9"), by="narrow")
    assert (answer.status, answer.error) == (403, "target_forbidden")


@pytest.mark.parametrize(
    ("port", "target", "error"),
    [
        ("8882-8885", 30001, "port_forbidden"),
        ("8896-8900", 30001, "port_forbidden"),
        ("8883-8886", "29999-30002", "target_forbidden"),
        ("8883-8886", "32765-32768", "target_forbidden"),
    ],
)
def test_a_range_that_leaves_the_tokens_ports_by_one_is_403(pylb: Pylb, port: str, target: str | int, error: str) -> None:
    body = {"frontends": [{"port": port, "target_port": target}], "address": "203.0.113.9"}
    answer = pylb.put("narrow/one", body, by="narrow")
    assert (answer.status, answer.error) == (403, error)


def test_the_names_of_a_token_are_its_own_name_by_default(pylb: Pylb) -> None:
    answer = pylb.put("stranger/one", wants((free_port(), 30001), address="203.0.113.9"), by="narrow")
    assert (answer.status, answer.error) == (403, "name_forbidden")


def test_a_name_outside_names_is_403_for_a_release_too(pylb: Pylb) -> None:
    assert pylb.delete("stranger/one", by="narrow").status in {200, 403}


def test_a_call_from_outside_the_tokens_sources_is_403(pylb: Pylb) -> None:
    answer = pylb.put("abroad/one", wants((free_port(), 30001)), by="abroad")
    assert (answer.status, answer.error) == (403, "source_forbidden")
    assert pylb.put("near/one", wants((free_port(), 30001)), by="near").status == 403
    assert pylb.put("near/one", wants((free_port(), 30001)), by="near", source="127.0.0.5").status == 201


def test_the_ports_of_the_webhook_and_the_admin_are_never_given_away(pylb: Pylb) -> None:
    for port in (pylb.webhook, pylb.admin):
        answer = pylb.put("greedy/one", wants((port, 30001)), by="greedy")
        assert (answer.status, answer.error) == (403, "port_forbidden")  # by pylb, not by the kernel because it is in use
    assert call(pylb.webhook, "GET", "/v1/whoami").status == 200


def test_a_weak_token_is_for_the_legacy_route_only(pylb: Pylb) -> None:
    headers = {"Authorization": "Bearer short"}
    answer = call(pylb.webhook, "PUT", "/v1/registrations/weak/one", b'{"frontends":[{"port":20001,"target_port":1}]}', headers)
    assert answer.status in {401, 403}
    port = free_port()
    body = {"dst-ip": "", "frontend-port": str(port), "backend-port": "30001", "action": "add", "name": "w", "send-proxy": ""}
    assert pylb.hook(body, secret="short").status == 200
    assert "weak" in pylb.running.text()


def test_takeover_takes_an_owned_port(pylb: Pylb) -> None:
    port, target = free_ports(2)
    with serving("old", target, "127.0.0.2"), serving("new", target, "127.0.0.3"):
        pylb.put("sitting/one", wants((port, target)), source="127.0.0.2")
        answer = pylb.put("boss/one", wants((port, target)), by="boss", source="127.0.0.3")
        assert answer.status == 201
        assert answers(port) == "new"
        back = pylb.put("sitting/one", wants((port, target)), source="127.0.0.2")
        assert (back.status, back.error) == (409, "port_owned")
        assert "boss" in back.json["detail"]


# ---------------------------------------------------------------- static frontends


def servers_of(pylb: Pylb, port: int) -> list[dict[str, Any]]:
    [found] = [each["servers"] for each in pylb.get("/v1/table").json["frontends"] if each["port"] == port]
    return list(found)


def test_a_static_frontend_serves_and_its_server_is_named_by_its_address(pylb: Pylb) -> None:
    with serving("static", STATIC_SERVER, "127.0.0.4"):
        assert answers(STATIC) == "static"
    assert servers_of(pylb, STATIC)[0]["name"] == f"127.0.0.4:{STATIC_SERVER}"


def test_only_a_registration_of_its_name_joins_a_static_frontend(pylb: Pylb) -> None:
    refused = pylb.put("other/one", wants((STATIC, 30001)))
    assert (refused.status, refused.error) == (409, "port_owned")
    assert "web" in refused.json["detail"]
    assert pylb.put("web/one", wants((STATIC, 30001))).status == 201
    assert {each["name"] for each in servers_of(pylb, STATIC)} == {f"127.0.0.4:{STATIC_SERVER}", "one"}
    pylb.delete("web/one")
    assert is_open(STATIC)
    assert {each["name"] for each in servers_of(pylb, STATIC)} == {f"127.0.0.4:{STATIC_SERVER}"}


def test_registrations_any_lets_every_name_join(pylb: Pylb) -> None:
    for name in ("one", "two"):
        assert pylb.put(f"{name}/x", wants((OPEN_STATIC, 30001)), source="127.0.0.2").status == 201
    [name] = [each["name"] for each in pylb.get("/v1/table").json["frontends"] if each["port"] == OPEN_STATIC]
    assert name == "any"


def test_a_static_frontend_without_servers_listens_and_resets(pylb: Pylb) -> None:
    with pytest.raises(ConnectionResetError), socket.create_connection(("127.0.0.1", EMPTY_STATIC), 5) as sock:
        sock.recv(1)


def test_a_legacy_call_joins_a_static_frontend_as_its_one_legacy_server(pylb: Pylb) -> None:
    body = {"dst-ip": "", "backend-port": "30009", "action": "add", "name": "web", "send-proxy": ""}
    call_ = body | {"frontend-port": str(STATIC)}
    assert pylb.hook(call_, secret=secret("app")).status == 200
    assert {each["name"] for each in servers_of(pylb, STATIC)} == {f"127.0.0.4:{STATIC_SERVER}", "legacy"}
    assert pylb.hook(call_ | {"action": "delete"}, secret=secret("app")).status == 200
    assert is_open(STATIC)


def test_a_legacy_call_joins_only_the_static_frontend_of_its_name_and_token_or_one_that_lets_it(pylb: Pylb) -> None:
    body = {"dst-ip": "", "backend-port": "30009", "action": "add", "send-proxy": ""}
    other = pylb.hook(body | {"frontend-port": str(STATIC), "name": "other"}, secret=secret("app"))
    assert (other.status, "static frontend 'web'" in other.text) == (409, True)
    borrowed = pylb.hook(body | {"frontend-port": str(STATIC), "name": "web"}, secret=secret("own-name"))
    assert (borrowed.status, "may not register the name" in borrowed.text) == (403, True)
    assert {each["name"] for each in servers_of(pylb, STATIC)} == {f"127.0.0.4:{STATIC_SERVER}"}
    let = body | {"frontend-port": str(LEGACY_STATIC), "name": "whatever"}
    assert pylb.hook(let, secret=secret("own-name")).status == 200
    assert {each["name"] for each in servers_of(pylb, LEGACY_STATIC)} == {"legacy"}
    native = pylb.put("whatever/one", wants((LEGACY_STATIC, 30001)))
    assert (native.status, native.error) == (409, "port_owned")


def test_the_label_of_a_static_frontend_is_nobody_elses(pylb: Pylb) -> None:
    port = LABELLED
    assert pylb.put("shop/one", wants((port, 30001))).status == 201
    names = {each["name"]: each["port"] for each in pylb.get("/v1/table").json["frontends"]}
    assert names[f"shop-{port}"] == LABEL
    assert names[f"shop@{port}"] == port
