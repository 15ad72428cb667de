"""Asking a running pylb from the command line: how it is found, the options that every verb has, and how a verb ends."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from pylb.cli.progress import progress
from pylb.cli.tables import Block, Screen, clock, written
from pylb.control.storage.places import SYSTEM_FILE, VARIABLE, chosen
from pylb.core.text import span

FAILED, UNUSABLE = 1, 2
AS_OWNER = "ask as root or as the user that pylb runs as"
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
Answer = dict[str, Any]
_said = {""}  # notes that were printed: `status --watch` asks again and again


def _chosen(_context: click.Context, _option: click.Parameter, given: Path | None) -> Path | None:
    found = chosen(given, os.environ)
    if found is not None and _forbidden(found):
        raise click.BadParameter(f"{found} may not be read by this user: {AS_OWNER}")
    return found


def _forbidden(path: Path) -> bool:
    try:
        path.stat()
    except PermissionError:  # a directory on the way may not be entered
        return True
    except OSError:
        return False
    return not os.access(path, os.R_OK)


CONFIG = click.option(
    "-c",
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False, readable=False),
    callback=_chosen,
    help="Default: $PYLB_CONFIG, else /etc/pylb/pylb.yaml if it is there, else the embedded defaults.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="JSON for programs, also if it fails.")


def ask(
    config_path: Path | None, request: dict[str, Any], timeout: float = 30.0, doing: str = "waiting for pylb"
) -> dict[str, Any]:
    """One request to the running pylb's control socket; ends the program where it cannot be asked or says no.

    `doing`: what a person reads while it takes long.
    """
    from pylb.web.control_client import call  # noqa: PLC0415

    path = state_dir(config_path) / "control.sock"
    try:
        with progress(doing):
            answer = call(path, request, timeout)
    except (FileNotFoundError, ConnectionRefusedError):
        die(f"no pylb is running with {path}{_by(config_path)}", hint="start it, or name its config with -c")
    except PermissionError:
        die(f"{path}: permission denied", hint=AS_OWNER)
    except TimeoutError:
        hint = "it may still do what it was asked: look at `pylb status` and its log"
        die(f"{path}: pylb did not answer within {span(timeout)}", hint=hint)
    except (OSError, ValueError) as error:
        die(f"{path}: {error}")
    if not answer["ok"]:
        die(answer["detail"], FAILED, error=answer["error"], hint=answer.get("hint", ""))
    return answer


def duration(_context: click.Context, _option: click.Parameter, text: str | None) -> float | None:
    """The callback of an option that is one, such as 90s."""
    from pylb.config.problems import in_words  # noqa: PLC0415 - pydantic need not load for `pylb --help`
    from pylb.config.values import parse_duration  # noqa: PLC0415

    try:
        seconds = None if text is None else parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(in_words(error)) from None
    if seconds == 0:
        raise click.BadParameter(f"{text} is no time at all")
    return seconds


def running(directory: Path) -> bool:
    """Does a pylb with this state directory answer?"""
    from pylb.web.control_client import call  # noqa: PLC0415

    try:
        return bool(call(directory / "control.sock", {"verb": "ping"}, timeout=5.0)["ok"])
    except (OSError, ValueError):
        return False


def _by(config_path: Path | None) -> str:
    """Which config led there, where that may be a surprise."""
    if config_path is not None:
        return f" (config: {config_path})"
    hidden = VARIABLE not in os.environ and SYSTEM_FILE.parent.is_dir() and not os.access(SYSTEM_FILE.parent, os.X_OK)
    return f" (and this user may not read {SYSTEM_FILE}: try sudo)" if hidden else ""


def loaded(config_path: Path | None) -> Any:
    """The config, or the last good one if the file is broken or leads away from the pylb that was started with it.

    Ends the program with the mistakes if there is none.
    """
    from pylb.cli.instance import find  # noqa: PLC0415
    from pylb.config import ConfigErrors, load  # noqa: PLC0415

    try:
        config = load(config_path, os.environ)
    except ConfigErrors as errors:
        return last_good(config_path) or die(str(errors))
    if config_path is None or find(config_path).state_dir == config.state_dir:
        return config
    return last_good(config_path, f"no pylb uses {config.state_dir}") or config


def last_good(config_path: Path | None, why: str = "") -> Any:
    """What a file was when pylb last ran with it, if that is known here; says so. `why` it is not used: "" if it is broken."""
    from pylb.cli.instance import find  # noqa: PLC0415
    from pylb.config import ConfigErrors  # noqa: PLC0415
    from pylb.config.source import ConfigSource  # noqa: PLC0415

    source = ConfigSource(config_path, os.environ)
    try:
        directory = find(config_path).state_dir
    except ConfigErrors:
        directory = source.state_dir()
    config = source.last_good(directory)
    if config is not None:
        why = why or f"{config_path} is broken (pylb check -c {config_path})"
        say(f"{why}; going by the last good config, from {directory}", err=True)
    return config


def state_dir(config_path: Path | None) -> Path:
    """Where the running pylb is to be found; also through a broken file, for that is when one wants to look."""
    from pylb.cli.instance import find  # noqa: PLC0415
    from pylb.config import ConfigErrors  # noqa: PLC0415

    try:
        found = find(config_path)
    except ConfigErrors as errors:
        die(f"{errors}\nno pylb is running with this file")
    if found.note not in _said:
        say(found.note, err=True)
        _said.add(found.note)
    return found.state_dir


def reaches(answer: Answer, what: str) -> None:
    """Says how far back the list goes that was just shown."""
    if (since := answer.get("reach", {}).get("since")) is not None:
        say(f"{what} since {clock(since)}", err=True)


def screen() -> Screen:
    """Where stdout goes. Colours: what `colour_wanted` says, else on a terminal that knows them."""
    terminal = sys.stdout is not None and sys.stdout.isatty()
    context = click.get_current_context(silent=True)
    wanted = None if context is None else context.color
    dumb = os.environ.get("TERM", "") in ("", "dumb") or os.environ.get("CLICOLOR") == "0"
    colour = terminal and not dumb if wanted is None else wanted
    return Screen(shutil.get_terminal_size().columns if terminal else None, colour)


def colour_wanted(option: bool | None) -> bool | None:
    """By the options of the whole program and the environment (no-color.org, bixense.com/clicolors); None: it depends."""
    if option is not None:
        return option
    if os.environ.get("NO_COLOR"):
        return False
    return True if any(os.environ.get(name, "0") not in ("", "0") for name in ("CLICOLOR_FORCE", "FORCE_COLOR")) else None


def say(*parts: Block, err: bool = False, nl: bool = True) -> None:
    """The only way to the terminal: names, paths and answers in `parts` come from outside and must not drive it."""
    try:
        click.echo(written(parts, Screen() if err else screen()), err=err, nl=nl)
    except BrokenPipeError:
        raise  # click ends quietly: whoever read it has seen enough
    except OSError as error:
        if err:
            os._exit(UNUSABLE)
        unwritten(error)


def unwritten(error: OSError) -> NoReturn:
    """The output could not be written: the disk is full, or the terminal is gone."""
    say(f"the output could not be written: {error.strerror}", err=True)
    os._exit(UNUSABLE)  # at an ordinary exit Python would try to write the rest again, and complain


def die(text: str, code: int = UNUSABLE, *, error: str = "", hint: str = "", found: Answer | None = None) -> NoReturn:
    """Ends the program with what happened and where; `hint`: what to do about it.

    `error` is its code for programs (--json), and `found` what they also learn, and a person has read already.
    """
    report(text, code, error=error, hint=hint, found=found)
    said = f"{text}: {hint}" if text.endswith(")") else f"{text} ({hint})"
    say(said if hint else text, err=True)
    sys.exit(code)


def report(text: str, code: int, *, error: str = "", hint: str = "", found: Answer | None = None) -> None:
    """Of `die` what programs read, where they asked for it."""
    context = click.get_current_context(silent=True)
    if context is not None and context.params.get("as_json"):
        failed = failure(error or ("failed" if code == FAILED else "unusable"), text, hint, code)
        say(json.dumps(failed | (found or {})))


def failure(error: str, detail: str, hint: str, exit_code: int) -> Answer:
    """What a verb that was asked for JSON says instead of its answer."""
    return {"error": error, "detail": detail, "hint": hint, "exit_code": exit_code}
