"""`pylb routes`: what goes where and why, and the last refused calls."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from pylb.cli.client import CONFIG, JSON, ask, reaches, say
from pylb.cli.tables import Block, Column, Table, clock, port_of
from pylb.core.text import ago, span

_COLUMNS = (
    Column("PORT"),
    Column("FRONTEND", folds=True),
    Column("SERVER", folds=True),
    Column("ADDRESS"),
    Column("WEIGHT", goes=5),
    Column("STATE", state=True),
    Column("REGISTERED BY", folds=True, goes=2),
    Column("HEARD BY", folds=True, goes=6),
    Column("LEASE", goes=3),
    Column("ACCEPTS", goes=4),
    Column("CHECK", folds=True, goes=1),
    Column("WHY", below=True),
)


@click.command()
@CONFIG
@JSON
@click.option("--rejected", is_flag=True, help="The last refused calls instead, with their reasons.")
def routes(config_path: Path | None, as_json: bool, rejected: bool) -> None:
    """Show what goes where and why: port, server, who registered it, rest of the lease, whether it answered; with a shared
    table also which balancers its phone-home calls.

    Exit code 2 if no pylb is running with this config.
    """
    answer = ask(config_path, {"verb": "rejected" if rejected else "routes"})
    if as_json:
        say(json.dumps(answer["rejected" if rejected else "routes"], indent=2))
    elif rejected:
        say(rejections(answer["rejected"]))
        reaches(answer, "every refusal")
    else:
        say(table(answer["routes"]))
        for note in answer["notes"]:
            say(note, err=True)


def table(found: Sequence[Mapping[str, Any]]) -> Block:
    """One line for each server."""
    if not found:
        return "no frontends: nothing is registered, and the config has no static ones"
    shared = "heard_by" in found[0]
    columns = [column for column in _COLUMNS if shared or column.heading != "HEARD BY"]
    return Table(columns, [_cells(row) for row in found])


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    why = f"PORT NOT OPEN: {row['unbound']}" if row["unbound"] else row["why"]
    return (
        port_of(row),
        row["frontend"],
        row["server"] or "-",
        row["address"] or "-",
        "-" if row["weight"] is None else str(row["weight"]),
        row["state"],
        ", ".join(row["held_by"]) or "-",
        *([", ".join(row["heard_by"]) or "-"] if "heard_by" in row else []),
        _left(row["lease_expires_in"]),
        row["accepts"] or "-",
        _checked(row),
        why or "",
    )


def _checked(row: Mapping[str, Any]) -> str:
    """The last result of a check, and how long ago it was."""
    if row["check"] is None or row["asked_ago"] is None:
        return row["check"] or "-"
    return f"{row['check']} {ago(row['asked_ago'])}"


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return span(round(seconds)) if seconds >= 0 else f"over for {span(round(-seconds))}"


def rejections(found: Sequence[Mapping[str, Any]]) -> Block:
    """The last refused calls, newest last."""
    if not found:
        return "no call was refused since pylb started"
    return Table(
        (Column("TIME"), Column("FROM"), Column("TOKEN", folds=True), Column("CALL", folds=True), Column("WHY", below=True)),
        [
            (clock(one["time"]), one["address"], one["token"] or "-", one["what"], f"{one['error']}: {one['detail']}")
            for one in found
        ],
    )
