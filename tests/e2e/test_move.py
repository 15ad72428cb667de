"""A node's address changes by a registration, under sessions and under load."""

import time
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from tests.support.balancer import NODEPORT, WEBHOOK, Balancer, ask, connect, echo, fetch, greeting
from tests.support.beside import Beside
from tests.support.netns import LB, Lab, Namespace
from tests.support.waiting import eventually, pause
from tests.support.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.root]

PORT = 8443
SESSIONS = 100
PER_SECOND = 100  # new connections


@dataclass
class Arrivals(Beside):
    """Clients that come at a steady rate while the `with` block runs: one whole connection each."""

    at: Namespace
    served: list[tuple[float, str]] = field(default_factory=list)  # (when it began to connect, who answered)
    failed: list[str] = field(default_factory=list)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._end.is_set():
            began = time.monotonic()
            try:
                self.served.append((began, ask(self.at, PORT)[0]))
            except (OSError, AssertionError, IndexError) as error:
                self.failed.append(repr(error))
            due += 1 / PER_SECOND
            pause(max(0.0, due - time.monotonic()))

    def more(self, count: int = 50) -> None:
        goal = len(self.served) + len(self.failed) + count
        eventually(lambda: len(self.served) + len(self.failed) >= goal, what=f"{count} more clients came")

    def between(self, begin: float, end: float) -> list[str]:
        return [who for began, who in self.served if begin < began < end]


@pytest.mark.workers
def test_a_node_changes_its_address_under_100_sessions_and_100_new_connections_a_second(
    lab: Lab, pylb: Balancer, world: World
) -> None:
    world.app(lab.a, "old")
    world.app(lab.b, "new")
    pylb.register("app/pod", {PORT: NODEPORT}, at=lab.a, address=lab.a.address)
    with ExitStack() as stack:
        sessions = [stack.enter_context(connect(lab.client, PORT)) for _ in range(SESSIONS)]
        assert {greeting(sock)[0] for sock in sessions} == {"old"}
        with Arrivals(lab.client) as arrivals:
            arrivals.more()
            called = time.monotonic()
            answer = pylb.register("app/pod", {PORT: NODEPORT}, at=lab.b, address=lab.b.address)
            answered = time.monotonic()
            arrivals.more()
            end = time.monotonic()

        assert answer["result"] == "moved"
        assert [one["reachable"] for one in answer["frontends"]] == ["yes"]
        assert arrivals.failed == []
        assert set(arrivals.between(0, called - 1)) <= {"old"}
        assert set(arrivals.between(answered, end)) == {"new"}
        assert [echo(sock) for sock in sessions] == [b"ping"] * SESSIONS


def test_after_a_move_to_an_address_behind_a_firewall_the_old_server_stays_in_service(
    lab: Lab, pylb: Balancer, world: World
) -> None:
    world.app(lab.a, "old")
    lab.a.add_address("203.0.113.12")
    lab.a.black_hole("203.0.113.12", NODEPORT)
    pylb.register("app/pod", {PORT: NODEPORT}, at=lab.a)

    answer = pylb.register("app/pod", {PORT: NODEPORT}, at=lab.a, address="203.0.113.12")

    [frontend] = answer["frontends"]
    assert (answer["result"], frontend["address"], frontend["reachable"]) == ("moved", "203.0.113.12", "timeout")
    assert "firewall" in frontend["hint"]
    # it is tried first and displaces nobody: each client is served, at most one connect timeout later
    assert [ask(lab.client, PORT)[0] for _ in range(5)] == ["old"] * 5


def test_in_a_rolling_update_on_one_node_the_old_pods_goodbye_does_not_take_the_new_pods_server_away(
    lab: Lab, pylb: Balancer, world: World
) -> None:
    world.app(lab.a, "app")
    old = world.phone(lab.a, "app", "pod-1", f"{PORT}:{NODEPORT}")
    with Arrivals(lab.client) as arrivals:
        arrivals.more()
        new = world.phone(lab.a, "app", "pod-2", f"{PORT}:{NODEPORT}")
        old.goodbye()
        arrivals.more()
        assert pylb.call("DELETE", "app/pod-1", at=lab.a).status == 200
        arrivals.more()

    assert arrivals.failed == []
    assert [(one["instance"], one["state"]) for one in pylb.registrations()] == [("pod-2", "fresh")]
    assert new.process.alive


def test_two_instances_share_the_port_and_what_one_of_them_refuses_the_other_serves(
    lab: Lab, pylb: Balancer, world: World
) -> None:
    first = world.app(lab.a, "first")
    world.app(lab.b, "second")
    pylb.register("app/pod-a", {PORT: NODEPORT}, at=lab.a)
    pylb.register("app/pod-b", {PORT: NODEPORT}, at=lab.b)
    with ExitStack() as stack:
        sessions = [stack.enter_context(connect(lab.client, PORT)) for _ in range(10)]
        assert sorted(greeting(sock)[0] for sock in sessions) == ["first"] * 5 + ["second"] * 5  # least connections

    with Arrivals(lab.client) as arrivals:
        arrivals.more()
        first.kill()
        killed = time.monotonic()
        arrivals.more(100)

    # Only who was with the killed one at that moment may have failed.
    assert len(arrivals.failed) <= 1
    assert set(arrivals.between(killed, time.monotonic())) == {"second"}


def test_a_dead_phone_home_is_no_outage_its_stale_registration_serves_on(lab: Lab, pylb: Balancer, world: World) -> None:
    world.app(lab.a, "app")
    pylb.register("app/pod", {PORT: NODEPORT}, at=lab.a, ttl=1)

    eventually(lambda: [one["state"] for one in pylb.registrations()] == ["stale"], what="the lease has ended")

    assert ask(lab.client, PORT)[0] == "app"
    world.app(lab.b, "fresh")
    pylb.register("app/another", {PORT: NODEPORT}, at=lab.b)
    assert {ask(lab.client, PORT)[0] for _ in range(10)} == {"fresh"}


def test_whoami_tells_a_pod_the_address_that_its_registration_would_get(lab: Lab, pylb: Balancer) -> None:
    for address in (lab.a.address, "203.0.113.11"):
        if address != lab.a.address:
            lab.a.change_address(address)
        answer = fetch(lab.a.pod, (LB, WEBHOOK), "GET", "/v1/whoami")
        assert (answer.status, answer.json["address"]) == (200, address)
