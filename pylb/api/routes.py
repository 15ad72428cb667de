"""`pylb routes`: what goes where and why, from the registry's views."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from pylb.control.registry import VIEWS, Registry
from pylb.control.sharing import Sharing
from pylb.control.steps import in_turns
from pylb.control.views import STATIC, ServerView, by_port, routes_of_ports
from pylb.core.address import UDP, PortKey
from pylb.core.registration import Key
from pylb.core.table import Frontend, Table
from pylb.core.text import ago
from pylb.web.views import listen_json, port_json

ROWS = 100  # between two turns of the loop: ~2 ms
Leases = dict[Key, tuple[str, float | None]]  # by registration: its state, and the seconds until its lease ends


async def rows(registry: Registry, port: PortKey | None = None) -> list[dict[str, Any]]:
    """One per frontend (only of `port`) and server, in the order of the ports; a frontend without servers has one with nulls.

    Made in steps: a thousand frontends must not hold the loop.
    """
    leases: Leases = {}
    async for one in in_turns(registry.each_registration(), VIEWS):
        leases[one.key] = (one.state, one.expires_in)
    unbound, unresolved, now = registry.unbound(), registry.unresolved(), time.monotonic()
    found: list[dict[str, Any]] = []
    routes = routes_of_ports(registry.table)
    async for frontend, view in in_turns(_places(registry.table, registry.each_server()), ROWS):
        listen = frontend.listen
        if port is not None and not listen.has(port):
            continue
        head = listen_json(listen) | {"listen": str(listen)}
        head |= {"frontend": frontend.name, "unbound": unbound.get(listen)}
        names = unresolved.get(listen, ())
        row = _no_server(listen.protocol, names, routes[listen]) if view is None else _server(view, leases, now)
        found.append(head | row | heard_by(registry.sharing, view))
    for later in registry.unserved():
        why = f"needs {', '.join(later.needs)}, which this version of pylb does not know; the entry is kept"
        head = {"frontend": later.name, "unbound": None}
        found += [
            {**port_json(number, protocol), "listen": None, **head}
            | _no_server(protocol)
            | {"state": "not served", "why": why}
            | heard_by(registry.sharing)
            for protocol, number in later.ports
            if port is None or port == (protocol, number)
        ]
    return found


def _places(table: Table, views: Iterator[ServerView]) -> Iterator[tuple[Frontend, ServerView | None]]:
    """Each frontend with each of its servers, which come in the same order; None: it has none."""
    for frontend in by_port(table):
        if not frontend.servers:
            yield frontend, None
        for _ in frontend.servers:
            yield frontend, next(views)


def heard_by(sharing: Sharing | None, view: ServerView | None = None) -> dict[str, list[str]]:
    """Which balancers hear the registrations of a server: a field only where the table is shared."""
    if sharing is None:
        return {}
    keys = [holder.key for holder in view.held_by if holder.key is not None] if view is not None else []
    return {"heard_by": sorted({name for key in keys for name in sharing.hearers(key) or (sharing.name,)})}


def legacy_notes(registry: Registry) -> list[str]:
    """Who still uses the legacy route. When nobody does, the last old container is gone."""
    return [
        f"legacy calls with token {token!r}: {use.calls} since the start, the last "
        f"{ago(time.time() - use.last_at)} from {use.last_ip} ({use.last_name})"
        for token, use in sorted(registry.calls.legacy_uses().items())
    ]


def _server(view: ServerView, leases: Leases, now: float) -> dict[str, Any]:
    holders = [leases[holder.key] for holder in view.held_by if holder.key in leases]
    ends = [expires_in for _, expires_in in holders if expires_in is not None]
    states = {state for state, _ in holders}
    lives = "fresh" in states or STATIC in view.held_by or not states
    return {
        "server": view.server,
        "address": str(view.address),
        "weight": view.weight,
        "state": view.state if view.state in ("down", "drain", "maint") or lives else min(states),
        "held_by": [str(holder) for holder in view.held_by],
        "lease_expires_in": None if not ends else round(max(ends), 1),
        "reachable": view.reachable,
        "accepts": view.accepts,
        "check": view.passes,
        "asked_ago": None if view.asked_at is None else round(max(0.0, now - view.asked_at), 1),
        "why": "; ".join(filter(None, (view.reason, view.hint if view.reachable != "yes" else ""))),
    }


def _no_server(protocol: str, unresolved: Sequence[str] = (), routes: int = 0) -> dict[str, Any]:
    """`routes`: by server name, on the same port."""
    fate = "what clients send is dropped" if protocol == UDP else "clients are reset"
    why = f"a static frontend without servers: {fate} until a registration joins"
    if unresolved:
        why = f"{', '.join(unresolved)} cannot be resolved: {fate} until then"
    elif routes:
        why = "no default route: clients whose server name has no route get the alert unrecognized_name"
    return {
        "server": None,
        "address": None,
        "weight": None,
        "state": "routes only" if routes and not unresolved else "no server",
        "held_by": [],
        "lease_expires_in": None,
        "reachable": None,
        "accepts": None,
        "check": None,
        "asked_ago": None,
        "why": why,
    }
