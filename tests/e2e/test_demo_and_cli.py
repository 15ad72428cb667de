"""The command line as a person uses it, beside a running pylb."""

import json
import re
import sys

import pytest

from tests.support.balancer import NODEPORT, TOKENS, Balancer, ask, connect, echo, greeting
from tests.support.netns import CLIENT, Lab
from tests.support.processes import Process, python
from tests.support.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.root]

BAD = """\
webhook: {listen: "*:9000", tls: self-signed}
tokens:
  - name: mosquitto
    secret: short
    portz: [8443]
frontends:
  - {name: https, listen: *:443, servers: ["198.51.100.7:30443"]}
"""
WRONG = """\
webhook: {listen: "*:9000"}
retries: 3
tokens:
  - name: mosquitto
    secret: short
    ports: [8443]
    portz: [8443]
    ports: [8444]
frontends:
  - {name: https, listen: "*:443", servers: ["198.51.100.7"]}
"""

# What the old webhook's script wrote for HAProxy.
STANZA = """\
### >> Used to run {name}:{port}
frontend {port}_frontend
  bind *:{port}
  mode tcp
  default_backend {port}_backend

backend {port}_backend
  mode tcp
  balance roundrobin
  stick-table type ip size 200k expire 30m
  stick on src
  server s1 {server}
### << Used to run {name}:{port}
"""


def done(process: Process, within: float = 20.0) -> tuple[int, str]:
    """(exit code, what it printed)"""
    return process.wait(within), process.text()


def run(world: World, balancer: Balancer, *args: str) -> tuple[int, str]:
    """`pylb args -c CONFIG`, on pylb's machine."""
    return done(world.processes.start(f"pylb-{args[0]}", balancer.command(*args), at=balancer.at))


def test_the_demo_moves_a_node_under_load_and_not_one_connection_fails(lab: Lab, world: World) -> None:
    argv = python("pylb", "demo", "--moves", "2", "--every", "1")
    code, text = done(world.processes.start("demo", argv, at=lab.client), within=40)  # a machine of its own: no port is taken

    assert code == 0, text
    assert len(re.findall(r"^moved to node [AB] ", text, re.MULTILINE)) == 2
    summary = re.search(r"^(\d+) connections, 0 failed$", text, re.MULTILINE)
    assert summary is not None, text
    assert int(summary[1]) > 50
    assert "Traceback" not in text


def test_check_prints_every_mistake_with_its_place_and_a_hint(lab: Lab, balancer: Balancer, world: World) -> None:
    balancer.config_file.write_text(WRONG)

    code, text = run(world, balancer, "check")

    assert code == 1
    lines = text.splitlines()
    found = {
        (int(match[1]), match[3])
        for line in lines
        if (match := re.match(rf"{re.escape(str(balancer.config_file))}:(\d+):(\d+): error: (.*)$", line))
    }
    assert {line for line, _ in found} >= {1, 2, 7, 8, 10}, text
    assert any("did you mean 'ports'" in text for line, text in found if line == 7), text
    assert re.search(r"\d+ mistakes", lines[-1])


def test_check_explains_a_star_without_quotes(lab: Lab, balancer: Balancer, world: World) -> None:
    balancer.config_file.write_text(BAD)

    code, text = run(world, balancer, "check")

    assert code == 1
    assert re.search(r"pylb\.yaml:7:\d+: error: .*quote", text), text


def test_check_of_a_good_config_exits_with_0(lab: Lab, balancer: Balancer, world: World) -> None:
    code, text = run(world, balancer, "check")

    assert code == 0, text
    assert "ok (0 static frontends, 2 tokens)" in text


def test_routes_say_what_goes_where_who_registered_it_and_whether_it_answers(lab: Lab, pylb: Balancer, world: World) -> None:
    world.app(lab.a, "app")
    world.phone(lab.a, "mosquitto", "pod-a", f"8443:{NODEPORT}")
    pylb.register("shop/pod-b", {443: 30443}, at=lab.b, token="other")

    code, text = run(world, pylb, "routes")

    assert code == 0, text
    by_port = {line.split()[0]: line for line in text.splitlines()}
    assert "203.0.113.10:30843" in by_port["8443"]
    assert "app/mosquitto/pod-a" in by_port["8443"]
    assert " yes" in by_port["8443"]
    assert "203.0.113.20:30443" in by_port["443"]
    assert "refused" in by_port["443"]

    code, text = run(world, pylb, "routes", "--json")

    rows = {row["port"]: row for row in json.loads(text)}
    assert code == 0
    assert rows[8443]["reachable"] == "yes"
    assert 0 < rows[8443]["lease_expires_in"] <= 10
    assert rows[443]["reachable"] == "refused"
    assert rows[443]["held_by"] == ["other/shop/pod-b"]
    assert rows[443]["lease_expires_in"] is None


def test_routes_rejected_shows_the_refused_calls_and_why(lab: Lab, pylb: Balancer, world: World) -> None:
    pylb.register("shop/pod-b", {443: NODEPORT}, at=lab.b, token="other")
    body = {"frontends": [{"port": 443, "target_port": NODEPORT}]}
    assert pylb.call("PUT", "web/pod-a", body, at=lab.a).status == 409

    code, text = run(world, pylb, "routes", "--rejected")

    assert code == 0
    heading, line, reach = text.splitlines()
    assert heading.split() == ["TIME", "FROM", "TOKEN", "CALL", "WHY"]
    assert reach.startswith("every refusal since ")
    assert "203.0.113.10" in line
    assert "port 443 is owned by registration 'shop' of token 'other'" in line


def test_release_of_a_port_closes_it_and_leaves_its_sessions_alone(lab: Lab, pylb: Balancer, world: World) -> None:
    world.app(lab.a, "app")
    pylb.register("web/pod-a", {8080: NODEPORT, 8081: NODEPORT}, at=lab.a)
    with connect(lab.client, 8080) as sock:
        assert greeting(sock)[0] == "app"

        code, text = run(world, pylb, "release", "8080")

        assert (code, text.count("\n")) == (0, 2), text
        assert re.match(r"released app/web/pod-a, port 8080\n\s*if its phone-home still runs, it registers again", text), text
        with pytest.raises(ConnectionRefusedError):
            ask(lab.client, 8080)
        assert ask(lab.client, 8081)[0] == "app"
        assert echo(sock) == b"ping"

    assert run(world, pylb, "release", "web/pod-a")[0] == 0
    assert pylb.table()["frontends"] == []
    code, text = run(world, pylb, "release", "web/pod-a")
    assert code == 1
    assert "nothing is registered as 'web/pod-a'" in text


def test_import_serves_what_the_old_haproxy_served_until_the_next_phone_call_replaces_it(
    lab: Lab, pylb: Balancer, world: World
) -> None:
    world.app(lab.a, "old", "1883", "25/proxy", nodeports={NODEPORT: 1883, 30025: 25})
    world.app(lab.b, "new")
    old = world.folder / "haproxy"
    old.mkdir()
    for name, port, server in (("mqtt", 8443, "203.0.113.10:30843"), ("mail", 25, "203.0.113.10:30025 send-proxy")):
        (old / f"{name}.inc").write_text(STANZA.format(name=name, port=port, server=server))

    code, text = run(world, pylb, "import", "--token", "app", *sorted(map(str, old.iterdir())))

    assert code == 0, text
    assert "2 registrations imported, 0 refused" in text
    assert ask(lab.client, 8443)[0] == "old"
    assert ask(lab.client, 25)[:3] == ["old", "25", CLIENT]
    body = '{"dst-ip":"","frontend-port":"8443","backend-port":"30843","action":"add","name":"mqtt","send-proxy":""}'
    assert pylb.post_legacy(body, at=lab.b, X_Funkypenguin_Token=TOKENS["app"]).status == 200
    assert ask(lab.client, 8443)[0] == "new"


def test_verbs_without_a_running_pylb_say_so_and_exit_with_2(lab: Lab, balancer: Balancer, world: World) -> None:
    for args in (("routes",), ("release", "443")):
        code, text = run(world, balancer, *args)
        assert code == 2
        assert "no pylb is running" in text


def test_token_prints_one_that_a_config_accepts(lab: Lab, balancer: Balancer, world: World) -> None:
    code, text = run(world, balancer, "token")
    assert (code, text.count("\n")) == (0, 1)
    secret = text.strip()
    assert re.fullmatch(r"[\w-]{32}", secret)

    balancer.configure(tokens=[balancer.token("app", secret=secret)])
    balancer.start()
    world.app(lab.a, "app")
    balancer.register("web/pod-a", {8080: NODEPORT}, at=lab.a, token=secret)
    assert ask(lab.client, 8080)[0] == "app"


def test_without_any_config_pylb_serves_with_a_token_of_its_own_that_no_log_ever_holds(
    lab: Lab, balancer: Balancer, world: World
) -> None:
    """As `make run` does it: no file, no root's folder, a state directory of one's own."""
    environ = {"STATE_DIRECTORY": str(balancer.state_dir)}
    process = world.processes.start("pylb", python("pylb", "run"), at=lab.lb, env=environ)
    process.has_said("pylb is up")
    show = world.processes.start("token", python("pylb", "token", "--show"), at=lab.lb, env=environ)
    code, text = done(show)
    secret = text.strip()
    assert (code, len(secret) >= 22) == (0, True)
    assert secret not in process.text()
    assert (balancer.state_dir / "token").stat().st_mode & 0o777 == 0o600

    world.app_at(lab.lb, "here", "8000")
    lines = process.text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("  curl --cacert"))
    printed = "\n".join(lines[first : first + 3])  # to be pasted as it stands
    code, text = done(world.processes.start("curl", ("sh", "-c", f"{printed.strip()} --silent"), at=lab.lb))
    assert (code, json.loads(text)["result"]) == (0, "created")
    assert ask(lab.client, 8443)[0] == "here"
    forbidden = printed.replace('"port":8443', '"port":22')
    code, text = done(world.processes.start("curl 22", ("sh", "-c", f"{forbidden.strip()} --silent"), at=lab.lb))
    assert json.loads(text)["error"] == "port_forbidden"


def test_the_entry_point_and_the_module_are_the_same_program(lab: Lab, balancer: Balancer, world: World) -> None:
    entry = sys.executable.rpartition("/")[0] + "/pylb"
    texts = [
        done(world.processes.start("version", argv, at=lab.lb)) for argv in ((entry, "--version"), python("pylb", "--version"))
    ]
    assert texts[0] == texts[1]
    assert texts[0][0] == 0
