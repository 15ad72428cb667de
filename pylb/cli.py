"""The command line. Verbs that ask a running pylb find it by `-c FILE` or the default state directory.

Exit codes: 0 done, 1 the answer is no (a bad config, nothing to release, failed connections), 2 could not ask or start.
"""

import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from pylb import __version__

FAILED, UNUSABLE = 1, 2
_CONFIG = click.option(
    "-c",
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="pylb.yaml; without it the embedded defaults.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="For a machine to read.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pylb")
def main() -> None:
    """A TCP load balancer for one fixed-IP machine in front of Kubernetes NodePorts.

    \b
    pylb run                      serve with the embedded defaults: webhook on 9000, admin on 8404
    pylb run -c /etc/pylb/pylb.yaml
    pylb check -c pylb.yaml       every mistake of a config, with its line
    pylb routes                   what goes where, and why
    pylb demo                     watch a node move under load, all on loopback
    """


@main.command()
@_CONFIG
def run(config_path: Path | None) -> None:
    """Serve until SIGTERM. SIGHUP reads the config again, whole or not at all.

    Without -c: webhook on *:9000 (plain HTTP, it warns), admin on 127.0.0.1:8404, a generated token in the state directory.
    """
    from pylb import app  # noqa: PLC0415 - `pylb --help` need not load a web server
    from pylb.config import ConfigErrors  # noqa: PLC0415

    try:
        app.run(config_path, os.environ)
    except app.Broken:
        _die("pylb ended: a part of it failed, the log above says which (this is a bug of pylb)", FAILED)
    except ConfigErrors as errors:
        _die(f"{errors}\npylb did not start: {_count(len(errors.problems), 'mistake')} in the config")
    except app.CannotStart as reason:
        _die(f"pylb did not start: {reason}")


@main.command()
@_CONFIG
@_JSON
def check(config_path: Path | None, as_json: bool) -> None:
    """Print every mistake of a config as FILE:LINE:COL: error: what (hint). Exit code 1 if there is one."""
    from pylb.config import ConfigErrors, load  # noqa: PLC0415

    try:
        config = load(config_path, os.environ)
    except ConfigErrors as errors:
        if as_json:
            click.echo(json.dumps([_problem(problem) for problem in errors.problems], indent=2))
        else:
            click.echo(str(errors), err=True)
            click.echo(_count(len(errors.problems), "mistake"), err=True)
        sys.exit(FAILED)
    if as_json:
        click.echo("[]")
        return
    for warning in config.warnings:
        click.echo(warning, err=True)
    what = f"{_count(len(config.frontends), 'static frontend')}, {_count(len(config.tokens), 'token')}"
    click.echo(f"{config_path or 'the embedded defaults'}: ok ({what})")


@main.command()
@_CONFIG
@_JSON
@click.option("--rejected", is_flag=True, help="The last refused calls instead, with their reasons.")
def routes(config_path: Path | None, as_json: bool, rejected: bool) -> None:
    """What goes where and why: port, server, who registered it, lease left, whether it answered.

    Exit code 2 if no pylb is running with this config.
    """
    from pylb import routes as view  # noqa: PLC0415

    answer = _ask(config_path, {"verb": "rejected" if rejected else "routes"})
    if as_json:
        click.echo(json.dumps(answer["rejected" if rejected else "routes"], indent=2))
    elif rejected:
        click.echo(view.rejections(answer["rejected"]))
    else:
        click.echo(view.table(answer["routes"]))


@main.command()
@_CONFIG
@_JSON
@click.argument("what", metavar="PORT|NAME[/INSTANCE]")
def release(config_path: Path | None, as_json: bool, what: str) -> None:
    """Forget registrations: of a port, of a name, or of one instance. A port closes with its last one.

    Live sessions go on until they end, at most timeouts.drain. A phone-home that still runs will register again.
    """
    answer = _ask(config_path, {"verb": "release", "what": what})
    if as_json:
        click.echo(json.dumps(answer["released"]))
    else:
        for line in answer["released"]:
            click.echo(line)


@main.command("import")
@_CONFIG
@click.option("--token", "token", required=True, help="The name of the token that the old containers use.")
@click.option("--dry-run", is_flag=True, help="Show what would be registered, register nothing.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
def import_(config_path: Path | None, token: str, dry_run: bool, files: tuple[Path, ...]) -> None:
    """Register what an old HAProxy webhook served, from its *.inc files, as legacy registrations.

    So nothing is dark until the next phone call. They never lapse; a call of the same token for the port replaces them.
    """
    from pylb.importer import read_files  # noqa: PLC0415

    items, notes = read_files(files)
    for note in notes:
        click.echo(str(note), err=True)
    for item in items:
        click.echo(str(item))
    if dry_run:
        return
    if not items:
        _die("nothing to import", FAILED)
    answer = _ask(config_path, {"verb": "import", "token": token, "items": [item.as_call() for item in items]})
    refused = [line for line in answer["lines"] if line.startswith("refused")]
    for line in answer["lines"]:
        click.echo(line, err=line in refused)
    click.echo(f"{_count(len(answer['lines']) - len(refused), 'registration')} imported, {len(refused)} refused")
    if refused:
        sys.exit(FAILED)


@main.command()
@click.option("--moves", default=5, show_default=True, type=click.IntRange(0, 1000), help="How often the app moves.")
@click.option("--every", default=3.0, show_default=True, type=click.FloatRange(0.1, 60), help="Seconds between two moves.")
def demo(moves: int, every: float) -> None:
    """Two nodes, a phone-home that moves an app between them, clients under load: all real, all on loopback."""
    import asyncio  # noqa: PLC0415

    from pylb.demo import Demo, DemoFailed  # noqa: PLC0415

    try:
        sys.exit(asyncio.run(Demo(moves=moves, every=every, say=click.echo).run()))
    except DemoFailed as reason:
        _die(f"the demo did not run: {reason}")


@main.command()
@_CONFIG
@click.option("--show", is_flag=True, help="Print the token that the first run made instead of a new one.")
def token(config_path: Path | None, show: bool) -> None:
    """Print a new token, ready for a secret_file (32 characters, 192 bits)."""
    if not show:
        click.echo(secrets.token_urlsafe(24))
        return
    from pylb.startup import TOKEN_FILE  # noqa: PLC0415

    path = _state_dir(config_path) / TOKEN_FILE
    try:
        click.echo(path.read_text().strip())
    except OSError as error:
        _die(f"{path}: {error.strerror}. It is made by the first `pylb run` without configured tokens.")


@main.command("install-service")
@click.option("--print", "print_only", is_flag=True, help="Show the unit and every step, do nothing.")
def install_service_(print_only: bool) -> None:
    """Install pylb as a systemd service: user, /etc/pylb, a virtual environment in /opt/pylb, the unit. Needs root."""
    from pylb.install import install_service  # noqa: PLC0415

    sys.exit(install_service(print_only=print_only))


def _ask(config_path: Path | None, request: dict[str, Any]) -> dict[str, Any]:
    """One request to the running pylb's control socket; ends the program where it cannot be asked or says no."""
    from pylb.web.socket import call  # noqa: PLC0415

    path = _state_dir(config_path) / "control.sock"
    try:
        answer = call(path, request)
    except (FileNotFoundError, ConnectionRefusedError):
        _die(f"no pylb is running with {path}. Start it, or name its config with -c.")
    except PermissionError:
        _die(f"{path}: permission denied. Ask as root or as the user that pylb runs as.")
    except (OSError, ValueError) as error:
        _die(f"{path}: {error}")
    if not answer["ok"]:
        hint = f" ({answer['hint']})" if answer.get("hint") else ""
        _die(f"{answer['detail']}{hint}", FAILED)
    return answer


def _state_dir(config_path: Path | None) -> Path:
    """Where the running pylb is to be found; also through a broken file, for that is when one wants to look."""
    from pylb.config import ConfigErrors, load  # noqa: PLC0415
    from pylb.startup import ConfigSource  # noqa: PLC0415

    try:
        return load(config_path, os.environ).state_dir
    except ConfigErrors as errors:
        if config_path is None or not os.access(config_path, os.R_OK):
            _die(str(errors))
        found = ConfigSource(config_path, os.environ).state_dir()
        click.echo(f"{config_path} is broken (pylb check -c {config_path}); asking the pylb that uses {found}", err=True)
        return found


def _problem(problem: Any) -> dict[str, Any]:
    place = problem.place
    return {
        "file": problem.filename,
        "line": place.line,
        "col": place.col,
        "message": problem.message,
        "hint": problem.hint,
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _die(text: str, code: int = UNUSABLE) -> NoReturn:
    click.echo(text, err=True)
    sys.exit(code)
