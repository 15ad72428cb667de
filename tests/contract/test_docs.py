"""The generated parts of docs/ say what the code says."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_generated_parts_of_the_documentation_are_up_to_date() -> None:
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    for path, text in generate["generated"]().items():
        assert path.read_text() == text, f"{path.name} is out of date: make docs"
