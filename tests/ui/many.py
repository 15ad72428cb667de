"""Hundreds of frontends, and traffic that moves every number of them."""

from collections.abc import Mapping

from pylb.core.address import Address, Listen
from pylb.core.policy import Policy, Rules, StaticFrontend, StaticServer
from pylb.core.table import Frontend
from pylb.forward.counters import FrontendCounters, ServerCounters
from tests.support.ports import PORTS

FRONTENDS = 500
SERVERS = 2
IP = "127.0.5.1"  # nobody else's: only this file's ports are taken on it


def rules(count: int) -> Rules:
    """Nobody listens behind them: the servers are down, and asked again and again."""
    first = PORTS.start
    frontends = (
        StaticFrontend(
            f"app-{number:03}",
            Listen("tcp", IP, first + number),
            tuple(StaticServer(Address(f"127.0.6.{place}", first + number)) for place in range(1, SERVERS + 1)),
        )
        for number in range(count)
    )
    return Rules(tuple(frontends), Policy(bind=IP))


def busy(counters: Mapping[Listen, FrontendCounters]) -> None:
    """Every number of every frontend and server moves."""
    for place, one in enumerate(counters.values()):
        one.sessions = (one.sessions + place) % 97
        one.sessions_total += 10 + place
        one.bytes_in += 10_000 + 100 * place
        one.bytes_out += 90_000 + 1000 * place
        one.connect_seconds.add(0.0001 * (1 + place))
        for server in one.servers.values():
            server.sessions = one.sessions // 2
            server.sessions_total += 5


def blank(frontend: Frontend) -> FrontendCounters:
    counters = FrontendCounters(frontend.name)
    counters.servers = {server.name: ServerCounters() for server in frontend.servers}
    return counters
