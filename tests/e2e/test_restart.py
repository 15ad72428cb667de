"""Killed and started again, stopped, reloaded, started with a broken config: the ports serve."""

import http.client
import signal
import threading
from contextlib import ExitStack

import pytest

from tests.support.balancer import DEFAULTS, NODEPORT, TOKENS, Balancer, ask, connect, echo, greeting
from tests.support.netns import Lab
from tests.support.waiting import eventually
from tests.support.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.root]

PORT = 8443
STOP_SECONDS = 4.0  # timeouts.shutdown is 1 s here; the rest is for two shared cores


def static(port: int, *servers: str) -> dict[str, object]:
    return {"name": f"static-{port}", "listen": f"*:{port}", "servers": list(servers)}


def test_after_sigkill_all_ports_serve_again_before_any_phone_home_calls(lab: Lab, pylb: Balancer, world: World) -> None:
    world.app(lab.a, "app", "1883", "25/proxy", nodeports={NODEPORT: 1883, 30025: 25})
    phone = world.phone(lab.a, "mail", "pod-a", f"{PORT}:{NODEPORT} 25:30025/proxy=v1")
    pylb.register("web/pod-a", {8080: NODEPORT}, at=lab.a)
    legacy = '{"dst-ip":"","frontend-port":"8081","backend-port":"30843","action":"add","name":"old","send-proxy":""}'
    assert pylb.post_legacy(legacy, at=lab.a, X_Funkypenguin_Token=TOKENS["app"]).status == 200
    phone.kill()  # nobody calls any more
    before = {(one["port"], one["name"]) for one in pylb.table()["frontends"]}
    registered = pylb.registrations()
    assert {port for port, _ in before} == {PORT, 25, 8080, 8081}

    pylb.kill()
    with pytest.raises(ConnectionRefusedError):
        ask(lab.client, PORT)
    pylb.start()

    for port in (PORT, 8080, 8081, 25):
        assert ask(lab.client, port)[0] == "app"
    assert {(one["port"], one["name"]) for one in pylb.table()["frontends"]} == before
    assert pylb.registrations() == registered


@pytest.mark.parametrize("answers", [1, 7, 23])
def test_every_call_that_was_answered_before_a_sigkill_is_there_after_it(lab: Lab, pylb: Balancer, answers: int) -> None:
    answered: list[int] = []

    def register() -> None:
        for port in range(20000, 20999):
            try:
                pylb.register(f"app-{port}/pod-a", {port: NODEPORT}, at=lab.a)
            except (OSError, http.client.HTTPException):
                return  # killed in the middle of this one: it may be there, or not
            answered.append(port)

    calls = threading.Thread(target=register, name="calls")
    calls.start()
    eventually(lambda: len(answered) >= answers, what=f"{answers} answers")
    pylb.kill()
    calls.join(10)
    pylb.start()

    ports = {one["port"] for one in pylb.table()["frontends"]}
    assert set(answered) <= ports <= {*answered, answered[-1] + 1}
    assert {one["frontends"][0]["port"] for one in pylb.registrations()} == ports
    assert ports <= pylb.listening()


def test_a_phone_home_notices_the_restart_and_what_it_registers_is_the_same(lab: Lab, pylb: Balancer, world: World) -> None:
    world.app(lab.a, "app")
    phone = world.phone(lab.a, "mqtt", "pod-a", f"{PORT}:{NODEPORT}")
    pylb.kill()
    pylb.start()
    assert ask(lab.client, PORT)[0] == "app"

    eventually(lambda: pylb.metric('pylb_registrations_total{result="unchanged"}') >= 1, what="the next beat")

    assert phone.process.alive
    assert [one["instance"] for one in pylb.registrations()] == ["pod-a"]


def test_sigterm_gives_live_sessions_their_time_and_ends_with_0(lab: Lab, pylb: Balancer, world: World) -> None:
    world.app(lab.a, "app")
    pylb.register("app/pod-a", {PORT: NODEPORT}, at=lab.a)
    with ExitStack() as stack:
        sock = stack.enter_context(connect(lab.client, PORT))
        assert greeting(sock)[0] == "app"

        pylb.running.signal(signal.SIGTERM)
        eventually(lambda: not greets(lab, PORT), within=0.8, what="no new client is served")
        assert echo(sock) == b"ping"  # the session that is there still has its time
        assert pylb.running.wait(STOP_SECONDS) == 0

        with pytest.raises(ConnectionResetError):  # never a clean end: nobody may think this was all
            sock.recv(1)
    assert "Traceback" not in pylb.running.text()


def test_sigterm_ends_an_idle_pylb_at_once(lab: Lab, pylb: Balancer) -> None:
    assert pylb.running.terminate(1.0) == 0


def test_a_second_sigterm_means_now(lab: Lab, balancer: Balancer, world: World) -> None:
    balancer.configure(defaults={**DEFAULTS, "timeouts": {"shutdown": "50s"}})
    balancer.start()
    world.app(lab.a, "app")
    balancer.register("app/pod-a", {PORT: NODEPORT}, at=lab.a)
    with connect(lab.client, PORT) as sock:
        assert greeting(sock)[0] == "app"
        balancer.running.signal(signal.SIGTERM)
        balancer.running.has_said("stopping")

        assert balancer.running.terminate(STOP_SECONDS) == 0

        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def greets(lab: Lab, port: int) -> bool:
    """At once. A client that comes while pylb stops waits in the backlog, or is refused."""
    try:
        with connect(lab.client, port, timeout=0.1) as sock:
            return bool(greeting(sock))
    except OSError:
        return False


def refuses(lab: Lab, port: int) -> bool:
    try:
        connect(lab.client, port).close()
    except ConnectionRefusedError:
        return True
    return False


def test_sighup_opens_and_closes_ports_by_the_new_config_and_leaves_sessions_alone(
    lab: Lab, balancer: Balancer, world: World
) -> None:
    server = f"{lab.a.address}:{NODEPORT}"
    balancer.configure(frontends=[static(8001, server), static(8002, server)])
    balancer.start()
    world.app(lab.a, "app")
    balancer.register("web/pod-a", {8080: NODEPORT}, at=lab.a)
    with connect(lab.client, 8001) as stays, connect(lab.client, 8080) as registered:
        assert [greeting(sock)[0] for sock in (stays, registered)] == ["app", "app"]

        balancer.configure(frontends=[static(8001, server), static(8003, server)])
        balancer.reload()

        eventually(lambda: ask(lab.client, 8003)[0] == "app", what="the new port serves")
        assert refuses(lab, 8002)
        assert [echo(sock) for sock in (stays, registered)] == [b"ping", b"ping"]
    assert ask(lab.client, 8080)[0] == "app"
    assert balancer.metric("pylb_config_last_reload_successful") == 1


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ({"frontend": []}, "did you mean 'frontends'"),
        ({"frontends": [static(9000)]}, "pylb's webhook"),
        ({"frontends": [static(8080)]}, "'web'"),  # it is registered
    ],
    ids=["a typo", "its own port", "somebody's port"],
)
def test_sighup_with_a_bad_config_changes_nothing_and_says_why(
    lab: Lab, pylb: Balancer, world: World, section: dict[str, object], complaint: str
) -> None:
    world.app(lab.a, "app")
    pylb.register("web/pod-a", {8080: NODEPORT}, at=lab.a)
    before = pylb.everything()

    pylb.configure(**section)
    pylb.reload()

    eventually(lambda: pylb.metric("pylb_config_last_reload_successful") == 0, what="the failed reload shows")
    pylb.running.has_said(complaint)
    assert pylb.everything() == before
    assert ask(lab.client, 8080)[0] == "app"


def test_a_start_with_a_broken_config_runs_with_the_last_good_one_and_says_so_loudly(
    lab: Lab, balancer: Balancer, world: World
) -> None:
    balancer.configure(frontends=[static(8001, f"{lab.a.address}:{NODEPORT}")])
    balancer.start()
    world.app(lab.a, "app")
    balancer.register("web/pod-a", {8080: NODEPORT}, at=lab.a)
    balancer.kill()

    with balancer.config_file.open("a") as file:
        file.write("frontends: [\n")
    balancer.start()

    assert [ask(lab.client, port)[0] for port in (8001, 8080)] == ["app", "app"]
    balancer.running.has_said("the last good one is in force")
    assert f"{balancer.config_file.name}:" in balancer.running.text()
    assert balancer.metric("pylb_config_last_reload_successful") == 0


def test_a_first_start_with_a_broken_config_does_not_serve_and_shows_every_mistake(
    lab: Lab, balancer: Balancer, world: World
) -> None:
    balancer.configure(frontend=[], workers=-1)

    process = world.processes.start("pylb", balancer.command("run"), at=lab.lb)

    assert process.wait() == 2
    assert "did you mean 'frontends'" in process.text()
    assert "workers" in process.text()
    assert "Traceback" not in process.text()


def test_one_port_that_is_taken_at_the_start_is_shown_and_opened_when_it_is_free(
    lab: Lab, pylb: Balancer, world: World
) -> None:
    world.app(lab.a, "app")
    pylb.register("web/pod-a", {8080: NODEPORT, 8081: NODEPORT}, at=lab.a)
    pylb.kill()
    squatter = world.app_at(lab.lb, "squatter", "8080")
    pylb.start()

    answer = pylb.admin("/readyz")
    assert (answer.status, answer.json["status"]) == (200, "degraded")
    assert [one["listen"] for one in answer.json["unbound"]] == ["*:8080"]
    assert ask(lab.client, 8081)[0] == "app"

    squatter.stop()
    eventually(lambda: ask(lab.client, 8080)[0] == "app", within=8, what="it is tried again every 5 s")
    assert pylb.admin("/readyz").json["status"] == "ready"


def test_a_second_pylb_with_the_same_state_directory_does_not_start(lab: Lab, pylb: Balancer, world: World) -> None:
    second = world.processes.start("second", pylb.command("run"), at=lab.client)  # where no port is taken

    assert second.wait() == 2
    assert "another pylb uses the state directory" in second.text()
    assert pylb.admin("/readyz").status == 200
