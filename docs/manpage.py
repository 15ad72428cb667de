"""pylb(1), made from `--help` of every verb: docs/pylb.1, which packages install.

Why not click-man: it makes a page for each verb (thirty of them), and puts lists of examples on one line.
"""

import inspect
import re
from collections.abc import Callable, Iterator

import click

_FILES = {
    "/etc/pylb/pylb.yaml": "The config of the service. Every key has a default; docs/config.md explains them.",
    "/var/lib/pylb": "The state directory of the service: registrations, generated tokens, the control socket. Else "
    "~/.local/state/pylb, or what state_dir in the config says.",
}
_ENVIRONMENT = {
    "PYLB_CONFIG": "The config, if there is no -c. Empty: none, the embedded defaults.",
    "NO_COLOR": "If it is not empty: no colours.",
    "CLICOLOR_FORCE": "If it is neither empty nor 0: colours into a pipe, too.",
    "STATE_DIRECTORY": "Set by systemd: the state directory, unless the config names one.",
}
_STATUS = {
    "0": "Done.",
    "1": "The answer is no: a broken config, nothing to release, a change that was refused.",
    "2": "pylb could not be asked, did not start, or was asked wrongly.",
    "130": "Interrupted by Ctrl-C.",
}
Context = Callable[[click.Command, str], click.Context]


def page(cli: click.Group, sections: dict[str, dict[str, str]], context: Context) -> str:
    """In man(7). `sections`: the verbs in the order of `pylb --help`; `context`: of a command and its path."""
    lines = ['.\\" Generated from --help: make docs.', '.TH PYLB 1 "" pylb "User Commands"']
    lines += [".SH NAME", "pylb \\- load balancer of TCP and UDP in front of Kubernetes NodePorts"]
    lines += [".SH SYNOPSIS", ".B pylb", "[\\fIOPTIONS\\fR] \\fIVERB\\fR [\\fIOPERANDS\\fR]"]
    lines += [".SH DESCRIPTION", *_text(cli.help or ""), *_options(cli)]
    names = dict.fromkeys([*(name for verbs in sections.values() for name in verbs), *sorted(cli.commands)])
    lines.append(".SH VERBS")
    for name in names:
        if name in cli.commands:
            lines += _verb(f"pylb {name}", cli.commands[name], context)
    lines += _list("EXIT STATUS", _STATUS) + _list("ENVIRONMENT", _ENVIRONMENT) + _list("FILES", _FILES)
    return "\n".join(lines) + "\n"


def _verb(path: str, command: click.Command, context: Context) -> Iterator[str]:
    if command.hidden:
        return
    usage = " ".join(command.collect_usage_pieces(context(command, path)))
    yield f".SS {_quoted(f'{path} {usage}')}"
    yield from _text(command.help or "")
    yield from _options(command)
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from _verb(f"{path} {name}", command.commands[name], context)


def _options(command: click.Command) -> Iterator[str]:
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            record = option.get_help_record(click.Context(command))
            if record is not None:
                yield ".TP"
                yield f"\\fB{_escaped(record[0])}\\fR"
                yield _line(record[1])


def _text(text: str) -> Iterator[str]:
    """The paragraphs of a help text; what follows click's \\b keeps its lines."""
    for number, paragraph in enumerate(re.split(r"\n\s*\n", inspect.cleandoc(text))):
        if number:
            yield ".PP"
        if paragraph.startswith("\b"):
            yield from (".nf", *(_line(line) for line in paragraph.strip("\b\n").splitlines()), ".fi")
        else:
            yield _line(" ".join(paragraph.split()))


def _list(heading: str, items: dict[str, str]) -> list[str]:
    return [
        f".SH {heading}",
        *(line for name, text in items.items() for line in (".TP", f"\\fB{_escaped(name)}\\fR", _line(text))),
    ]


def _line(text: str) -> str:
    """As a line of text, not of requests."""
    escaped = _escaped(text)
    return f"\\&{escaped}" if escaped[:1] in (".", "'") else escaped


def _escaped(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace("~", "\\(ti").replace("^", "\\(ha")


def _quoted(text: str) -> str:
    return '"' + _escaped(text).replace('"', "\\(dq") + '"'
