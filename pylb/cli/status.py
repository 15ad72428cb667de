"""`pylb status`: shows the condition once, or continuously with --watch."""

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from pylb.cli.client import CONFIG, JSON, Answer, ask, say, screen
from pylb.cli.tables import Block, Column, Table, port_of, prose, size, written
from pylb.core.text import span

HEAD_LINES = 7  # of a terminal, around a list
_COUNTS = ("sessions_total", "bytes_in", "bytes_out", "failures", "denied")  # counters that only grow
_WORST_FIRST = {"down": 0, "degraded": 1, "healthy": 2}
_COLUMNS = (
    Column("PORT"),
    Column("FRONTEND", folds=True),
    Column("HEALTH", state=True),
    Column("SERVERS", right=True),
    *(
        Column(heading, right=True, goes=goes)
        for heading, goes in {"ACCEPT": 8, "PASS": 7, "SESSIONS": 1, "WAITING": 6}.items()
    ),
    *(
        Column(f"{heading}/s", right=True, goes=goes)
        for heading, goes in {"NEW": 2, "IN": 5, "OUT": 4, "FAILED": 3, "DENIED": 9}.items()
    ),
)
Rates = Mapping[str, Mapping[str, float]]  # by listen address and count, a second


@click.command()
@CONFIG
@JSON
@click.option("--watch", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option(
    "--every", metavar="SECONDS", default=2.0, show_default=True, type=click.FloatRange(0.1, 3600), help="With --watch."
)
def status(config_path: Path | None, as_json: bool, watch: bool, every: float) -> None:
    """Show the condition in one sentence, and the servers, sessions and rates of each frontend.

    Rates are measured over one second, or with --watch since the last output. --json has counts, and does not wait.
    """

    def look() -> Answer:
        found: Answer = ask(config_path, {"verb": "status"}, doing="" if watch else "waiting for pylb")["status"]
        return found

    before = look()
    if as_json and not watch:
        say(json.dumps(before, indent=2))
        return
    try:
        if watch and as_json:
            _follow(look, before, lambda now, _then: say(json.dumps(now)), every)
        if watch:
            _watch(look, before, every)
        pause(1.0)
        say(*parts(look(), before))
    except KeyboardInterrupt:
        say()


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)  # Ctrl-C ends it


def _watch(look: Callable[[], Answer], before: Answer, every: float) -> NoReturn:
    """Print the status again and again. On a terminal each one replaces the last, as far as there is room."""
    here = screen()
    if here.width is None or os.environ.get("TERM") == "dumb":
        _follow(look, before, lambda now, then: say(*parts(now, then)), every)
    from rich.console import Console  # noqa: PLC0415 - of all verbs only this draws over what it wrote
    from rich.live import Live  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(highlight=False, markup=False, emoji=False, no_color=not here.colour)

    def draw(now: Answer, then: Answer | None) -> None:
        text = written(parts(now, then, max(1, console.height - HEAD_LINES)), here._replace(width=console.width))
        live.update(Text.from_ansi(text, overflow="fold"), refresh=True)

    with Live(console=console, auto_refresh=False, redirect_stdout=False) as live:
        _follow(look, before, draw, every)


def _follow(look: Callable[[], Answer], now: Answer, show: Callable[[Answer, Answer | None], None], every: float) -> NoReturn:
    """Show what `look` finds, together with its previous result, until Ctrl-C. Waits for a pylb that does not answer."""
    then: Answer | None = None
    while True:
        show(now, then)
        then = now
        while True:
            pause(every)
            try:
                now = look()
                break
            except SystemExit:  # it has said why
                pass


# ------------------------------------------------------------ for people


def parts(now: Answer, before: Answer | None = None, rows: int | None = None) -> list[Block]:
    """The condition as lines and a table. Rates are since `before`, an earlier answer; without one they are dashes.

    `rows`: at most so many frontends, unhealthy and busy ones first; else all, in the order of their ports.
    """
    rates = _rates(now, before)
    frontends: Sequence[Mapping[str, Any]] = now["frontends"]
    left = 0
    if rows is not None and len(frontends) > rows:
        busiest = sorted(frontends, key=lambda one: (_WORST_FIRST[one["health"]], -_of(rates, one, "sessions_total")))
        left, frontends = len(frontends) - rows, busiest[:rows]
    found: list[Block] = [prose(now["health"], _about(now), _totals(now, rates))]
    if frontends:
        found += ["", Table(_COLUMNS, [_cells(one, rates) for one in frontends])]
    if left:
        found.append(f"and {left} more: pylb status")
    return found


def _rates(now: Mapping[str, Any], before: Mapping[str, Any] | None) -> Rates:
    """For frontends that were there before; nothing after a restart, which resets the counters."""
    if before is None or before["pid"] != now["pid"] or (elapsed := now["clock"] - before["clock"]) <= 0:
        return {}
    earlier = {one["listen"]: one for one in before["frontends"]}
    return {
        one["listen"]: {count: max(0, one[count] - earlier[one["listen"]][count]) / elapsed for count in _COUNTS}
        for one in now["frontends"]
        if one["listen"] in earlier
    }


def _of(rates: Rates, one: Mapping[str, Any], count: str) -> float:
    return rates.get(one["listen"], {}).get(count, 0.0)


def _about(now: Mapping[str, Any]) -> str:
    workers = f", {now['workers']} workers" if now["workers"] else ""
    return f"pylb {now['version']}, pid {now['pid']}{workers}, up {span(round(now['uptime']))}, generation {now['generation']}"


def _totals(now: Mapping[str, Any], rates: Rates) -> str:
    parts = [f"{now['sessions']:,} of {now['max_connections']:,} sessions"]
    if "flows" in now:
        parts.append(f"{now['flows']:,} flows of UDP")
    if rates:
        new, came, went = (sum(one[count] for one in rates.values()) for count in _COUNTS[:3])
        parts += [f"{new:.1f} new/s", f"in {size(came)}/s", f"out {size(went)}/s"]
    return ", ".join(parts)


def _cells(one: Mapping[str, Any], rates: Rates) -> tuple[str | int, ...]:
    own = rates.get(one["listen"])
    new, came, went, failed, denied = ("-",) * 5 if own is None else _written([own[count] for count in _COUNTS])
    head = (port_of(one), one["frontend"], one["health"], f"{one['servers_up']}/{one['servers']}")
    two = (one.get("accepting", "-"), one.get("passing", "-"))  # the running pylb may be older
    return (*head, *two, one["sessions"], one["queued"], new, came, went, failed, denied)


def _written(rates: Sequence[float]) -> tuple[str, ...]:
    new, came, went, failed, denied = rates
    return f"{new:.1f}", size(came), size(went), f"{failed:.1f}", f"{denied:.1f}"
