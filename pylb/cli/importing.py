"""`pylb import`: turns HAProxy's config into a config of pylb, or into registrations with the running pylb."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pylb.cli.client import CONFIG, FAILED, JSON, ask, die, running, say, state_dir
from pylb.cli.completion import words
from pylb.cli.progress import progress
from pylb.core.text import counted

if TYPE_CHECKING:
    from pylb.haproxy.config_parser import Note
    from pylb.haproxy.legacy_import import LegacyServer
    from pylb.haproxy.translate import Translation


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
@JSON
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
def import_(
    config_path: Path | None,
    token: str | None,
    files: tuple[Path, ...],
    *,
    dry_run: bool,
    accept_differences: bool,
    as_json: bool,
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

    --json has the config as text, and each difference and note with its file and line; they are there if it fails, too.
    """
    if token is None:
        _translate(files, accept_differences, as_json=as_json)
    else:
        _register(config_path, token, dry_run, files, as_json=as_json)


def _translate(files: tuple[Path, ...], accept_differences: bool, *, as_json: bool) -> None:
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
    seen = _seen(found, unread)
    if unread and not accept_differences:
        what = "nothing was written, because what is in there may differ. Name the files that are to be imported"
        die(f"{counted(len(unread), 'file')} not read: {what}", FAILED, found=seen)
    differences = len(found.differences)
    if differences and not accept_differences:
        what = "nothing was written. Change haproxy.cfg, or accept what differs: --accept-differences"
        die(f"{counted(differences, 'difference')}: {what}", FAILED, error="differs", found=seen)
    if not found.frontends:
        die("nothing to import", FAILED, found=seen)
    written = {"config": found.text, "frontends": found.frontends} | seen
    if not as_json:
        say(found.text, nl=False)
    notes = len(seen["notes"])
    say(
        f"{counted(found.frontends, 'frontend')} translated, {counted(differences, 'difference')}, {counted(notes, 'note')}",
        err=True,
    )
    try:
        parse(found.text, "pylb.yaml")
    except ConfigErrors as errors:
        die(f"the result needs your hand before pylb takes it:\n{errors}", FAILED, error="invalid", found=written)
    if as_json:
        say(json.dumps(written, indent=2))


def _seen(found: "Translation", unread: Iterable["Note"]) -> dict[str, list[Any]]:
    """What was not translated exactly, or not read, as JSON."""
    return {
        "differences": [_note(note) for note in found.differences],
        "notes": [_note(note) for note in found.notes if not note.differs],
        "unread": [_note(note) for note in unread],
    }


def _note(note: "Note") -> dict[str, Any]:
    return {"file": note.file, "line": note.line or None, "message": note.message}


def _register(config_path: Path | None, token: str, dry_run: bool, files: tuple[Path, ...], *, as_json: bool) -> None:
    from pylb.haproxy.legacy_import import read_files  # noqa: PLC0415

    with progress("reading the files"):
        items, notes = read_files(files)
    for note in notes:
        say(str(note), err=True)
    for item in items:
        say(str(item), err=as_json)
    seen = {"servers": [_server(item) for item in items], "notes": [_note(note) for note in notes]}
    if dry_run:
        _only_show(config_path, token)
        if as_json:
            say(json.dumps(seen, indent=2))
        return
    if not items:
        die("nothing to import", FAILED, found=seen)
    request = {"verb": "import", "token": token, "items": [item.as_call() for item in items]}
    answer = ask(config_path, request, doing=f"registering {counted(len(items), 'server')}")
    _registered(answer["lines"], seen, as_json=as_json)


def _only_show(config_path: Path | None, token: str) -> None:
    """Of a dry run: is there such a token?"""
    if running(state_dir(config_path)):
        ask(config_path, {"verb": "import", "token": token, "items": []})
    else:
        say(f"no pylb is running: whether it has a token called {token!r} is not known", err=True)


def _registered(lines: Sequence[str], seen: dict[str, Any], *, as_json: bool) -> None:
    refused = [line for line in lines if line.startswith("refused")]
    for line in lines:
        say(line, err=as_json or line in refused)
    summary = f"{counted(len(lines) - len(refused), 'registration')} imported, {len(refused)} refused"
    seen |= {"lines": list(lines)}
    if refused:
        die(summary, FAILED, error="refused", found=seen)
    say(json.dumps(seen, indent=2) if as_json else summary)


def _server(item: "LegacyServer") -> dict[str, Any]:
    return {"port": item.port, "address": str(item.address), "name": item.name, "send_proxy": str(item.send_proxy)}
