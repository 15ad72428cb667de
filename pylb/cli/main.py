"""The command line. Verbs that ask a running pylb find it by `-c FILE` or the default state directory.

Exit codes: 0 done, 1 the answer is no (a bad config, nothing to release, failed connections), 2 could not ask or start.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from pylb import __version__
from pylb.api.stories import local_time
from pylb.cli.client import CONFIG, FAILED, JSON, ask, die, pause, running, say, state_dir, watching
from pylb.cli.ctl import ctl
from pylb.cli.sessions import sessions
from pylb.cli.tokens import token
from pylb.core.text import counted, whole_number

UPGRADE_SECONDS = 60.0  # longer than all that upgrade.py waits for
RELOAD_SECONDS = 60.0  # ten thousand lines of access take a while, and so may the names of `advertise`


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pylb")
def main() -> None:
    """A TCP load balancer for one fixed-IP machine in front of Kubernetes NodePorts.

    \b
    pylb run                      serve with the embedded defaults: webhook on 9000, admin on 8404
    pylb run -c /etc/pylb/pylb.yaml
    pylb check -c pylb.yaml       every mistake of a config, with its line
    pylb status                   how it is; --watch: all the time
    pylb routes                   what goes where, and why
    pylb explain 443              why a port does not answer
    pylb sessions --ended         who was connected; pylb explain 0x1a2b: what became of one
    pylb token create mosquitto --ports 8443
                                  a token for an app, with the join string for its phone-home
    pylb plan -c new.yaml         what a change would do
    pylb ctl drain 203.0.113.7    take a node out of service, and back: pylb ctl ready
    pylb demo                     watch a node move under load, all on loopback
    """


@main.command()
@CONFIG
def run(config_path: Path | None) -> None:
    """Serve until SIGTERM. SIGHUP reads the config again, whole or not at all.

    Without -c: webhook on *:9000 (self-signed TLS), admin on 127.0.0.1:8404, a generated token in the state directory.
    """
    from pylb.app.errors import Broken, CannotStart  # noqa: PLC0415
    from pylb.app.run import run as serve  # noqa: PLC0415 - `pylb --help` need not load a web server
    from pylb.config import ConfigErrors  # noqa: PLC0415

    try:
        serve(config_path, os.environ)
    except Broken:
        die("pylb ended: a part of it failed, the log above says which (this is a bug of pylb)", FAILED)
    except ConfigErrors as errors:
        die(f"{errors}\npylb did not start: {counted(len(errors.problems), 'mistake')} in the config")
    except CannotStart as reason:
        die(f"pylb did not start: {reason}")


@main.command()
@CONFIG
def upgrade(config_path: Path | None) -> None:
    """Replace the running pylb by the one that is installed now, without closing a port or a connection.

    The new process takes over ports, registrations and counters; the old one ends its live sessions, for up to
    timeouts.upgrade. If the new one does not start, the old one stays in charge, and exit code 1 says so. The same as
    SIGUSR2. It goes both ways: install the older version and call it again.
    """
    for line in ask(config_path, {"verb": "upgrade"}, timeout=UPGRADE_SECONDS)["lines"]:
        say(line)


@main.command()
@CONFIG
@JSON
def reload(config_path: Path | None, as_json: bool) -> None:
    """Have the running pylb read its config and secrets again, whole or not at all, and print what that changed.

    The same as SIGHUP, with an answer. Exit code 1: refused, with every mistake of the file; nothing was changed.
    During an upgrade it is left to the pylb that serves afterwards, which logs the result.
    """
    answer = ask(config_path, {"verb": "reload"}, timeout=RELOAD_SECONDS)
    if as_json:
        say(json.dumps({key: value for key, value in answer.items() if key != "ok"}))
        return
    for line in answer["lines"]:
        say(line)


@main.command()
@CONFIG
@JSON
@click.option("--all", "every", is_flag=True, help="All of them, each with its remedy; otherwise the first 20 of a file.")
def check(config_path: Path | None, as_json: bool, every: bool) -> None:
    """Print the mistakes of a config as FILE:LINE:COL: error: what (remedy). Exit code 1 if there is one.

    A remedy that is the same for many is said once. --json has all of everything.
    """
    from pylb.config import ConfigErrors, load  # noqa: PLC0415

    try:
        config = load(config_path, os.environ)
    except ConfigErrors as errors:
        if as_json:
            say(json.dumps([_problem(problem) for problem in errors.problems], indent=2))
        else:
            say("\n".join(map(str, errors.problems)) if every else str(errors), err=True)
            say(counted(len(errors.problems), "mistake"), err=True)
        sys.exit(FAILED)
    if as_json:
        say("[]")
        return
    for warning in config.all_warnings if every else config.warnings:
        say(str(warning), err=True)
    what = f"{counted(len(config.frontends), 'static frontend')}, {counted(len(config.tokens), 'token')}"
    say(f"{config_path or 'the embedded defaults'}: ok ({what})")


@main.command()
def schema() -> None:
    """Print the JSON Schema of pylb.yaml, for editors and for programs that write it."""
    from pylb.config import schema as text  # noqa: PLC0415

    say(text(), nl=False)


@main.command()
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


@main.command()
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


@main.command()
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
        told = [{"verdict": explaining.verdict(one), "holder": holders.get(one["port"], "")} | one for one in answers]
        say(json.dumps(told[0] if len(told) == 1 else told, indent=2))
        return
    for number, one in enumerate(answers):
        if number:
            say()
        for line in explaining.told(one, holders.get(one["port"], "")):
            say(line)


def _tell(config_path: Path | None, session: str, *, as_json: bool) -> None:
    from pylb.api.stories import told  # noqa: PLC0415

    found = ask(config_path, {"verb": "explain", "session": session})["explained"]
    say(json.dumps(found, indent=2) if as_json else "\n".join(told(found)))


@main.command()
@CONFIG
@JSON
def doctor(config_path: Path | None, as_json: bool) -> None:
    """Look at this machine and its config for what would go wrong: limits, ports, clock, certificate, state, conntrack.

    Each line says what was found, and what to do about it. Exit code 1 if something needs doing.
    """
    from pylb.cli import doctor as examine  # noqa: PLC0415
    from pylb.config import ConfigErrors, load  # noqa: PLC0415

    try:
        config = load(config_path, os.environ)
    except ConfigErrors as errors:
        die(f"{errors}\nthe config comes first: pylb check", FAILED)
    findings = examine.examine(config)
    if as_json:
        say(json.dumps([one._asdict() for one in findings], indent=2))
    else:
        for one in findings:
            say(f"{'ok  ' if one.ok else 'LOOK'}  {one.what:<20} {one.found}")
            if not one.ok:
                say(f"      {'':<20} {one.remedy}")
    if not all(one.ok for one in findings):
        sys.exit(FAILED)


@main.command()
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


@main.command()
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


@main.command()
@CONFIG
@JSON
@click.argument("what", metavar="PORT|NAME[/INSTANCE]")
def release(config_path: Path | None, as_json: bool, what: str) -> None:
    """Forget registrations: of a port, of a name, or of one instance. A port closes with its last one.

    Live sessions go on until they end, at most timeouts.drain. A phone-home that still runs will register again.
    """
    answer = ask(config_path, {"verb": "release", "what": what})
    if as_json:
        say(json.dumps(answer["released"]))
    else:
        for line in answer["released"]:
            say(line)


@main.command("import")
@CONFIG
@click.option("--token", "token", help="Register instead: as legacy registrations of the token with this name.")
@click.option("--dry-run", is_flag=True, help="With --token: show what would be registered, register nothing.")
@click.option(
    "--accept-differences", is_flag=True, help="Write pylb.yaml although other clients would be served, or by other servers."
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
def import_(
    config_path: Path | None, token: str | None, dry_run: bool, accept_differences: bool, files: tuple[Path, ...]
) -> None:
    """Take over what HAProxy did.

    \b
    pylb import haproxy.cfg > pylb.yaml       its TCP frontends, backends, servers, timeouts, checks, access lists
    pylb import --token old /etc/webhook/haproxy/
                                              what an old webhook served, registered with the running pylb

    A haproxy.cfg is translated exactly, or not at all: what would change who gets a connection or who may connect is listed
    with file and line, and the exit code is 1, unless --accept-differences is given. Variables of the file have the values
    of the environment. Registrations made with --token never lapse; a call of the same token for the port replaces them.
    """
    if token is None:
        _translate(files, accept_differences)
    else:
        _register(config_path, token, dry_run, files)


def _translate(files: tuple[Path, ...], accept_differences: bool) -> None:
    from pylb.config import ConfigErrors, parse  # noqa: PLC0415
    from pylb.haproxy.legacy_import import read_texts  # noqa: PLC0415
    from pylb.haproxy.translate import translate  # noqa: PLC0415

    texts, unread = read_texts(files, "*.cfg")
    found = translate(texts, os.environ)
    for note in (*unread, *found.notes):
        say(f"difference: {note}" if note.differs else f"note: {note}", err=True)
    differences = len(found.differences) + len(unread)
    if differences and not accept_differences:
        what = "nothing was written. Change haproxy.cfg, or accept what differs: --accept-differences"
        die(f"{counted(differences, 'difference')}: {what}", FAILED)
    if not found.frontends:
        die("nothing to import", FAILED)
    say(found.text, nl=False)
    lost = len(found.notes) - len(found.differences)
    say(
        f"{counted(found.frontends, 'frontend')} translated, {counted(differences, 'difference')}, {counted(lost, 'note')}",
        err=True,
    )
    try:
        parse(found.text, "pylb.yaml")
    except ConfigErrors as errors:
        say(f"the result needs your hand before pylb takes it:\n{errors}", err=True)
        sys.exit(FAILED)


def _register(config_path: Path | None, token: str, dry_run: bool, files: tuple[Path, ...]) -> None:
    from pylb.haproxy.legacy_import import read_files  # noqa: PLC0415

    items, notes = read_files(files)
    for note in notes:
        say(str(note), err=True)
    for item in items:
        say(str(item))
    if dry_run:
        if running(state_dir(config_path)):
            ask(config_path, {"verb": "import", "token": token, "items": []})
        else:
            say(f"no pylb is running: whether it has a token called {token!r} is not known", err=True)
        return
    if not items:
        die("nothing to import", FAILED)
    answer = ask(config_path, {"verb": "import", "token": token, "items": [item.as_call() for item in items]})
    refused = [line for line in answer["lines"] if line.startswith("refused")]
    for line in answer["lines"]:
        say(line, err=line in refused)
    say(f"{counted(len(answer['lines']) - len(refused), 'registration')} imported, {len(refused)} refused")
    if refused:
        sys.exit(FAILED)


@main.command()
@click.option("--moves", default=5, show_default=True, type=click.IntRange(0, 1000), help="How often the app moves.")
@click.option("--every", default=3.0, show_default=True, type=click.FloatRange(0.1, 60), help="Seconds between two moves.")
def demo(moves: int, every: float) -> None:
    """Two nodes, a phone-home that moves an app between them, clients under load: all real, all on loopback."""
    import asyncio  # noqa: PLC0415

    from pylb.cli.demo import Demo, DemoFailed  # noqa: PLC0415

    try:
        sys.exit(asyncio.run(Demo(moves=moves, every=every, say=say).run()))
    except DemoFailed as reason:
        die(f"the demo did not run: {reason}")


@main.command("install-service")
@click.option("--print", "print_only", is_flag=True, help="Show the unit and every step, do nothing.")
def install_service_(print_only: bool) -> None:
    """Install pylb as a systemd service: user, /etc/pylb, a virtual environment in /opt/pylb, the unit. Needs root."""
    from pylb.cli.install import install_service  # noqa: PLC0415

    sys.exit(install_service(print_only=print_only))


main.add_command(ctl)
main.add_command(sessions)
main.add_command(token)


def _problem(problem: Any) -> dict[str, Any]:
    place = problem.place
    return {
        "file": problem.filename,
        "line": place.line,
        "col": place.col,
        "message": problem.message,
        "hint": problem.hint,
    }


def _reach(answer: dict[str, Any], what: str) -> None:
    """How far back the list reaches that was just shown."""
    if (since := answer.get("reach", {}).get("since")) is not None:
        say(f"{what} since {local_time(since)}", err=True)
