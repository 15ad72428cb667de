"""Scripted API servers, and controllers that follow them; see scripted.py and cluster.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from phonehome.controller.controller import Controller
from phonehome.controller.options import read
from phonehome.credentials import read_file
from tests.phonehome.controller.cluster import Cluster
from tests.phonehome.controller.pylb import Pylb
from tests.phonehome.controller.scripted import Scripted, Serve, Step

ADDRESS = "198.51.100.1"

Start = Callable[..., Controller]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts one per call; all end with the test."""
    started: list[Scripted] = []

    def start(*steps: Step, rest: Step | None = None) -> Scripted:
        started.append(Scripted(*steps, rest=rest))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    running = Cluster()
    running.node("a", "10.1.0.1")
    yield running
    running.close()
    assert not running.forbidden


@pytest.fixture
def pylb() -> Iterator[Pylb]:
    running = Pylb()
    yield running
    running.close()


@pytest.fixture
def start(cluster: Cluster, pylb: Pylb, tmp_path: Path) -> Iterator[Start]:
    """Starts controllers between the two; `lines` of each is its log. Pauses are as short as can be."""
    started: list[Controller] = []

    def begin(**environ: str) -> Controller:
        token = tmp_path / "token"
        token.write_text("a-token-of-kubernetes\n")
        values = {
            "PYLB_URL": pylb.url,
            "PYLB_TOKEN": "a-token-that-is-long-enough",
            "PYLB_PUBLIC_ADDRESS": ADDRESS,
            "PYLB_KUBE_API": cluster.url,
            "PYLB_KUBE_TOKEN_FILE": str(token),
            **environ,
        }
        lines: list[str] = []
        made = Controller(read(values, read_file), None, read_file, lines.append, uniform=lambda low, _high: low)
        made.lines = lines  # type: ignore[attr-defined]
        started.append(made)
        made.start()
        return made

    yield begin
    for one in started:
        print("\n".join(one.lines))  # noqa: T201  # type: ignore[attr-defined]
        one.stop()
