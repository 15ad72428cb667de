"""Two balancers with one table, three members of etcd as deploy/etcd sets them up, and their clients, in network namespaces.

Seconds are logged (--log-cli-level=info), not bounded: what is checked is what is served, and which connections fail meanwhile.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.balancer import NODEPORT
from tests.support.cluster_lab import Cluster
from tests.support.netns import Lab
from tests.support.peers import need
from tests.support.processes import Processes
from tests.support.waiting import eventually

log = logging.getLogger(__name__)

PORT = 8443


@pytest.fixture
def cluster(lab: Lab, processes: Processes, tmp_path: Path) -> Cluster:
    for program in ("etcd", "etcdctl", "openssl"):
        need(program)
    return Cluster(lab, processes, tmp_path)


def seconds_until(happens: Callable[[], object], what: str) -> float:
    began = time.monotonic()
    eventually(happens, within=60, what=what)
    found = time.monotonic() - began
    log.info("%s: %.2f s", what, found)
    return found


@pytest.mark.timeout(300)
def test_registered_at_one_served_by_the_other_and_what_fails_harms_nothing(cluster: Cluster) -> None:
    a, b, lab = cluster.a, cluster.b, cluster.lab
    waits = []
    for number in range(10):
        assert a.call(lab.a, PORT + number, name=f"web{number}").status == 201
        waits.append(seconds_until(lambda number=number: cluster.serves(b, PORT + number), "registered at a, served by b"))
    log.info("the slowest of ten: %.2f s", max(waits))
    assert b.differences() == a.differences() == []

    with cluster.load(b.address, PORT) as load:
        for member in cluster.members[1:]:
            member.running.kill()
        seconds_until(lambda: not a.is_connected() and not b.is_connected(), "no quorum, and both have noticed")
        assert a.call(lab.a, PORT, name="web0").status == 200  # a beat
        assert a.call(lab.b, PORT, name="web0").status == 200  # a move
        answer = a.call(lab.a, PORT + 50, name="new")
        assert (answer.status, answer.json["error"]) == (503, "store_unavailable")
        for member in cluster.members[1:]:
            member.start()
        seconds_until(lambda: a.is_connected() and b.is_connected(), "the quorum is back, and both have noticed")
        assert a.call(lab.a, PORT + 50, name="new").status == 201
        seconds_until(lambda: cluster.serves(b, PORT + 50), "registered at a, served by b")
        eventually(lambda: not b.differences() and not a.differences(), what="they agree")
        routes = {row["port"]: row["address"] for row in b.routes()}
        assert routes[PORT] == f"{lab.b.address}:{NODEPORT}"  # the move of the outage

        a.running.kill()
        assert b.call(lab.b, PORT, name="web0").status == 200  # the phone-home finds the other one
        assert cluster.serves(b, PORT + 1)
        a.start()
        seconds_until(a.is_connected, "killed, started, connected")
        seconds_until(lambda: cluster.serves(a, PORT + 50), "and serves all")
    assert load.done > 100
    assert load.failed == []
    log.info("new connections meanwhile: %d, failed: %d", load.done, len(load.failed))


@pytest.mark.timeout(300)
def test_of_two_claims_of_one_port_one_gets_it(cluster: Cluster) -> None:
    a, b, lab = cluster.a, cluster.b, cluster.lab
    with ThreadPoolExecutor(2) as both:
        for number in range(50):
            port = PORT + number
            first = both.submit(a.call, lab.a, port, f"web{number}")
            second = both.submit(b.call, lab.b, port, f"mail{number}", token="other")
            answers = [first.result(), second.result()]
            assert sorted(one.status for one in answers) == [201, 409], [one.body for one in answers]
    eventually(lambda: not a.differences() and not b.differences(), within=30, what="they agree")
    owners = [{row["port"]: row["address"] for row in one.routes()} for one in (a, b)]
    assert owners[0] == owners[1]
    assert len(owners[0]) == 50
