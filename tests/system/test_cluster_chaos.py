"""Three balancers with one table and one floating address, three members of etcd, five nodes, and whatever may happen to them.

Which new connections to the floating address fail is attributed: each failure needs an event that explains it. Everything else
that can happen to balancers and etcd costs no connection. CHAOS is the seed, CHAOS_SECONDS how long it takes.
"""

import logging
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

import pytest

from tests.support.balancer import NODEPORT
from tests.support.cluster_lab import FLOATING, Cluster, EtcdMember, Machine
from tests.support.load import Failure, Load
from tests.support.netns import Lab, Node
from tests.support.peers import need
from tests.support.processes import Processes
from tests.support.waiting import eventually, pause

log = logging.getLogger(__name__)

PORT, APPS = 8443, 8
RELEASED = APPS - 1  # the app that is released and registered again
STILL = 2.0  # seconds around an event: what was open at its begin, and what ARP needs at its end


class Outage(NamedTuple):
    """What may cost connections: it happened to the balancer with the address."""

    why: str
    began: float
    ended: float


class Address:
    """Who has the floating address, looked at all the time."""

    def __init__(self, machines: list[Machine]) -> None:
        self._machines = machines
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.moves: list[tuple[float, str]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    def holders(self) -> list[str]:
        return [one.name for one in self._machines if one.has_address()]

    def _run(self) -> None:
        while not self._over.wait(0.25):
            found = ", ".join(self.holders()) or "nobody"
            if not self.moves or self.moves[-1][1] != found:
                self.moves.append((time.monotonic(), found))


class Chaos:
    """Whatever may happen, one thing after the other; phone-homes call in between."""

    def __init__(self, cluster: Cluster, address: Address, rnd: random.Random) -> None:
        self._cluster, self._address, self._rnd = cluster, address, rnd
        self.nodes: dict[int, Node | None] = dict.fromkeys(range(APPS), cluster.nodes[0])
        self._frozen: list[EtcdMember] = []
        self._dead: list[EtcdMember] = []
        self.happened: list[str] = []
        self.outages: list[Outage] = []
        self.answers = Counter[str]()
        self._events: dict[Callable[[], str], float] = {
            self.kill: 1,
            self.restart: 1,
            self.upgrade: 1,
            self.freeze: 1,
            self.isolate: 1,
            self.cut: 1,
            self.lose_member: 1,
            self.freeze_member: 1,
            self.repair: 2,
            self.move: 3,
            self.release: 1,
        }

    def happen(self) -> None:
        event = self._rnd.choices(list(self._events), list(self._events.values()))[0]
        began = time.monotonic()
        what = event()
        self.happened.append(what)
        log.info("%.1f s: %s", time.monotonic() - began, what)

    # ------------------------------------------------------------- balancers

    def _with_outage(self, what: str, machine: Machine, happens: Callable[[], None]) -> str:
        """Only if it has the address, or gets it meanwhile."""
        began, had = time.monotonic(), machine.has_address()
        happens()
        if had or machine.has_address():
            eventually(lambda: self._cluster.answers(FLOATING, PORT), within=60, what=f"the floating address after {what}")
            self.outages.append(Outage(what.split(maxsplit=1)[0], began, time.monotonic()))
            return f"{what} {machine.name}, which has the address"
        return f"{what} {machine.name}"

    def _some(self) -> Machine:
        return self._rnd.choice(self._cluster.machines)

    def kill(self) -> str:
        machine = self._some()

        def happens() -> None:
            machine.end(signal.SIGKILL)
            machine.start()

        return self._with_outage("kill", machine, happens)

    def restart(self) -> str:
        machine = self._some()

        def happens() -> None:
            machine.end(signal.SIGTERM)
            machine.start()

        return self._with_outage("restart", machine, happens)

    def freeze(self) -> str:
        machine, seconds = self._some(), self._rnd.uniform(0.5, 15.0)

        def happens() -> None:
            machine.signal(signal.SIGSTOP)
            pause(seconds)
            machine.signal(signal.SIGCONT)

        return self._with_outage(f"freeze for {seconds:.1f} s", machine, happens)

    def isolate(self) -> str:
        """From everything, as by a broken switch port."""
        machine, seconds = self._some(), self._rnd.uniform(0.5, 8.0)

        def happens() -> None:
            machine.at.ip("link set eth0 down")
            pause(seconds)
            machine.at.ip("link set eth0 up")

        return self._with_outage(f"isolate for {seconds:.1f} s", machine, happens)

    def upgrade(self) -> str:
        """Costs nothing."""
        machine = self._some()
        if machine.successor:  # one after the other: the first process may still end its sessions
            return "no upgrade"
        machine.upgrade()
        return f"upgrade {machine.name}"

    def cut(self) -> str:
        """From etcd. Costs nothing."""
        machine = self._some()
        machine.cut_from_etcd()
        return f"cut {machine.name} from etcd"

    # ------------------------------------------------------------- etcd

    def _well(self) -> list[EtcdMember]:
        return [one for one in self._cluster.members if one not in (*self._frozen, *self._dead)]

    def lose_member(self) -> str:
        for member in self._rnd.sample(self._well(), 1) if self._well() else ():
            member.running.kill()
            self._dead.append(member)
        return f"lose a member: {len(self._well())} are well"

    def freeze_member(self) -> str:
        for member in self._rnd.sample(self._well(), 1) if self._well() else ():
            member.running.signal(signal.SIGSTOP)
            self._frozen.append(member)
        return f"freeze a member: {len(self._well())} are well"

    def repair(self) -> str:
        for member in self._frozen:
            member.running.signal(signal.SIGCONT)
        for member in self._dead:
            member.start()
        self._frozen, self._dead = [], []
        for machine in self._cluster.machines:
            machine.join_etcd()
        return "repair"

    # ------------------------------------------------------------- apps

    def move(self) -> str:
        number = self._rnd.randrange(APPS - 1)
        self.nodes[number] = self._rnd.choice(self._cluster.nodes)
        return f"move app {number}"

    def release(self) -> str:
        machine, before = self._some(), self.nodes[RELEASED]
        if before is None:
            self.nodes[RELEASED] = self._rnd.choice(self._cluster.nodes)
            return f"register app {RELEASED} again"
        assert machine.release(before, f"web{RELEASED}").status == 200
        self.nodes[RELEASED] = None
        return f"release app {RELEASED} at {machine.name}"

    def call(self) -> None:
        """Half of the phone-homes know the floating address only."""
        machine = self._some()
        for number, node in self.nodes.items():
            address = FLOATING if number % 2 else ""
            try:
                answer = (
                    machine.call(node, PORT + number, f"web{number}", ttl=self._ttl(number), address=address) if node else None
                )
            except OSError as error:
                self.answers[type(error).__name__] += 1
                continue
            if answer is not None:
                self.answers[str(answer.status)] += 1
                assert answer.status in (200, 201, 503), (answer.body, self.happened)

    def _ttl(self, number: int) -> int:
        """Where a cut balancer is released, the others wait for the end of the lease."""
        return 10 if number == RELEASED else 60

    # ------------------------------------------------------------- what has to be true in the end

    def _accepts(self, machine: Machine, number: int, node: Node) -> bool:
        """A phone-home calls again after a 503: its balancer may not have noticed yet that it is no longer cut off."""
        answer = machine.call(node, PORT + number, f"web{number}", ttl=self._ttl(number))
        assert answer.status in (200, 201, 503), (answer.body, self.happened[-20:])
        return answer.status != 503

    def agrees(self) -> None:
        """Repaired, and called once more at each balancer."""
        self.repair()
        for machine in self._cluster.machines:
            machine.connected()
        for machine in self._cluster.machines:
            for number, node in self.nodes.items():
                if node is not None:
                    eventually(
                        lambda machine=machine, number=number, node=node: self._accepts(machine, number, node),
                        within=30,
                        what=f"app {number} is accepted by {machine.name}: {self.happened[-20:]}",
                    )
        wanted = {PORT + number: f"{node.address}:{NODEPORT}" for number, node in self.nodes.items() if node is not None}
        for machine in self._cluster.machines:
            eventually(
                lambda machine=machine: {row["port"]: row["address"] for row in machine.routes()} == wanted,
                within=90,
                what=f"{machine.name} serves what was called for: {self.happened[-20:]}",
            )
            assert not machine.differences()
            assert all(self._cluster.serves(machine, port) for port in wanted)
        log.info("all agree")


def unexplained(load: Load, outages: list[Outage]) -> tuple[Counter[str], list[Failure]]:
    """The failed connections by what explains them, and those that nothing explains."""
    by_reason, rest = Counter[str](), list[Failure]()
    for failure in list(load.failed):
        why = next((one.why for one in outages if one.began - STILL <= failure.began <= one.ended + STILL), "")
        if why:
            by_reason[why] += 1
        else:
            rest.append(failure)
    return by_reason, rest


@pytest.fixture
def cluster(lab: Lab, processes: Processes, tmp_path: Path) -> Iterator[Cluster]:
    for program in ("etcd", "etcdctl", "openssl", "keepalived", "curl"):
        need(program)
    found = Cluster(lab, processes, tmp_path, machines=3, nodes=5)
    yield found
    for machine in found.machines:
        if machine.successor:
            with suppress(ProcessLookupError):
                machine.signal(signal.SIGKILL)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_whatever_happens_what_is_called_for_is_served_and_each_lost_connection_has_its_reason(cluster: Cluster) -> None:
    """Ten minutes of kills, restarts, upgrades, freezes and cuts of balancers, deaths and freezes of etcd's members, and moves,
    beside 200 new connections a second."""
    seed = int(os.environ.get("CHAOS", "1"))
    log.info("seed %d (CHAOS=…)", seed)
    for priority, machine in zip((100, 90, 80), cluster.machines, strict=True):
        machine.keep_address(priority, [one.address for one in cluster.machines if one is not machine])
    for number in range(APPS):
        assert cluster.a.call(cluster.nodes[0], PORT + number, f"web{number}").status == 201
    eventually(lambda: cluster.answers(FLOATING, PORT), within=60, what="the floating address answers")
    rnd = random.Random(seed)
    with Address(cluster.machines) as address:
        chaos = Chaos(cluster, address, rnd)
        with cluster.load(FLOATING, PORT, 200.0) as load:
            end = time.monotonic() + float(os.environ.get("CHAOS_SECONDS", "600"))
            while time.monotonic() < end:
                chaos.happen()
                chaos.call()
                pause(rnd.random())
                if rnd.random() < 0.05:
                    chaos.agrees()
            chaos.agrees()
        holders = address.holders()
    by_reason, rest = unexplained(load, chaos.outages)
    began = chaos.outages[0].began if chaos.outages else 0.0
    kinds = Counter(one.split()[0] for one in chaos.happened)
    log.info("events: %s", dict(kinds))
    log.info("moves of the address: %s", [(round(when - began, 1), who) for when, who in address.moves])
    log.info("outages: %s", [(one.why, round(one.began - began, 1), round(one.ended - one.began, 1)) for one in chaos.outages])
    log.info("answers to phone-homes: %s", dict(chaos.answers))
    log.info("new connections: %d, failed: %d, by reason: %s", load.done, len(load.failed), dict(by_reason))
    log.info("without a reason: %s", [(round(one.began - began, 2), one.what) for one in rest])
    assert len(holders) == 1
    assert rest == []
