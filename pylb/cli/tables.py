"""How the CLI writes: one table, one clock, one byte size. Characters that control a terminal are shown, never sent.

A table has two forms. Into a pipe or a file it is plain: two or more blanks between columns, no colour, no line cut or
wrapped, no blanks at the end of a line, counts without commas, so that awk and grep work. On a terminal it fits the width:
names are folded, ports, addresses and counts never, and a reason has a line of its own. Where that is not enough, columns
without content and then the less important ones are left out, and a line below names those that had content. The words for
a state have colours, and what is wrong a mark as well, for whoever has or sees no colours.

Why the layout is our own and not rich's table: 3,000 routes take rich 1.5 to 2.2 s of CPU time on a terminal, on the machine
whose cores forward, and this 0.03 to 0.08 s. Why `visible` and not rich's escape_control_codes: that one lets ESC and whatever
hides text pass.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pylb.core.address import TCP, port_text
from pylb.core.text import visible, visible_lines

GAP = 2  # blanks between two columns
FOLDED = 12  # a column is not folded to less than this
LABEL = 9 + GAP  # of `facts`
_COLOURS = {  # by the first word of a cell: "no server", "not served"; SGR codes (ECMA-48)
    32: ("up", "healthy", "ok"),
    31: ("down", "no", "not", "LOOK"),
    33: ("degraded", "drain", "draining", "maint", "stale", "unproven"),
}
_COLOUR_OF = {word: colour for colour, words in _COLOURS.items() for word in words}
_RED = 31
_MARK = " !"  # behind what is red
_NOTHING = ("", "-")  # a cell without content
_BREAKS = "/-.:,_@"  # a long word is broken behind one of these, if that fills at least half of the line


class Screen(NamedTuple):
    """Where the text goes. `width` in columns; None: a pipe or a file."""

    width: int | None = None
    colour: bool = False


PIPE = Screen()


class Column(NamedTuple):
    heading: str
    right: bool = False  # aligned to the right: counts
    folds: bool = False  # may become several lines on a narrow terminal
    state: bool = False  # its first word has a colour on a terminal
    width: int = 0  # at least
    goes: int = 0  # where the terminal is too narrow, the column with the highest goes first; 0: it stays
    below: bool = False  # where the terminal is too narrow, its text has a line of its own below the others
    people: tuple[str, Callable[[int], str]] | None = None  # on a terminal: another heading, and how its counts are written


@dataclass(frozen=True)
class Table:
    """A cell that is an int is a count. Without any heading there is no line of them."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str | int]]
    indent: int = 0


Block = str | Table


def facts(rows: Iterable[tuple[str, str]]) -> Table:
    """What is known of one thing: a label, which may be empty, and text."""
    return Table((Column("", width=LABEL - GAP), Column("", folds=True)), list(rows))


def prose(*lines: str, indent: int = 0) -> Table:
    """Sentences, each in a line of its own, or in several on a narrow terminal. (What is to be copied is a plain part.)"""
    return Table((Column("", folds=True),), [(line,) for line in lines], indent)


def written(parts: Iterable[Block], screen: Screen = PIPE) -> str:
    """Lines of text and tables, one below the other."""
    return "\n".join(visible_lines(part) if isinstance(part, str) else "\n".join(_lines(part, screen)) for part in parts)


def port_of(row: Mapping[str, Any]) -> str:
    """The port of a row: `443`, `443/udp`, or `20000-20099`."""
    return port_text(row["port"], row.get("protocol", TCP), row.get("last_port", 0))


def clock(unix: float, *, day: bool = True) -> str:
    """Local time, as in the log."""
    return time.strftime("%Y-%m-%d %H:%M:%S" if day else "%H:%M:%S", time.localtime(unix))


def size(number: float) -> str:
    """A number of bytes, as in "1.5 MB"."""
    from rich.filesize import decimal  # noqa: PLC0415

    return decimal(round(number))


def _lines(table: Table, screen: Screen) -> list[str]:
    room = None if screen.width is None else screen.width - table.indent
    headings = [_heading(column, screen) for column in table.columns]
    rows = [[_cell(cell, column, screen) for cell, column in zip(row, table.columns, strict=True)] for row in table.rows]
    headed = any(headings)
    if headed:
        rows.insert(0, headings)
    if not rows:
        return []
    longest = [
        max(column.width, *map(_length, cells)) for column, cells in zip(table.columns, zip(*rows, strict=True), strict=True)
    ]
    shown, widths, lost = list(range(len(table.columns))), longest, []
    below = None
    if room is not None and _total(shown, longest) > room:
        below = next((number for number in shown if table.columns[number].below), None)
        if below is not None:
            shown.remove(below)
        least = [
            max(_length(heading), min(long, FOLDED)) if column.folds else long
            for column, heading, long in zip(table.columns, headings, longest, strict=True)
        ]
        lost = _leave_out(table, shown, least, room)
        widths = _shared_out(shown, least, longest, room)
    found: list[str] = []
    for number, row in enumerate(rows):
        heading = headed and number == 0
        found += _row(table.columns, row, shown, widths, screen.colour and not heading)
        if below is not None and room is not None and row[below] and not heading:
            found += ["    " + line for line in _folded(f"{headings[below]}: {row[below]}", room - 4)]
    if lost and room is not None:
        found += _folded(f"(no room for {', '.join(headings[number] for number in lost)}; `| less -S` shows all columns)", room)
    return [(" " * table.indent + line).rstrip() for line in found]


def _heading(column: Column, screen: Screen) -> str:
    return column.heading if column.people is None or screen.width is None else column.people[0]


def _cell(cell: str | int, column: Column, screen: Screen) -> str:
    if isinstance(cell, int):
        if screen.width is None:
            return str(cell)
        return f"{cell:,}" if column.people is None else column.people[1](cell)
    text = visible(cell)
    if column.state and screen.width is not None and text != "LOOK" and _COLOUR_OF.get(text.partition(" ")[0]) == _RED:
        return text + _MARK
    return text


def _total(shown: Iterable[int], widths: Sequence[int]) -> int:
    return sum(widths[one] + GAP for one in shown) - GAP


def _leave_out(table: Table, shown: list[int], least: Sequence[int], room: int) -> list[int]:
    """Take columns out of `shown` until the rest has room; returns those whose content is missed."""
    empty = [
        number for number in shown[1:] if table.columns[number].heading and all(row[number] in _NOTHING for row in table.rows)
    ]
    going = sorted((number for number in shown if table.columns[number].goes), key=lambda one: -table.columns[one].goes)
    lost = []
    for number in dict.fromkeys([*empty, *going]):
        if _total(shown, least) <= room:
            break
        shown.remove(number)
        if number not in empty:
            lost.append(number)
    return sorted(lost)


def _shared_out(shown: Sequence[int], least: Sequence[int], longest: Sequence[int], room: int) -> list[int]:
    """The width of each column: what is left over goes to those that would be folded, the shortest first."""
    widths = list(least)
    free = room - _total(shown, least)
    wanting = sorted((one for one in shown if longest[one] > least[one]), key=lambda one: longest[one] - least[one])
    for number, one in enumerate(wanting):
        more = max(0, min(longest[one] - least[one], free // (len(wanting) - number)))
        widths[one] += more
        free -= more
    return widths


def _row(
    columns: Sequence[Column], row: Sequence[str], shown: Sequence[int], widths: Sequence[int], coloured: bool
) -> Iterable[str]:
    folded = [_folded(row[number], widths[number]) for number in shown]
    for height in range(max(map(len, folded))):
        cells = []
        for number, pieces in zip(shown, folded, strict=True):
            text = pieces[height] if height < len(pieces) else ""
            blanks = " " * (widths[number] - _length(text))
            code = _COLOUR_OF.get(row[number].partition(" ")[0]) if coloured and columns[number].state else None
            text = f"\x1b[{code}m{text}\x1b[0m" if code and text else text
            cells.append(blanks + text if columns[number].right else text + blanks)
        yield (" " * GAP).join(cells)


def _folded(text: str, width: int) -> list[str]:
    """In lines of at most `width`, between words where there are any. Without the blanks in between nothing is lost."""
    found = []
    while _length(text) > width:
        most = _fitting(text, width)
        end = text.rfind(" ", 1, most + 1)
        if end > 0:
            found.append(text[:end])
            text = text[end + 1 :]
            continue
        end = max(text.rfind(char, 0, most) for char in _BREAKS) + 1
        end = end if end > most // 2 else most
        found.append(text[:end])
        text = text[end:]
    return [*found, text]


def _fitting(text: str, width: int) -> int:
    """How many characters of it fit, at least one."""
    if text.isascii():
        return max(1, width)
    used = 0
    for number, char in enumerate(text):
        used += _length(char)
        if used > width:
            return max(1, number)
    return len(text)


def _length(text: str) -> int:
    """In columns of a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # noqa: PLC0415 - a Chinese character is two wide

    return cell_len(text)
