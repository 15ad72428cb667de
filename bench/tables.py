"""Tables: aligned columns for the eye, Markdown for docs/."""

from collections.abc import Iterable, Sequence

from pylb.cli.tables import Column, Table, written


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines, the first with the headings; the first column to the left, all others to the right."""
    heads, *rest = rows
    columns = [Column(head, right=number > 0) for number, head in enumerate(heads)]
    return written([Table(columns, rest, indent=2)]).splitlines()


def listed(rows: Iterable[Sequence[str]]) -> str:
    """Names and what there is to say of each, without headings."""
    return written([Table((Column(""), Column("")), list(rows), indent=2)])


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Without a line end behind the last line."""
    lines = [_line(heads), f"|{'---|' * len(heads)}", *map(_line, rows)]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    texts = [cell.replace("|", "\\|") for cell in cells]
    return "|" + "".join([f" {text} |" if text else " |" for text in texts])
