"""The namespaces of a run: packets go where they should, and nothing is left."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bench import network, targets
from bench.endpoints import pace
from bench.processes import Address
from tests.support.peers import need, need_netns

pytestmark = pytest.mark.root
HERE = Path("/run/netns")


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    need_netns()
    need("ip")


def ours() -> list[str]:
    """And not those of a bench that somebody else runs meanwhile."""
    return [path.name for path in HERE.glob(f"pylb-bench-{os.getpid()}-*")]


def test_load_reaches_proxy_and_origin_and_all_is_gone_afterwards(tmp_path: Path) -> None:
    with network.namespaces() as made:
        wiring = targets.wired(tmp_path, descriptors=4096, network=made)
        assert wiring.origin_http.host == made.origin != made.proxy == wiring.webhook.host
        need("nginx")
        with targets.origin(wiring):
            assert socket.create_connection(wiring.origin_http, timeout=5).close() is None
            with targets.running("pylb", wiring) as target:
                socket.create_connection(target.http, timeout=5).close()
        assert len(ours()) == 3
    assert ours() == []


def test_what_a_killed_run_left_is_removed_by_the_next() -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait(10)
    left = HERE / f"pylb-bench-{dead.pid}-load"
    subprocess.run(["ip", "netns", "add", left.name], check=True, timeout=10)
    assert left.exists()
    with network.namespaces():
        assert not left.exists()
    assert ours() == []


def test_the_paced_load_counts_from_when_a_request_was_due(tmp_path: Path) -> None:
    need("nginx")
    wiring = targets.wired(tmp_path, descriptors=4096)
    with targets.origin(wiring):
        result = pace(Address(*wiring.origin_http), rate=500, seconds=1, connections=8)
    assert result["due"] == result["answers"] == 500
    assert 0 < result["p50"] <= result["p99"]
