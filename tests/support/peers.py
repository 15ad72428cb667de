"""Programs and rights that tests need. If one is missing, the test is skipped, or fails with CI=true."""

import importlib.util
import os
import shutil
import subprocess
from functools import cache
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    """Skip because `what` is not there; with CI=true that is a failure: a peer nobody installed tests nothing."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} (CI=true: nothing may be skipped)", pytrace=False)
    pytest.skip(what)


def need(program: str) -> str:
    """The path of an installed program."""
    path = shutil.which(program)
    return path if path is not None else missing(f"{program} is not installed")


def need_package(name: str, how: str) -> None:
    """A package of a group in pyproject.toml that `make test` does not install; `how` says how to install it."""
    if importlib.util.find_spec(name) is None:
        missing(f"{name} is not installed ({how})")


def need_root() -> None:
    if os.geteuid() != 0:
        missing("needs root")


def need_netns() -> None:
    """Network namespaces of our own: root, iproute2 and a kernel that lets us."""
    need_root()
    if not _can_unshare(need("unshare")):
        missing("needs a kernel that allows network namespaces")


@cache
def _can_unshare(unshare: str) -> bool:
    return subprocess.run([unshare, "--net", "true"], capture_output=True, timeout=10, check=False).returncode == 0
