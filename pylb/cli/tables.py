"""How the CLI writes: one table, one clock, one byte size. Characters that control a terminal are shown, never sent.

A table has two forms. Into a pipe or a file it is plain: two or more blanks between columns, no colour, no line cut or
wrapped, no blanks at the end of a line, counts without commas, so that awk and grep work. On a terminal rich fits it to the
width: names and reasons are folded, ports, addresses and counts never, and the words for a state have colours unless NO_COLOR
is set.

Why rich's table is not used for both: 3,000 routes take it 1.3 s of CPU time, on the machine whose cores forward, and the
plain form 0.02 s. Why `visible` and not rich's escape_control_codes: that one lets ESC and whatever hides text pass.
"""

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from pylb.core.text import visible, visible_lines

if TYPE_CHECKING:  # rich takes 50 ms to import: only verbs that print a table do
    from rich.console import Console
    from rich.text import Text

GAP = 2  # blanks between two columns
FOLDED = 12  # a column is not folded to less than this
LABEL = 9 + GAP  # of `facts`
_COLOURS = {  # by the first word of a cell: "no server", "not served"
    "green": ("up", "healthy", "ok"),
    "red": ("down", "no", "not", "LOOK"),
    "yellow": ("degraded", "drain", "draining", "maint", "stale", "unproven"),
}
_COLOUR_OF = {word: colour for colour, words in _COLOURS.items() for word in words}


class Column(NamedTuple):
    heading: str
    right: bool = False  # aligned to the right: counts
    folds: bool = False  # may become several lines on a narrow terminal
    state: bool = False  # its first word has a colour on a terminal
    width: int = 0  # at least


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


def written(parts: Iterable[Block], screen: "Console | None" = None) -> str:
    """Lines of text and tables, one below the other."""
    return "\n".join(_written(part, screen) for part in parts)


def terminal() -> "Console | None":
    """The one that stdout is; None: it is a pipe or a file."""
    if not sys.stdout.isatty():
        return None
    from rich.console import Console  # noqa: PLC0415

    return Console(highlight=False, markup=False, emoji=False)


def clock(unix: float, *, day: bool = True) -> str:
    """Local time, as in the log."""
    return time.strftime("%Y-%m-%d %H:%M:%S" if day else "%H:%M:%S", time.localtime(unix))


def size(number: float) -> str:
    """Of so many bytes: "1.5 MB"."""
    from rich.filesize import decimal  # noqa: PLC0415

    return decimal(round(number))


def _written(part: Block, screen: "Console | None") -> str:
    if isinstance(part, str):
        return visible_lines(part)
    return "\n".join(_plain(part)) if screen is None else _fitted(part, screen)


def _plain(table: Table) -> list[str]:
    from rich.cells import cell_len  # noqa: PLC0415 - a Chinese character is two wide

    lines = [[visible(str(cell)) for cell in row] for row in table.rows]
    if any(column.heading for column in table.columns):
        lines.insert(0, [column.heading for column in table.columns])
    lengths = [[cell_len(cell) for cell in line] for line in lines]
    widths = [max(column.width, *lengths_) for column, *lengths_ in zip(table.columns, *lengths, strict=True)] if lines else []
    margin, gap = " " * table.indent, " " * GAP
    found = []
    for line, own in zip(lines, lengths, strict=True):
        cells = [
            " " * (width - length) + cell if column.right else cell + " " * (width - length)
            for column, cell, length, width in zip(table.columns, line, own, widths, strict=True)
        ]
        found.append((margin + gap.join(cells)).rstrip())
    return found


def _fitted(table: Table, screen: "Console") -> str:
    from rich.table import Table as Fitted  # noqa: PLC0415

    headed = any(column.heading for column in table.columns)
    fitted = Fitted(box=None, pad_edge=False, padding=(0, GAP, 0, 0), show_header=headed, header_style="")
    rows = [[_text(cell, column) for cell, column in zip(row, table.columns, strict=True)] for row in table.rows]
    needed = -GAP
    for number, column in enumerate(table.columns):
        longest = max([column.width, len(column.heading), *(row[number].cell_len for row in rows)])
        least = max(len(column.heading), min(longest, FOLDED)) if column.folds else longest
        justify: Literal["left", "right"] = "right" if column.right else "left"
        fitted.add_column(column.heading, justify=justify, no_wrap=not column.folds, overflow="fold", min_width=least)
        needed += least + GAP
    for row in rows:
        fitted.add_row(*row)
    if needed > screen.width - table.indent:
        fitted.width = needed  # the terminal breaks the lines
    with screen.capture() as captured:
        screen.print(fitted, crop=False)
    return "\n".join((" " * table.indent + line).rstrip() for line in captured.get().splitlines())


def _text(cell: str | int, column: Column) -> "Text":
    from rich.text import Text  # noqa: PLC0415

    if isinstance(cell, int):
        return Text(f"{cell:,}")
    return Text.assemble((visible(cell), _COLOUR_OF.get(cell.partition(" ")[0], "") if column.state else ""))
