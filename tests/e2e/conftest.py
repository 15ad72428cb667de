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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """With one process, and with two workers: what is marked `workers` always, the rest with --long. Unless it is exact
    in what only one process can be exact in (`one_process`)."""
    if "balancer" not in metafunc.fixturenames:
        return
    marks = {mark.name for mark in metafunc.definition.iter_markers()}
    both = "one_process" not in marks and ("workers" in marks or metafunc.config.getoption("--long"))
    metafunc.parametrize("balancer", [0, 2] if both else [0], indirect=True, ids="workers {}".format)


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
def balancer(lab: Lab, processes: Processes, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Balancer]:
    """Not started: a test may want another config. Its parameter is the number of workers."""
    balancer = Balancer(lab, processes, tmp_path, workers=request.param)
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
