"""The generated parts of docs/ say what the code says."""

import ast
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
LINK = re.compile(r"\[([^\]\[]+)\]\(([^)\s]+)\)")
MODULE = re.compile(r"(?<![\w./-])[\w/]+\.py\b")
FOREIGN = {"instance_principals_security_token_signer.py"}  # of oci-python-sdk, a source for an address


def test_the_generated_parts_of_the_documentation_are_up_to_date() -> None:
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    for path, text in generate["generated"]().items():
        assert path.read_text() == text, f"{path.name} is out of date: make docs"


@pytest.mark.parametrize(("page", "least"), [("security.md", 30), ("udp.md", 10)])
def test_every_test_that_a_page_names_exists(page: str, least: int) -> None:
    named = TEST.findall((ROOT / "docs" / page).read_text())
    assert len(named) > least
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


def test_every_file_that_a_page_links_to_exists_under_the_name_that_it_shows() -> None:
    links = 0
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for shown, target in LINK.findall(page.read_text()):
            if not target.startswith(("http:", "https:", "#")):
                path = page.parent / target.partition("#")[0]
                assert path.exists(), f"{page.name}: {target}"
                assert not shown.endswith(".py") or path.match(shown.replace("\\", "")), f"{page.name}: {shown} is {target}"
                links += 1
    assert links > 100


def test_the_index_has_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages - {target for _, target in LINK.findall(index)} == set()


def test_every_module_that_a_comment_or_page_names_exists() -> None:
    files = [
        path for folder in ("pylb", "tests", "bench", "docs", "deploy", "phonehome") for path in (ROOT / folder).rglob("*.py")
    ]
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    for source in (*(ROOT / "pylb").rglob("*.py"), *pages):
        for name in MODULE.findall(source.read_text().replace("\\", "")):
            assert name in FOREIGN or any(path.match(name) for path in files), f"{source.relative_to(ROOT)} names {name}"


def test_every_module_that_the_map_of_the_package_names_exists() -> None:
    text = (ROOT / "pylb" / "__init__.py").read_text()
    ways = text.partition("One call's way")[2].partition("What pylb does not do")[0]
    named = re.findall(r"\b[a-z_]+/[a-z_]+\b", ways)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / "pylb" / f"{name}.py").exists()] == []


def test_each_folder_lists_its_modules_and_no_others() -> None:
    """In its `__init__`, where a newcomer looks first."""
    folders = [path for path in sorted((ROOT / "pylb").rglob("__init__.py")) if path.parent.name != "pylb"]
    assert len(folders) > 15
    for init in folders:
        text = ast.get_docstring(ast.parse(init.read_text())) or ""
        modules = {path.stem for path in init.parent.glob("*.py")} - {"__init__"}
        missing = modules - set(re.findall(r"\w+", text))
        assert not missing, f"{init.parent.name}: {missing}"
        heads = re.findall(r"^([a-z_]+(?:, [a-z_]+)*)  +\S", text, re.MULTILINE)
        unknown = {name for head in heads for name in head.split(", ")} - modules
        assert not unknown, f"{init.parent.name}: {unknown}"
