"""Which server is next. Pure: the loads are given, the choice comes back, nothing else is kept but each server's `credit`."""

from collections.abc import Sequence
from typing import Protocol, TypeVar


class Load(Protocol):
    """A server as the balance sees it."""

    weight: int  # 0: no new sessions
    sessions: int  # live ones
    credit: int  # smooth round robin's memory, owned by this module


L = TypeVar("L", bound=Load)


def leastconn(servers: Sequence[L]) -> L | None:
    """The fewest live sessions per weight; equals take turns by smooth round robin. None if all weights are 0."""
    if len(servers) == 1:  # the usual case
        return servers[0] if servers[0].weight > 0 else None
    best: list[L] = []
    for server in servers:
        if server.weight <= 0:
            continue
        # sessions/weight compared without division: a/b < c/d  <=>  a*d < c*b
        order = server.sessions * best[0].weight - best[0].sessions * server.weight if best else -1
        if order < 0:
            best = [server]
        elif order == 0:
            best.append(server)
    return roundrobin(best) if best else None


def roundrobin(servers: Sequence[L]) -> L | None:
    """Smooth weighted round robin (nginx, 2012): shares follow weights and the heavy server's turns are spread out."""
    chosen: L | None = None
    total = 0
    for server in servers:
        if server.weight <= 0:
            continue
        total += server.weight
        server.credit += server.weight
        if chosen is None or server.credit > chosen.credit:
            chosen = server
    if chosen is not None:
        chosen.credit -= total
    return chosen
