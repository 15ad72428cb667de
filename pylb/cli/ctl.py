"""`pylb ctl`: what an operator does to servers and sessions of the running pylb."""

import json
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from pylb.cli.client import CONFIG, JSON, ask, die, duration, say
from pylb.cli.completion import words
from pylb.cli.program import Verbs
from pylb.cli.tables import Column, Table, clock
from pylb.core.text import whole_number

FOR = click.option("--for", "seconds", metavar="DURATION", callback=duration, help="How long; a node: 24h unless said.")


TARGET = click.argument("target", metavar="TARGET", shell_complete=words("target"))


@click.group(
    cls=Verbs,
    instead={
        "disable": "pylb ctl drain, or pylb ctl maint",
        "enable": "pylb ctl ready",
        "kill": "pylb ctl shutdown",
        "undrain": "pylb ctl ready",
    },
)
def ctl() -> None:
    """Take servers out of service and back, weigh them, and end sessions.

    TARGET is FRONTEND/SERVER (a frontend's name or port, a server's label or ip:port, as `pylb routes`
    shows them) or a node's IP: then all servers on it, in all frontends.

    \b
    pylb ctl drain 203.0.113.7          before a node is rebooted
    pylb ctl ready 203.0.113.7          when it is back
    pylb ctl weight https/pod-1 5

    Settings survive restarts. A setting for a node follows that IP for a day (or as --for says), whatever registers
    there; a setting for a server ends when its registration moves or leaves. pylb ctl list shows all of them.
    """


def _states(state: str, text: str) -> None:
    @ctl.command(state, help=text)
    @CONFIG
    @JSON
    @FOR
    @TARGET
    def say(config_path: Path | None, as_json: bool, seconds: float | None, target: str) -> None:
        request = {"verb": "admin", "target": target, "state": state, "for": seconds}
        _show(ask(config_path, request)["lines"], as_json=as_json)


_states(
    "drain",
    "No new sessions. Live ones have timeouts.drain (10m); those left then are ended, idle ones first, 100 a second.",
)
_states("maint", "No new sessions and no health checks. Live sessions are left alone.")
_states("ready", "Serve again. Nothing that a drain has not ended yet is ended any more.")


@ctl.command("list")
@CONFIG
@JSON
def list_(config_path: Path | None, as_json: bool) -> None:
    """List all settings in force, with their target, their end, and the servers that they affect now."""
    found = ask(config_path, {"verb": "words"})["words"]
    if as_json:
        say(json.dumps(found, indent=2))
        return
    if not found:
        say("nothing: all servers are as they are configured or registered")
        return
    rows = [
        (
            one["target"],
            one["word"],
            "its registration moves or leaves" if one["until"] is None else clock(one["until"]),
            ", ".join(one["hits"]) or "nothing now",
        )
        for one in found
    ]
    say(Table((Column("TARGET"), Column("SETTING", state=True), Column("UNTIL", folds=True), Column("HITS", folds=True)), rows))


@ctl.command()
@CONFIG
@JSON
@FOR
@TARGET
@click.argument("weight", metavar="0-256|default", shell_complete=lambda *_: [CompletionItem("default")])
def weight(config_path: Path | None, as_json: bool, seconds: float | None, target: str, weight: str) -> None:
    """Override a server's weight; `default`: as configured or registered. 0: no new sessions, live ones stay."""
    number = None if weight == "default" else whole_number(weight, 256)
    if number is None and weight != "default":
        raise click.BadParameter(f"{weight!r} is neither 0-256 nor default", param_hint="weight")
    _show(ask(config_path, {"verb": "weight", "target": target, "weight": number, "for": seconds})["lines"], as_json=as_json)


@ctl.command(hidden=True, context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1)
def sessions(words: tuple[str, ...]) -> None:  # noqa: ARG001 - whatever is asked for, it is answered elsewhere
    """Say where it is now; kept for one version."""
    die("live sessions are listed by `pylb sessions`, those of one frontend by `pylb sessions --frontend NAME|PORT`")


@ctl.group(cls=Verbs)
def shutdown() -> None:
    """End live sessions with a reset, code KD."""


@shutdown.command("session")
@CONFIG
@JSON
@click.argument("session", metavar="ID|CLIENT_IP:PORT", shell_complete=words("session"))
def shutdown_session(config_path: Path | None, as_json: bool, session: str) -> None:
    """End one session, by its id in `pylb sessions`, or by its client's address if that has only one session."""
    _show(ask(config_path, {"verb": "shutdown session", "session": session})["lines"], as_json=as_json)


@shutdown.command("sessions")
@CONFIG
@JSON
@click.argument("target", metavar="FRONTEND/SERVER", shell_complete=words("target"))
def shutdown_sessions(config_path: Path | None, as_json: bool, target: str) -> None:
    """End all sessions of a server, also of one that has left the table. New ones still go there: drain it first."""
    _show(ask(config_path, {"verb": "shutdown sessions", "target": target})["lines"], as_json=as_json)


def _show(lines: list[str], *, as_json: bool) -> None:
    say(json.dumps(lines) if as_json else "\n".join(lines))
