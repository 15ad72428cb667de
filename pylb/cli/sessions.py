"""`pylb sessions`: who is connected to what, and who was."""

import json
from pathlib import Path
from typing import Any

import click

from pylb.cli.client import CONFIG, JSON, ask, duration, say


@click.command()
@CONFIG
@JSON
@click.option("--ended", is_flag=True, help="Those that ended, from the recorder, the newest first.")
@click.option("--client", metavar="ADDR|CIDR", help="Of these clients.")
@click.option("--frontend", metavar="NAME|PORT", help="Of this frontend.")
@click.option("--server", metavar="LABEL|IP:PORT", help="Of this server.")
@click.option("--code", metavar="SC[,sC…]", help="With --ended: that ended so.")
@click.option("--since", callback=duration, metavar="10m", help="With --ended: not longer ago than that.")
@click.option("--limit", type=click.IntRange(1, 1000), help="At most so many; default: 1000, with --ended 100.")
def sessions(config_path: Path | None, as_json: bool, ended: bool, **asked: Any) -> None:
    """Live sessions, the oldest first, or with --ended the last ones that ended.

    \b
    pylb sessions --ended --code SC --since 10m       whom no server accepted
    pylb sessions --ended --client 192.0.2.0/24
    pylb explain 0x1a2b                               the whole story of one, by its id

    Each pylb remembers the last `recorder.sessions` (1000) of its own of each code, until it ends; the last line says since
    when none is missing.
    """
    answer = ask(config_path, {"verb": "sessions", "ended": ended} | asked)
    found = answer["sessions"]
    if as_json:
        say(json.dumps(found, indent=2))
    elif ended:
        from pylb.api.session_trace import ended_table  # noqa: PLC0415

        say("\n".join(ended_table(found)))
    else:
        form = "{:<46} {:<20} {:<20} {:<12} {:>9} {:>14} {:>14}  {}"
        say(form.format("CLIENT", "FRONTEND", "SERVER", "STATE", "SECONDS", "BYTES IN", "BYTES OUT", "ID"))
        for one in found:
            row = (one["client"], one["frontend"], one["server"] or "-", one["state"], f"{one['age']:.0f}")
            say(form.format(*row, one["bytes_in"], one["bytes_out"], one["id"]))
    if "reach" in answer:
        from pylb.api.session_trace import reach  # noqa: PLC0415

        say(reach(answer["reach"]), err=True)
    if (more := answer["total"] - len(found)) > 0 and not as_json:
        say(f"and {more} more", err=True)
