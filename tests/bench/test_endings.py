"""Each case of the table in docs/engine.md, through a real pylb; and the page says what was seen."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bench import endings

MEASURED = "1,000 rounds of 64 bytes"  # how long they take


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.alone] if case == MEASURED else []) for case in endings.CASES]
)
@pytest.mark.timeout(200)
def test_pylb_shows_both_ends_the_truth(case: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    [(_, seen)] = endings.column("pylb", tmp_path, [case], long=request.config.getoption("--long"))
    assert seen == endings.CASES[case][1]


def test_the_page_has_every_case_with_what_pylb_has_to_show() -> None:
    block = endings.PAGE.read_text().partition(endings.BEGIN)[2].partition(endings.STOP)[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines() if line.startswith("|")]
    assert rows[0] == ["", *endings.TARGETS]
    assert {row[0]: row[1] for row in rows[2:]} == {case: wanted for case, (_, wanted) in endings.CASES.items()}


def test_a_proxy_that_hides_a_reset_is_found_out(peer: Callable[[str], str], tmp_path: Path) -> None:
    """The check can fail: nginx's column is not pylb's."""
    peer("nginx")
    case = "server resets in the middle: client sees"
    [(_, seen)] = endings.column("nginx", tmp_path, [case])
    assert seen == "a clean FIN: it looks whole"
