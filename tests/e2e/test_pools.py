"""Pools over a real network: who may come in, what a check finds, names that change, and a node that disappears."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.balancer import DEFAULTS, NODEPORT, Balancer, ask, connect, echo, greeting
from tests.support.netns import Lab, Namespace
from tests.support.peers import need
from tests.support.waiting import eventually
from tests.support.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.root]

PORT, CHECKED = 8443, 30880


def frontend(*servers: str, **policy: Any) -> dict[str, Any]:
    return {"name": "web", "listen": f"*:{PORT}", "servers": list(servers), **policy}


def states(balancer: Balancer) -> dict[str, str]:
    [one] = balancer.table()["frontends"]
    return {server["address"]: server["state"] for server in one["servers"]}


def turned_away(at: Namespace) -> None:
    """By a reset, which may be there before connect() has returned."""
    with pytest.raises(ConnectionResetError), connect(at, PORT) as sock:
        sock.recv(1)


@pytest.mark.one_process
def test_only_those_on_the_list_come_in_and_none_more_often_than_it_may(lab: Lab, balancer: Balancer, world: World) -> None:
    world.app(lab.a, "app")
    access = [{"allow": "203.0.113.0/24"}, {"deny": f"{lab.b.address}/32"}]
    limits = {"per_source": 2}
    balancer.configure(frontends=[frontend(f"{lab.a.address}:{NODEPORT}", access=access, limits=limits)])
    balancer.start()
    with ExitStack() as stack:
        for _ in range(2):
            assert greeting(stack.enter_context(connect(lab.client, PORT)))[0] == "app"
        turned_away(lab.client)
        assert ask(lab.a, PORT)[0] == "app"  # another source
        turned_away(lab.b)
        for reason in ("access", "per_source"):
            assert balancer.metric(f'pylb_frontend_denied_total{{frontend="web",reason="{reason}"}}') == 1
    eventually(lambda: ask(lab.client, PORT)[0] == "app", what="a place is free again")


NGINX = """
daemon off; pid {folder}/check.pid; error_log stderr; user root; worker_processes 1;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder}/nginx; proxy_temp_path {folder}/nginx; fastcgi_temp_path {folder}/nginx;
  uwsgi_temp_path {folder}/nginx; scgi_temp_path {folder}/nginx;
  server {{ listen 8080; location = /healthz {{ if (!-f {folder}/healthy) {{ return 503; }} return 200; }} }}
}}
"""


def test_an_app_whose_health_page_says_503_gets_nobody_until_it_says_200(lab: Lab, balancer: Balancer, world: World) -> None:
    """The check asks another port than the traffic's: the app itself answers all the time."""
    config, healthy = world.folder / "check.conf", world.folder / "healthy"
    config.write_text(NGINX.format(folder=world.folder))
    healthy.touch()
    for node, name in ((lab.a, "checked"), (lab.b, "other")):
        world.app(node, name)
    world.serve("nginx", (need("nginx"), "-e", "stderr", "-c", str(config)), lab.a.pod, ("127.0.0.1", 8080))
    lab.a.nodeport(CHECKED, 8080)
    balancer.configure(defaults={**DEFAULTS, "balance": "first", "health": {**DEFAULTS["health"], "mode": "active"}})
    balancer.start()
    checked = {"port": PORT, "target_port": NODEPORT, "health": {"http": "/healthz", "port": CHECKED, "expect": 200}}
    balancer.register("web/a", {PORT: NODEPORT}, at=lab.a, frontends=[checked])
    balancer.register("web/b", {PORT: NODEPORT}, at=lab.b, frontends=[{"port": PORT, "target_port": NODEPORT, "backup": True}])
    assert ask(lab.client, PORT)[0] == "checked"

    healthy.unlink()
    eventually(lambda: states(balancer)[f"{lab.a.address}:{NODEPORT}"] == "down", what="it is taken out")
    assert ask(lab.client, PORT)[0] == "other"
    balancer.running.has_said("wrong answer: HTTP status 503")

    healthy.touch()
    eventually(lambda: states(balancer)[f"{lab.a.address}:{NODEPORT}"] == "up", what="it is back")
    assert ask(lab.client, PORT)[0] == "checked"


@pytest.fixture
def hosts(lab: Lab) -> Iterator[Path]:
    """What /etc/hosts is for processes in pylb's namespace (ip-netns(8)); written in place, it changes under them."""
    folder = Path("/etc/netns") / lab.lb.name
    folder.mkdir(parents=True)
    file = folder / "hosts"
    file.touch()
    yield file
    shutil.rmtree(folder)
    with suppress(OSError):  # another test's is in there
        folder.parent.rmdir()


def test_a_server_that_is_a_name_follows_it(lab: Lab, hosts: Path, balancer: Balancer, world: World) -> None:
    for node, name in ((lab.a, "old"), (lab.b, "new")):
        world.app(node, name)
    hosts.write_text(f"{lab.a.address} nodes.example.net\n")
    balancer.configure(defaults={**DEFAULTS, "resolve_interval": "1s"}, frontends=[frontend(f"nodes.example.net:{NODEPORT}")])
    balancer.start()
    eventually(lambda: ask(lab.client, PORT)[0] == "old", what="the name is resolved")
    with connect(lab.client, PORT) as live:
        assert greeting(live)[0] == "old"
        hosts.write_text(f"{lab.b.address} nodes.example.net\n")
        eventually(lambda: ask(lab.client, PORT)[0] == "new", what="the new address is found")
        hosts.write_text("")
        balancer.running.has_said("nodes.example.net cannot be resolved")
        assert ask(lab.client, PORT)[0] == "new"
        assert echo(live) == b"ping"


@pytest.mark.one_process
def test_a_node_that_disappears_under_its_sessions_takes_none_of_the_new_ones(
    lab: Lab, balancer: Balancer, world: World, request: pytest.FixtureRequest
) -> None:
    """Case 18: the dead node's sessions are reset once it is found down, the clients are told, the others stay."""
    dead = 1000 if request.config.getoption("--long") else 100
    for node, name in ((lab.a, "dead"), (lab.b, "alive")):
        world.app(node, name)
    servers = [f"{node.address}:{NODEPORT}" for node in (lab.a, lab.b)]
    balancer.configure(frontends=[frontend(*servers, on_down="close", health={"mode": "active"})])
    balancer.start()
    with ExitStack() as stack:
        sessions = [stack.enter_context(connect(lab.client, PORT)) for _ in range(2 * dead)]
        names = [greeting(sock)[0] for sock in sessions]
        assert names.count("dead") == dead
        lab.a.ip("link set eth0 down")
        assert {ask(lab.client, PORT)[0] for _ in range(5)} == {"alive"}
        eventually(lambda: states(balancer)[servers[0]] == "down", what="it is found down")
        for sock, name in zip(sessions, names, strict=True):
            if name == "alive":
                assert echo(sock) == b"ping"
            else:
                with pytest.raises(ConnectionResetError):
                    sock.recv(1)
        assert {ask(lab.client, PORT)[0] for _ in range(20)} == {"alive"}
    assert balancer.metric(f'pylb_sessions_closed_total{{frontend="web",server="{servers[0]}",code="DD"}}') == dead
