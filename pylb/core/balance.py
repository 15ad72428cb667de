"""Which server is next. One small class per algorithm; a balancer is rebuilt for each table.

Picking among 1,000 servers costs about as much as picking among two, up to a logarithm (`python -m bench balance`). Nothing
here reads the clock, and randomness is an argument.

A server is *usable* for a session if it has weight, the session has not tried it, and it is not full. A full server has done
nothing wrong: the session waits for it (`is_full`) rather than go to a worse one.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from itertools import accumulate
from math import floor, log2
from struct import unpack
from typing import Any, Generic, Protocol, TypeVar

from pylb.core.policy import Balance


class Load(Protocol):
    """A server as the balance sees it."""

    weight: float  # 0: no new sessions
    sessions: int  # live ones
    most: int  # sessions at once; 0: no limit
    turn: float  # whose turn it is among equals, the lowest first; set only here, and carried from table to table

    @property
    def identity(self) -> str:
        """Stable over restarts: `source` hashes it."""


L = TypeVar("L", bound=Load)


def has_room(server: Load) -> bool:
    return not server.most or server.sessions < server.most


class Balancer(Protocol[L]):
    """The servers of one rank. The caller counts up `sessions` of a picked server, and down before `ended`."""

    def pick(self, client: str, tried: Collection[L]) -> L | None:
        """None: none is usable. `client`: its IP address."""

    def ended(self, server: L) -> None:
        """It has one session fewer. To be called for these servers only, including those of weight 0."""

    def is_full(self, tried: Collection[L]) -> bool:
        """After a `pick` of None: would one be usable if it had room?"""


class _Pool(Generic[L]):
    """What all algorithms share."""

    def __init__(self, servers: Sequence[L]) -> None:
        self._servers = [server for server in servers if server.weight > 0]

    def ended(self, server: L) -> None:
        """Nothing to do: this algorithm does not track loads."""

    def is_full(self, tried: Collection[L]) -> bool:
        return any(server not in tried for server in self._servers)

    def _first_usable(self, start: int, tried: Collection[L]) -> L | None:
        """The first from position `start` on, around the end. O(n) only while most are full."""
        servers = self._servers
        for server in (*servers[start:], *servers[:start]):
            if server not in tried and has_room(server):
                return server
        return None


_Entry = tuple[float, float, int, L]  # load, turn, place, server


class _Ordered(_Pool[L]):
    """Always the least loaded; equals take turns by weight. A heap with one valid entry per server.

    A load that grew is corrected when its entry comes up, one that shrank at once, and outdated entries are skipped: O(log n)
    per session in all. Turns are stride scheduling (Waldspurger 1995): a server's turn advances by 1/weight, so that shares
    follow the weights and a heavy server's turns are spread out.
    """

    def __init__(self, servers: Sequence[L], load: Callable[[L], float]) -> None:
        super().__init__(servers)
        self._load = load
        self._places = {server: place for place, server in enumerate(self._servers)}
        # The turn of the last pick. A server that is new or was away starts there, and does not make up for its absence.
        self._now = max((server.turn - 1 / server.weight for server in self._servers if server.turn), default=0.0)
        for server in self._servers:
            server.turn = max(server.turn, self._now) if server.turn else self._now + 0.5 / server.weight
        self._valid: dict[L, _Entry[L]] = {}
        self._heap: list[_Entry[L]] = []
        self._rebuild()

    def _rebuild(self) -> None:
        self._valid = {server: self._entry(server) for server in self._servers if has_room(server)}
        self._heap = list(self._valid.values())
        heapify(self._heap)

    def _entry(self, server: L) -> _Entry[L]:
        return (self._load(server), server.turn, self._places[server], server)

    def pick(self, client: str, tried: Collection[L]) -> L | None:  # noqa: ARG002 - the same for every client
        heap, valid, aside = self._heap, self._valid, []
        chosen = None
        while heap:
            entry = heap[0]
            server = entry[3]
            if valid.get(server) is not entry:
                heappop(heap)
            elif not has_room(server):
                heappop(heap)
                del valid[server]  # until `ended`
            elif self._load(server) != entry[0]:
                valid[server] = entry = self._entry(server)
                heapreplace(heap, entry)
            elif server in tried:
                aside.append(heappop(heap))
            else:
                self._now = entry[1]
                server.turn += 1 / server.weight
                valid[server] = entry = (entry[0], server.turn, entry[2], server)
                heapreplace(heap, entry)
                chosen = server
                break
        for entry in aside:
            heappush(heap, entry)
        return chosen

    def ended(self, server: L) -> None:
        known = self._valid.get(server)
        if server not in self._places or (known is not None and known[0] <= self._load(server)):
            return  # it gets no sessions anyway, or picks have not caught up with those it has
        server.turn = max(server.turn, self._now)
        self._valid[server] = entry = self._entry(server)
        heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._servers) + 64:
            self._rebuild()


def leastconn(servers: Sequence[L]) -> Balancer[L]:
    """The fewest live sessions per weight; equals take turns by weight."""
    return _Ordered(servers, lambda server: server.sessions / server.weight)


def roundrobin(servers: Sequence[L]) -> Balancer[L]:
    """Turns by weight, a heavy server's spread out."""
    return _Ordered(servers, lambda _server: 0.0)


def first(servers: Sequence[L]) -> Balancer[L]:
    """The first in the table's order that has room, so that servers at its end can be switched off at night."""
    places = {server: float(place) for place, server in enumerate(servers)}
    return _Ordered(servers, places.__getitem__)


class _Random(_Pool[L]):
    """The less loaded of two drawn by weight (Mitzenmacher 2001): nearly leastconn, and a new server is not swamped."""

    def __init__(self, servers: Sequence[L], random: Callable[[], float]) -> None:
        super().__init__(servers)
        self._random = random  # uniform over [0, 1)
        self._sums = list(accumulate(server.weight for server in self._servers))

    def pick(self, client: str, tried: Collection[L]) -> L | None:  # noqa: ARG002 - the same for every client
        if not self._servers:
            return None
        one, two = self._draw(), self._draw()
        if two.sessions * one.weight < one.sessions * two.weight:
            one, two = two, one
        for server in (one, two, self._draw(), self._draw()):
            if server not in tried and has_room(server):
                return server
        return self._first_usable(int(self._random() * len(self._servers)), tried)

    def _draw(self) -> L:
        return self._servers[bisect_right(self._sums, self._random() * self._sums[-1])]


PROBES = 21  # hashes per client
POINTS = 16  # per server of mean weight: shares then differ from the weights by at most a tenth
_PLACE_BITS = 16  # bits of a point that say which server it is; the rest is the hash
_RING = 1 << 64
_SPREAD = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: multiples of it are spread over the ring


class _Source(_Pool[L]):
    """The client's address decides: its server is the one whose point on the ring follows one of the client's probes closest.

    Multi-probe consistent hashing (Appleton and O'Reilly 2015, arXiv:1505.00062): few points per server and several probes
    per client, where a classic ring needs hundreds of points for the same balance. A server that leaves moves only its own
    clients, and a new one takes over only its share; unless the mean weight crosses a power of two, which moves many.
    """

    def __init__(self, servers: Sequence[L]) -> None:
        from hashlib import shake_128  # noqa: PLC0415 - it loads OpenSSL: 4 MB, which workers without such a pool do not need

        super().__init__(servers)
        self._hash = shake_128
        self._points: list[int] = []

    def _make_ring(self) -> list[int]:
        """Built for the first client, as 1,000 servers take some milliseconds. A point's low bits are its server."""
        per_weight = 2.0 ** -floor(log2(sum(server.weight for server in self._servers) / len(self._servers))) * POINTS
        points = self._points
        for place, server in enumerate(self._servers):
            count = max(1, round(server.weight * per_weight))
            hashes = unpack(f">{count}Q", self._hash(server.identity.encode()).digest(8 * count))
            points += [point >> _PLACE_BITS << _PLACE_BITS | place for point in hashes]
        points.sort()
        return points

    def pick(self, client: str, tried: Collection[L]) -> L | None:
        if len(self._servers) < 2:  # nothing to choose
            return self._first_usable(0, tried)
        points = self._points or self._make_ring()
        start, step = divmod(int.from_bytes(self._hash(client.encode()).digest(8), "big"), 1 << 32)
        probe, step = start * _SPREAD, (step | 1) * _SPREAD
        nearest, best = _RING, 0
        for _ in range(PROBES):
            probe = (probe + step) % _RING
            place = bisect_left(points, probe)
            distance = points[place] - probe if place < len(points) else points[0] + _RING - probe
            if distance < nearest:
                nearest, best = distance, place % len(points)
        for place in range(best, best + len(points)):
            server = self._servers[points[place % len(points)] & (1 << _PLACE_BITS) - 1]
            if server not in tried and has_room(server):
                return server
        return None


def balancer(algorithm: Balance, servers: Sequence[L], random: Callable[[], float]) -> Balancer[L]:
    if algorithm is Balance.RANDOM:
        return _Random(servers, random)
    return _MAKERS[algorithm](servers)


_MAKERS: dict[Balance, Callable[[Sequence[Any]], Balancer[Any]]] = {
    Balance.LEASTCONN: leastconn,
    Balance.ROUNDROBIN: roundrobin,
    Balance.SOURCE: _Source,
    Balance.FIRST: first,
}
