"""`pylb status`: the condition of a running pylb."""

import os
import time
from typing import Any

from pylb import __version__
from pylb.control.health_sentence import Condition, condition, said, since_down
from pylb.control.registry import Registry
from pylb.control.steps import in_turns
from pylb.control.views import FrontendView
from pylb.core.address import UDP
from pylb.core.health import PASSED, YES
from pylb.forward.counters import Counters, FrontendCounters
from pylb.web.views import listen_json

FRONTENDS = 15  # between two turns of the loop: with ten servers each, ~1 ms


async def status(registry: Registry, counters: Counters, workers: int, *, reloaded: bool, started_at: float) -> dict[str, Any]:
    """For JSON. `workers`: how many run. `started_at`: unix time. For rates, call it twice."""
    now, down_at = time.time(), since_down(registry.events())
    conditions: list[tuple[Condition, str]] = []
    rows: list[dict[str, Any]] = []
    async for one in in_turns(registry.each_frontend(), FRONTENDS):
        conditions.append(condition(one, down_at, now))
        rows.append(_frontend(one, counters.frontends.get(one.listen), conditions[-1]))
    return {
        "health": said(conditions, registry.troubles(reloaded=reloaded)),
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
        **({"flows": counters.open_flows} if any(row.get("protocol") == UDP for row in rows) else {}),
        "frontends": rows,
    }


def _frontend(one: FrontendView, counters: FrontendCounters | None, found: tuple[Condition, str]) -> dict[str, Any]:
    counted = counters if counters is not None else FrontendCounters(one.name)  # its port is not open
    accepting = PASSED if one.listen.protocol == UDP else {YES}
    return {
        **listen_json(one.listen),
        "listen": str(one.listen),
        "frontend": one.name,
        "health": str(found[0]),
        "why": found[1],
        "servers": len(one.servers),
        "servers_up": sum(view.is_up for view in one.servers),
        "accepting": sum(view.accepts in accepting for view in one.servers),
        "passing": sum(view.passes == YES for view in one.servers),
        "sessions": counted.sessions,
        "queued": counted.queued,
        "sessions_total": counted.sessions_total,
        "bytes_in": counted.bytes_in,
        "bytes_out": counted.bytes_out,
        "failures": sum(server.failures.total() for server in counted.servers.values()),
        "denied": counted.denied.total(),
    }
