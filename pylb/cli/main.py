"""The command line. Verbs that ask a running pylb find it by their config (config/source.py says which) and instance.py.

Exit codes: 0 done; 1 the answer is no (a bad config, nothing to release, failed connections); 2 pylb did not answer or start.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pylb import __version__
from pylb.cli.client import CONFIG, FAILED, JSON, ask, colour_wanted, die, last_good, say, state_dir
from pylb.cli.cluster import cluster
from pylb.cli.completion import completion, words
from pylb.cli.ctl import ctl
from pylb.cli.explain import explain
from pylb.cli.history import history
from pylb.cli.importing import import_
from pylb.cli.plan import plan
from pylb.cli.program import Program
from pylb.cli.routes import routes
from pylb.cli.sessions import sessions
from pylb.cli.standby import active, standby
from pylb.cli.status import status
from pylb.cli.tables import Column, Table
from pylb.cli.tokens import token
from pylb.core.text import counted

if TYPE_CHECKING:
    from pylb.cli.doctor import Finding

UPGRADE_SECONDS = 90.0  # longer than all that an upgrade waits for, one after the other (upgrade/handover.py)
RELOAD_SECONDS = 60.0  # ten thousand lines of access take a while, and so may the names of `advertise`


SECTIONS = {  # of --help, what is needed every day first; each line fits 80 columns
    "Look": {
        "status": "is all well? a sentence, and the rates of each frontend",
        "routes": "what goes where and why; --rejected: refused calls",
        "explain": "why a port does not answer, or what happened to a session",
        "sessions": "who is connected, or with --ended who was",
        "history": "what changed, when, and who asked for it",
    },
    "Change": {
        "plan": "what a change would do, without doing it",
        "reload": "have the running pylb read its config again",
        "ctl": "take servers and nodes out of service, and back",
        "token": "make, list, rotate and revoke tokens of apps",
        "release": "close a port, or end a registration",
        "standby": "give the floating address to another balancer",
        "active": "end the standby",
        "cluster": "the balancers that share this table, and what differs",
        "upgrade": "replace the running pylb, closing no connection",
    },
    "Set up": {
        "demo": "watch an app move between nodes, on loopback",
        "run": "serve, until SIGTERM",
        "check": "every mistake of a config, with its line",
        "doctor": "problems of this machine, and what to do about them",
        "import": "a config of HAProxy becomes one of pylb",
        "install-service": "make it a systemd service",
        "uninstall-service": "undo that",
    },
    "For shells and other programs": {
        "completion": "completion of verbs, ports, names and ids",
        "schema": "the JSON Schema of pylb.yaml",
    },
}

_SERVERS = "pylb ctl drain, maint or ready TARGET"
INSTEAD = {  # what people type who know other programs
    "backup": "two tar commands while it runs, and two to restore it (docs/security.md, Backup)",
    "diff": "pylb plan -c new.yaml",
    "disable": _SERVERS,
    "drain": "pylb ctl drain TARGET",
    "enable": _SERVERS,
    "help": "pylb --help, or pylb VERB --help",
    "install": "pylb install-service",
    "list": "pylb routes",
    "logs": "journalctl -u pylb, and pylb sessions --ended for connections",
    "maint": "pylb ctl maint TARGET",
    "ready": "pylb ctl ready TARGET",
    "renew": "pylb token rotate NAME",
    "restart": "pylb upgrade, which closes no connection; or systemctl restart pylb",
    "rotate": "pylb token rotate NAME",
    "show": "pylb routes, or pylb explain PORT",
    "start": "pylb run, or for the service systemctl start pylb",
    "stop": "systemctl stop pylb, or Ctrl-C where pylb run was typed",
    "uninstall": "pylb uninstall-service",
    "validate": "pylb check",
    "version": "pylb --version; pylb status has that of the running one",
}


@click.group(
    cls=Program,
    sections=SECTIONS,
    instead=INSTEAD,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--colour/--no-colour",
    default=None,
    help="Colours into a pipe, too, or nowhere.",
)
@click.version_option(__version__, prog_name="pylb")
@click.pass_context
def main(context: click.Context, colour: bool | None) -> None:
    """A load balancer of TCP and UDP for one fixed-IP machine in front of Kubernetes NodePorts.

    \b
    First steps:
      pylb demo                   two nodes, an app that moves, clients
      pylb run                    webhook on 9000, admin page on 8404
      pylb run --listen 8443 --to 127.0.0.1:8000
                                  forward one port, without any config
      pylb token create mosquitto --ports 8443
                                  a token, and the join string of a phone-home

    \b
    Something is wrong:
      pylb status                 what, in one sentence
      pylb explain 443            why this port does not answer
      pylb explain 0x1a2b         what happened to this session

    \b
    Before a change:
      pylb check -c new.yaml      every mistake, with its line
      pylb plan -c new.yaml       what it would open, close and move
      pylb ctl drain 203.0.113.7  no new sessions for this node

    Every command goes by the config of -c FILE, else of $PYLB_CONFIG, else /etc/pylb/pylb.yaml if this user may read it,
    else the embedded defaults (also if PYLB_CONFIG is empty), and so finds the pylb that runs with it.

    `pylb VERB --help` has more. Exit codes: 0 done; 1 the answer is no; 2 pylb could not be asked, or was asked wrongly.
    """
    context.color = colour_wanted(colour)


@main.command()
@CONFIG
@click.option("--listen", "listens", multiple=True, metavar="[ADDRESS:]PORT", help="Without a config: forward this port.")
@click.option(
    "--to", multiple=True, metavar="[HOST:]PORT[,…]", help="With --listen: to this server, or these; a port alone: here."
)
@click.pass_context
def run(context: click.Context, config_path: Path | None, listens: tuple[str, ...], to: tuple[str, ...]) -> None:
    """Serve until SIGTERM. SIGHUP reads the config again, all of it or nothing.

    Closing the terminal that it was started on ends it, except under nohup.

    Without a config: webhook on *:9000 (self-signed TLS), admin on 127.0.0.1:8404, a generated token in the state directory.

    \b
    pylb run --listen 8443 --to 127.0.0.1:8000             one port, no config
    pylb run --listen 80 --to 10.0.0.1:8080,10.0.0.2:8080  to two servers
    pylb run --listen 80 --to 8080 --listen 443 --to 8443  two ports

    With --listen nobody registers, and no webhook is opened. The page is on 127.0.0.1:8404, or on the next port that is free,
    and `pylb status`, `routes` and the others find it.
    """
    if listens or to:
        if context.get_parameter_source("config_path") is ParameterSource.COMMANDLINE:
            raise click.UsageError("--listen and --to are instead of -c: put the frontend into the file, or leave -c out")
        config_path = _forward(listens, to)
    from pylb.app.errors import CannotStart, InternalError  # noqa: PLC0415
    from pylb.app.run import run as serve  # noqa: PLC0415 - `pylb --help` need not load a web server
    from pylb.config import ConfigErrors  # noqa: PLC0415

    try:
        serve(config_path, os.environ)
    except InternalError:
        die("pylb ended: a part of it failed, the log above says which (this is a bug of pylb)", FAILED)
    except ConfigErrors as errors:
        die(f"{errors}\npylb did not start: {counted(len(errors.problems), 'mistake')} in the config")
    except CannotStart as reason:
        die(f"pylb did not start: {reason}")


def _forward(listens: Sequence[str], to: Sequence[str]) -> Path:
    """Say what will be forwarded. Returns the config of it."""
    from pylb.cli import forward  # noqa: PLC0415

    found = forward.forwards(listens, to)
    if texts := list(forward.closed(found)):
        die("\n".join(["pylb did not start:", *texts]))
    try:
        path = forward.written(found)
    except OSError as error:
        die(f"pylb did not start: {error.filename}: {error.strerror}")
    for one in found:
        say(f"forwarding {one}", err=True)
    for text in forward.silent(found):
        say(text, err=True)
    return path


@main.command()
@CONFIG
@JSON
def upgrade(config_path: Path | None, as_json: bool) -> None:
    """Replace the running pylb by the one that is installed now, without closing a port or a connection.

    The new process takes over ports, registrations and counters; the old one ends its live sessions, for up to
    timeouts.upgrade. If the new one does not start, the old one stays in charge, and exit code 1 says so. It does the
    same as SIGUSR2. To go back, install the older version and call it again.
    """
    from pylb.config import ConfigErrors, load  # noqa: PLC0415

    state_dir(config_path)  # first: if no pylb runs with a broken file, that says both
    try:
        load(config_path, os.environ)
    except ConfigErrors as errors:  # why the new one will end at once; the old one only learns that it did
        say(str(errors), err=True)
    lines = ask(config_path, {"verb": "upgrade"}, UPGRADE_SECONDS, "the new pylb takes over")["lines"]
    say(*([json.dumps({"lines": lines})] if as_json else lines))


@main.command()
@CONFIG
@JSON
def reload(config_path: Path | None, as_json: bool) -> None:
    """Have the running pylb read its config and secrets again, all or nothing, and print what that changed.

    It does the same as SIGHUP, with an answer. Exit code 1: refused, with every mistake of the file; nothing was changed.
    During an upgrade the pylb that serves afterwards does it, and logs the result.
    """
    answer = ask(config_path, {"verb": "reload"}, RELOAD_SECONDS, "reading the config")
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

    A remedy that is the same for many mistakes is printed once. --json prints everything.
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
    for warning in config.all_warnings if every else config.warnings:
        say(str(warning), err=True)
    if as_json:
        say("[]")
        return
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
def doctor(config_path: Path | None, as_json: bool) -> None:
    """Look for problems of this machine and its config: limits, ports, clock, certificate, state, conntrack; with
    cluster.etcd also of etcd and the other balancers.

    Each line says what was found, and what to do about it. Exit code 1 if something needs doing.
    """
    from pylb.cli import doctor as examine  # noqa: PLC0415
    from pylb.config import ConfigErrors, load  # noqa: PLC0415

    try:
        config, findings = load(config_path, os.environ), []
    except ConfigErrors as errors:
        config = last_good(config_path) or die(f"{errors}\nthe config comes first: pylb check -c {config_path}", FAILED)
        found = f"{counted(len(errors.problems), 'mistake')} in {config_path}; the rest is about the last good one"
        findings = [examine.Finding("config", False, found, f"pylb check -c {config_path}")]
    findings += examine.examine(config)
    if as_json:
        say(json.dumps([one._asdict() for one in findings], indent=2))
    else:
        say(Table((Column("", state=True), Column("", width=20), Column("", folds=True)), list(_lines(findings))))
        wrong = sum(not one.ok for one in findings)
        say(
            f"{wrong or 'nothing'} of {len(findings)} needs to be looked at"
            if wrong < 2
            else f"{wrong} of {len(findings)} need to be looked at",
            err=True,
        )
    if not all(one.ok for one in findings):
        sys.exit(FAILED)


@main.command()
@CONFIG
@JSON
@click.argument("what", metavar="PORT|NAME[/INSTANCE]", shell_complete=words("port", "registration"))
@click.option(
    "--name",
    "route",
    metavar="SERVER_NAME",
    shell_complete=words("server_name"),
    help="Of the port only the route of this server name.",
)
@click.option("--default", is_flag=True, help="Of the port only the default route.")
def release(config_path: Path | None, as_json: bool, what: str, route: str | None, default: bool) -> None:
    """Release the registrations of a port, of a name, or of one instance. A port closes with its last registration.

    A port may have routes by server name (docs/server-names.md), each with an owner of its own: without --name or --default
    all of them are released.

    Live sessions continue until they end, for at most timeouts.drain. A phone-home that still runs will register again.
    """
    if default and route is not None:
        raise click.UsageError("--name and --default are two different routes: give one of them")
    server_name = "" if default else route and route.lower()
    answer = ask(config_path, {"verb": "release", "what": what, "name": server_name})
    if as_json:
        say(json.dumps(answer["released"]))
    else:
        for line in answer["released"]:
            say(line)
        if answer["released"]:
            say("if its phone-home still runs, it registers again at its next call: stop it, or revoke its token", err=True)


@main.command()
@click.option(
    "--moves", metavar="N", default=5, show_default=True, type=click.IntRange(0, 1000), help="How often the app moves."
)
@click.option(
    "--every", metavar="SECONDS", default=3.0, show_default=True, type=click.FloatRange(0.1, 60), help="Between two moves."
)
def demo(moves: int, every: float) -> None:
    """Show two nodes, a phone-home that moves an app between them, and clients that connect: real processes on loopback."""
    import asyncio  # noqa: PLC0415

    from pylb.cli.demo import Demo, DemoFailed  # noqa: PLC0415

    try:
        sys.exit(asyncio.run(Demo(moves=moves, every=every, say=say).run()))
    except DemoFailed as reason:
        die(f"the demo did not run: {reason}")


@main.command("install-service")
@click.option("--print", "print_only", is_flag=True, help="Show the unit and every step, do nothing.")
@JSON
def install_service_(print_only: bool, as_json: bool) -> None:
    """Install pylb as a systemd service: user, /etc/pylb, a virtual environment in /opt/pylb, the unit, and the command in
    /usr/local/bin. Needs root.

    If one is installed, this is the next version beside it, which `pylb upgrade` puts in charge. The one before and those that
    still run stay for the way back, older ones are removed. The config is never touched.
    """
    from pylb.cli.install import install_service  # noqa: PLC0415

    sys.exit(install_service(print_only=print_only, as_json=as_json))


@main.command("uninstall-service")
@click.option("--yes", is_flag=True, help="Do not ask.")
@JSON
def uninstall_service_(yes: bool, as_json: bool) -> None:
    """Stop the service and take it off the machine: unit, command, /opt/pylb. Needs root.

    It shows what it is going to do, and asks. Config, tokens and state stay, and are used if pylb is installed again.
    """
    from pylb.cli.uninstall import uninstall_service  # noqa: PLC0415

    def agreed() -> bool:
        try:
            return yes or click.confirm("Go on?", err=as_json)
        except click.Abort:  # nobody to ask
            say("\nnobody said yes; without a person: --yes", err=True)
            return False

    sys.exit(uninstall_service(agreed=agreed, as_json=as_json))


for command in (active, cluster, completion, ctl, explain, history, import_, plan, routes, sessions, standby, status, token):
    main.add_command(command)


def _lines(findings: Sequence["Finding"]) -> Iterator[tuple[str, str, str]]:
    for one in findings:
        yield "ok" if one.ok else "LOOK", one.what, one.found
        if not one.ok:
            yield "", "", f"what to do: {one.remedy}"


def _problem(problem: Any) -> dict[str, Any]:
    place = problem.place
    return {
        "file": problem.filename,
        "line": place.line,
        "col": place.col,
        "message": problem.message,
        "hint": problem.hint,
    }
