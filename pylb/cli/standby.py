"""`pylb standby` and `pylb active`: which balancer is to have the floating address."""

import json
from pathlib import Path

import click

from pylb.cli.client import CONFIG, JSON, ask, duration, say
from pylb.core.text import counted, span


@click.command()
@CONFIG
@JSON
@click.option("--for", "seconds", metavar="DURATION", callback=duration, default="1h", show_default=True, help="How long.")
@click.option("--force", is_flag=True, help="Also if no other balancer answers that it may have the address.")
def standby(config_path: Path | None, as_json: bool, seconds: float, force: bool) -> None:
    """Give the floating address to another balancer, before this machine is worked on.

    /activez answers 503 from now on, which keepalived's check asks for (deploy/keepalived): the address moves within
    seconds. Everything else is as before: what still arrives is served, /readyz answers 200, phone-homes are answered.

    It is refused unless one of admin.peers answers that it is active and ready. It ends by itself, when pylb or the
    machine is restarted, and with pylb active; pylb upgrade keeps it. The address does not come back by itself then.
    """
    found = ask(config_path, {"verb": "standby", "for": seconds, "force": force})
    if as_json:
        say(json.dumps({key: found[key] for key in ("seconds", "active", "sessions")}))
        return
    say(f"on standby for {span(round(seconds))}: /activez answers 503, so keepalived gives the address to another balancer")
    if found["active"]:
        say(f"active and ready: {', '.join(found['active'])}")
    if found["sessions"]:
        say(f"{counted(found['sessions'], 'live session')}: those through the address are reset when it moves", err=True)


@click.command()
@CONFIG
@JSON
def active(config_path: Path | None, as_json: bool) -> None:
    """End the standby: this machine may have the floating address again. It does not take it from the one that has it."""
    found = ask(config_path, {"verb": "active"})
    if as_json:
        say(json.dumps({"was_on_standby": found["was_on_standby"]}))
    else:
        say("active: /activez answers 200" + ("" if found["was_on_standby"] else ", as before: it was not on standby"))
