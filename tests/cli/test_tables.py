"""tables.py: plain into a pipe, fitted to a terminal, harmless on both."""

import subprocess
import sys
from io import StringIO

import pytest
from rich.console import Console

from pylb.cli.tables import Block, Column, Table, facts, size, written
from tests.support.processes import ROOT

COLUMNS = (
    Column("PORT"),
    Column("FRONTEND", folds=True),
    Column("ADDRESS"),
    Column("STATE", state=True),
    Column("BYTES", right=True),
    Column("WHY", folds=True),
)
ROW = ("443", "a-frontend-with-a-rather-long-name", "[2001:db8:1234:5678:9abc:def0:1234:5678]:30443", "down", 1234567, "")
HOSTILE = ("a\r\nb", "\x1b[31mred", "\x9b2J", "\u202eexe", "un\u200bseen", "[red]markup[/red]", ":smile:")


def terminal(width: int, **environment: str) -> Console:
    return Console(
        file=StringIO(),
        force_terminal=True,
        width=width,
        height=40,
        highlight=False,
        markup=False,
        emoji=False,
        _environ={"TERM": "xterm"} | environment,
    )


def test_into_a_pipe_it_is_plain_text_for_other_programs() -> None:
    other = ("8883", "日本", "192.0.2.1:30883", "up", 7, "x" * 300)
    head, *lines = written([Table(COLUMNS, [ROW, other])]).splitlines()
    assert head.split() == ["PORT", "FRONTEND", "ADDRESS", "STATE", "BYTES", "WHY"]
    assert [line.split() for line in lines] == [["443", *ROW[1:4], "1234567"], ["8883", *other[1:4], "7", "x" * 300]]
    assert [line for line in [head, *lines] if line != line.rstrip()] == []
    assert head.index("FRONTEND") == lines[0].index("a-frontend") == len("8883") + 2
    assert lines[1].index("192.0.2.1") == lines[0].index("[2001") - len("日本")  # each of these is two wide


def test_a_table_without_rows_has_its_headings() -> None:
    assert written([Table(COLUMNS, [])]) == "PORT  FRONTEND  ADDRESS  STATE  BYTES  WHY"


@pytest.mark.parametrize("width", [20, 60, 80, 100, 200])
def test_on_a_terminal_no_port_address_or_count_is_cut_or_folded(width: int) -> None:
    text = written([Table(COLUMNS, [ROW])], terminal(width, NO_COLOR="1"))
    for cell in ("443", ROW[2], "down", "1,234,567"):
        assert cell in text
    head, *lines = text.splitlines()
    start, end = head.index("FRONTEND"), head.index("ADDRESS")
    assert "".join(line[start:end].strip() for line in lines) == ROW[1]
    assert (len(lines) > 1) == (width < 110)


def test_on_a_wide_enough_terminal_no_line_is_longer() -> None:
    assert max(map(len, written([Table(COLUMNS, [ROW])], terminal(95, NO_COLOR="1")).splitlines())) <= 95


@pytest.mark.parametrize(("state", "colour"), [("up", "32"), ("no server", "31"), ("drain", "33"), ("relaying", None)])
def test_the_word_for_a_state_has_a_colour_unless_no_colours_are_wanted(state: str, colour: str | None) -> None:
    table = Table((Column("STATE", state=True), Column("NAME")), [(state, state)])
    expected = state if colour is None else f"\x1b[{colour}m{state}\x1b[0m"
    line = written([table], terminal(80)).splitlines()[1]
    assert line.startswith(expected)
    assert line.count("\x1b") == (0 if colour is None else 2)  # and a name that is the same word has none
    for plain in (written([table]), written([table], terminal(80, NO_COLOR="1")), written([table], terminal(80, TERM="dumb"))):
        assert "\x1b" not in plain


@pytest.mark.parametrize("screen", [None, terminal(200, NO_COLOR="1")], ids=["pipe", "terminal"])
@pytest.mark.parametrize("text", HOSTILE)
def test_what_would_drive_the_terminal_is_shown(text: str, screen: Console | None) -> None:
    shown = text.encode("unicode_escape").decode().replace("\\r\\n", "\\x0d\\x0a")
    parts: list[Block] = [Table((Column("NAME", state=True),), [(text,)]), facts([("label", text)])]
    head, cell, fact = written(parts, screen).splitlines()
    assert (head.rstrip(), cell.rstrip(), fact.split(maxsplit=1)[1].rstrip()) == ("NAME", shown, shown)
    assert "\x1b" not in written(["a line\n" + text], screen)


def test_facts_are_labels_and_text() -> None:
    assert written([facts([("listens", "*:443"), ("", "more"), ("denied", "2")])]) == (
        "listens    *:443\n           more\ndenied     2"
    )


@pytest.mark.parametrize(("number", "text"), [(0, "0 bytes"), (999.4, "999 bytes"), (1_500, "1.5 kB"), (2.4e9, "2.4 GB")])
def test_a_number_of_bytes_is_said_in_the_unit_that_fits(number: float, text: str) -> None:
    assert size(number) == text


@pytest.mark.parametrize("module", ["pylb.app.run", "pylb.cli.main", "pylb.workers.worker"])
def test_neither_pylb_nor_its_workers_nor_a_verb_without_a_table_load_rich(module: str) -> None:
    script = f"import sys, {module}; print(*sorted(name for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert module in loaded
    assert not {name for name in loaded if name.partition(".")[0] in ("rich", "pygments", "markdown_it")}
