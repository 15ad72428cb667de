"""The flight recorder: the most recently ended sessions, in memory, and how to find them.

Each process records the sessions that it ended itself. What is stored existed anyway: the session, with the frontend as it was
when the server was picked, and the kernel's raw bytes on both connections. Anything that takes time is done only when somebody
asks.
"""

import re
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from itertools import islice
from typing import NamedTuple, Protocol

from pylb.core.address import Address, Listen, Network, in_networks
from pylb.core.flow import FlowEvent
from pylb.core.session import Event, SessionRecord, SessionView
from pylb.core.table import Frontend, Server
from pylb.core.tcp_info import TcpInfo, parse_tcp_info

SCAN = 64  # sessions looked at in one step of a search: at most 1 ms
REFUSED_SHARE = 4  # clients refused by pylb get a quarter of the room: in a flood of them all look the same
_WORKER_SHIFT = 48
_ID = re.compile(r"0x([0-9a-fA-F]{1,16})")


def first_number(worker: int) -> int:
    """A worker (0: the main process) numbers its sessions from the next number on: no two workers share a number."""
    return worker << _WORKER_SHIFT


def session_id(number: int) -> str:
    """The form that is shown everywhere."""
    return f"0x{number:x}"


def parse_session_id(text: str) -> int:
    """Raises ValueError."""
    found = _ID.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:40]!r} is not a session id, as in 0x1a2b")
    return int(found[1], 16)


class Attempt(NamedTuple):
    """A step on the way to a server that did not lead to one."""

    server: str  # its label; "" for a wait in the queue
    address: Address | None
    result: str  # refused, timeout, unreachable, resource; waited
    error: str  # name of the errno; "": our own timeout, or the queue
    ms: int


class RecordedSession(NamedTuple):
    """A session as it was when it ended, or as it is now. Times in seconds: whoever asks does the rounding."""

    record: SessionRecord
    state: str
    frontend: Frontend  # as it was when a server was last picked
    generation: int  # of the table then
    address: Address | None  # the server's
    attempts: Sequence[Attempt]
    dial: float | None  # of the connect that succeeded
    first: Event | FlowEvent | None  # the event that ended it or began its end; None while there is none
    first_at: float  # when that was, from the accept on
    client_tcp: bytes  # TCP_INFO, b"" without one
    server_tcp: bytes
    reason: str = ""  # the last thing that went wrong; for a refused client the label of pylb_frontend_denied_total

    @property
    def code(self) -> str:
        return self.record.code

    @property
    def number(self) -> int:
        return self.record.number

    def recorded(self) -> "RecordedSession":
        return self


class Ended(Protocol):
    """An ended session as the recorder stores it. What is shown of it is made when somebody asks."""

    @property
    def code(self) -> str: ...

    @property
    def number(self) -> int: ...

    def recorded(self) -> RecordedSession: ...


class SessionTrace(NamedTuple):
    """A session as it is shown to whoever asks, also over the channel between two processes."""

    id: str
    record: SessionRecord
    state: str
    listen: Listen
    address: Address | None
    generation: int
    balance: str
    attempts: tuple[Attempt, ...]
    dial_ms: int
    closed_by: str  # client, server, pylb; "": still open
    closed_how: str  # FIN, reset; by pylb: timed out, killed, refused, no server left
    closed_ms: int  # from the accept on; -1: not yet
    client_tcp: TcpInfo | None
    server_tcp: TcpInfo | None
    candidates: tuple[Server, ...] = ()  # only if the session was asked for by its id
    reason: str = ""  # why pylb refused the client

    @property
    def ended_at(self) -> float:
        """Unix time, seconds."""
        return ended_at(self.record)


class Query(NamedTuple):
    """Selects sessions: those that match every field that is set."""

    client: tuple[Network, ...] = ()  # any of them
    frontend: str = ""  # name, port or ADDRESS:PORT
    server: str = ""  # label or IP:PORT
    codes: tuple[str, ...] = ()  # any of them
    since: float = 0.0  # unix time of the end, seconds
    limit: int = 100
    text: str = ""  # occurs in the client's or the server's address, in a label, in the name that it asked for, or in the state
    by: str = "age"  # of live ones, which come first: the oldest ("age") or those that moved most ("bytes")


_PARTED: dict[Event | FlowEvent, tuple[str, str]] = {
    Event.CLIENT_FIN: ("client", "FIN"),
    Event.CLIENT_RESET: ("client", "reset"),
    Event.SERVER_FIN: ("server", "FIN"),
    Event.SERVER_RESET: ("server", "reset"),
}


def ended_at(record: SessionRecord) -> float:
    """Unix time, seconds."""
    return record.accepted_at + record.total_ms / 1000


def trace_of(entry: RecordedSession, *, whole: bool = False) -> SessionTrace:
    """A recorded session as queries show it. `whole`: with the servers that there were to choose from."""
    by, how = ("", "")
    if entry.first is not None:
        by, how = _PARTED.get(entry.first, ("pylb", entry.first.value))
    return SessionTrace(
        session_id(entry.record.number),
        entry.record,
        entry.state,
        entry.frontend.listen,
        entry.address,
        entry.generation,
        entry.frontend.policy.balance.value,
        tuple(entry.attempts),
        -1 if entry.dial is None else round(entry.dial * 1000),
        by,
        how,
        -1 if entry.first is None else round(entry.first_at * 1000),
        parse_tcp_info(entry.client_tcp),
        parse_tcp_info(entry.server_tcp),
        entry.frontend.servers if whole else (),
        entry.reason if entry.record.code[:1] == "P" else "",
    )


def is_meant(query: Query, entry: RecordedSession) -> bool:
    """Does an ended session match?"""
    record = entry.record
    if query.codes and record.code not in query.codes:
        return False
    if ended_at(record) < query.since:
        return False
    return _fits(query, record, entry.frontend.listen, entry.address, entry.state)


def is_meant_live(query: Query, view: SessionView) -> bool:
    """Does a live session match? It has no code, and no end."""
    return _fits(query, view, view.listen, view.address, view.state)


def _fits(query: Query, one: SessionRecord | SessionView, listen: Listen, address: Address | None, state: str) -> bool:
    if query.frontend and query.frontend != one.frontend and not listen.is_named(query.frontend):
        return False
    if query.server and query.server not in (one.server, str(address)):
        return False
    if query.text:
        words = str(Address(one.client, one.client_port)), one.frontend, one.server, str(address or ""), state, one.asked
        if not any(query.text in word for word in words):
            return False
    return not query.client or in_networks(one.client.partition("%")[0], query.client)


class FullSince(NamedTuple):
    code: str
    since: float


class Coverage(NamedTuple):
    """How far back a recorder goes. Unix times, seconds."""

    began: float  # every session that ended since then was recorded
    full: tuple[FullSince, ...] = ()  # endings whose ring is full: only sessions since a later time are still there


class SearchResult(NamedTuple):
    """The answer to a Query."""

    traces: Sequence[SessionTrace]  # the newest first
    reach: Coverage


def joined(reaches: Iterable[Coverage], codes: Sequence[str] = ()) -> Coverage:
    """The range that all of these recorders cover. If there are `codes`, only for these."""
    began, full = 0.0, defaultdict[str, float](float)
    for one in reaches:
        began = max(began, one.began)
        for bound in one.full:
            if not codes or bound.code in codes:
                full[bound.code] = max(full[bound.code], bound.since)
    return Coverage(began, tuple(FullSince(code, since) for code, since in sorted(full.items()) if since > began))


class Recorder:
    """The last `size` sessions of each kind of ending in this process. So a failure is not pushed out by sessions that end
    well, or by failures of another kind. There are some 25 endings, and on a bad day a few of them are frequent.

    `now`: unix time.
    """

    def __init__(self, size: int, now: float = 0.0) -> None:
        self._began = now
        self._size = size
        self._rings: dict[str, deque[Ended]] = {}  # by code

    def add(self, entry: Ended) -> None:
        code = entry.code
        try:
            ring = self._rings[code]
        except KeyError:
            most = max(1, self._size // REFUSED_SHARE) if code[0] == "P" else self._size
            ring = self._rings[code] = deque(maxlen=most)
        ring.append(entry)

    @property
    def reach(self) -> Coverage:
        """A full ring may have lost sessions that ended before its oldest one."""
        bounds = (
            FullSince(code, ended_at(ring[0].recorded().record))
            for code, ring in self._rings.items()
            if len(ring) == ring.maxlen
        )
        return joined([Coverage(self._began, tuple(bounds))])

    def search(self, query: Query) -> Iterator[list[SessionTrace]]:
        """The sessions that match, newest first, at most query.limit; in steps, between which other work may run."""
        left = query.limit
        rings = [list(reversed(ring)) for code, ring in self._rings.items() if not query.codes or code in query.codes]
        recorded = (map(_recorded, ring) for ring in rings)
        newest_first = merge(*recorded, key=lambda entry: -ended_at(entry.record))
        while left > 0 and (some := list(islice(newest_first, SCAN))):
            found = [entry for entry in some if is_meant(query, entry)][:left]
            left -= len(found)
            yield [trace_of(entry) for entry in found]

    def find(self, number: int) -> SessionTrace | None:
        for ring in self._rings.values():
            for entry in reversed(ring):
                if entry.number == number:
                    return trace_of(entry.recorded(), whole=True)
        return None

    def clear(self) -> None:
        """Forget all of them."""
        self._rings.clear()


def _recorded(entry: Ended) -> RecordedSession:
    return entry.recorded()
