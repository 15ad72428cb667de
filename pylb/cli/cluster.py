"""`pylb cluster`: the balancers that share this table through etcd."""

import json
from pathlib import Path
from typing import Any

import click

from pylb.cli.client import CONFIG, JSON, ask, say
from pylb.cli.completion import words
from pylb.cli.program import Verbs
from pylb.cli.tables import Column, Table, prose
from pylb.core.text import counted, span


@click.group(
    cls=Verbs,
    instead={
        "join": "cluster.etcd in pylb.yaml (docs/high-availability.md), and pylb upgrade",
        "leave": "take cluster.etcd out of pylb.yaml, pylb upgrade, and pylb cluster forget on another one",
        "list": "pylb cluster status",
        "members": "pylb cluster status",
        "remove": "pylb cluster forget",
    },
)
def cluster() -> None:
    """Show the balancers that share this table, and resolve what they disagree about."""


@cluster.command("status")
@CONFIG
@JSON
def status(config_path: Path | None, as_json: bool) -> None:
    """Show whether this balancer and the others know of each other, and who they are."""
    found = ask(config_path, {"verb": "cluster"})["cluster"]
    if as_json:
        say(json.dumps(found, indent=2))
        return
    say(_sentence(found))
    say(_members(found["members"]))
    for text in found["unserved"]:
        say(prose(f"not served here: {text}"))
    for text in found["held"]:
        say(prose(f"held back, another balancer says it is released (pylb cluster accept): {text}"))


def _sentence(found: dict[str, Any]) -> str:
    heard = f"{counted(found['heard_here'], 'registration')} heard here, {found['heard_elsewhere']} by others"
    unwritten = f", {counted(found['unwritten'], 'change')} not known to the others yet" if found["unwritten"] else ""
    if found["connected"]:
        return f"{found['name']} shares its table, by {found['endpoint']}: {heard}{unwritten}"
    since = f"for {span(found['trouble_for'])} it has heard nothing of the others: {found['trouble']}"
    return f"{found['name']} serves what it knows; {since}; {heard}{unwritten}"


def _members(members: list[dict[str, Any]]) -> Table:
    def state(one: dict[str, Any]) -> str:
        there = "present" if one["present"] else "away"
        return f"{there}, behind" if one["behind"] else there

    rows = [(one["name"] + (" (this one)" if one["here"] else ""), state(one), one["hears"]) for one in members]
    return Table([Column("BALANCER", folds=True), Column("STATE"), Column("HEARS", right=True)], rows)


@cluster.command("diff")
@CONFIG
@JSON
def diff(config_path: Path | None, as_json: bool) -> None:
    """Show what this balancer does not serve as the others do, and why. Exit code 1 if there is anything."""
    rows = ask(config_path, {"verb": "cluster diff"})["rows"]
    if as_json:
        say(json.dumps(rows, indent=2))
    elif not rows:
        say("nothing differs")
    for row in rows if not as_json else ():
        here, there = row["here"] or "not there", row["cluster"] or "not there"
        say(prose(f"{row['registration']}: here {here}; in the cluster {there}; {row['why']}"))
    raise SystemExit(1 if rows else 0)


@cluster.command("resync")
@CONFIG
@JSON
def resync(config_path: Path | None, as_json: bool) -> None:
    """List everything in etcd again and compare it with what is served. Harms nothing."""
    _lines(ask(config_path, {"verb": "cluster resync"})["lines"], as_json=as_json)


@cluster.command("forget")
@CONFIG
@JSON
@click.argument("balancer", metavar="NAME", shell_complete=words("balancer"))
def forget(config_path: Path | None, as_json: bool, balancer: str) -> None:
    """Remove a balancer that does not come back, with the registrations that only it hears.

    As long as it is only away, they stay as a last resort, and releases wait for it.
    """
    _lines(ask(config_path, {"verb": "cluster forget", "balancer": balancer})["lines"], as_json=as_json)


@cluster.command("accept")
@CONFIG
@JSON
def accept(config_path: Path | None, as_json: bool) -> None:
    """Let releases take effect that were held back, because another balancer released most ports within a minute."""
    _lines(ask(config_path, {"verb": "cluster accept"})["lines"], as_json=as_json)


def _lines(lines: list[str], *, as_json: bool) -> None:
    for line in lines if not as_json else [json.dumps({"lines": lines})]:
        say(line)
