"""The differences between two tables, line by line: for the history, the log of a reload, and `pylb plan`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from pylb.core.address import Address, Listen
from pylb.core.table import BACKUP, DOWN, LAST_RESORT, OUT, PROVEN, UNPROVEN, Frontend, Server, Table, compared, differing

RANKS = {
    PROVEN: "in service",
    UNPROVEN: "has not answered yet",
    BACKUP: "backup",
    LAST_RESORT: "last resort",
    DOWN: "down",
    OUT: "taken out",
}


class ChangeKind(StrEnum):
    OPENED = "opened"
    CLOSED = "closed"
    ADDED = "added"
    REMOVED = "removed"
    MOVED = "moved"
    CHANGED = "changed"  # weight, PROXY header, limits, check: for new sessions
    STATE = "state"  # stale, down, proven, drained
    POLICY = "policy"
    FAILS = "fails"  # its check fails now; only in plans


PASSING = frozenset({ChangeKind.MOVED, ChangeKind.STATE})  # caused by apps, nodes and time; everything else was asked for


@dataclass(frozen=True, slots=True)
class ChangeLine:
    what: ChangeKind
    listen: Listen
    frontend: str  # its name
    text: str
    server: Address | None = None  # the server whose live sessions are affected; None: all of the frontend's


def lines(old: Table, new: Table) -> list[ChangeLine]:
    """In the order of the ports. CLOSED affects live sessions, and so does a drain."""
    return in_order(line for group in changes(old, new) for line in group)


def changes(old: Table, new: Table) -> Iterator[list[ChangeLine]]:
    """Like `lines`, but one frontend at a time, unchanged ones included, so that the caller can work in steps. Not sorted."""
    for before, after in compared(old, new):
        if after is None:
            yield [] if before is None else [_closed(before)]
        elif before is None:
            yield [_opened(after)]
        else:
            yield [] if before is after else list(_changed(before, after))


def in_order(found: Iterable[ChangeLine]) -> list[ChangeLine]:
    """Sorted by port."""
    return sorted(found, key=lambda line: (line.listen.port, line.listen.protocol, line.listen.ip, line.listen.server_name))


def _opened(frontend: Frontend) -> ChangeLine:
    to = ", ".join(map(str, frontend.servers)) or "no server yet"
    text = f"port {frontend.listen.route_text} ({frontend.name}) opened -> {to}"
    return ChangeLine(ChangeKind.OPENED, frontend.listen, frontend.name, text)


def _closed(frontend: Frontend) -> ChangeLine:
    text = f"port {frontend.listen.route_text} ({frontend.name}) closed"
    return ChangeLine(ChangeKind.CLOSED, frontend.listen, frontend.name, text)


def _changed(old: Frontend, new: Frontend) -> Iterator[ChangeLine]:
    head, listen, name = f"port {new.listen.route_text} ({new.name})", new.listen, new.name
    if old.name != new.name or (old.policy is not new.policy and old.policy != new.policy):
        was = f", was {old.name}" if old.name != new.name else ""
        yield ChangeLine(ChangeKind.POLICY, listen, name, f"{head}: other settings{was}")
    before, after = ({one.address: one for one in servers} for servers in differing(old.servers, new.servers))
    gone = [server for address, server in before.items() if address not in after]
    come = [server for address, server in after.items() if address not in before]
    for server in come:
        from_ = next((one for one in gone if one.name == server.name), None)
        if from_ is None:
            yield ChangeLine(ChangeKind.ADDED, listen, name, f"{head}: + {_server(server)}", server.address)
        else:
            gone.remove(from_)
            text = f"{head}: {server.name} moved from {from_.address} to {server.address}"
            yield ChangeLine(ChangeKind.MOVED, listen, name, text, from_.address)
    for server in gone:
        yield ChangeLine(ChangeKind.REMOVED, listen, name, f"{head}: - {_server(server)}", server.address)
    for address, server in after.items():
        if address in before and before[address] != server:
            yield from _server_changed(head, listen, name, before[address], server)


def _server(server: Server) -> str:
    weight = f", weight {server.weight}" if server.weight != 1 else ""
    return f"{server} ({RANKS[server.rank]}{weight})"


def _server_changed(head: str, listen: Listen, name: str, old: Server, new: Server) -> Iterator[ChangeLine]:
    who = f"{head}: {new}"
    if old.rank != new.rank or old.admin != new.admin:
        admin = f" ({new.admin})" if new.rank == OUT or old.admin != new.admin else ""
        text = f"{who} is {RANKS[new.rank]}{admin}, was {RANKS[old.rank]}"
        yield ChangeLine(ChangeKind.STATE, listen, name, text, new.address)
    keys = {"name", "send_proxy", "max_connections"} | ({"weight"} if OUT not in (old.rank, new.rank) else set())
    other = [key for key in sorted(keys) if getattr(old, key) != getattr(new, key)]
    said = [f"{key.replace('_', ' ')} {getattr(old, key)} -> {getattr(new, key)}" for key in other]
    said += ["another check"] if old.health != new.health else []
    if said:
        yield ChangeLine(ChangeKind.CHANGED, listen, name, f"{who}: {', '.join(said)}", new.address)
