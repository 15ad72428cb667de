"""What a running pylb says of itself: how it is, what goes where and why, what changed, and what a change would do."""

import json
from pathlib import Path
from typing import Any

import click

from pylb.api.session_trace import local_time
from pylb.cli.client import CONFIG, JSON, ask, die, pause, say, watching
from pylb.core.text import counted, whole_number


@click.command()
@CONFIG
@JSON
@click.option("--watch", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option("--every", default=2.0, show_default=True, type=click.FloatRange(0.1, 3600), help="Seconds, with --watch.")
def status(config_path: Path | None, as_json: bool, watch: bool, every: float) -> None:
    """How it is, in one sentence; then what each frontend has: servers, sessions, and what goes through it a second.

    Rates are those of one second, with --watch those since the last look. --json has counts, and no wait.
    """
    from pylb.api import status as view  # noqa: PLC0415

    def look() -> dict[str, Any]:
        found: dict[str, Any] = ask(config_path, {"verb": "status"})["status"]
        return found

    before = look()
    if as_json and not watch:
        say(json.dumps(before, indent=2))
        return
    try:
        if not watch:
            pause(1.0)
            say(view.text(look(), before))
            return
        watching(look, before, lambda now, then, rows: json.dumps(now) if as_json else view.text(now, then, rows=rows), every)
    except KeyboardInterrupt:
        say()


@click.command()
@CONFIG
@JSON
@click.option("--rejected", is_flag=True, help="The last refused calls instead, with their reasons.")
def routes(config_path: Path | None, as_json: bool, rejected: bool) -> None:
    """What goes where and why: port, server, who registered it, lease left, whether it answered.

    Exit code 2 if no pylb is running with this config.
    """
    from pylb.api import routes as view  # noqa: PLC0415

    answer = ask(config_path, {"verb": "rejected" if rejected else "routes"})
    if as_json:
        say(json.dumps(answer["rejected" if rejected else "routes"], indent=2))
    elif rejected:
        say(view.rejections(answer["rejected"]))
        _reach(answer, "every refusal")
    else:
        say(view.table(answer["routes"]))
        for note in answer["notes"]:
            say(note, err=True)


@click.command()
@CONFIG
@JSON
@click.argument("what", metavar="PORT|NAME|SESSION")
def explain(config_path: Path | None, as_json: bool, what: str) -> None:
    """Why a port does not answer: is it open, and by whom; who registered it, who was refused and why; whether each of its
    servers accepts connections and passes its check right now; how its sessions ended.

    The first line is the first thing that is wrong. Exit code 1: nothing is known of the port. NAME is a frontend's or a
    registration's: then of each of its ports.

    With the id of a session, as `pylb sessions` and `pylb sessions --ended` show it: why it went to this server, what was
    tried before, who closed first, and what the kernel knew of both connections.
    """
    if what.startswith("0x"):
        _tell(config_path, what, as_json=as_json)
        return
    if what.isascii() and what.isdigit() and not whole_number(what, 65535):
        raise click.BadParameter(f"{what} is no port: 1 to 65535", param_hint="PORT")
    from pylb.api import explain as explaining  # noqa: PLC0415
    from pylb.host.machine import listeners_of  # noqa: PLC0415

    answers = ask(config_path, {"verb": "explain", "what": what})["all"]
    holders = listeners_of([one["port"] for one in answers])
    if as_json:
        found = [{"verdict": explaining.verdict(one), "holder": holders.get(one["port"], "")} | one for one in answers]
        say(json.dumps(found[0] if len(found) == 1 else found, indent=2))
        return
    for number, one in enumerate(answers):
        if number:
            say()
        for line in explaining.describe(one, holders.get(one["port"], "")):
            say(line)


def _tell(config_path: Path | None, session: str, *, as_json: bool) -> None:
    from pylb.api.session_trace import describe  # noqa: PLC0415

    found = ask(config_path, {"verb": "explain", "session": session})["explained"]
    say(json.dumps(found, indent=2) if as_json else "\n".join(describe(found)))


@click.command()
@CONFIG
@JSON
@click.argument("what", required=False, metavar="[PORT|NAME]")
def history(config_path: Path | None, as_json: bool, what: str | None) -> None:
    """What changed the table: each generation with who asked, when, and what it changed.

    The last 1,000 that somebody asked for, and the last 1,000 moves and changes of state; kept over restarts.
    """
    answer = ask(config_path, {"verb": "history", "what": what})
    if as_json:
        say(json.dumps(answer["generations"], indent=2))
        return
    if not answer["generations"]:
        say(f"nothing has changed{f' about {what}' if what else ''} yet")
    for one in answer["generations"]:
        say(f"{one['generation']}  {local_time(one['time'])}  {', '.join(one['by'])}")
        for change in one["changes"]:
            say(f"    {change['text']}")
    _reach(answer, "every change")


@click.command()
@click.option(
    "-c", "--config", "config_path", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="The new pylb.yaml."
)
@click.option(
    "--running", type=click.Path(path_type=Path, dir_okay=False), help="The config of the running pylb; default: -c's."
)
@click.option("--token", "token_name", help="For a registration: the name of its token.")
@click.option("--name", help="For a registration: its name; default: the token's.")
@click.option("--instance", default="planned", show_default=True, help="For a registration.")
@click.option("--address", help="For a registration: where the call would come from.")
@click.argument("body", required=False, type=click.File("r"))
@JSON
def plan(config_path: Path | None, running: Path | None, body: Any, as_json: bool, **call: str | None) -> None:
    """What a change would do, without doing it: ports opened and closed, servers added, moved and removed, and how many
    live sessions each step touches.

    \b
    pylb plan -c new.yaml                                           as if it were in force, and SIGHUP sent
    pylb plan --token app --address 203.0.113.7 body.json           as if a phone-home had said that

    Exit code 1: it would be refused, with the reason.
    """
    request: dict[str, Any]
    if body is not None:
        if not call["token_name"] or not call["address"]:
            die("a registration needs --token NAME and --address IP")
        request = {"verb": "plan", "body": body.read(), "token": call["token_name"], "address": call["address"]}
        request |= {"name": call["name"] or call["token_name"], "instance": call["instance"]}
    elif config_path is None:
        die("what is to be planned? -c NEW.yaml, or the body of a registration (pylb plan --help)")
    else:
        request = {"verb": "plan", "path": str(config_path.absolute()), "text": config_path.read_text(errors="replace")}
    answer = ask(running or config_path, request)
    if as_json:
        say(json.dumps({"generation": answer["generation"], "steps": answer["steps"]}, indent=2))
        return
    for step in answer["steps"]:
        say(step["text"])
    touched = sum(step["touched"] for step in answer["steps"])
    say(f"{counted(len(answer['steps']), 'change')}, {counted(touched, 'live session')} touched; nothing was done")


def _reach(answer: dict[str, Any], what: str) -> None:
    """How far back the list reaches that was just shown."""
    if (since := answer.get("reach", {}).get("since")) is not None:
        say(f"{what} since {local_time(since)}", err=True)
