"""The connections of an HTTP listener, counted by source, and the choice of the one to cut when there are too many.

A source is an IPv4 address or an IPv6 /64 (`network_of`). Nothing here touches a socket. The connection to cut is chosen at
random among those of the largest source, because an attacker could exploit a fixed rule: if the oldest were cut, it would
only have to reconnect quickly.
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
    waits_since: float  # loop time when it was accepted or last answered
    watched: bool = False  # the loop watches `sock` for its first byte, and nothing else exists for it yet
    timer: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None  # the TLS handshake or a plain connection's set-up; later, a stream
    protocol: web.RequestHandler | None = None
    busy: bool = False  # a complete request is being answered
    streams: bool = False  # the answer is a stream, which has no end
    asked: int = 0  # requests so far


class Connections:
    """All connections of one listener."""

    def __init__(self, limits: HttpLimits, draw: Callable[[Sequence[Connection]], Connection] = random.choice) -> None:
        self._limits = limits
        self._draw = draw
        self._of: dict[bytes, dict[Connection, None]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Connection]:
        """The connections of this moment; they may come and go during the iteration."""
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
        """If there are too many connections, cut one that has no complete request yet. False: there is none to cut.

        A burst of honest calls from one source (a node that comes back) arrives complete and is served. Incomplete ones
        beyond the source's share are cut after `patience`, or first of all when the overall cap is reached.
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
        largest = self._largest()
        if largest:
            cut(self._draw(largest))
        return bool(largest)

    def _largest(self) -> list[Connection]:
        """The waiting connections of the largest source, or sources of equal size, in the largest neighbourhood."""
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
    """The IPv4 /24 or IPv6 /48 of a source. Whoever has one /64 often has all 65,536 of its /48."""
    return source[: 3 if len(source) == 4 else 6]
