"""The generated parts of docs/ say what the code says."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def test_the_generated_parts_of_the_documentation_are_up_to_date() -> None:
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    for path, text in generate["generated"]().items():
        assert path.read_text() == text, f"{path.name} is out of date: make docs"


def test_every_test_that_the_security_model_names_exists() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    named = TEST.findall(text)
    assert len(named) > 30
    for file, test in named:
        source = (ROOT / file).read_text()
        assert not test or re.search(rf"^(async )?def {test}\(", source, re.MULTILINE), f"{file}::{test}"


def test_every_claim_of_the_security_model_names_a_test() -> None:
    """A row of a table under "claim": a test, not only a file of many."""
    text = (ROOT / "docs" / "security.md").read_text()
    rows = [row for table in text.split("| claim | test |\n|---|---|\n")[1:] for row in table.partition("\n\n")[0].splitlines()]
    assert len(rows) > 30
    for row in rows:
        claim, tests = row.strip("|").rsplit("|", 1)
        assert any(test for _, test in TEST.findall(tests)), claim
