"""Sessions that would come back to pylb: found also when an address comes to its machine later."""

import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pylb.forward.dial import PUT_OFF
from tests.support.balancer import DEFAULTS, NODEPORT, Balancer, ask, connect
from tests.support.netns import LB, Lab, Namespace
from tests.support.processes import Processes
from tests.support.waiting import eventually
from tests.support.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.root]

PORT, RING, LIMITED = 8443, 8500, 8501
FEW = ("prlimit", "--nofile=1024")  # a process has room for some 330 sessions


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
    eventually(lambda: len(said(pylb, "loop_over")) == 1, what="it is said that the loop is over")
    assert ask(lab.client, PORT)[0] == "a"


class Other(Balancer):
    """A second pylb, on what is otherwise a node."""

    @property
    def at(self) -> Namespace:
        return self.lab.b


@pytest.fixture
def other(lab: Lab, processes: Processes, tmp_path: Path, balancer: Balancer) -> Balancer:
    """Each of the two sends RING and LIMITED to the other, in plain TCP."""
    app = {"name": "app", "listen": f"*:{PORT}", "servers": [f"{lab.a.address}:{NODEPORT}"]}
    (tmp_path / "other").mkdir()
    other = Other(lab, processes, tmp_path / "other", workers=balancer.workers)
    # The first probe of each server goes around too, and says its FIN; checks would do so again and again.
    defaults = dict(DEFAULTS) | {"health": {"mode": "none"}, "timeouts": {**DEFAULTS["timeouts"], "half_close": "1s"}}
    for one, peer in ((balancer, lab.b.address), (other, LB)):
        ring = {"name": "ring", "listen": f"*:{RING}", "servers": [f"{peer}:{RING}"]}
        limited = {"name": "limited", "listen": f"*:{LIMITED}", "servers": [f"{peer}:{LIMITED}"], "max_connections": 50}
        one.configure(defaults=defaults, frontends=[ring, limited, app])
        one.start(wrapper=FEW)
    eventually(lambda: not opened(balancer) and not opened(other), within=30, what="the probes' chains are gone")
    return other


def opened(pylb: Balancer) -> int:
    found: int = pylb.admin("/v1/sessions").json["open"]
    return found


def total(pylb: Balancer, name: str) -> float:
    return pylb.metric(f'pylb_frontend_sessions_total{{frontend="{name}"}}')


def is_still(both: tuple[Balancer, Balancer], name: str = "limited") -> bool:
    """No session, and none comes while both are asked ten times: some hundred hops would have been made.

    The two cannot be asked at one moment. None open may only mean that the last hop waits, reset by now, in a backlog.
    """
    before = [total(one, name) for one in both]
    return not any(opened(one) for one in both) and all([total(one, name) for one in both] == before for _ in range(10))


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.workers
def test_two_pylbs_that_send_to_each_other_reset_a_client_and_serve_the_others(
    lab: Lab, balancer: Balancer, other: Balancer, world: World
) -> None:
    world.app(lab.a, "a")
    before = [total(one, "ring") for one in (balancer, other)]
    with connect(lab.client, RING, timeout=20) as sock:
        assert ask(lab.client, PORT)[0] == "a"
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    eventually(lambda: not opened(balancer) and not opened(other), within=10, what="the chain is gone")
    assert ask(lab.client, PORT)[0] == "a"
    for one, came_before in zip((balancer, other), before, strict=True):
        room = 512 * (one.workers or 1)  # of 1,024 descriptors
        assert 1 < total(one, "ring") - came_before < room
    shares = [one.metric('pylb_frontend_denied_total{frontend="ring",reason="source_share"}') for one in (balancer, other)]
    assert sum(shares) >= 1


@pytest.mark.workers
@pytest.mark.parametrize("leave", [reset, socket.socket.close], ids=["reset", "close"])
def test_a_chain_between_two_pylbs_is_gone_after_its_client_left(
    lab: Lab, balancer: Balancer, other: Balancer, world: World, leave: Callable[[socket.socket], None]
) -> None:
    """It holds one frontend's limit while the client stays, and nothing goes around afterwards."""
    world.app(lab.a, "a")
    sock = connect(lab.client, LIMITED)
    # After the resets of the tests before this one, each of its 100 dials may wait for PUT_OFF and up to one tick.
    eventually(lambda: max(opened(balancer), opened(other)) >= 50, within=100 * (PUT_OFF + 0.2), what="one of them is full")
    assert ask(lab.client, PORT)[0] == "a"
    leave(sock)
    eventually(lambda: is_still((balancer, other)), within=20, what="the chain is gone, and nothing goes around")
    assert ask(lab.client, PORT)[0] == "a"


@pytest.mark.workers
def test_a_client_that_resets_at_once_leaves_nothing_that_goes_around_between_two_pylbs(
    lab: Lab, balancer: Balancer, other: Balancer
) -> None:
    """It ends by itself. How many connections it makes, counted in turns, is in tests/forward/test_own_dials.py.

    Where a process may wait longer for its turn than PUT_OFF, the reset comes later and there are more: up to 430 were seen.
    """
    both = (balancer, other)
    for _ in range(5):
        before = sum(total(one, "ring") for one in both)
        reset(connect(lab.client, RING))
        eventually(lambda: is_still(both, "ring"), within=10, what="nothing goes around")
        workers = sum(one.workers or 1 for one in both)
        assert sum(total(one, "ring") for one in both) - before < 512 * workers  # of 1,024 descriptors each
