"""`pylb history`: lists the changes of the table."""

import json
from pathlib import Path

import click

from pylb.cli.client import CONFIG, JSON, ask, reaches, say
from pylb.cli.completion import words
from pylb.cli.tables import clock, prose


@click.command()
@CONFIG
@JSON
@click.argument("what", required=False, metavar="[PORT|NAME]", shell_complete=words("port", "frontend", "registration"))
def history(config_path: Path | None, as_json: bool, what: str | None) -> None:
    """List the changes of the table: each generation with who asked for it, when, and what it changed.

    The last 1,000 that somebody asked for, and the last 1,000 moves and changes of state; they survive restarts.
    """
    answer = ask(config_path, {"verb": "history", "what": what})
    if as_json:
        say(json.dumps(answer["generations"], indent=2))
        return
    if not answer["generations"]:
        say(f"nothing has changed{f' about {what}' if what else ''} yet")
    for one in answer["generations"]:
        say(f"{one['generation']}  {clock(one['time'])}  {', '.join(one['by'])}")
        if one["changes"]:
            say(prose(*(change["text"] for change in one["changes"]), indent=4))
    reaches(answer, "every change")
