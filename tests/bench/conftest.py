"""The wiring of a run on free ports, and the programs it needs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bench import targets
from bench.configs import Wiring
from tests.support.peers import need


@pytest.fixture
def wiring(tmp_path: Path) -> Wiring:
    """Loopback, free ports outside the ephemeral range, files under tmp_path."""
    return targets.wired(tmp_path, descriptors=4096)


@pytest.fixture
def peer() -> Callable[[str], str]:
    """Gives the path of an installed program; skips where it is missing, and fails there with CI=true."""
    return need
