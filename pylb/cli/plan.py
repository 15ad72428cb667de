"""`pylb plan`: shows the effect of a change."""

import json
import os
from pathlib import Path
from typing import Any

import click

from pylb.cli.client import CONFIG, FAILED, JSON, ask, die, say
from pylb.cli.completion import words
from pylb.core.text import counted


@click.command()
@CONFIG
@click.option(
    "--running", type=click.Path(path_type=Path, dir_okay=False), help="The config of the running pylb; default: -c's."
)
@click.option(
    "--token", "token_name", metavar="NAME", shell_complete=words("token"), help="For a registration: the name of its token."
)
@click.option("--name", metavar="NAME", help="For a registration: its name; default: the token's.")
@click.option("--instance", metavar="NAME", default="planned", show_default=True, help="For a registration.")
@click.option("--address", metavar="IP", help="For a registration: where the call would come from.")
@click.argument("body", required=False, type=click.File("r"))
@JSON
def plan(config_path: Path | None, running: Path | None, body: Any, as_json: bool, **call: str | None) -> None:
    """Show what a change would do, without doing it: ports opened and closed, servers added, moved and removed, and how many
    live sessions each step touches; with a shared table also what the other balancers will see of it.

    \b
    pylb plan                a reload with the file as it is now
    pylb plan -c new.yaml    a reload with this file
    pylb plan --token app --address 203.0.113.7 body.json
                             such a call of a phone-home

    Exit code 1: the change would be refused; the reason is printed.
    """
    from pylb.config import ConfigErrors, parse  # noqa: PLC0415

    request: dict[str, Any]
    if body is not None:
        if not call["token_name"] or not call["address"]:
            die("a registration needs --token NAME and --address IP")
        request = {"verb": "plan", "body": body.read(), "token": call["token_name"], "address": call["address"]}
        request |= {"name": call["name"] or call["token_name"], "instance": call["instance"]}
    elif config_path is None:
        die("what is to be planned? -c NEW.yaml, or the body of a registration (pylb plan --help)")
    else:
        try:
            text = config_path.read_text(errors="replace")
        except OSError as error:
            die(f"{config_path}: {error.strerror}")
        try:
            parse(text, str(config_path), os.environ)
        except ConfigErrors as errors:  # said here, because a broken file does not lead to the pylb that runs
            die(f"{errors}\nit would be refused, and nothing would change", FAILED)
        request = {"verb": "plan", "path": str(config_path.absolute()), "text": text}
    answer = ask(running or config_path, request)
    if as_json:
        say(json.dumps({key: answer[key] for key in ("generation", "steps", "others") if key in answer}, indent=2))
        return
    for step in answer["steps"]:
        say(step["text"])
    for text in answer.get("others", ()):
        say(text)
    touched = sum(step["touched"] for step in answer["steps"])
    say(f"{counted(len(answer['steps']), 'change')}, {counted(touched, 'live session')} touched; nothing was done")
