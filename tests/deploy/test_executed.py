"""The table of deploy/README.md, "What was executed": it names every file of deploy/, and only tests that exist."""

import re

from tests.deploy.manifests import DEPLOY

ROOT = DEPLOY.parent
TABLE = (DEPLOY / "README.md").read_text().partition("## What was executed\n")[2].partition("\n## ")[0]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.splitlines() if line.startswith("| ")][1:]


def executed() -> set[str]:
    """Every file that a row is about, patterns written out."""
    found = {path.resolve() for row in ROWS for pattern in re.findall(r"`([^`]+)`", row[0]) for path in DEPLOY.glob(pattern)}
    return {str(path.relative_to(ROOT)) for path in found if path.is_file()}


def test_every_file_of_deploy_is_in_the_table() -> None:
    files = {str(path.relative_to(ROOT)) for path in DEPLOY.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    pages = {name for name in files if name.endswith("/README.md")}
    assert files - executed() == pages
    assert {"Dockerfile", "docs/logs.md"} <= executed()


def test_every_row_names_its_tests_and_they_exist() -> None:
    for artefact, how, tests, missing in ROWS:
        assert how, artefact
        assert missing, artefact
        named = re.findall(r"`(tests/\S+\.py)(?:::(\w+))?`", tests)
        assert named, artefact
        for file, test in named:
            text = (ROOT / file).read_text()
            assert re.search(rf"^(async )?def {test or 'test_'}", text, re.MULTILINE), f"{file}::{test}"
