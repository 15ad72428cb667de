"""Sessions that would come back to pylb: found also when an address comes to its machine later."""

from typing import Any

import pytest

from tests.support.balancer import NODEPORT, Balancer, ask
from tests.support.netns import Lab
from tests.support.waiting import eventually
from tests.support.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.root]

PORT = 8443


def servers(pylb: Balancer) -> list[str]:
    [found] = [one["servers"] for one in pylb.table()["frontends"] if one["port"] == PORT]
    return [one["address"] for one in found]


def said(pylb: Balancer, kind: str) -> list[dict[str, Any]]:
    return [event for event in pylb.admin("/v1/events").json["events"] if event["kind"] == kind]


@pytest.mark.workers
def test_a_server_whose_address_comes_to_pylbs_machine_goes_out_and_comes_back(lab: Lab, pylb: Balancer, world: World) -> None:
    """As a VIP that fails over. One session into the loop would take all places: it must never be dialled again."""
    world.app(lab.a, "a")
    pylb.register("app/pod", {PORT: NODEPORT}, at=lab.a)
    assert ask(lab.client, PORT)[0] == "a"
    # pylb itself listens on the node's NodePort number: at any other address that is fine
    pylb.configure(frontends=[{"name": "trap", "listen": f"*:{NODEPORT}"}])
    pylb.reload()
    eventually(lambda: NODEPORT in pylb.listening(), what="the port is open")
    assert servers(pylb) == [f"{lab.a.address}:{NODEPORT}"]

    lab.lb.ip(f"address add {lab.a.address}/32 dev eth0")
    eventually(lambda: servers(pylb) == [], within=10, what="the server is out")
    eventually(lambda: [event["alarm"] for event in said(pylb, "loop")] == [True], what="an alarm says so")
    assert f"{lab.a.address}:{NODEPORT}" in said(pylb, "loop")[0]["text"]

    lab.lb.ip(f"address delete {lab.a.address}/32 dev eth0")
    eventually(lambda: servers(pylb) == [f"{lab.a.address}:{NODEPORT}"], within=10, what="the server is back")
    assert len(said(pylb, "loop_over")) == 1
    assert ask(lab.client, PORT)[0] == "a"
