"""One pylb per module, and nodes at addresses of 127.0.0.0/8."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.instance import Pylb
from tests.support.processes import Processes


@pytest.fixture(scope="module")
def module_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with Processes(tmp_path_factory.mktemp("processes")) as processes:
        yield processes


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pylb")


@pytest.fixture(scope="module")
def pylb(module_processes: Processes, module_folder: Path) -> Pylb:
    """The one that all tests of a module share; each takes ports of its own."""
    return Pylb(module_processes, module_folder).start()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as processes:
        yield processes
