"""The stream of the status page: everything at first, then what changed, once a second and at every event.

After each look of the sampler at the counters, one task compares, and makes each message once for all readers. It works in
slices: a thousand frontends must not hold the loop. For a reader that does not take its messages nothing is buffered: it is
dropped, and the browser connects again and gets everything.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pylb.control.event_log import Event
from pylb.control.health_sentence import Condition, condition, overall, said, since_down
from pylb.control.registry import Registry
from pylb.control.steps import in_turns
from pylb.control.tasks import Part
from pylb.core.errors import Code, Refused
from pylb.statuspage.records import (
    NOTHING,
    TABLES,
    Record,
    changed,
    frontend_record,
    registration_key,
    registration_record,
    server_record,
)
from pylb.statuspage.timeseries import MARKED, POINTS, Point, TimeSeries, plain

SOON = 0.1  # seconds after an event, so that a burst of them becomes one message
SLICE = 10  # frontends between two turns of the loop: with ten servers each, ~2 ms
MOST_STREAMS = 16
MOST_OF_ONE = 8  # readers from one source, so that nobody takes all places
BACKLOG = 8  # messages that wait for a reader: eight seconds
EVENTS = 300  # the most recent ones, in the first message


class _Reader:
    """One open page. Its queue is bounded, and all readers share the messages."""

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue(BACKLOG)
        self.knows = False  # has it got the first message?


class PageStream:
    """`history`: what the sampler measures; it calls `sampled` after each look. `about`: what changes at most with a
    reload. `watched` is set while there is a reader."""

    def __init__(
        self,
        registry: Registry,
        history: TimeSeries,
        about: Callable[[], Mapping[str, Any]],
        *,
        also: Callable[[], Iterable[str]] = lambda: (),
        peers: Callable[[], list[dict[str, Any]]] = list,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._history = history
        self._about = about
        self._also = also
        self._peers = peers
        self._clock = clock
        self._wall = wall
        self._readers: list[_Reader] = []
        self._wake = asyncio.Event()
        self.watched = asyncio.Event()
        self._point: Point | None = None  # not sent to readers yet
        self._tables: dict[str, dict[str, Record]] = {name: {} for name in TABLES}
        self._sent = 0  # events of the event log that were sent
        self._about_sent: Mapping[str, Any] = NOTHING
        self._peers_sent: list[dict[str, Any]] = []

    # ------------------------------------------------------------ readers

    def note(self, event: Event) -> None:
        """To be called with every event. Cheap."""
        self._history.note(event)
        self._wake.set()

    def sampled(self) -> None:
        """Called when the history has a new sample."""
        self._point = self._history.point
        self._wake.set()

    def stream(self, source: bytes = b"") -> AsyncGenerator[bytes]:
        """Messages as server-sent events, the first one complete; to be closed. Raises Refused if too many watch, or too many
        from one source (web.source.network_of)."""
        most = [one.source for one in self._readers].count(source) >= MOST_OF_ONE
        if most or len(self._readers) >= MOST_STREAMS:
            count = f"{MOST_OF_ONE} pages from your address" if most else f"{MOST_STREAMS} pages"
            raise Refused(Code.TOO_MANY, f"{count} are open already", "close one", retry_after=5)
        reader = _Reader(source)
        self._readers.append(reader)
        self.watched.set()
        self._wake.set()
        return self._messages(reader)

    async def _messages(self, reader: _Reader) -> AsyncGenerator[bytes]:
        try:
            while (message := await reader.queue.get()) is not None:
                yield message
        finally:
            with suppress(ValueError):
                self._forget(reader)

    def _tell(self, reader: _Reader, message: bytes) -> None:
        try:
            reader.queue.put_nowait(message)
        except asyncio.QueueFull:
            self._drop(reader)

    def _drop(self, reader: _Reader) -> None:
        """Drop a reader and what waits for it: when it connects again it gets everything."""
        self._forget(reader)
        while not reader.queue.empty():
            reader.queue.get_nowait()
        reader.queue.put_nowait(None)

    def _forget(self, reader: _Reader) -> None:
        """Raises ValueError if it was dropped before."""
        self._readers.remove(reader)
        if not self._readers:
            self.watched.clear()

    # ------------------------------------------------------------ the task

    async def run(self) -> None:
        """Runs until it is cancelled."""
        try:
            while True:
                await self._wake.wait()
                if self._point is None:
                    await asyncio.sleep(SOON)
                await self._look_and_survive()
        finally:
            for reader in list(self._readers):
                self._drop(reader)

    async def _look_and_survive(self) -> None:
        """A bug here may cost the page, but nothing that is forwarded."""
        try:
            await self.look()
        except Exception as error:  # noqa: BLE001 - the task boundary, so that it goes on at its pace
            self._registry.tasks.failed(Part.PAGE, error)
            for reader in list(self._readers):
                self._drop(reader)

    async def look(self) -> None:
        """Look once, and send what changed to all readers."""
        self._wake.clear()
        point, self._point = self._point, None
        if not self._readers:
            self._tables = {name: {} for name in TABLES}  # nobody needs to know what has changed since
            return
        readers = list(self._readers)
        delta, found = await self._paint()
        head = self._head(found)
        if (peers := self._peers()) != self._peers_sent:
            self._peers_sent = head["peers"] = peers
        events, noted, about = self._registry.events(), self._registry.noted, self._about()
        if about != self._about_sent:
            self._about_sent = about
            head["about"] = about
        if any(reader.knows for reader in readers):
            news = [event for event in events if event.number > self._sent]
            message = await _framed(self._news(point, news) | head, in_turns(delta, SLICE * 100))
            for reader in readers:
                if reader.knows and reader in self._readers:
                    self._tell(reader, message)
        if not all(reader.knows for reader in readers):
            message = await _framed(self._everything(events[-EVENTS:]) | head, self._whole())
            for reader in readers:
                if not reader.knows and reader in self._readers:
                    reader.knows = True
                    self._tell(reader, message)
        self._sent = noted

    # ------------------------------------------------------------ the tables

    async def _paint(self) -> tuple[list[tuple[str, bytes]], list[tuple[Condition, str]]]:
        """Rebuild the tables. Returns what changed in them, if anybody reads, and the condition of each frontend.

        A change is the name of the table and `"key":{fields}`, or only `key` for a removed record.

        The old tables are emptied one record at a time: freeing ten thousand at once would hold the loop for 10 ms.
        """
        old, wanted = self._tables, any(reader.knows for reader in self._readers)
        tables: dict[str, dict[str, Record]] = {name: {} for name in TABLES}
        delta: list[tuple[str, bytes]] = []

        def put(table: str, key: str, record: Record) -> None:
            tables[table][key] = record
            before = old[table].pop(key, NOTHING)
            if wanted and (fields := changed(before, record)):
                delta.append((table, _pair(key, fields)))

        async for person in in_turns(self._registry.each_registration(), SLICE * 5):
            put("registrations", registration_key(person), registration_record(person))
        conditions, registry, history = [], self._registry, self._history
        down_at = since_down(registry.events())
        async for one in in_turns(registry.each_frontend(), SLICE):
            listen = one.listen
            conditions.append(condition(one, down_at, self._wall()))
            counted, rate, rates = history.count(listen), history.rate(listen), history.server_rates(listen)
            word, text = conditions[-1]
            if text:
                _, text = condition(one, down_at, None)  # with a time, its text would be a change each second
            put("frontends", str(listen), frontend_record(one, str(word), text, counted, rate))
            most = {server.address: server.max_connections for server in one.frontend.servers}
            async for view in in_turns(one.servers, SLICE * 10):
                check = registry.last_check(listen, view.address)
                asked_at = check[0] if check else None
                record = server_record(view, most[view.address], asked_at, counted, rates.get(view.server, 0.0))
                put("servers", f"{listen}|{view.address}", record)
        if wanted:
            delta += [(f"gone.{name}", json.dumps(key).encode()) for name in TABLES for key in old[name]]
        self._tables = tables
        return delta, conditions

    async def _whole(self) -> AsyncIterator[tuple[str, bytes]]:
        """All records, in the form that `_paint` uses for changes."""
        for name, table in self._tables.items():
            async for key, record in in_turns(table.items(), SLICE * 5):
                yield name, _pair(key, record)

    def _head(self, conditions: Sequence[tuple[Condition, str]]) -> dict[str, Any]:
        """The beginning of each message."""
        registry, also = self._registry, list(self._also())
        head = {"clock": round(self._clock(), 2), "now": round(self._wall(), 2), "sentence": said(conditions, also)}
        head["health"] = str(overall(conditions, durable=registry.durable, also=also))
        return head | {"generation": registry.table.generation, "durable": registry.durable}

    def _everything(self, events: Iterable[Event]) -> dict[str, Any]:
        marks = self._history.marks(self._wall() - POINTS)
        return {
            "whole": True,
            "about": self._about_sent,
            "peers": self._peers_sent,
            "history": self._history.columns(),
            "marks": [list(mark) for mark in marks],
            "events": [_event(event) for event in events],
        }

    def _news(self, point: Point | None, events: Iterable[Event]) -> dict[str, Any]:
        news: dict[str, Any] = {"events": [_event(event) for event in events]}
        if point is not None:
            news["point"] = {name: plain(name, value) for name, value in zip(Point._fields, point, strict=True)}
        return news


def _event(event: Event) -> dict[str, Any]:
    found = {"time": round(event.at, 2), "kind": event.kind, "text": event.text}
    return found | {name: True for name, is_so in (("alarm", event.alarm), ("mark", event.kind in MARKED)) if is_so}


def _pair(key: str, fields: Record) -> bytes:
    return b"%s:%s" % (json.dumps(key).encode(), json.dumps(fields, separators=(",", ":")).encode())


async def _framed(head: Mapping[str, Any], pairs: AsyncIterator[tuple[str, bytes]]) -> bytes:
    """One message of text/event-stream: JSON has no line breaks. Each table is collected in a separate buffer: megabytes would
    otherwise be joined, and freed, at once."""
    tables: dict[str, bytearray] = {}
    async for name, pair in pairs:
        table = tables.setdefault(name, bytearray())
        table += b",%s" % pair if table else pair
    parts: list[bytes | bytearray] = [b"data: ", json.dumps(head, separators=(",", ":")).encode()[:-1]]
    for name in TABLES:
        if found := tables.get(name):
            parts += [b',"%s":{' % name.encode(), found, b"}"]
        if keys := tables.get(f"gone.{name}"):
            parts += [b',"gone_%s":[' % name.encode(), keys, b"]"]
    return b"".join([*parts, b"}\n\n"])
