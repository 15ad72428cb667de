"""The outermost layer of the CLI: verbs in groups, colour, and how a run ends when it could not do what was asked.

Whatever goes wrong in a verb is one sentence on stderr and an exit code, and with --json also one JSON object on stdout:
`{"error", "detail", "hint", "exit_code"}`. This includes wrong usage, Ctrl-C and a full disk. A reader of our output that
leaves (`pylb routes | head -1`) ends the program without a word.
"""

import json
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import click

from pylb.cli.client import UNUSABLE, UNWRITABLE, failure, say, unwritten

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Verbs(click.Group):
    """Its --help has the first sentence of each verb, in full. `instead`: verbs of other programs, and what to type here."""

    def __init__(self, *args: Any, instead: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.instead = instead or {}

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Before click guesses by spelling, which makes `status` of `start`."""
        here = self.instead.get(args[0])
        if here is not None and not ctx.resilient_parsing:  # as it is while a shell completes
            raise click.UsageError(f"No such command '{args[0]}'. Here it is: {here}", ctx)
        found = super().resolve_command(ctx, args)
        root = ctx.find_root().command
        if isinstance(root, Program) and found[1] is not None:
            root.asked = click.Context(found[1], ctx, found[0])
        return found

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        found = [(name, command) for name, command in sorted(self.commands.items()) if not command.hidden]
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(limit=1000)) for name, command in found])


class Program(Verbs):
    """`sections`: the headings of --help, and below each the verbs with a line for each."""

    def __init__(self, *args: Any, sections: Mapping[str, Mapping[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections
        self.asked: click.Context | None = None  # the verb that was named, for click's mistakes that do not say where
        self._lines = {name: text for verbs in sections.values() for name, text in verbs.items()}

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """The line of --help is also what a shell shows beside the verb: click would cut its first sentence."""
        super().add_command(cmd, name)
        cmd.short_help = self._lines.get(name or cmd.name or "", cmd.short_help)

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, *rest: Any, **extra: Any) -> NoReturn:
        """Ends the program."""
        given = sys.argv[1:] if args is None else list(args)
        as_json = "--json" in given
        try:
            done = super().main(given, prog_name or "pylb", *rest, **(extra | {"standalone_mode": False}))
        except click.ClickException as error:  # wrong usage
            if isinstance(error, click.UsageError):
                error.ctx = error.ctx or self.asked
            _report(as_json, "usage", error.format_message(), _help_of(error), error.exit_code)
            error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            _report(as_json, "interrupted", "interrupted before it was done", "", INTERRUPTED)
            sys.exit(INTERRUPTED)
        except OSError as error:
            _ends_badly(as_json, error)
        except Exception as error:  # noqa: BLE001 - the boundary of the program; what comes here is a bug
            _report(as_json, "internal", f"{type(error).__name__}: {error}", "this is a bug of pylb", UNUSABLE)
            say(traceback.format_exc(), "this is a bug of pylb: please report it with the lines above", err=True)
            sys.exit(UNUSABLE)
        sys.exit(done if isinstance(done, int) else 0)

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, verbs in self.sections.items():
            with formatter.section(heading):
                formatter.write_dl([(name, text) for name, text in verbs.items() if name in self.commands])


def _help_of(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path} --help" if context is not None else "pylb --help"


def _report(as_json: bool, *what: Any) -> None:
    if as_json:
        say(json.dumps(failure(*what)))


def _ends_badly(as_json: bool, error: OSError) -> NoReturn:
    if error.filename is None and error.errno in UNWRITABLE:  # what click writes itself, such as --help
        unwritten(error)
    text = f"{error.filename}: {error.strerror}" if error.filename is not None else str(error)
    _report(as_json, "unusable", text, "", UNUSABLE)
    say(text, err=True)
    sys.exit(UNUSABLE)
