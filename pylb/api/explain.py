"""`pylb explain PORT|NAME`: why a port does not answer, collected from all parts; the first thing that is wrong comes first.

Every server is asked two separate things at this moment: does it accept connections, and does it pass its check?
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from pylb.api.routes import rows
from pylb.api.session_trace import LETTERS, REASONS, line
from pylb.control.event_log import Rejection
from pylb.control.registry import Registry
from pylb.control.storage.table_history import Generation
from pylb.core.address import Listen
from pylb.core.checks import written
from pylb.core.errors import Code, Refused
from pylb.core.health import HINTS, YES
from pylb.core.policy import CONNECT, HealthMode
from pylb.core.recorder import Query, SessionTrace
from pylb.core.text import whole_number
from pylb.forward.counters import Counters
from pylb.web.sessions import trace_json

MOST_REFUSED, MOST_HISTORY, MOST_RECORDED = 5, 5, 5
MOST_PORTS = 20  # for one name
Knock = Callable[[Listen], Awaitable[str]]


def recorded_of(port: int) -> Query:
    """What `explain` asks of the recorder."""
    return Query(frontend=str(port), limit=MOST_RECORDED)


def ports_of(registry: Registry, what: str) -> list[int]:
    """The ports that a port, or the name of a frontend or of a registration, refers to. Raises Refused NOT_FOUND, INVALID."""
    if what.isascii() and what.isdigit():
        if not (port := whole_number(what, 65535)):
            raise Refused(Code.INVALID, f"{what[:20]}: no port", "1 to 65535")
        return [port]
    ports = {listen.port for listen, frontend in registry.table.frontends.items() if frontend.name == what}
    ports |= {wanted.port for one in registry.each_registration() if one.name == what for wanted in one.frontends}
    if not ports:  # it has none; did it want one, or had it one?
        ports |= {port for one in registry.rejected() if what == one.name for port in one.ports}
        ports |= {change.listen.port for one in registry.history(what) for change in one.lines}
    if not ports:
        raise Refused(
            Code.NOT_FOUND, f"{what[:80]!r} is no frontend, no registration, and no refused call had that name", "`pylb routes`"
        )
    return sorted(ports)[:MOST_PORTS]


async def explain(
    registry: Registry, counters: Counters, recorded: Sequence[SessionTrace], knock: Knock, port: int
) -> dict[str, Any]:
    """What is known about the port; each of its servers is asked now. Raises Refused NOT_FOUND."""
    listens = [listen for listen in registry.table.frontends if listen.port == port]
    refused = [one for one in registry.rejected() if port in one.ports][-MOST_REFUSED:]
    history = registry.history(str(port))
    if not listens and not refused and not history:
        raise Refused(Code.NOT_FOUND, f"port {port}: no frontend, no registration, and no call about it was refused")
    unbound = {str(listen): reason for listen, reason in registry.unbound().items() if listen.port == port}
    open_ = [listen for listen in listens if str(listen) not in unbound]
    dialled, checked = await _asked(registry, listens)
    return {
        "port": port,
        "listens": [str(listen) for listen in listens],
        "binds": sorted({listen.ip for listen in listens}),
        "unbound": unbound,
        "reachable": await knock(open_[0]) if open_ else "not tried",
        "servers": [row for row in await rows(registry, port) if row["address"] is not None],
        "dialled": dialled,  # does it accept connections?
        "checked": checked,  # does it pass its check?
        "refused": [_refusal(one) for one in refused],
        **_counts(counters, listens),
        "recorded": [trace_json(one) for one in recorded],
        "history": [change for one in history for change in _changes(one, port)][-MOST_HISTORY:],
    }


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


def _changes(one: Generation, port: int) -> list[str]:
    return [change.text for change in one.lines if change.listen.port == port]


def _refusal(one: Rejection) -> dict[str, Any]:
    return {"time": one.at, "address": one.ip, "token": one.token, "code": one.code, "detail": one.detail}


def verdict(found: Mapping[str, Any]) -> str:
    """The first thing that is wrong, and what to do about it."""
    port = found["port"]
    if not found["listens"]:
        if found["refused"]:
            last = found["refused"][-1]
            return f"nobody has port {port}: the last call that wanted it was refused ({last['code']}: {last['detail']})"
        return f"port {port} is closed: its last registration was released or overstayed (see the changes below)"
    if found["unbound"]:
        return f"port {port} is not open: {next(iter(found['unbound'].values()))}"
    if not found["servers"]:
        return f"port {port} has no server: clients are reset until a registration joins the frontend"
    if (wrong := _servers_wrong(found)) is not None:
        return wrong
    if found["reachable"] != "yes":
        return (
            f"its servers are well, but a connect from this machine to port {port} met {found['reachable']}: see the firewall"
        )
    if sum(found["denied"].values()) > found["ended"].get("--", 0):
        return f"most clients are refused: {_denials(found['denied'])}"
    return (
        f"port {port} is open here, and its servers accept connections{_and_pass(found)}. If it does not answer from outside, "
        "it is before this machine: the provider's firewall, a security group, NAT, or a DNS name that points elsewhere"
    )


def _servers_wrong(found: Mapping[str, Any]) -> str | None:
    """What is wrong with all of them; None: at least one is fine."""
    dialled, checked = found["dialled"], found["checked"]
    serving = [one["address"] for one in found["servers"] if one["state"] not in ("drain", "maint")]
    if not serving:
        return "every server was taken out by the operator: pylb ctl ready TARGET"
    if not any(dialled[address]["found"] == YES for address in serving):
        answers = ", ".join(f"{address}: {dialled[address]['found']}" for address in serving)
        hint = next((dialled[address]["hint"] for address in serving if dialled[address]["hint"]), "")
        return f"no server accepts a connection ({answers})" + (f": {hint}" if hint else "")
    if not any(checked[address]["found"] == YES for address in serving):
        answers = ", ".join(f"{address}: {checked[address]['found']}" for address in serving)
        accepting = "servers accept" if len(serving) > 1 else "server accepts"
        refuses = all(checked[address]["when_all_down"] == "refuse" for address in serving)
        then = "clients are refused (when_all_down: refuse)" if refuses else "clients are sent there for want of a better one"
        return f"its {accepting} connections, but none passes its check ({answers}); {then}: see the app, or `health.check`"
    if all(one["state"] == "down" for one in found["servers"] if one["address"] in serving):
        return "its servers pass their checks now, but all were out a moment ago: they are back after `health.rise` checks"
    return None


def _and_pass(found: Mapping[str, Any]) -> str:
    failing = [address for address, one in found["checked"].items() if one["found"] != YES]
    if not failing:
        return " and pass their checks" if found["checked"] else ""
    return f" and pass their checks, but for {', '.join(failing)}"


def _denials(denied: Mapping[str, int]) -> str:
    most = sorted(denied.items(), key=lambda item: -item[1])
    return "; ".join(f"{count} ({reason}): {REASONS.get(reason, 'see the metric')}" for reason, count in most)


def describe(found: Mapping[str, Any], holder: str) -> Sequence[str]:
    """Lines for people. `holder`: the process that listens, if it is visible."""
    lines = [verdict(found), ""]
    if found["listens"]:
        where = f"{', '.join(found['listens'])}{f' ({holder})' if holder else ''}"
        lines.append(f"listens    {where}; from here: {found['reachable']}")
    lines += [f"not open   {listen}: {reason}" for listen, reason in found["unbound"].items()]
    lines += [_server_line(row, found) for row in found["servers"]]
    total = sum(found["ended"].values())
    lines.append(f"sessions   {found['live']} live, {total} ended since the start")
    for code, count in sorted(found["ended"].items(), key=lambda item: -item[1])[:6]:
        if code[0] != "P":
            lines.append(f"           {code} {count}: {LETTERS.get(code, 'see docs/engine.md')}")
    lines += [f"denied     {count} ({reason}): {REASONS.get(reason, '')}" for reason, count in found["denied"].items() if count]
    lines += [f"recorded   {line(one)}" for one in found["recorded"]]
    if found["recorded"]:
        lines.append("           more: pylb explain SESSION, pylb sessions --ended --frontend " + str(found["port"]))
    for one in found["refused"]:
        lines.append(f"refused    {one['address']} token {one['token'] or '-'}: {one['code']}: {one['detail']}")
    lines += [f"changed    {text}" for text in found["history"]]
    return lines


def _server_line(row: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    nobody = {"found": "not asked", "hint": "", "connect_only": True}  # it has joined since
    met, check = found["dialled"].get(row["address"], nobody), found["checked"].get(row["address"], nobody)
    name = row["address"] if row["server"] == row["address"] else f"{row['server']} {row['address']}"
    hint = f" ({met['hint']})" if met["hint"] else ""
    passes = "" if check["connect_only"] else f", passes its check now: {'yes' if check['found'] == YES else check['found']}"
    by = ", ".join(row["held_by"]) or "nobody"
    return f"server     {name}: {row['state']}, accepts connections now: {met['found']}{hint}{passes}; by {by}"
