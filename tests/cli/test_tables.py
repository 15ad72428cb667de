"""tables.py: plain into a pipe, fitted to a terminal, harmless on both."""

import subprocess
import sys

import pytest

from pylb.cli.tables import PIPE, Block, Column, Screen, Table, facts, prose, size, written
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
    text = written([Table(COLUMNS, [ROW])], Screen(width))
    for cell in ("443", ROW[2], "down !", "1,234,567"):
        assert cell in text
    head, *lines = text.splitlines()
    start, end = head.index("FRONTEND"), head.index("ADDRESS")
    assert "".join(line[start:end].strip() for line in lines) == ROW[1]
    assert (len(lines) > 1) == (width < 110)


@pytest.mark.parametrize("width", [100, 110, 300])
def test_on_a_wide_enough_terminal_no_line_is_longer(width: int) -> None:
    long = (*ROW[:5], "because of something that takes a whole sentence to explain, and then some")
    assert max(map(len, written([Table(COLUMNS, [ROW, long])], Screen(width)).splitlines())) <= width


RANKED = (
    Column("PORT"),
    Column("NAME", folds=True),
    Column("LEASE", goes=1),
    Column("WEIGHT", goes=2),
    Column("ACCEPTS", goes=3),
    Column("WHY", below=True),
)
RANKED_ROWS = [
    ("443", "mosquitto-7c9f8d6b5-abcd1", "11 h 59 min", "5", "-", "it accepts no connections"),
    ("8883", "app", "2 h", "1", "-", ""),
]


@pytest.mark.parametrize(
    ("width", "heading", "missed"),
    [
        (120, "PORT NAME LEASE WEIGHT ACCEPTS WHY", ""),
        (70, "PORT NAME LEASE WEIGHT ACCEPTS", ""),
        (44, "PORT NAME LEASE WEIGHT", ""),  # ACCEPTS says nothing, so nobody misses it
        (38, "PORT NAME LEASE", "WEIGHT"),
        (24, "PORT NAME", "LEASE, WEIGHT"),
    ],
)
def test_a_narrow_terminal_has_reasons_below_and_says_which_columns_it_has_no_room_for(
    width: int, heading: str, missed: str
) -> None:
    table = Table(RANKED, RANKED_ROWS)
    head, *lines = written([table], Screen(width)).splitlines()
    assert head.split() == heading.split()
    assert max(map(len, lines)) <= width
    at = next((number for number, line in enumerate(lines) if line.startswith("(no room")), len(lines))
    assert " ".join(lines[at:]) == (f"(no room for {missed}; `| less -S` shows all columns)" if missed else "")
    del lines[at:]
    reason = " ".join(line.strip() for line in lines if line.startswith("    ") and not line[4].isspace())
    assert reason == ("" if width == 120 else "WHY: it accepts no connections")
    assert written([table]).splitlines()[0].split() == [column.heading for column in RANKED]


def test_people_read_another_heading_and_units_and_programs_the_number() -> None:
    table = Table((Column("BYTES IN", right=True, people=("IN", size)), Column("N", right=True)), [(1_500_000, 1234)])
    assert written([table], Screen(80)).split("\n") == ["    IN      N", "1.5 MB  1,234"]
    assert written([table]).split("\n") == ["BYTES IN     N", " 1500000  1234"]


def test_prose_is_folded_between_words_on_a_terminal_alone() -> None:
    sentence = "one sentence that has to be read, about mosquitto-7c9f8d6b5-abcd1-and-more-of-it"
    lines = written([prose(sentence, indent=2)], Screen(30)).splitlines()
    assert lines == ["  one sentence that has to be", "  read, about", "  mosquitto-7c9f8d6b5-abcd1-", "  and-more-of-it"]
    assert written([prose(sentence)]) == sentence
    assert written([sentence], Screen(30)) == sentence  # what is to be copied stays one line


def test_what_is_two_columns_wide_is_folded_by_its_width() -> None:
    assert written([prose("日本語のとても長い名前")], Screen(12)).splitlines() == ["日本語のとて", "も長い名前"]


@pytest.mark.parametrize(
    ("state", "colour"), [("up", "32"), ("no server", "31"), ("LOOK", "31"), ("drain", "33"), ("relaying", None)]
)
def test_the_word_for_a_state_has_a_colour_and_what_is_wrong_a_mark_too(state: str, colour: str | None) -> None:
    table = Table((Column("STATE", state=True), Column("NAME")), [(state, state)])
    marked = "no server !" if state == "no server" else state
    expected = marked if colour is None else f"\x1b[{colour}m{marked}\x1b[0m"
    line = written([table], Screen(80, colour=True)).splitlines()[1]
    assert line.startswith(expected)
    assert line.count("\x1b") == (0 if colour is None else 2)  # and a name that is the same word has none
    assert written([table], Screen(80)).splitlines()[1].split("  ")[0] == marked
    assert written([table]).splitlines()[1].split("  ")[0] == state
    assert written([table], Screen(colour=True)).splitlines()[1].startswith(expected.replace(" !", ""))  # | less -R


@pytest.mark.parametrize("screen", [PIPE, Screen(200), Screen(200, colour=True)], ids=["pipe", "terminal", "colours"])
@pytest.mark.parametrize("text", HOSTILE)
def test_what_would_drive_the_terminal_is_shown(text: str, screen: Screen) -> None:
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
