"""`pylb explain PORT|NAME`: why a port does not answer, collected from all parts; the first thing that is wrong comes first.

Every server is asked two separate things at this moment: does it accept connections, and does it pass its check?
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from pylb.api.routes import rows
from pylb.control.event_log import Rejection
from pylb.control.registry import VIEWS, Registry
from pylb.control.sharing import PortView
from pylb.control.steps import in_turns
from pylb.control.storage.table_history import Generation
from pylb.control.views import RegistrationView
from pylb.core.address import TCP, UDP, Listen, PortKey, parse_port_key, port_text
from pylb.core.checks import written
from pylb.core.errors import Code, Refused
from pylb.core.health import HINTS, check_hint
from pylb.core.policy import CONNECT, HealthMode
from pylb.core.recorder import Query, SessionTrace
from pylb.core.server_names import find_route
from pylb.forward.counters import Counters
from pylb.web.sessions import trace_json
from pylb.web.views import port_json

MOST_REFUSED, MOST_HISTORY, MOST_RECORDED = 5, 5, 5
MOST_PORTS = 20  # for one name
Knock = Callable[[Listen], Awaitable[str]]


def recorded_of(port: PortKey) -> Query:
    """The query for the last ended sessions of a port."""
    return Query(frontend=_text(port), limit=MOST_RECORDED)


def _text(port: PortKey) -> str:
    protocol, number = port
    return port_text(number, protocol)


async def ports_of(registry: Registry, what: str) -> list[PortKey]:
    """The ports that a port, the name of a frontend or of a registration, or a registration's id refers to.

    An id is written as `pylb release` and `pylb routes` write it: NAME/INSTANCE, TOKEN/NAME/INSTANCE. Raises Refused
    NOT_FOUND, INVALID.
    """
    if what.isascii() and what.partition("/")[0].isdigit():
        try:
            return [parse_port_key(what)]
        except ValueError:
            raise Refused(Code.INVALID, f"{what[:20]}: no port", "1 to 65535, or as in 443/udp") from None
    frontends = in_turns(registry.table.frontends.items(), VIEWS)
    ports = {listen.port_key async for listen, frontend in frontends if frontend.name == what}
    registrations = in_turns(registry.each_registration(), VIEWS)
    ports |= {wanted.port_key async for one in registrations if what in _names_of(one) for wanted in one.frontends}
    if not ports:  # it has none; did it want one, or had it one?
        ports |= {port for one in registry.rejected() if _wanted_by(one, what) for port in one.ports}
        ports |= {change.listen.port_key for one in registry.history(what) for change in one.lines}
    if not ports:
        raise Refused(
            Code.NOT_FOUND, f"nothing is called {what[:80]!r}: no frontend, no registration, no refused call", "`pylb routes`"
        )
    return sorted(ports, key=lambda port: (port[1], port[0]))[:MOST_PORTS]


def _names_of(one: RegistrationView) -> tuple[str, ...]:
    return one.name, f"{one.name}/{one.instance}", f"{one.token}/{one.name}/{one.instance}"


def _wanted_by(refused: Rejection, what: str) -> bool:
    """Whether `what` made the refused call, whose text ends with NAME/INSTANCE."""
    called = "/".join(refused.what.rpartition(" ")[2].split("/")[-2:])
    return bool(refused.name) and what in (refused.name, called, f"{refused.token}/{called}")


async def explain(
    registry: Registry, counters: Counters, recorded: Sequence[SessionTrace], knock: Knock, port: PortKey, *, asked: str = ""
) -> dict[str, Any]:
    """What is known about the port; each of its servers is asked now. Raises Refused NOT_FOUND.

    `asked`: a server name; then only what a client that asks for it gets: its route, or the default route.
    """
    listens = [listen for listen in registry.table.frontends if listen.has(port)]
    if asked:
        listens = routes_for(listens, asked)
    refused = [one for one in registry.rejected() if port in one.ports][-MOST_REFUSED:]
    history = registry.history(_text(port))
    shared = None if registry.sharing is None else registry.sharing.port(port)
    if not listens and not refused and not history and (shared is None or not shared.heard):
        other = (UDP if port[0] == TCP else TCP, port[1])
        has_other = any(listen.has(other) for listen in registry.table.frontends)
        hint = f"{_text(other)} is known: pylb explain {_text(other)}" if has_other else ""
        raise Refused(
            Code.NOT_FOUND, f"port {_text(port)}: no frontend, no registration, and no call about it was refused", hint
        )
    unbound = {str(listen): reason for listen, reason in registry.unbound().items() if listen.has(port)}
    open_ = [listen for listen in listens if str(listen) not in unbound]
    dialled, checked = await _asked(registry, listens)
    shown = set(map(str, listens))
    return {
        **port_json(port[1], port[0]),
        **({"asked": asked} if asked else {}),
        "listens": [str(listen) for listen in listens],
        "binds": sorted({listen.ip for listen in listens}),
        "unbound": unbound,
        # Of UDP there is no connect that could be tried.
        "reachable": await knock(open_[0]._replace(port=port[1], last=0)) if open_ and port[0] == TCP else "not tried",
        "servers": [row for row in await rows(registry, port) if row["address"] is not None and row["listen"] in shown],
        "unresolved": sorted({name for listen in listens for name in registry.unresolved().get(listen, ())}),
        "dialled": dialled,  # does it accept connections?
        "checked": checked,  # does it pass its check?
        "refused": [_refusal(one) for one in refused],
        **_counts(counters, listens),
        "recorded": [trace_json(one) for one in recorded],
        "history": [change for one in history for change in _changes(one, port)][-MOST_HISTORY:],
        **({} if shared is None else {"cluster": _cluster(shared, registry.cluster_trouble())}),
    }


def _cluster(shared: PortView, trouble: str | None) -> dict[str, Any]:
    """What the balancers that share the table know of the port."""
    return {
        "trouble": trouble,
        "owners": [{"what": what, "owner": owner} for what, owner in shared.owners],
        "heard": [
            {
                "registration": one.registration,
                "balancer": one.balancer,
                "present": one.present,
                "here": one.here,
                "state": one.state,
                "address": one.address,
            }
            for one in shared.heard
        ],
        "unserved": [{"registration": registration, "why": why} for registration, why in shared.unserved],
    }


def routes_for(listens: Sequence[Listen], asked: str) -> list[Listen]:
    """The route that a client which asks for this server name gets, for each address on a port."""
    routes: dict[Listen, dict[str, Listen]] = {}
    for listen in listens:
        routes.setdefault(listen.default, {})[listen.server_name] = listen
    return [find_route(by_name, asked.lower()) or port for port, by_name in routes.items()]


async def _asked(registry: Registry, listens: Sequence[Listen]) -> tuple[dict[str, Any], dict[str, Any]]:
    """By address: the outcome of a connect, and the result of the check."""
    dialled: dict[str, Any] = {}
    checked: dict[str, Any] = {}
    for listen in listens:
        frontend = registry.table.frontends[listen]
        found = await registry.ask_now(listen)
        for server in frontend.servers:
            met, answer = found[server.address]
            if frontend.health(server).mode is HealthMode.NONE:
                answer = met  # its check decides nothing
            health = frontend.health(server)
            dialled[str(server.address)] = {"found": met, "hint": HINTS.get(met, "")}
            checked[str(server.address)] = {
                "check": written(health.check),
                "found": answer,
                "port": health.check.port,  # 0: where clients go
                "hint": check_hint(health.check.port, answer),
                "connect_only": health.check == CONNECT or health.mode is HealthMode.NONE,
                "when_all_down": str(health.when_all_down),
            }
    return dialled, checked


def _counts(counters: Counters, listens: Sequence[Listen]) -> dict[str, Any]:
    ended, denied, live = Counter[str](), Counter[str](), 0
    for listen in listens:
        if listen in counters.frontends:
            live += counters.frontends[listen].sessions
            denied.update(counters.frontends[listen].denied)
            for server in counters.frontends[listen].servers.values():
                ended.update(server.closed)
    return {"live": live, "ended": dict(ended), "denied": dict(denied)}


def _changes(one: Generation, port: PortKey) -> list[str]:
    return [change.text for change in one.lines if change.listen.has(port)]


def _refusal(one: Rejection) -> dict[str, Any]:
    return {"time": one.at, "address": one.ip, "token": one.token, "code": one.code, "detail": one.detail}
