"""One IPv6 /64 cannot shut the webhook: thousands of silent connects a second, and calls from elsewhere get through."""

import json
import sys
from pathlib import Path

import pytest

from tests.support.balancer import WEBHOOK, Balancer
from tests.support.netns import CLIENT6, LB, LB6, Lab
from tests.support.processes import Process, Processes

pytestmark = [pytest.mark.e2e, pytest.mark.root]

NETWORK = "2001:db8:66::"
SILENCE = Path(__file__).with_name("silence.py")
CALLS = 5


def _last(process: Process) -> object:
    assert process.wait(within=60) == 0, process.text()
    return json.loads(process.text().splitlines()[-1])


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("rate", "seconds"), [pytest.param(1000, 7, id="scaled down"), pytest.param(3000, 20, id="in full", marks=pytest.mark.long)]
)
def test_honest_calls_get_through_a_flood_of_silent_connects_from_one_64(
    lab: Lab, balancer: Balancer, processes: Processes, rate: int, seconds: int
) -> None:
    balancer.configure(webhook={"listen": f"*:{WEBHOOK}", "tls": "self-signed"})
    balancer.start()
    lab.client.ip(f"route add local {NETWORK}/64 dev lo")
    lab.lb.ip(f"route add {NETWORK}/64 via {CLIENT6}")
    to = str(WEBHOOK)
    program = (sys.executable, str(SILENCE))
    flood = processes.start("flood", (*program, "flood", LB6, to, NETWORK, str(rate), str(seconds)), at=lab.client)
    honest = processes.start("honest", (*program, "honest", LB, to, str(CALLS)), at=lab.a)
    assert _last(honest) == [True] * CALLS
    assert flood.alive, "the calls were made beside the flood"
    assert _last(flood)["connects"] > 0.7 * rate * seconds  # type: ignore[index]
