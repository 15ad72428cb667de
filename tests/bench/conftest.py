"""The wiring of a run on free ports, and the programs it needs."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import targets
from bench.configs import Wiring


@pytest.fixture
def wiring(tmp_path: Path) -> Wiring:
    """Loopback, free ports outside the ephemeral range, files under tmp_path."""
    return targets.loopback_wiring(tmp_path, descriptors=4096)


@pytest.fixture
def peer() -> Callable[[str], str]:
    """Gives the path of an installed program; skips where it is missing, and fails there with CI=true."""

    def find(program: str) -> str:
        found = shutil.which(program)
        if not found and os.environ.get("CI") == "true":
            pytest.fail(f"{program} is not installed")
        if not found:
            pytest.skip(f"{program} is not installed")
        return found

    return find
