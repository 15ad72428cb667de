"""A thousand ports."""

import pytest

from tests.support.balancer import NODEPORT, Balancer, ask
from tests.support.netns import Lab
from tests.support.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.root]

FIRST, COUNT, PER_CALL = 20000, 1000, 64  # a body has 4 KiB and 64 frontends at most


def test_a_thousand_registered_frontends_are_listed_and_serve_also_after_a_restart(
    lab: Lab, pylb: Balancer, world: World
) -> None:
    world.app(lab.a, "app")
    ports = list(range(FIRST, FIRST + COUNT))
    for number, start in enumerate(range(0, COUNT, PER_CALL)):
        some = dict.fromkeys(ports[start : start + PER_CALL], NODEPORT)
        answer = pylb.register(f"many-{number}/pod-a", some, at=lab.a)
        assert (answer["result"], answer["durable"]) == ("created", True)
        assert {one["reachable"] for one in answer["frontends"]} == {"yes"}

    check_all(lab, pylb, ports)
    assert pylb.metric("pylb_table_generation") == pylb.table()["generation"]
    pylb.kill()
    pylb.start()
    check_all(lab, pylb, ports)


def check_all(lab: Lab, pylb: Balancer, ports: list[int]) -> None:
    frontends = pylb.table()["frontends"]
    assert [one["port"] for one in frontends] == ports
    assert {one["unbound"] for one in frontends} == {None}
    assert set(ports) <= pylb.listening()
    for port in (*ports[::50], ports[-1]):
        assert ask(lab.client, port)[0] == "app"


def test_releasing_a_registration_closes_its_ports_and_only_those(lab: Lab, pylb: Balancer, world: World) -> None:
    world.app(lab.a, "app")
    for name, first in (("stays", 20000), ("goes", 20100)):
        pylb.register(f"{name}/pod-a", dict.fromkeys(range(first, first + 20), NODEPORT), at=lab.a)

    for _ in range(2):  # idempotent
        answer = pylb.call("DELETE", "goes/pod-a", at=lab.a)
        assert (answer.status, answer.json["result"]) == (200, "released")

    assert pylb.listening() & set(range(20000, 20200)) == set(range(20000, 20020))
    assert ask(lab.client, 20007)[0] == "app"
