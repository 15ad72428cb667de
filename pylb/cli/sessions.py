"""`pylb sessions`: lists live and ended sessions."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from pylb.cli.client import CONFIG, JSON, ask, duration, say
from pylb.cli.completion import words
from pylb.cli.session_trace import LETTERS, ended_table, reach
from pylb.cli.tables import Column, Table, size
from pylb.core.text import span


@click.command()
@CONFIG
@JSON
@click.option("--ended", is_flag=True, help="Those that ended, from the recorder, the newest first.")
@click.option("--client", metavar="ADDR|CIDR", help="Of these clients.")
@click.option("--frontend", metavar="NAME|PORT", shell_complete=words("port", "frontend"), help="Of this frontend.")
@click.option("--server", metavar="LABEL|IP:PORT", shell_complete=words("server"), help="Of this server.")
@click.option("--code", metavar="SC[,sC…]", help="With --ended: that ended so.")
@click.option("--since", callback=duration, metavar="10m", help="With --ended: not longer ago than that.")
@click.option("--limit", metavar="N", type=click.IntRange(1, 1000), help="At most so many; default: 1000, with --ended 100.")
def sessions(config_path: Path | None, as_json: bool, ended: bool, **asked: Any) -> None:
    """List live sessions, oldest first, or with --ended the sessions that ended last.

    \b
    pylb sessions --ended --code SC --since 10m    clients that no server accepted
    pylb sessions --ended --client 192.0.2.0/24
    pylb explain 0x1a2b                            all about one session, by id

    Each pylb remembers its last `recorder.sessions` (1000) ended sessions of each code, until it ends. The last line says
    since when the list is complete.
    """
    if not ended and (asked["code"] or asked["since"]):
        raise click.UsageError("--code and --since are of sessions that have ended: add --ended")
    answer = ask(config_path, {"verb": "sessions", "ended": ended} | asked)
    found = answer["sessions"]
    if as_json:
        say(json.dumps(found, indent=2))
    elif ended:
        say(ended_table(found))
    else:
        say(live_table(found))
    if "reach" in answer:
        say(reach(answer["reach"]), err=True)
    if not found and not as_json:
        say("no session has ended like that" if ended else "no session is live", err=True)
        for text in _unknown(asked, frontend=answer.get("known", True)):
            say(text, err=True)
    if (more := answer["total"] - len(found)) > 0 and not as_json:
        say(f"and {more} more", err=True)


def _unknown(asked: Mapping[str, Any], *, frontend: bool) -> Iterator[str]:
    """What nothing was found of for a reason that may be a mistake. `frontend`: is there such a one now?"""
    if not frontend:
        yield f"there is no frontend {asked['frontend']} now: `pylb routes` shows those that there are"
    for code in filter(None, (asked["code"] or "").split(",")):
        if code not in LETTERS:
            yield f"{code} is not a code that a session ends with: docs/engine.md has them, and capitals matter"


def live_table(found: Sequence[Mapping[str, Any]]) -> Table:
    """One line for each live session."""
    columns = (
        Column("CLIENT"),
        *(Column(heading, folds=True) for heading in ("FRONTEND", "SERVER")),
        Column("STATE"),
        Column("SECONDS", right=True, people=("AGE", span)),
        *(Column(f"BYTES {way}", right=True, people=(way, size)) for way in ("IN", "OUT")),
        Column("ID"),
    )
    return Table(
        columns,
        [
            (
                one["client"],
                one["frontend"],
                one["server"] or "-",
                one["state"],
                round(one["age"]),
                one["bytes_in"],
                one["bytes_out"],
                one["id"],
            )
            for one in found
        ],
    )
