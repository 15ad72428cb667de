"""What is installed: exact versions with their hashes, which fit what pyproject.toml asks for (`make lock`)."""

import re
import tomllib
from itertools import combinations
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.processes import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUN = PROJECT["project"]["dependencies"]
GROUPS = PROJECT["dependency-groups"]
LOCKS = {
    "requirements.lock": RUN,
    "locks/dev.lock": [*RUN, *GROUPS["test"], *GROUPS["lint"], *GROUPS["deploy"]],
    "locks/ui.lock": GROUPS["ui"],
    "locks/release.lock": GROUPS["release"],
}
PYTHONS = ("3.11", "3.12", "3.13")


class Entry(NamedTuple):
    requirement: Requirement
    hashes: list[str]


def entries(name: str) -> list[Entry]:
    """Raises on a line that is neither `name==version`, with a marker perhaps, nor a hash nor a comment: no index, no URL."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        if not line.startswith("#"):
            requirement, *hashes = line.split("--hash=")
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}\s*", one) for one in hashes), line
            found.append(Entry(Requirement(requirement), hashes))
    return found


def versions(name: str, python: str) -> dict[str, str]:
    """Of Linux and an interpreter: version by name."""
    here = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    chosen = [
        one.requirement for one in entries(name) if one.requirement.marker is None or one.requirement.marker.evaluate(here)
    ]
    found = {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in chosen}
    assert len(found) == len(chosen)
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_every_version_is_exact_and_has_its_hashes(name: str) -> None:
    for requirement, hashes in entries(name):
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), requirement
        assert requirement.url is None
        assert hashes, requirement


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_what_is_asked_for_within_its_bounds(name: str, python: str) -> None:
    locked = versions(name, python)
    for wanted in map(Requirement, LOCKS[name]):
        assert wanted.specifier.contains(locked[canonicalize_name(wanted.name)]), wanted


@pytest.mark.parametrize("python", PYTHONS)
def test_no_two_locks_disagree(python: str) -> None:
    for one, other in combinations([versions(name, python) for name in LOCKS], 2):
        assert {name: one[name] for name in one.keys() & other.keys()} == {n: other[n] for n in one.keys() & other.keys()}
