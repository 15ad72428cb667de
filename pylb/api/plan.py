"""The effect of a change, with the live sessions that it touches: for `pylb plan`, and for the log of a reload."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from pylb.control.steps import in_turns
from pylb.core.address import UDP
from pylb.core.session import SessionView
from pylb.core.table import Diff
from pylb.core.table_diff import ChangeKind, ChangeLine
from pylb.web.views import listen_json

SESSIONS = 1000  # counted between two turns of the loop: 1 ms
LINES = 200  # put into words or logged: 1 to 2 ms

_FATE = {
    ChangeKind.CLOSED: "reset after timeouts.drain",
    ChangeKind.REMOVED: "which stay on it until they end",
    ChangeKind.MOVED: "which stay on the old address until they end",
}


_FLOWS = {  # of UDP: none of them stays
    ChangeKind.CLOSED: "ended at once",
    ChangeKind.REMOVED: "which go on at other servers with their next datagrams",
    ChangeKind.MOVED: "which go on at the new address with their next datagrams",
}


class Reloaded(NamedTuple):
    """What a reload has changed. `lines`: in words, the first one sums it up."""

    change: Diff
    lines: list[str]


class Planned(NamedTuple):
    """The effect of a change. `others`: what the balancers will hear of it that share the table, in sentences."""

    lines: list[ChangeLine]
    others: list[str]


async def steps(lines: Iterable[ChangeLine], sessions: Iterable[SessionView]) -> list[dict[str, Any]]:
    """One per line: what, port, frontend, text, and the number of live sessions concerned. The loop runs in between: there may
    be tens of thousands of sessions, and a thousand lines."""
    by_port: Counter[Any] = Counter()
    by_server: Counter[Any] = Counter()
    async for one in in_turns(sessions, SESSIONS):
        by_port[one.listen] += 1
        by_server[one.listen, one.address] += 1
    return [
        _step(line, by_port[line.listen] if line.server is None else by_server[line.listen, line.server])
        async for line in in_turns(lines, LINES)
    ]


def _step(line: ChangeLine, live: int) -> dict[str, Any]:
    fates, what = (_FLOWS, "flows") if line.listen.protocol == UDP else (_FATE, "sessions")
    fate = f"live {what}: {live}, {fates.get(line.what, 'untouched')}"
    return {
        "what": str(line.what),
        **listen_json(line.listen),
        "frontend": line.frontend,
        "server": None if line.server is None else str(line.server),
        "sessions": live,
        "touched": live if line.what in _FATE else 0,
        "text": line.text if line.what is ChangeKind.OPENED else f"{line.text}; {fate}",
    }


def in_words(change: Diff) -> str:
    parts = [
        f"opened {', '.join(str(one.listen) for one in change.opened)}" if change.opened else "",
        f"closed {', '.join(str(one.listen) for one in change.closed)}" if change.closed else "",
        f"changed {', '.join(str(new.listen) for _, new in change.changed)}" if change.changed else "",
    ]
    return "; ".join(filter(None, parts)) or "nothing in the table changed"
