"""`pylb status`: the condition of a running pylb as a plain value, and as text for people."""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pylb import __version__
from pylb.control.health_sentence import Health, condition, said, since_down, span, troubles
from pylb.control.registry import Registry
from pylb.control.steps import in_turns
from pylb.control.views import FrontendView
from pylb.core.health import YES
from pylb.forward.counters import Counters, FrontendCounters

FRONTENDS = 15  # between two turns of the loop: with ten servers each, ~1 ms
_HEADINGS = (
    "PORT",
    "FRONTEND",
    "HEALTH",
    "SERVERS",
    "ACCEPT",
    "PASS",
    "SESSIONS",
    "WAITING",
    "NEW/s",
    "IN/s",
    "OUT/s",
    "FAILED/s",
    "DENIED/s",
)
_LEFT = 3  # text columns
_COUNTS = ("sessions_total", "bytes_in", "bytes_out", "failures", "denied")  # counters that only grow
_WORST_FIRST = {Health.DOWN: 0, Health.DEGRADED: 1, Health.HEALTHY: 2}


async def status(registry: Registry, counters: Counters, workers: int, *, reloaded: bool, started_at: float) -> dict[str, Any]:
    """For JSON. `workers`: how many run. `started_at`: unix time. For rates, call it twice."""
    now, down_at = time.time(), since_down(registry.events())
    conditions: list[tuple[Health, str]] = []
    rows: list[dict[str, Any]] = []
    async for one in in_turns(registry.each_frontend(), FRONTENDS):
        conditions.append(condition(one, down_at, now))
        rows.append(_frontend(one, counters.frontends.get(one.listen), conditions[-1]))
    wrong = troubles(
        durable=registry.durable,
        preserving=registry.preserving,
        reloaded=reloaded,
        unserved=[one.name for one in registry.unserved()],
    )
    return {
        "health": said(conditions, wrong),
        "version": __version__,
        "pid": os.getpid(),
        "workers": workers,
        "uptime": round(now - started_at, 1),
        "clock": time.monotonic(),  # monotonic time of the count, in seconds
        "generation": registry.table.generation,
        "durable": registry.durable,
        "reloaded": reloaded,
        "sessions": counters.open_sessions,
        "max_connections": counters.max_connections,
        "frontends": rows,
    }


def _frontend(one: FrontendView, counters: FrontendCounters | None, found: tuple[Health, str]) -> dict[str, Any]:
    counted = counters if counters is not None else FrontendCounters(one.name)  # its port is not open
    return {
        "port": one.listen.port,
        "listen": str(one.listen),
        "frontend": one.name,
        "health": str(found[0]),
        "why": found[1],
        "servers": len(one.servers),
        "servers_up": sum(view.state in ("up", "unproven") for view in one.servers),
        "accepting": sum(view.accepts == YES for view in one.servers),
        "passing": sum(view.passes == YES for view in one.servers),
        "sessions": counted.sessions,
        "queued": counted.queued,
        "sessions_total": counted.sessions_total,
        "bytes_in": counted.bytes_in,
        "bytes_out": counted.bytes_out,
        "failures": sum(server.failures.total() for server in counted.servers.values()),
        "denied": counted.denied.total(),
    }


# ------------------------------------------------------------ for people


def text(now: Mapping[str, Any], before: Mapping[str, Any] | None = None, *, rows: int | None = None) -> str:
    """The condition as lines. Rates are since `before`, an earlier answer; without one they are dashes.

    `rows`: at most so many frontends, unhealthy and busy ones first; else all, in the order of their ports.
    """
    rates = _rates(now, before)
    frontends: Sequence[Mapping[str, Any]] = now["frontends"]
    left = 0
    if rows is not None and len(frontends) > rows:
        busiest = sorted(frontends, key=lambda one: (_WORST_FIRST[one["health"]], -_of(rates, one, "sessions_total")))
        left, frontends = len(frontends) - rows, busiest[:rows]
    lines = [now["health"], _about(now), _totals(now, rates)]
    if frontends:
        lines += ["", *_table([_HEADINGS, *(_cells(one, rates) for one in frontends)])]
    if left:
        lines.append(f"and {left} more: pylb status")
    return "\n".join(lines)


Rates = Mapping[str, Mapping[str, float]]  # by listen address and count, a second


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
    return f"pylb {now['version']}, pid {now['pid']}{workers}, up {span(now['uptime'])}, generation {now['generation']}"


def _totals(now: Mapping[str, Any], rates: Rates) -> str:
    parts = [f"{now['sessions']:,} of {now['max_connections']:,} sessions"]
    if rates:
        new, came, went = (sum(one[count] for one in rates.values()) for count in _COUNTS[:3])
        parts += [f"{new:.1f} new/s", f"in {_bytes(came)}/s", f"out {_bytes(went)}/s"]
    return ", ".join(parts)


def _cells(one: Mapping[str, Any], rates: Rates) -> tuple[str, ...]:
    own = rates.get(one["listen"])
    new, came, went, failed, denied = ("-",) * 5 if own is None else _written([own[count] for count in _COUNTS])
    head = (str(one["port"]), one["frontend"], one["health"], f"{one['servers_up']}/{one['servers']}")
    two = (str(one.get("accepting", "-")), str(one.get("passing", "-")))  # the running pylb may be older
    return (*head, *two, f"{one['sessions']:,}", f"{one['queued']:,}", new, came, went, failed, denied)


def _written(rates: Sequence[float]) -> tuple[str, ...]:
    new, came, went, failed, denied = rates
    return f"{new:.1f}", _bytes(came), _bytes(went), f"{failed:.1f}", f"{denied:.1f}"


def _bytes(number: float) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f} B"


def _table(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADINGS))]
    return [
        "  ".join(
            cell.ljust(width) if column < _LEFT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
