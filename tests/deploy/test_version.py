"""pylb's version: written by one command wherever it stands, and its name on PyPI, which is not that of its command."""

import datetime as dt
import re
import shutil
import tomllib
from pathlib import Path

import pytest

from deploy.set_version import PLACES, RELEASED, found, set_version
from pylb import DISTRIBUTION, __version__
from pylb.cli.install import PYTHONS
from tests.support.processes import ROOT

DAY = dt.date(2031, 2, 3)
NOTES = "# Changelog\n\n## [Unreleased] (7.8.9)\n\n### Added\n- This.\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of every file that has the version, and a CHANGELOG."""
    names = [path.relative_to(ROOT) for place in PLACES for path in ROOT.glob(place.files)]
    for name in (*names, Path(RELEASED)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "CHANGELOG.md").write_text(NOTES)
    return tmp_path


def test_it_is_the_same_everywhere() -> None:
    versions = found(ROOT)
    assert len(versions) >= 7
    assert {file: names for file, names in versions.items() if names != {__version__}} == {}


def test_the_changelog_is_open_for_the_version_that_is_under_way_and_closed_for_a_release() -> None:
    first = next(line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## "))
    release = __version__.partition(".dev")[0]
    if release == __version__:
        assert re.fullmatch(rf"## \[{re.escape(release)}\] - \d{{4}}-\d\d-\d\d", first)
    else:
        assert first == f"## [Unreleased] ({release})"


def test_a_release_is_named_and_dated_in_every_place(tree: Path) -> None:
    changed = set_version(tree, "7.8.9", DAY)
    assert set(changed) == {*found(tree), RELEASED, "CHANGELOG.md"}
    assert set().union(*found(tree).values()) == {"7.8.9"}
    assert (tree / "CHANGELOG.md").read_text().splitlines()[2] == "## [7.8.9] - 2031-02-03"
    assert 'RELEASED = "2031/02/03"' in (tree / RELEASED).read_text()
    assert __version__ not in "".join((tree / name).read_text() for name in changed)
    assert set_version(tree, "7.9.0.dev0", DAY)
    assert (tree / "CHANGELOG.md").read_text().splitlines()[2:5] == [
        "## [Unreleased] (7.9.0)",
        "",
        "## [7.8.9] - 2031-02-03",
    ]
    assert 'RELEASED = "2031/02/03"' in (tree / RELEASED).read_text()


@pytest.mark.parametrize(
    ("version", "why"), [("v7.8.9", "not a version"), ("7.8", "not a version"), ("7.8.9", "no \\[Unreleased\\]")]
)
def test_what_cannot_be_released_changes_nothing(tree: Path, version: str, why: str) -> None:
    (tree / "CHANGELOG.md").write_text("# Changelog\n\n## [7.8.9] - 2031-02-03\n")
    before = found(tree)
    with pytest.raises(ValueError, match=why):
        set_version(tree, version, DAY)
    assert found(tree) == before


def test_the_name_on_pypi_is_our_own_and_said_where_people_install_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == DISTRIBUTION != "pylb"
    assert list(project["scripts"]) == ["pylb", "phonehome"]
    for page in ("README.md", "docs/install.md"):
        text = (ROOT / page).read_text()
        assert f"`{DISTRIBUTION}`" in text, page
        assert not re.search(r"pip3? install (-\S+ )*pylb\b(?!-)", text), page


def test_the_pythons_that_are_supported_are_said() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [one.rpartition(" ")[2] for one in project["classifiers"] if "Python :: 3." in one]
    oldest, newest = named[0], named[-1]
    assert project["requires-python"] == f">={oldest},<3.{int(newest.partition('.')[2]) + 1}"
    assert project["requires-python"] == ">={}.{},<{}.{}".format(*PYTHONS[0], *PYTHONS[1])
    assert f"Python {oldest} to {newest}" in (ROOT / "README.md").read_text()
