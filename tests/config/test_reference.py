"""docs/config.md says what the models check, and the example shows it."""

from pathlib import Path

from pylb.config.explain import section_of
from pylb.config.root import Config
from pylb.config.section import Section

PAGE = Path(__file__).parents[2] / "docs/config.md"  # generated: tests/contract/test_docs.py


def sections(model: type[Section]) -> set[type[Section]]:
    inner = {found for field in model.model_fields.values() if (found := section_of(field.annotation)) is not None}
    return {model}.union(*(sections(each) for each in inner))


def test_every_key_has_a_line_with_its_meaning() -> None:
    text = PAGE.read_text()
    for section in sections(Config):
        for key, field in section.model_fields.items():
            if not field.exclude:
                assert f"| `{key}` |" in text
                assert field.description or section_of(field.annotation)
        for key in section.reserved:
            assert f"`{key}`" in text


def test_every_link_of_the_page_has_its_heading() -> None:
    text = PAGE.read_text()
    headings = {
        "".join(char for char in line.removeprefix("## ").lower() if char.isalnum() or char in "_-")
        for line in text.splitlines()
        if line.startswith("## ")
    }
    links = {part.split(")")[0] for part in text.split("](#")[1:]}
    assert links
    assert links <= headings
