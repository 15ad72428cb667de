"""What choosing a server costs, and how evenly it spreads sessions: `python -m bench balance`.

Every algorithm runs over pools of 2 and 1,000 servers with 100 live sessions, each new one for another client. Access lists and
limits by source are measured, too. It is pure Python in one process without sockets, and gives the microseconds per session
and the busiest server's load relative to the mean.
"""

import argparse
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from bench.tables import aligned
from pylb.core.access import AccessList, AccessRule
from pylb.core.balance import balancer
from pylb.core.policy import Balance, SourceLimits
from pylb.core.rate_limits import SourceLimiter

SESSIONS, LIVE = 20_000, 100
POOLS = (2, 1000)
PREFIXES = (10, 10_000)


@dataclass(eq=False)
class _Server:
    identity: str
    weight: float = 1
    sessions: int = 0
    most: int = 0
    turn: float = 0.0


def picks(algorithm: Balance, size: int) -> tuple[float, float, float]:
    """→ microseconds per session, milliseconds to make the pool (its first pick included), busiest server against the mean."""
    servers = [_Server(f"192.0.{number >> 8}.{number & 255}:30443") for number in range(size)]
    clients = [f"198.18.{number >> 8 & 255}.{number & 255}" for number in range(SESSIONS)]
    began = time.perf_counter()
    pool = balancer(algorithm, servers, random.Random(1).random)
    pool.pick("192.0.2.1", ())
    made = time.perf_counter() - began
    taken: Counter[str] = Counter()
    live: list[_Server] = []
    began = time.perf_counter()
    for client in clients:
        server = pool.pick(client, ())
        if server is None:
            raise ValueError("a pool without a server")
        server.sessions += 1
        live.append(server)
        taken[server.identity] += 1
        if len(live) > LIVE:
            ended = live[-LIVE - 1]
            ended.sessions -= 1
            pool.ended(ended)
    spent = time.perf_counter() - began
    return spent / SESSIONS * 1e6, made * 1e3, max(taken.values()) * size / SESSIONS


def _each(work: Callable[[bytes], object]) -> float:
    """Microseconds for each of many addresses."""
    addresses = [ip_address(0xC6120000 + number).packed for number in range(SESSIONS)]
    began = time.perf_counter()
    for address in addresses:
        work(address)
    return (time.perf_counter() - began) / SESSIONS * 1e6


def look_ups(prefixes: int) -> float:
    """Microseconds per client for an access list of so many prefixes."""
    rules = [AccessRule(number % 2 == 0, ip_network((0xC6120000 + 4 * number, 30))) for number in range(prefixes)]
    return _each(AccessList(rules).allows)


def limits() -> float:
    """Microseconds to count a client in and out, each from another source."""
    sources = SourceLimiter(SourceLimits(per_source=10, per_source_rate=10))

    def come_and_go(address: bytes) -> None:
        source = sources.source(address)
        sources.enter(source, time.monotonic())
        sources.leave(source)

    return _each(come_and_go)


def main(argv: list[str]) -> int:
    """`python -m bench balance`."""
    argparse.ArgumentParser("python -m bench balance", description=__doc__).parse_args(argv)
    rows = []
    for algorithm in Balance:
        for size in POOLS:
            spent, made, busiest = picks(algorithm, size)
            rows.append([f"{algorithm} of {size:,}", f"{spent:.1f}", f"{made:.2f}", f"{busiest:.2f}"])
    rows += [[f"access list of {prefixes:,}", f"{look_ups(prefixes):.1f}", "", ""] for prefixes in PREFIXES]
    rows.append(["limits by source", f"{limits():.1f}", "", ""])
    print("\n".join(aligned([["", "µs/session", "made in ms", "busiest/mean"], *rows])))
    return 0
