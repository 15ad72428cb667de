"""`pylb explain` and `pylb doctor`: the first thing that is wrong comes first, and each says what to do."""

import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pylb.app.descriptors import budget
from pylb.cli import doctor
from pylb.config import load
from pylb.host.machine import listeners_of
from tests.app.instance import SECRET, Instance
from tests.support.certificate import self_signed
from tests.support.ports import free_port
from tests.support.waiting import eventually


def explained(pylb: Instance, port: int) -> list[str]:
    ended = pylb.ask("explain", str(port))
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def explained_of(pylb: Instance, what: str) -> list[str]:
    ended = pylb.ask("explain", what)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def routes(pylb: Instance) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(pylb.ask("routes", "--json").stdout)
    return found


@contextmanager
def sick_app() -> Iterator[int]:
    """Accepts every connection and answers 503."""

    class Sick(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(503)

        def log_message(self, *_args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Sick) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_a_port_nobody_knows_is_exit_1(pylb: Instance) -> None:
    pylb.start()
    ended = pylb.ask("explain", str(pylb.port))
    assert (ended.returncode, f"port {pylb.port}: no frontend" in ended.stderr) == (1, True)
    assert pylb.ask("explain", "70000").returncode == 2


def test_what_works_is_said_with_where_to_look_next(pylb: Instance, echo_port: int) -> None:
    pylb.start()
    pylb.register(pylb.port, echo_port)
    lines = explained(pylb, pylb.port)
    open_here = f"port {pylb.port} is open here, and its servers accept connections and pass their checks."
    assert lines[0].startswith(f"{open_here} If it does not answer from outside")
    assert f"pid {pylb.running.pid}" in lines[2]
    assert lines[2].endswith("from here: yes")
    assert any(f"127.0.0.1:{echo_port}: up, accepts connections now: yes; by app/app/one" in line for line in lines)
    found = json.loads(pylb.ask("explain", str(pylb.port), "--json").stdout)
    assert (found["reachable"], found["unbound"]) == ("yes", {})


def test_its_own_look_at_the_port_is_no_session(pylb: Instance, echo_port: int) -> None:
    pylb.start()
    pylb.register(pylb.port, echo_port)
    for _ in range(3):
        assert "from here: yes" in explained(pylb, pylb.port)[2]
    counts = pylb.get("/v1/sessions?ended=1").json
    assert (counts["ended"], counts["frontends"][0]["sessions_total"]) == ([], 0)
    row = pylb.runtime("show stat\n").splitlines()[1].split(",")
    head = pylb.runtime("show stat\n").splitlines()[0].lstrip("# ").split(",")
    assert (row[head.index("stot")], row[head.index("conn_tot")], row[head.index("dcon")]) == ("0", "0", "0")


@pytest.mark.parametrize("workers", [2])
def test_its_own_look_is_no_session_of_a_worker_either(pylb: Instance, echo_port: int, workers: int) -> None:
    pylb.configure(workers=workers)
    pylb.start()
    pylb.register(pylb.port, echo_port)
    assert "from here: yes" in explained(pylb, pylb.port)[2]
    assert pylb.get("/v1/sessions?ended=1").json["ended"] == []


def test_servers_that_accept_and_fail_their_check_are_named_with_what_the_check_found(pylb: Instance) -> None:
    with sick_app() as port:
        static = {
            "name": "web",
            "listen": f"127.0.0.1:{pylb.port}",
            "servers": [f"127.0.0.1:{port}"],
            "health": {"mode": "active", "check": {"http": "/healthz"}, "interval": "100ms", "fall": 1},
        }
        pylb.configure(frontends=[static])
        pylb.start()
        lines = explained(pylb, pylb.port)
        why = f"(127.0.0.1:{port}: wrong answer: HTTP status 503)"
        assert lines[0].startswith(f"its server accepts connections, but none passes its check {why}")
        assert any("accepts connections now: yes, passes its check now: wrong answer: HTTP status 503" in one for one in lines)
        assert "it is before this machine" not in "\n".join(lines)
        assert any(one.endswith("; by the config") for one in lines)  # as the page says it
        row = eventually(
            lambda: [one for one in routes(pylb) if one["check"] == "wrong answer: HTTP status 503"], what="a check"
        )[0]
        assert row["accepts"] == "yes"


def test_a_check_at_another_port_that_nobody_answers_is_named_with_that_port(pylb: Instance, echo_port: int) -> None:
    """With Kubernetes that is kube-proxy's health at 10256, and the firewall lets only nodePorts pass."""
    nobody = free_port()
    static = {
        "name": "web",
        "listen": f"127.0.0.1:{pylb.port}",
        "servers": [f"127.0.0.1:{echo_port}"],
        "health": {"check": {"http": "/healthz", "port": nobody}, "interval": "100ms", "fall": 1},
    }
    pylb.configure(frontends=[static])
    pylb.start()
    first, *lines = explained(pylb, pylb.port)
    assert f"none passes its check (127.0.0.1:{echo_port} at port {nobody}: refused)" in first
    assert first.endswith(f"its check asks port {nobody} of the server's machine: open that to this machine, too")
    assert any(f"accepts connections now: yes, passes its check at port {nobody} now: refused" in one for one in lines)
    row = eventually(lambda: [one for one in routes(pylb) if one["check"] == "refused"], what="a check")[0]
    assert row["accepts"] == "yes"


def test_a_server_whose_name_does_not_resolve_is_named(pylb: Instance) -> None:
    """It said that a registration was missing."""
    pylb.configure(
        frontends=[{"name": "web", "listen": f"127.0.0.1:{pylb.port}", "servers": ["no-such-node.invalid:80"]}],
    )
    pylb.start()
    first = f"port {pylb.port} has no server: no-such-node.invalid cannot be resolved (try `getent hosts NAME`)"
    assert explained(pylb, pylb.port)[0].startswith(first)
    [row] = routes(pylb)
    assert row["why"] == "no-such-node.invalid cannot be resolved: clients are reset until then"
    assert "web has no server: no-such-node.invalid cannot be resolved" in pylb.ask("status").stdout


def test_a_frontend_or_a_registration_is_explained_by_its_name(pylb: Instance, echo_port: int) -> None:
    pylb.start()
    pylb.register(pylb.port, echo_port)
    for name in ("app", f"app-{pylb.port}"):
        ended = pylb.ask("explain", name)
        assert ended.stdout.startswith(f"port {pylb.port} is open here"), ended.stderr
    unknown = pylb.ask("explain", "nobody")
    assert (unknown.returncode, "nothing is called 'nobody': no frontend, no registration" in unknown.stderr) == (1, True)


def test_a_refusal_is_of_its_frontend_ports_and_of_no_other_number_in_its_text(pylb: Instance, echo_port: int) -> None:
    """Its target port and what else stands in the text are no frontend ports; a wrong token's call has its ports, too."""
    pylb.start()
    pylb.register(pylb.port, echo_port)
    assert pylb.register(22, 30022).status == 403
    assert pylb.ask("explain", "30022").returncode == 1
    found = json.loads(pylb.ask("explain", "22", "--json").stdout)
    assert [one["code"] for one in found["refused"]] == ["port_forbidden"]
    stranger = pylb.register(4321, 30443, name="web", secret="x" * 40)
    assert stranger.status == 401
    for what in ("4321", "web"):
        assert explained_of(pylb, what)[0].startswith(
            "nobody has port 4321: the last call that wanted it was refused (unauthorized"
        )


def test_a_registration_is_known_by_its_id_too(pylb: Instance, echo_port: int) -> None:
    """As `pylb routes` shows it, and as `pylb release` takes it; a call that was refused is of its own instance alone."""
    pylb.start()
    pylb.register(pylb.port, echo_port)
    assert pylb.register(22, 30022, instance="two").status == 403
    for what in ("app/one", "app/app/one"):
        assert explained_of(pylb, what)[0].startswith(f"port {pylb.port} is open here")
    for what in ("app/two", "app/app/two"):
        assert explained_of(pylb, what)[0].startswith("nobody has port 22: the last call that wanted it was refused")
    assert pylb.ask("explain", "app/three").returncode == 1


def test_a_client_without_its_proxy_header_is_refused_for_that_and_nothing_else(pylb: Instance, echo_port: int) -> None:
    static = {
        "name": "web",
        "listen": f"127.0.0.1:{pylb.port}",
        "servers": [f"127.0.0.1:{echo_port}"],
        "proxy_protocol": {"accept_from": ["127.0.0.0/8"]},
    }
    pylb.configure(frontends=[static])
    pylb.start()
    with socket.create_connection(("127.0.0.1", pylb.port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    lines = explained(pylb, pylb.port)
    assert lines[0].startswith("most clients are refused: 1 (proxy_header): it did not start with a PROXY header")
    [one] = pylb.get("/v1/sessions?ended=1").json["ended"]
    assert (one["code"], one["reason"]) == ("PR", "proxy_header")
    assert "it did not start with a PROXY header" in pylb.ask("explain", one["id"]).stdout.splitlines()[0]


def test_servers_that_refuse_are_the_first_thing_said(pylb: Instance) -> None:
    pylb.start()
    dead = free_port()
    pylb.register(pylb.port, dead)
    with socket.create_connection(("127.0.0.1", pylb.port)) as client, pytest.raises(ConnectionResetError):
        client.recv(1)
    lines = explained(pylb, pylb.port)
    assert lines[0].startswith(f"no server accepts a connection (127.0.0.1:{dead}: refused): nothing listens there yet")
    assert any(line.endswith(": no server accepted") for line in lines)


def test_who_was_refused_a_port_and_why(pylb: Instance) -> None:
    pylb.start()
    assert pylb.register(22, 30022).status == 403
    lines = explained(pylb, 22)
    assert lines[0].startswith(
        "nobody has port 22: the last call that wanted it was refused (port_forbidden: token 'app' may not"
    )


def test_a_port_that_somebody_else_has(pylb: Instance) -> None:
    with socket.create_server(("127.0.0.1", pylb.port)):
        static = {"name": "web", "listen": f"127.0.0.1:{pylb.port}", "servers": ["127.0.0.1:30443"]}
        pylb.configure(frontends=[static])
        pylb.start()
        assert explained(pylb, pylb.port)[0].startswith(f"port {pylb.port} is not open: Address")
        assert listeners_of([pylb.port])[pylb.port].endswith(f"pid {os.getpid()}")


def test_what_the_operator_took_out_and_what_was_released(pylb: Instance, echo_port: int) -> None:
    pylb.start()
    pylb.register(pylb.port, echo_port)
    pylb.ask("ctl", "maint", "127.0.0.1")
    assert explained(pylb, pylb.port)[0].startswith("every server was taken out by the operator")
    pylb.ask("release", str(pylb.port))
    lines = explained(pylb, pylb.port)
    assert lines[0].startswith(f"port {pylb.port} is closed: its last registration was released")
    assert lines[-1] == f"changed    port {pylb.port} (app-{pylb.port}) closed"


# ------------------------------------------------------------ doctor


def findings(tmp_path: Path, **sections: Any) -> dict[str, doctor.Finding]:
    file = tmp_path / "pylb.yaml"
    file.write_text(json.dumps({"state_dir": str(tmp_path / "state")} | sections))
    return {one.what: one for one in doctor.examine(load(file, {}))}


def test_this_machine_is_looked_at_and_every_remedy_is_there(tmp_path: Path) -> None:
    found = findings(tmp_path)
    assert {"open files", "clock", "state directory"} <= set(found)
    assert all(one.ok or one.remedy for one in found.values())


@pytest.mark.parametrize("workers", [0, 2])
def test_doctor_has_as_much_room_as_the_pylb_that_starts(pylb: Instance, workers: int) -> None:
    pylb.configure(workers=workers)
    pylb.start().has_said(text := "descriptors for calls, pages, checks and files")
    [sessions, beside] = re.findall(rf"room for (\d+) sessions beside (\d+) {text}", pylb.running.text())[0]
    assert f": {int(sessions):,} sessions, {int(beside):,} {text}" in pylb.ask("doctor").stdout


def test_ports_that_leave_few_descriptors_for_sessions_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda _what: (60_000, 60_000))
    wide = {"name": "wide", "listen": "127.0.0.1:10000-65535", "servers": ["192.0.2.7:30443"]}
    found = findings(tmp_path, frontends=[wide])["open files"]
    assert (found.ok, found.found.endswith(", 55,536 for ports")) == (False, True)
    assert found.found.startswith(f"60,000: {(60_000 - 55_536 - 2 * 512 - room(tmp_path)) // 2:,} sessions, ")
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda _what: (1_048_576, 1_048_576))
    found = findings(tmp_path, frontends=[wide], workers=2)["open files"]
    assert (found.ok, found.found.endswith(", 111,072 for ports")) == (True, True)  # the first process has them all


def room(tmp_path: Path) -> int:
    """Descriptors beside those of sessions, ports and pipes."""
    return budget(load(tmp_path / "pylb.yaml", {}), 60_000).reserve


def test_a_frontend_inside_the_ephemeral_range_is_named_with_the_sysctl(tmp_path: Path) -> None:
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    web = {"name": "web", "listen": f"*:{low + 7}", "servers": ["192.0.2.7:30443"]}
    found = findings(tmp_path, frontends=[web])["ephemeral ports"]
    assert (found.ok, f"ip_local_reserved_ports={low + 7}" in found.remedy) == (False, True)


def test_limits_that_cut_the_buffers_of_udp_are_named_where_there_is_udp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "NET", tmp_path)
    (tmp_path / "core").mkdir()
    for name, value in (("rmem_max", 212_992), ("wmem_max", 4_194_304)):
        (tmp_path / "core" / name).write_text(f"{value}\n")
    stun = {"name": "stun", "listen": "*:3478/udp", "servers": ["192.0.2.7:30478"]}
    found = findings(tmp_path, frontends=[stun])["UDP buffers"]
    assert (found.ok, found.remedy) == (False, "sysctl -w net.core.rmem_max=4194304")
    assert "net.core.rmem_max 212,992, net.core.wmem_max 4,194,304: bursts of more are dropped" in found.found
    (tmp_path / "core" / "rmem_max").write_text("4194304")
    web = {"name": "web", "secret": SECRET, "ports": ["443/udp"]}
    assert findings(tmp_path, tokens=[web])["UDP buffers"].ok
    assert "UDP buffers" not in findings(tmp_path)


def test_a_port_that_another_program_has_is_named_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "listeners_of", lambda ports: {443: "haproxy, pid 7"} if 443 in ports else {})
    for listen in ("*:443", "*:440-449"):
        web = {"name": "web", "listen": listen, "servers": ["192.0.2.7:30443"]}
        assert findings(tmp_path, frontends=[web])["port 443"].found == "haproxy, pid 7 has it"


def test_who_has_the_ports_of_fifty_frontends_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(doctor, "listeners_of", lambda ports: asked.append(len(ports)) or {})
    many = [{"name": f"app-{port}", "listen": f"*:{port}", "servers": ["192.0.2.7:30443"]} for port in range(7000, 7050)]
    findings(tmp_path, frontends=many)
    assert asked == [52]  # and webhook and admin


def test_a_certificate_that_ends_soon_or_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SERVICE_USER", "nobody-has-this-name")  # pylb may be installed here
    made = self_signed(tmp_path, "localhost")  # ends within the hour
    tls = {"certificate": str(made.certificate), "key": str(made.key)}
    found = findings(tmp_path, webhook={"listen": "*:9000", "tls": tls})["certificate"]
    assert (found.ok, "0 days left" in found.found) == (False, True)
    made.certificate.write_text("garbage")
    assert not findings(tmp_path, webhook={"listen": "*:9000", "tls": tls})["certificate"].ok


def test_a_key_that_the_services_user_cannot_reach_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SERVICE_USER", "nobody")
    made = self_signed(tmp_path, "localhost")
    tmp_path.chmod(0o700)
    tls = {"certificate": str(made.certificate), "key": str(made.key)}
    found = findings(tmp_path, webhook={"listen": "*:9000", "tls": tls})["certificate"]
    assert (found.ok, "the user nobody cannot enter" in found.found) == (False, True)


def test_the_command_prints_what_to_do_and_says_so_by_its_exit_code(pylb: Instance) -> None:
    ended = pylb.ask("doctor", "--json")
    found = json.loads(ended.stdout)
    assert ended.returncode == (0 if all(one["ok"] for one in found) else 1)
    assert "open files" in pylb.ask("doctor").stdout
