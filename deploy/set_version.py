"""Write pylb's version wherever it is written: `python3 deploy/set_version.py 0.2.0` (`make version VERSION=0.2.0`).

A release (0.2.0) closes the CHANGELOG's [Unreleased] with today's date; what comes after it (0.3.0.dev0) opens the next one.
"""

# ruff: noqa: INP001  a script that is run by its path

import datetime as dt
import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
VERSION = r"\d+\.\d+\.\d+(?:\.dev\d+|rc\d+)?"  # PEP 440, in the forms that we use
IMAGE = rf"(\bpylb(?:-phonehome)?:){VERSION}\b"


class Place(NamedTuple):
    files: str  # a pattern from the root; every file that it names has the text
    text: str  # its first group stays, the rest is replaced by the version


# The phone-home stands alone, so it cannot read pylb's. Manifests and docs name images by version: copied, they must work.
PLACES = (
    Place("pylb/__init__.py", rf'(^__version__ = "){VERSION}'),
    Place("phonehome/__init__.py", rf'(^__version__ = "){VERSION}'),
    Place("Dockerfile", IMAGE),
    Place("deploy/README.md", IMAGE),
    Place("deploy/compose/compose.yaml", IMAGE),
    Place("deploy/kubernetes/README.md", IMAGE),
    Place("deploy/kubernetes/*/variants/own-image.yaml", IMAGE),
)
RELEASED = "pylb/haproxy/info.py"  # `show info` has the day of the release


def found(root: Path) -> dict[str, set[str]]:
    """File -> the versions written in it."""
    versions: dict[str, set[str]] = {}
    for place in PLACES:
        for path in sorted(root.glob(place.files)):
            matches = re.finditer(place.text, path.read_text(encoding="utf-8"), re.MULTILINE)
            versions[str(path.relative_to(root))] = {match[0].removeprefix(match[1]) for match in matches}
    return versions


def set_version(root: Path, version: str, today: dt.date) -> list[str]:
    """Returns the files that changed. Raises ValueError, and has changed nothing then."""
    if not re.fullmatch(VERSION, version):
        raise ValueError(f"{version!r} is not a version such as 0.2.0, 0.2.0rc1 or 0.3.0.dev0")
    after = {root / "CHANGELOG.md": changelog((root / "CHANGELOG.md").read_text(encoding="utf-8"), version, today)}
    for place in PLACES:
        for path in root.glob(place.files):
            after[path] = replaced(place.text, version, path.read_text(encoding="utf-8"))
    if ".dev" not in version:
        info = root / RELEASED
        after[info] = replaced(r'(^RELEASED = ")[^"]*', f"{today:%Y/%m/%d}", info.read_text(encoding="utf-8"))
    changed = [path for path, text in after.items() if text != path.read_text(encoding="utf-8")]
    for path in changed:
        path.write_text(after[path], encoding="utf-8")
    return sorted(str(path.relative_to(root)) for path in changed)


def replaced(pattern: str, by: str, text: str) -> str:
    return re.sub(pattern, rf"\g<1>{by}", text, flags=re.MULTILINE)


def changelog(text: str, version: str, today: dt.date) -> str:
    """A release names and dates what was [Unreleased]; a version under development has an [Unreleased] on top."""
    release = version.partition(".dev")[0]
    heading = re.compile(r"^## \[Unreleased\].*$", re.MULTILINE)
    if version != release:
        opened = f"## [Unreleased] ({release})"
        return heading.sub(opened, text) if heading.search(text) else text.replace("\n## [", f"\n{opened}\n\n## [", 1)
    if not heading.search(text):
        raise ValueError(f"CHANGELOG.md has no [Unreleased] that {version} could close")
    return heading.sub(f"## [{version}] - {today}", text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} VERSION, such as 0.2.0 or 0.3.0.dev0")
    try:
        names = set_version(ROOT, sys.argv[1], dt.datetime.now(dt.UTC).date())
    except ValueError as error:
        sys.exit(f"set_version: {error}")
    sys.stdout.write("".join(f"{name}\n" for name in names))
