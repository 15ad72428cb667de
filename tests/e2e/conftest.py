"""Each test has its own lab of network namespaces, its own pylb and its own processes; a failed one shows their output."""

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.support.balancer import Balancer
from tests.support.baseline import Baseline, baseline
from tests.support.netns import Lab, remove_leftovers
from tests.support.peers import need, need_netns
from tests.support.processes import Processes
from tests.support.world import World

__all__ = ["baseline"]  # a fixture
_processes = pytest.StashKey[Processes]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and (processes := item.stash.get(_processes, None)) is not None:
        report.sections.extend(processes.report())
    return report


@pytest.fixture(autouse=True)
def _back_to_the_base_line(baseline: Baseline) -> Baseline:
    """What a test opens in the testers' own process it closes."""
    return baseline


@pytest.fixture(scope="session")
def _swept() -> None:
    need_netns()
    for program in ("ip", "nft", "sysctl"):
        need(program)
    remove_leftovers()


@pytest.fixture
def lab(_swept: None) -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture
def processes(lab: Lab, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Processes]:
    """Before the lab goes, everything that runs in it does."""
    with Processes(tmp_path) as processes:
        request.node.stash[_processes] = processes
        yield processes


@pytest.fixture
def balancer(lab: Lab, processes: Processes, tmp_path: Path) -> Iterator[Balancer]:
    """Not started: a test may want another config."""
    balancer = Balancer(lab, processes, tmp_path)
    yield balancer
    balancer.check_settled()


@pytest.fixture
def pylb(balancer: Balancer) -> Balancer:
    """Serving, with nothing registered."""
    balancer.start()
    return balancer


@pytest.fixture
def world(lab: Lab, processes: Processes) -> World:
    return World(lab, processes)
