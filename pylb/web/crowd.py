"""Who is connected to an HTTP listener, counted by source, and who has to go when there are too many.

A source is what `network_of` says: an IPv4 address or an IPv6 /64. Nothing here touches a socket; who is cut is a random one
of the crowd, since a flood would always outlive a rule that it knows (the oldest goes: it only has to be fast).
"""

import asyncio
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from aiohttp import web

from pylb.web.listener import HttpLimits


@dataclass(slots=True, eq=False)
class Connection:
    """One accepted client, from accept to the end of its last answer."""

    peer: str
    source: bytes
    sock: socket.socket
    waits_since: float  # loop time of its accept or of its last answer
    watched: bool = False  # the loop watches `sock` for its first byte; nothing else of it exists yet
    timer: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None  # the TLS handshake or a plain connection's set-up; later, a stream
    protocol: web.RequestHandler | None = None
    busy: bool = False  # a complete request is being answered
    streams: bool = False  # by an answer without an end
    asked: int = 0  # requests so far


class Crowd:
    """All connections of one listener."""

    def __init__(self, limits: HttpLimits, draw: Callable[[Sequence[Connection]], Connection] = random.choice) -> None:
        self._limits = limits
        self._draw = draw
        self._of: dict[bytes, dict[Connection, None]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Connection]:
        """Of those there are now: it may be changed meanwhile."""
        return iter([one for members in self._of.values() for one in members])

    def add(self, connection: Connection) -> None:
        self._of.setdefault(connection.source, {})[connection] = None
        self._size += 1

    def discard(self, connection: Connection) -> None:
        """Idempotent."""
        members = self._of.get(connection.source, {})
        if connection in members:
            del members[connection]
            self._size -= 1
            if not members:
                del self._of[connection.source]

    def make_room(self, source: bytes, now: float, cut: Callable[[Connection], None]) -> bool:
        """Cut one who waits without a complete request where there are too many; False if there is nobody to cut.

        A burst of honest calls from one source (a node that comes back) is complete at once and is served. What stays
        incomplete beyond the source's share goes after `patience`, or at the overall cap before anybody else's.
        """
        limits = self._limits
        own = self._of.get(source, {})
        if len(own) >= limits.per_address:
            late = [one for one in own if not one.busy and now - one.waits_since >= limits.patience]
            if late:
                cut(self._draw(late))
                return True
        if self._size < limits.connections:
            return True
        crowd = self._largest()
        if crowd:
            cut(self._draw(crowd))
        return bool(crowd)

    def _largest(self) -> list[Connection]:
        """Who waits in the largest crowd: of the largest neighbourhood its largest source, or those of equal size."""
        wide = Counter[bytes]()
        for source, members in self._of.items():
            wide[_neighbourhood(source)] += len(members)
        found: list[Connection] = []
        most = (0, 0)
        for source, members in self._of.items():
            size = (wide[_neighbourhood(source)], len(members))
            if size >= most and (waiting := [one for one in members if not one.busy]):
                found = found + waiting if size == most else waiting
                most = size
        return found


def _neighbourhood(source: bytes) -> bytes:
    """An IPv4 /24 or an IPv6 /48: who has one /64 often has the 65,536 beside it."""
    return source[: 3 if len(source) == 4 else 6]
