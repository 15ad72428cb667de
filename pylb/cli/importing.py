"""`pylb import`: turns HAProxy's config into a config of pylb, or into registrations with the running pylb."""

import os
import sys
from pathlib import Path

import click

from pylb.cli.client import CONFIG, FAILED, ask, die, running, say, state_dir
from pylb.cli.completion import words
from pylb.cli.progress import progress
from pylb.core.text import counted


@click.command("import")
@CONFIG
@click.option(
    "--token",
    "token",
    metavar="NAME",
    shell_complete=words("token"),
    help="Register instead: as legacy registrations of the token with this name.",
)
@click.option("--dry-run", is_flag=True, help="With --token: show what would be registered, register nothing.")
@click.option(
    "--accept-differences", is_flag=True, help="Write pylb.yaml although other clients would be served, or by other servers."
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
def import_(
    config_path: Path | None, token: str | None, dry_run: bool, accept_differences: bool, files: tuple[Path, ...]
) -> None:
    """Import the config of HAProxy.

    \b
    pylb import haproxy.cfg > pylb.yaml
               its TCP frontends, servers, timeouts, checks and access lists
    pylb import --token old /etc/webhook/haproxy/
               what an old webhook served, registered with the running pylb

    A haproxy.cfg is translated exactly, or not at all: each difference in who gets a connection or who may connect is listed
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

    with progress("reading the files") as now:
        texts, unread = read_texts(files, "*.cfg")
        now("translating")
        found = translate(texts, os.environ)
    for note in unread:
        say(str(note), err=True)
    for note in found.notes:
        say(f"difference: {note}" if note.differs else f"note: {note}", err=True)
    if unread and not accept_differences:
        what = "nothing was written, because what is in there may differ. Name the files that are to be imported"
        die(f"{counted(len(unread), 'file')} not read: {what}", FAILED)
    differences = len(found.differences)
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

    with progress("reading the files"):
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
    request = {"verb": "import", "token": token, "items": [item.as_call() for item in items]}
    answer = ask(config_path, request, doing=f"registering {counted(len(items), 'server')}")
    refused = [line for line in answer["lines"] if line.startswith("refused")]
    for line in answer["lines"]:
        say(line, err=line in refused)
    say(f"{counted(len(answer['lines']) - len(refused), 'registration')} imported, {len(refused)} refused")
    if refused:
        sys.exit(FAILED)
