"""The tables of the bench and of docs/."""

from bench.tables import aligned, listed, markdown


def test_columns_are_aligned():
    lines = aligned([["", "requests/s"], ["haproxy", "1"], ["nginx", "12,345"]])

    assert lines == ["           requests/s", "  haproxy           1", "  nginx        12,345"]


def test_a_list_has_no_headings():
    assert listed([("bulk", "one stream"), ("idle", "memory")]) == "  bulk  one stream\n  idle  memory"


def test_a_bar_in_a_cell_ends_no_column_and_an_empty_one_is_a_blank():
    assert markdown(["key", ""], [["`a|b`", "x"], ["c", ""]]) == "| key | |\n|---|---|\n| `a\\|b` | x |\n| c | |"
