"""The lab itself: what the other tests take for granted."""

import socket
import sys
from pathlib import Path

import pytest

from tests.support.netns import LB, Lab, remove_leftovers, run
from tests.support.processes import Processes
from tests.support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.root]

ABANDONED = """
import os, signal, subprocess
from tests.support.netns import Lab
with Lab() as lab:
    inside = subprocess.Popen(lab.a.pod.command("sleep", "600"), start_new_session=True)
    print(inside.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_nodeport_leads_to_the_pod_and_what_the_pod_sends_comes_from_its_node(lab: Lab) -> None:
    lab.a.nodeport(30843, 1883)
    with lab.a.pod.inside():
        pod = socket.create_server(("", 1883))
    with lab.lb.inside():
        lb = socket.create_server(("", 9000))
    with pod, lb:
        for address in (lab.a.address, "203.0.113.11"):
            if address != lab.a.address:
                lab.a.change_address(address)
            assert caller(lab, pod, (address, 30843)) == LB
            assert caller(lab, lb, (LB, 9000)) == address


def caller(lab: Lab, server: socket.socket, address: tuple[str, int]) -> str:
    """Who a connection to `address` comes from, as its server sees it. From pylb to a node, from pod A to pylb."""
    here = lab.a.pod if address[0] == LB else lab.lb
    server.settimeout(5)
    with here.inside():
        client = socket.create_connection(address, 5)
    with client:
        accepted, peer = server.accept()
        accepted.close()
    return str(peer[0])


def test_an_address_that_a_node_gave_up_answers_no_more(lab: Lab) -> None:
    with lab.a.inside():
        server = socket.create_server(("", 30843))
    old = lab.a.address
    with server, lab.lb.inside():
        socket.create_connection((old, 30843), 5).close()
        lab.a.change_address("203.0.113.11")
        with pytest.raises(OSError, match=r"timed out|No route to host"):
            socket.create_connection((old, 30843), 0.5).close()


def test_what_a_killed_run_left_behind_is_removed_with_all_that_runs_in_it(processes: Processes) -> None:
    process = processes.start("killed", (sys.executable, "-c", ABANDONED))
    assert process.wait(20) == -9
    left = Path(f"/proc/{int(process.text())}")
    assert left.exists()
    assert f"pylb-{process.pid}-0-pod-a" in run("ip", "netns", "list")

    remove_leftovers()

    assert f"pylb-{process.pid}-" not in run("ip", "netns", "list")
    eventually(lambda: not left.exists() or "zombie" in (left / "status").read_text(), what="what ran in it has ended")
