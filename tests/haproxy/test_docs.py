"""The table of docs/haproxy.md: what stands at the left becomes what stands at the right."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pylb.haproxy.translate import translate

TEXT = (Path(__file__).parents[2] / "docs" / "haproxy.md").read_text()
TABLE = TEXT.partition("checked by tests/haproxy")[2].partition("<!-- end")[0]
ROWS = re.findall(r"^\| `([^`]+)` \| (?:`([^`]+)`|(refused))? ?\|$", TABLE, re.MULTILINE)
SERVERS = " server s 192.0.2.7:80\n server t 192.0.2.8:80\n"


def test_the_table_is_read() -> None:
    assert len(ROWS) > 30


@pytest.mark.parametrize(("line", "becomes", "refused"), ROWS)
def test_a_row_is_what_the_import_does(line: str, becomes: str, refused: str) -> None:
    bind = "" if line.startswith("bind") else " bind 192.0.2.1:80\n"
    found = translate([("haproxy.cfg", f"listen w\n{bind} {line}\n{SERVERS}")])
    assert bool(found.differences) is bool(refused), found.differences
    if not refused:
        plain = translate([("haproxy.cfg", f"listen w\n bind 192.0.2.1:80\n{SERVERS}")])
        one, without = (yaml.safe_load(each.text)["frontends"][0] for each in (found, plain))
        wanted: dict[str, Any] = yaml.safe_load(becomes) if becomes else {}
        assert {key: one[key] for key in wanted} == wanted
        assert becomes or one == without  # an empty cell: it changes nothing
