"""What these tests need of the machine: missing is a skip on a developer's machine and a failure where CI=true."""

import os
import shutil
from collections.abc import Callable

import pytest


def _missing(what: str) -> None:
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(what)


@pytest.fixture
def binary() -> Callable[[str], str]:
    """binary("name") is the path of an installed program."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            _missing(f"{name} is not installed")
        return str(path)

    return find


@pytest.fixture
def as_root() -> None:
    if os.geteuid() != 0:
        _missing("needs root")
