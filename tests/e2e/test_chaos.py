"""Five nodes, none of them trusted to stay, phone-homes that fall silent, and clients that never notice (cases 33 to 36)."""

import json
import random
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest

from tests.support.balancer import DEFAULTS, NODEPORT, Balancer, connect, echo, greeting
from tests.support.beside import Beside
from tests.support.netns import Lab, Namespace, Node
from tests.support.processes import Process
from tests.support.waiting import eventually, pause
from tests.support.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.root]

PORT = 8443
CLIENTS = 10  # threads
PER_SECOND = 20  # new connections of each
PATIENCE = 12.0  # seconds of a client: longer than all connect timeouts together
MOST_BROKEN = 3  # nodes at a time, of five
KINDS = 6  # of what may happen, at least


@dataclass
class Failure:
    port: int  # the client's
    began: float  # unix time, as in the log
    ended: float
    error: str


@dataclass
class Client(Beside):
    """Connections one after the other, at a steady rate: a greeting, an echo, the end."""

    at: Namespace
    served: Counter[str] = field(default_factory=Counter)
    failed: list[Failure] = field(default_factory=list)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._end.is_set():
            self._one(time.time())
            due = max(due + 1 / PER_SECOND, time.monotonic() - 1)
            pause(max(0.0, due - time.monotonic()))

    def _one(self, began: float) -> None:
        port = 0
        try:
            with connect(self.at, PORT, timeout=PATIENCE) as sock:
                port = sock.getsockname()[1]
                said = greeting(sock)
                assert echo(sock) == b"ping"
                self.served[said[0]] += 1
        except (OSError, AssertionError, IndexError) as error:
            self.failed.append(Failure(port, began, time.time(), repr(error)))


@dataclass
class Pod:
    """A node, its app, and what was done to them."""

    name: str
    node: Node
    app: Process
    broken_at: list[float] = field(default_factory=list)
    mend: Callable[[], None] | None = None  # None: it is whole


class Chaos:
    """One thing after the other, drawn by a seed; at least two of five nodes are whole and in service at any time."""

    def __init__(self, lab: Lab, pylb: Balancer, world: World, rng: random.Random) -> None:
        self._lab, self._pylb, self._world, self._rng = lab, pylb, world, rng
        nodes = [lab.a, lab.b, *(lab.node(letter, number) for letter, number in (("c", 3), ("d", 4), ("e", 5)))]
        self.pods = [Pod(f"pod-{n}", node, world.app(node, f"pod-{n}")) for n, node in enumerate(nodes)]
        self._spare = iter(range(150, 250))  # the last number of nodes' new addresses
        self.done: Counter[str] = Counter()
        for pod in self.pods:
            self._register(pod)

    def step(self) -> None:
        broken = [pod for pod in self.pods if pod.mend]
        whole = [pod for pod in self.pods if not pod.mend]
        if broken and (len(broken) >= MOST_BROKEN or self._rng.random() < 0.4):
            self.mend(self._rng.choice(broken))
            return
        breaks = [self._kill, self._black_hole, self._drain, self._leave, self._say_goodbye, self._lose_the_way]
        what = self._rng.choice([*breaks, self._move, self._weigh, self._roll])
        self.done[what.__name__] += 1
        what(self._rng.choice(whole))

    def mend(self, pod: Pod) -> None:
        assert pod.mend is not None
        pod.mend()
        pod.mend = None

    def _register(self, pod: Pod, **more: Any) -> None:
        """For two seconds: nobody beats, so that all leases end all the time (case 33)."""
        said = {"address": pod.node.address, "ttl": 2, **more}
        self._pylb.register(f"web/{pod.name}", {PORT: NODEPORT}, at=pod.node, **said)

    def _ctl(self, *args: str) -> None:
        argv = self._pylb.at.command(*self._pylb.command("ctl", *args))
        subprocess.run(argv, check=True, timeout=20, capture_output=True)

    def _kill(self, pod: Pod) -> None:
        pod.broken_at.append(time.time())
        pod.app.kill()

        def mend() -> None:
            pod.app = self._world.app(pod.node, pod.name, nodeports={})

        pod.mend = mend

    def _black_hole(self, pod: Pod) -> None:
        pod.broken_at.append(time.time())
        pod.node.black_hole(pod.node.address, NODEPORT)
        pod.mend = lambda: pod.node.nft("flush chain ip kube firewall")

    def _move(self, pod: Pod) -> None:
        """The node has another address, and says so at once."""
        pod.broken_at.append(time.time())
        pod.node.change_address(f"203.0.113.{next(self._spare)}")
        self._register(pod)

    def _drain(self, pod: Pod) -> None:
        self._ctl("drain", f"{PORT}/{pod.name}")
        pod.mend = lambda: self._ctl("ready", f"{PORT}/{pod.name}")

    def _leave(self, pod: Pod) -> None:
        assert self._pylb.call("DELETE", f"web/{pod.name}", at=pod.node).status == 200
        pod.mend = lambda: self._register(pod)

    def _say_goodbye(self, pod: Pod) -> None:
        """Case 34: for now. Its NodePort goes on answering."""
        self._register(pod, state="draining")
        pod.mend = lambda: self._register(pod)

    def _roll(self, pod: Pod) -> None:
        """Case 35: a new pod registers the same NodePort, and the old one leaves, before it or after it."""
        new = Pod(f"{pod.name}-new", pod.node, pod.app)
        self._register(new)
        for name in self._rng.sample([pod.name, new.name], 2):
            self._pylb.call("DELETE", f"web/{name}", at=pod.node)
            self._register(pod)
        self._pylb.call("DELETE", f"web/{new.name}", at=pod.node)

    def _lose_the_way(self, pod: Pod) -> None:
        """Case 36: it says that it is where nobody answers."""
        self._register(pod, address="203.0.113.140")
        pod.mend = lambda: self._register(pod)

    def _weigh(self, pod: Pod) -> None:
        self._ctl("weight", f"{PORT}/{pod.name}", str(self._rng.randint(1, 5)))


@pytest.mark.timeout(400)
@pytest.mark.workers
def test_no_client_fails_while_a_node_is_whole(
    lab: Lab, balancer: Balancer, world: World, request: pytest.FixtureRequest
) -> None:
    seconds = 180 if request.config.getoption("--long") else 12
    defaults = {**DEFAULTS, "retries": 4, "timeouts": {"connect": "1s", "drain": "2s", "shutdown": "1s"}}
    balancer.configure(defaults=defaults, log={"format": "json"})
    balancer.start()
    chaos = Chaos(lab, balancer, world, random.Random(20261124))
    clients = [Client(lab.client) for _ in range(CLIENTS)]
    for client in clients:
        client.__enter__()
    began = time.monotonic()
    try:
        # The kinds of what may happen, not the time alone: a step takes longer on a busy machine.
        while time.monotonic() < began + seconds or len(chaos.done) < KINDS:
            chaos.step()
            pause(0.3)
    finally:
        lasted = time.monotonic() - began
        for client in clients:
            client._end.set()
        for client in clients:
            client.__exit__()

    served = sum((client.served for client in clients), Counter[str]())
    failed = [failure for client in clients for failure in client.failed]
    lines = [
        json.loads(line) for line in balancer.running.text().splitlines() if line.startswith('{"time"') and '"code"' in line
    ]
    unexcused = [(failure, record(failure, lines)) for failure in failed if not excused(failure, lines, chaos.pods)]
    assert unexcused == [], (chaos.done, len(failed))
    assert served.total() > lasted * CLIENTS * PER_SECOND * 0.5
    assert len(served) == 5
    assert len(chaos.done) >= KINDS


Line = dict[str, Any]  # of the session log


def record(failure: Failure, lines: list[Line]) -> Line | None:
    """Its own: a client's port is used again and again."""
    own = [line for line in lines if line["client_port"] == failure.port]

    def distance(line: Line) -> float:
        return abs(datetime.fromisoformat(line["time"]).timestamp() - failure.began)

    return min(own, key=distance, default=None)


def excused(failure: Failure, lines: list[Line], pods: list[Pod]) -> bool:
    """Only a session that a node had taken, and that was broken while the session lived."""
    line = record(failure, lines)
    if line is None or line["connect_ms"] == -1:
        return False
    label = line["server"].partition("@")[0].removesuffix("-new")
    pod = next(one for one in pods if one.name == label)
    return any(failure.began - 0.1 <= at <= failure.ended + 0.1 for at in pod.broken_at)


@pytest.mark.one_process
def test_clients_wait_in_order_for_the_only_server(lab: Lab, balancer: Balancer, world: World) -> None:
    """A queue in front of a real app: three clients, one at a time."""
    world.app(lab.a, "app")
    server = {"address": f"{lab.a.address}:{NODEPORT}", "max_connections": 1}
    balancer.configure(frontends=[{"name": "web", "listen": f"*:{PORT}", "servers": [server]}])
    balancer.start()
    first = connect(lab.client, PORT)
    assert greeting(first)[0] == "app"
    waiting: list[socket.socket] = []

    def all_wait() -> bool:
        return balancer.metric('pylb_frontend_queue{frontend="web"}') == len(waiting)

    for _ in range(3):
        waiting.append(connect(lab.client, PORT))
        eventually(all_wait, what="it waits")
    for sock in (first, *waiting):
        sock.settimeout(5)
        if sock is not first:
            assert greeting(sock)[0] == "app"
        assert echo(sock) == b"ping"
        sock.close()
