"""The generated parts of docs/ say what the code says."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_generated_parts_of_the_documentation_are_up_to_date() -> None:
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    for path, text in generate["generated"]().items():
        assert path.read_text() == text, f"{path.name} is out of date: make docs"


def test_every_test_that_the_security_model_names_exists() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 30
    for file, test in named:
        source = (ROOT / file).read_text()
        assert not test or f"def {test}(" in source, f"{file}::{test}"
