"""Whole systems, as root: slow to make, so each is made once for all tests. Run by `make test-system`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cgroups import end_those_of_dead_runs
from tests.support.netns import Lab, remove_leftovers
from tests.support.peers import need_netns
from tests.support.processes import Processes
from tests.system.images import debootstrap


@pytest.fixture(scope="session", autouse=True)
def _machine() -> None:
    need_netns()
    end_those_of_dead_runs()  # first: what they hold of a network keeps its namespace
    remove_leftovers()


@pytest.fixture(scope="session")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file system with Python and nothing of pylb."""
    return debootstrap(tmp_path_factory.mktemp("base"), ("python3", "python3-venv", "python3-pip", "ca-certificates"))


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as found:
        yield found


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as found:
        yield found
