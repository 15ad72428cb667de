"""Queries for sessions, live or recorded, and sessions as JSON."""

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pylb.control.steps import in_turns
from pylb.core.address import Address, parse_address, parse_network
from pylb.core.errors import Code, Refused
from pylb.core.recorder import Attempt, Coverage, Query, SearchResult, SessionTrace, is_meant_live, parse_session_id, session_id
from pylb.core.session import SessionView
from pylb.core.table import Server
from pylb.core.tcp_info import TcpInfo

MOST = 1000  # sessions in one answer
FILTERS = frozenset({"client", "frontend", "server", "code", "since", "limit", "text", "by"})
_VIEWS_PER_TURN = 500


class SessionSource(Protocol):
    """The sessions of the engine, or of all workers."""

    @property
    def recording(self) -> bool:
        """Whether ended sessions are recorded."""

    async def sessions(self) -> Sequence[SessionView]: ...

    async def ended(self, query: Query) -> SearchResult: ...


def query_of(asked: Mapping[str, Any], now: float, limit: int = MOST) -> Query:
    """The query that `asked` describes. Raises Refused.

    `client`: an address or CIDR; `frontend`: name or port; `server`: label or ip:port; `code`: two letters, or several codes
    separated by commas; `since`: seconds before `now` (unix time); `limit`; `text`: found in any listed field; `by`: sort by
    age or bytes.
    """
    texts = {key: str(value) for key in FILTERS if (value := asked.get(key)) not in (None, "")}
    try:
        client = (parse_network(texts["client"]),) if "client" in texts else ()
    except ValueError as error:
        raise Refused(Code.INVALID, f"client: {error}", "for example 192.0.2.7 or 192.0.2.0/24") from None
    if (by := texts.get("by", "age")) not in _ORDER:
        raise Refused(Code.INVALID, f"by: {by[:40]!r} is not one of {', '.join(_ORDER)}")
    return Query(
        client,
        texts.get("frontend", ""),
        texts.get("server", ""),
        tuple(filter(None, texts.get("code", "").split(","))),
        now - _number("since", texts["since"], 1e9) if "since" in texts else 0.0,
        int(_number("limit", texts["limit"], MOST)) if "limit" in texts else limit,
        texts.get("text", ""),
        by,
    )


def _number(name: str, text: str, most: float) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found <= most:
        raise Refused(Code.INVALID, f"{name}: {text[:40]!r} is not a number from 0 to {most:g}")
    return found


class LiveSessions(NamedTuple):
    """The answer to a Query about live sessions."""

    total: int  # of all live sessions
    matching: int
    sessions: list[SessionView]  # the first query.limit of them


async def living(live: SessionSource, query: Query) -> LiveSessions:
    """The live sessions that match the query, collected in steps. Raises Refused."""
    if query.codes or query.since:
        raise Refused(Code.INVALID, "code and since apply only to ended sessions")
    views, order = await live.sessions(), _ORDER[query.by]
    first: list[SessionView] = []
    matching = 0
    async for start in in_turns(range(0, len(views), _VIEWS_PER_TURN), 1):
        some = [one for one in views[start : start + _VIEWS_PER_TURN] if is_meant_live(query, one)]
        matching += len(some)
        first = heapq.nlargest(query.limit, first + some, key=order)
    return LiveSessions(len(views), matching, first)


_ORDER: dict[str, Callable[[SessionView], float]] = {
    "age": lambda one: one.age,
    "bytes": lambda one: one.bytes_in + one.bytes_out,
}


def named(text: str, views: Sequence[SessionView]) -> list[SessionView]:
    """The live session with this id, or the sessions of this client (IP:PORT). Raises ValueError."""
    try:
        wanted = session_id(parse_session_id(text))
    except ValueError:
        client = parse_address(text)
        return [one for one in views if (one.client, one.client_port) == (client.ip, client.port)]
    return [one for one in views if one.id == wanted]


async def ended(live: SessionSource, query: Query) -> SearchResult:
    """The ended sessions that match the query. Raises Refused if none are recorded."""
    if query.by != "age":
        raise Refused(Code.INVALID, "by applies only to live sessions", "ended ones are listed newest first")
    if not live.recording:
        raise Refused(Code.NOT_FOUND, "ended sessions are not recorded", "recorder.sessions is 0 in the config")
    return await live.ended(query)


def reach_json(reach: Coverage) -> dict[str, Any]:
    """The time since which all ended sessions are recorded, and the codes that are recorded since an earlier time."""
    since = max((reach.began, *(bound.since for bound in reach.full)))
    return {"since": round(since, 3), "began": round(reach.began, 3), "codes": {code: round(at, 3) for code, at in reach.full}}


def session_json(one: SessionView) -> dict[str, Any]:
    """A live session as JSON."""
    return {
        "client": str(Address(one.client, one.client_port)),
        "frontend": one.frontend,
        "listen": str(one.listen),
        "server": one.server or None,
        "address": _written(one.address),
        "state": one.state,
        "age": round(one.age, 1),
        "bytes_in": one.bytes_in,
        "bytes_out": one.bytes_out,
        "id": one.id,
        **_asked(one.asked),
    }


def _asked(name: str) -> dict[str, Any]:
    """Only on a port with routes a client's server name is read."""
    return {"server_name": name} if name else {}


def trace_json(one: SessionTrace) -> dict[str, Any]:
    """A recorded session, or a live one in full detail. Times are unix seconds or milliseconds; -1: not reached."""
    record = one.record
    return {
        "id": one.id,
        "client": str(Address(record.client, record.client_port)),
        "frontend": record.frontend,
        "listen": str(one.listen),
        **_asked(record.asked),
        "server": record.server or None,
        "address": _written(one.address),
        "state": str(one.state),
        "code": record.code or None,  # null: it is live
        "reason": one.reason or None,  # why pylb refused it, as in pylb_frontend_denied_total
        "accepted_at": round(record.accepted_at, 3),
        "ended_at": round(one.ended_at, 3) if record.code else None,
        "queue_ms": record.queue_ms,
        "ahead": record.ahead,
        "connect_ms": record.connect_ms,
        "dial_ms": one.dial_ms,
        "total_ms": record.total_ms,
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
        "retries": record.retries,
        "unique_id": record.unique_id or None,
        "closed_first": {"by": one.closed_by, "how": one.closed_how, "ms": one.closed_ms} if one.closed_by else None,
        "attempts": [_attempt_json(attempt) for attempt in one.attempts],
        "generation": one.generation,
        "balance": one.balance,
        "candidates": [_candidate_json(server) for server in one.candidates],
        "client_tcp": _tcp_json(one.client_tcp),
        "server_tcp": _tcp_json(one.server_tcp),
    }


def _attempt_json(one: Attempt) -> dict[str, Any]:
    return {
        "server": one.server or None,
        "address": _written(one.address),
        "result": one.result,
        "error": one.error or None,
        "ms": one.ms,
    }


def _candidate_json(one: Server) -> dict[str, Any]:
    return {
        "server": one.name,
        "address": str(one.address),
        "rank": one.rank,
        "weight": one.weight,
        "admin": str(one.admin),
        "max_connections": one.max_connections,
    }


def _tcp_json(info: TcpInfo | None) -> dict[str, Any] | None:
    return None if info is None else info._asdict()


def _written(address: Address | None) -> str | None:
    return None if address is None else str(address)
