"""`pylb plan` and `pylb history`: what a change would do, and what changes did; the log of a reload says the same."""

import asyncio
import json
import socket
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pylb.api.plan import steps as put_into_words
from pylb.core.address import Address, Listen
from pylb.core.session import SessionView
from pylb.core.table_diff import ChangeKind, ChangeLine
from tests.app.instance import Instance, cli, echo, fetch, token
from tests.app.test_server_names import put
from tests.support.counting import counting
from tests.support.hellos import asking_for
from tests.support.ports import free_port
from tests.support.waiting import eventually


def static(port: int, *targets: int, name: str = "web") -> dict[str, Any]:
    return {"name": name, "listen": f"127.0.0.1:{port}", "servers": [f"127.0.0.1:{target}" for target in targets]}


def planned(pylb: Instance, *args: str) -> list[dict[str, Any]]:
    ended = pylb.ask("plan", "--json", *args)
    assert ended.returncode == 0, ended.stderr
    found: list[dict[str, Any]] = json.loads(ended.stdout)["steps"]
    return found


def test_a_plan_says_what_a_reload_then_does_and_whose_sessions_it_touches(pylb: Instance, echo_port: int) -> None:
    kept, closing, opening, other = (free_port() for _ in range(4))
    pylb.configure(frontends=[static(kept, echo_port, other), static(closing, echo_port, name="old")])
    pylb.start()
    with socket.create_connection(("127.0.0.1", closing)) as first, socket.create_connection(("127.0.0.1", kept)) as second:
        assert echo(first) == echo(second) == b"ping"
        pylb.configure(frontends=[static(kept, echo_port), static(opening, echo_port, name="new")])
        steps = planned(pylb)
        assert {(step["what"], step["port"], step["touched"]) for step in steps} == {
            ("closed", closing, 1),
            ("removed", kept, 0),
            ("opened", opening, 0),
        }
        assert len(pylb.routes()) == 3  # nothing was done
        text = pylb.ask("plan").stdout
        assert "live sessions: 1, reset after timeouts.drain" in text
        assert text.endswith("3 changes, 1 live session touched; nothing was done\n")
        pylb.reload("reloaded: opened")
        for step in steps:
            pylb.running.has_said(f"reloaded: {step['text']}")
        assert {row["port"] for row in pylb.routes()} == {kept, opening}
        assert echo(second) == b"ping"


def test_a_plan_is_refused_as_the_reload_would_be(pylb: Instance, tmp_path: Path) -> None:
    pylb.start()
    pylb.configure(admin={"listen": "127.0.0.1:1"})
    ended = pylb.ask("plan")
    assert (ended.returncode, "admin.listen cannot change while pylb runs" in ended.stderr) == (1, True)
    pylb.file.write_text(f"state_dir: {pylb.state_dir}\nwebhok: 1\n")
    ended = pylb.ask("plan")
    assert (ended.returncode, "unknown key 'webhok'" in ended.stderr) == (1, True)


def test_a_broken_copy_of_the_config_is_refused_with_its_mistakes(pylb: Instance, tmp_path: Path) -> None:
    pylb.start()
    copy = tmp_path / "new.yaml"
    copy.write_text(pylb.file.read_text().replace('"webhook"', '"webhok"'))
    ended = cli(tmp_path, "plan", "-c", str(copy))
    assert ended.returncode == 1
    assert "error: unknown key 'webhok' (did you mean 'webhook'?)" in ended.stderr
    assert ended.stderr.endswith("\nit would be refused, and nothing would change\n")


def test_a_registration_can_be_planned(pylb: Instance, tmp_path: Path) -> None:
    pylb.start()
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"frontends": [{"port": pylb.port, "target_port": 30443}]}))
    about = ("--token", "app", "--address", "127.0.0.1", str(body))
    [step] = planned(pylb, *about)
    assert (step["what"], step["port"]) == ("opened", pylb.port)
    assert pylb.routes() == []
    assert pylb.register(pylb.port, 30443).status == 201
    body.write_text(json.dumps({"frontends": [{"port": pylb.port, "target_port": 30444}]}))
    [step] = planned(pylb, *about)
    assert step["what"] == "added"  # one more instance
    body.write_text(json.dumps({"frontends": [{"port": pylb.admin, "target_port": 30443}]}))
    ended = pylb.ask("plan", *about)
    assert (ended.returncode, "pylb's own" in ended.stderr) == (1, True)
    assert pylb.ask("plan", str(body)).returncode == 2


def test_history_says_who_changed_what(pylb: Instance) -> None:
    pylb.start()
    assert pylb.ask("history").stdout == "nothing has changed yet\n"
    pylb.register(pylb.port, 30443)
    pylb.ask("ctl", "drain", f"app-{pylb.port}/one")
    pylb.ask("release", str(pylb.port))
    found = json.loads(pylb.ask("history", "--json").stdout)
    asked = [(one["by"], [change["what"] for change in one["changes"]]) for one in found if one["by"] != ["health"]]
    assert asked == [
        (["token 'app' from 127.0.0.1"], ["opened"]),
        (["admin"], ["state"]),
        (["admin"], ["closed"]),
    ]
    numbers = [one["generation"] for one in found]
    assert numbers == sorted(set(numbers))
    assert json.loads(pylb.ask("history", str(pylb.port), "--json").stdout) == found
    assert json.loads(pylb.ask("history", "app", "--json").stdout) == found
    assert json.loads(pylb.ask("history", "other", "--json").stdout) == []
    assert f"port {pylb.port} (app-{pylb.port}) closed" in pylb.ask("history").stdout
    pylb.running.stop()
    pylb.start()
    assert json.loads(pylb.ask("history", str(pylb.port), "--json").stdout) == found


def test_the_last_old_container_can_be_seen_to_be_gone(pylb: Instance) -> None:
    pylb.start()
    assert "legacy calls" not in pylb.ask("routes").stderr
    body = {"dst-ip": "", "frontend-port": str(pylb.port), "backend-port": "30443", "action": "add", "name": "mqtt"}
    headers = {"X-Funkypenguin-Token": "a-secret-of-more-than-22-characters", "Content-Type": "application/json"}
    hook = ("127.0.0.1", pylb.webhook), "POST", "/hooks/update-haproxy", json.dumps(body), headers
    assert fetch(*hook).status == fetch(*hook).status == 200
    said = pylb.ask("routes").stderr
    assert "legacy calls with token 'app': 2 since the start, the last" in said
    assert "ago from 127.0.0.1 (mqtt)" in said
    metrics = pylb.get("/metrics").body.decode()
    assert 'pylb_legacy_calls_total{token="app"} 2.0' in metrics
    assert 'pylb_legacy_last_call_timestamp_seconds{token="app"}' in metrics


def test_refused_calls_are_counted_by_reason_and_plain_http_is_a_metric(pylb: Instance) -> None:
    pylb.configure(webhook={"listen": f"*:{pylb.webhook}", "insecure": True})
    pylb.start()
    assert pylb.register(pylb.port, 30443, secret="not-a-secret-that-is-known").status == 401
    metrics = pylb.get("/metrics").body.decode()
    assert 'pylb_calls_refused_total{reason="unauthorized"} 1.0' in metrics
    assert "pylb_webhook_insecure 1.0" in metrics
    assert "plain HTTP" in pylb.ask("check").stderr


def test_a_renewed_certificate_is_served_without_a_reload_and_a_broken_one_is_not(pylb: Instance, tmp_path: Path) -> None:
    from tests.support.certificate import self_signed

    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    served, renewed = self_signed(first, "localhost"), self_signed(second, "localhost")
    tls = {"certificate": str(served.certificate), "key": str(served.key)}
    pylb.configure(webhook={"listen": f"127.0.0.1:{pylb.webhook}", "tls": tls})
    pylb.start()
    assert fingerprint(pylb.webhook) == served.fingerprint
    served.certificate.write_text("garbage")
    pylb.running.has_said("the new certificate cannot be used, the old one stays in use")
    assert fingerprint(pylb.webhook) == served.fingerprint
    served.key.write_bytes(renewed.key.read_bytes())
    served.certificate.write_bytes(renewed.certificate.read_bytes())
    eventually(lambda: fingerprint(pylb.webhook) == renewed.fingerprint, what="the renewed certificate is served")


def fingerprint(port: int) -> str:
    import ssl
    from hashlib import sha256

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain) as sock:
        return sha256(sock.getpeercert(binary_form=True) or b"").hexdigest()


def test_plan_and_doctor_ask_the_checks_and_name_who_would_go_out(pylb: Instance, echo_port: int) -> None:
    port, nobody = free_port(), free_port()
    pylb.configure(frontends=[static(port, echo_port, nobody)])
    pylb.start()
    assert planned(pylb) == []
    frontend = static(port, echo_port, nobody) | {"health": {"check": {"send": "ping", "expect": "ping"}}}
    pylb.configure(frontends=[frontend])
    [_, fails] = planned(pylb)
    assert (fails["what"], fails["server"]) == ("fails", f"127.0.0.1:{nobody}")
    assert f"127.0.0.1:{nobody} does not pass its check (refused): it goes out of service while that is so" in fails["text"]
    pylb.configure(frontends=[frontend | {"health": frontend["health"] | {"when_all_down": "refuse"}}])
    assert "it gets no connection while that is so" in planned(pylb)[-1]["text"]
    found = json.loads(pylb.ask("doctor", "--json").stdout)
    [bad] = [one for one in found if one["what"] == "check of web"]
    assert (bad["ok"], f"127.0.0.1:{nobody} does not pass its check (refused)" in bad["found"]) == (False, True)
    pylb.configure(frontends=[static(port, echo_port) | {"health": {"check": {"send": "ping", "expect": "ping"}}}])
    found = json.loads(pylb.ask("doctor", "--json").stdout)
    assert [(one["ok"], one["found"]) for one in found if one["what"] == "check of web"] == [(True, "all its servers pass")]


def test_doctor_warns_of_checks_through_nodeports(pylb: Instance) -> None:
    health = {"check": {"http": "/up"}}
    node_port = {"name": "node-port", "listen": "*:4431", "servers": ["127.0.0.1:30443"], "health": health}
    by_port = {
        "name": "by-port",
        "listen": "*:4432",
        "servers": ["127.0.0.1:1"],
        "health": {"check": health["check"] | {"port": 30880}},
    }
    plain = {"name": "plain", "listen": "*:4433", "servers": ["127.0.0.1:30443"]}
    pod = {"name": "pod", "listen": "*:4434", "servers": ["127.0.0.1:1"], "health": health}
    pylb.configure(frontends=[node_port, by_port, plain, pod])
    found = [one for one in json.loads(pylb.ask("doctor", "--json").stdout) if "asks a random pod" in one["found"]]
    assert {(one["what"], one["ok"]) for one in found} == {("check of node-port", False), ("check of by-port", False)}
    assert ["NodePort 30443" in found[0]["found"], "NodePort 30880" in found[1]["found"]] == [True, True]
    assert all("externalTrafficPolicy: Local" in one["remedy"] for one in found)


@pytest.mark.parametrize(
    ("what", "fate"),
    [
        (ChangeKind.CLOSED, "ended at once"),
        (ChangeKind.REMOVED, "which go on at other servers with their next datagrams"),
        (ChangeKind.MOVED, "which go on at the new address with their next datagrams"),
        (ChangeKind.CHANGED, "untouched"),
    ],
)
async def test_flows_of_udp_stay_on_nothing_that_leaves(what: ChangeKind, fate: str) -> None:
    [step] = await put_into_words([ChangeLine(what, Listen("udp", "*", 443), "web", "it changes")], ())
    assert step["text"] == f"it changes; live flows: 0, {fate}"


async def test_a_plan_with_many_changes_and_sessions_is_put_into_words_in_steps() -> None:
    """A reload held the loop for as long as it took to count the live sessions, and to write a line for each change."""
    longest = {}
    for count in (1000, 8000):
        ports = [Listen("tcp", "*", 1 + number) for number in range(count)]
        lines = [ChangeLine(ChangeKind.CLOSED, listen, "web", f"port {listen.port} closed") for listen in ports]
        sessions = [
            SessionView("192.0.2.1", 1, "web", listen, "a", Address("192.0.2.2", 80), "relaying", 0.0, 0, 0) for listen in ports
        ]

        async def watch(turns: list[int]) -> None:
            while True:
                turns.append(calls())
                await asyncio.sleep(0)

        with counting() as calls:
            turns = [calls()]
            watching = asyncio.get_running_loop().create_task(watch(turns))
            steps = await put_into_words(lines, sessions)
            turns.append(calls())
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        assert [step["sessions"] for step in steps] == [1] * count
        longest[count] = max(after - before for before, after in pairwise(turns))
    assert longest[8000] <= 1.3 * longest[1000]


def test_routes_by_server_name_are_planned_each_by_itself(pylb: Instance, echo_port: int, tmp_path: Path) -> None:
    def routed(*names: str) -> dict[str, Any]:
        routes = [{"server_names": [name], "servers": [f"127.0.0.1:{echo_port}"]} for name in names]
        return {**static(pylb.port, echo_port, name="https"), "routes": routes}

    held = free_port()
    apps = token(names=["git", "rival"], server_names=["**.example.net"])
    pylb.configure(tokens=[apps], frontends=[routed("git.example.net", "*.apps.example.net")])
    pylb.start()
    hello = asking_for("git.example.net")
    with socket.create_connection(("127.0.0.1", pylb.port), timeout=10) as client, client.makefile("rb") as answer:
        client.sendall(hello)
        assert answer.read(len(hello)) == hello
        pylb.configure(tokens=[apps], frontends=[routed("new.example.net", "*.apps.example.net")])
        steps = planned(pylb)
        assert {(step["what"], step["port"], step["server_name"], step["frontend"], step["touched"]) for step in steps} == {
            ("closed", pylb.port, "git.example.net", "https:git.example.net", 1),
            ("opened", pylb.port, "new.example.net", "https:new.example.net", 0),
        }
        pylb.reload("reloaded: opened")
        for step in steps:
            pylb.running.has_said(f"reloaded: {step['text']}")
    body = tmp_path / "body.json"
    git = {"port": held, "target_port": echo_port, "server_names": ["git.example.net", "www.example.net"]}
    body.write_text(json.dumps({"frontends": [git]}))
    about = ("--token", "app", "--address", "127.0.0.1", str(body))
    steps = planned(pylb, "--name", "git", *about)
    assert [(step["what"], step["port"], step.get("server_name")) for step in steps] == [
        ("opened", held, None),  # the port itself, whose default route nobody has
        ("opened", held, "git.example.net"),
        ("opened", held, "www.example.net"),
    ]
    assert put(pylb, "git/one", git).status == 201
    body.write_text(json.dumps({"frontends": [git | {"server_names": ["www.example.net"]}]}))
    [step] = planned(pylb, "--name", "git", "--instance", "one", *about)
    assert (step["what"], step["server_name"]) == ("closed", "git.example.net")
    refused = pylb.ask("plan", "--name", "rival", *about)
    assert (refused.returncode, f"the name www.example.net on port {held} is owned by" in refused.stderr) == (1, True)
