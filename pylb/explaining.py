"""`pylb explain PORT`: why a port does not answer, gathered where it is known; the first thing that is wrong comes first."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pylb.control.events import Rejection
from pylb.control.registry import Registry
from pylb.core.address import Listen
from pylb.core.errors import Code, Refused
from pylb.core.recorder import Query, Story
from pylb.forward.counters import FrontendCounters
from pylb.routes import rows
from pylb.stories import LETTERS, line
from pylb.web.sessions import story_json

MOST_REFUSED, MOST_HISTORY, MOST_RECORDED = 5, 5, 5


class Counted(Protocol):
    @property
    def frontends(self) -> Mapping[Listen, FrontendCounters]: ...


def recorded_of(port: int) -> Query:
    """What `explain` wants to have of the recorder."""
    return Query(frontend=str(port), limit=MOST_RECORDED)


async def explain(registry: Registry, counters: Counted, recorded: Sequence[Story], port: int) -> dict[str, Any]:
    """What is known of the port, with each of its servers dialled now (<= 1 s). Raises Refused NOT_FOUND."""
    listens = [listen for listen in registry.table.frontends if listen.port == port]
    refused = [one for one in registry.rejected() if _is_about(f"{one.what} {one.detail}", port)][-MOST_REFUSED:]
    history = registry.history(str(port))
    if not listens and not refused and not history:
        raise Refused(Code.NOT_FOUND, f"port {port}: no frontend, no registration, and no call about it was refused")
    ended: Counter[str] = Counter()
    live = 0
    for listen in listens:
        if listen in counters.frontends:
            live += counters.frontends[listen].sessions
            for server in counters.frontends[listen].servers.values():
                ended.update(server.closed)
    return {
        "port": port,
        "listens": [str(listen) for listen in listens],
        "binds": sorted({listen.ip for listen in listens}),
        "unbound": {str(listen): reason for listen, reason in registry.unbound().items() if listen.port == port},
        "servers": [row for row in await rows(registry, port) if row["address"] is not None],
        "dialled": await registry.dial_now(listens),
        "refused": [_refusal(one) for one in refused],
        "live": live,
        "ended": dict(ended),
        "recorded": [story_json(one) for one in recorded],
        "history": [line.text for one in history for line in one.lines if line.listen.port == port][-MOST_HISTORY:],
    }


def _refusal(one: Rejection) -> dict[str, Any]:
    return {"time": one.at, "address": one.ip, "token": one.token, "code": one.code, "detail": one.detail}


def _is_about(text: str, port: int) -> bool:
    return any(word.strip(",.:;()'\"") == str(port) for word in text.split())


def verdict(found: Mapping[str, Any], reachable: str) -> str:
    """The first thing that is wrong, and what to do about it. `reachable`: what a connect from this machine met."""
    port, dialled = found["port"], found["dialled"]
    if not found["listens"]:
        if found["refused"]:
            last = found["refused"][-1]
            return f"nobody has port {port}: the last call that wanted it was refused ({last['code']}: {last['detail']})"
        return f"port {port} is closed: its last registration was released or overstayed (see the changes below)"
    if found["unbound"]:
        return f"port {port} is not open: {next(iter(found['unbound'].values()))}"
    if not found["servers"]:
        return f"port {port} has no server: clients are reset until a registration joins the frontend"
    if all(one["state"] in ("drain", "maint") for one in found["servers"]):
        return "every server was taken out by the operator: pylb ctl ready TARGET"
    if not any(answer["found"] == "yes" for answer in dialled.values()):
        answers = ", ".join(f"{address}: {answer['found']}" for address, answer in dialled.items())
        hint = next((answer["hint"] for answer in dialled.values() if answer["hint"]), "")
        return f"no server accepts a connection ({answers})" + (f": {hint}" if hint else "")
    if reachable != "yes":
        return f"its servers answer, but a connect from this machine to port {port} met {reachable}: see the firewall"
    if found["ended"].get("PR", 0) > found["ended"].get("--", 0):
        return "most clients are refused by access, limits, or for want of a PROXY header: see the frontend's config"
    return (
        f"port {port} is open here and its servers answer. If it does not answer from outside, it is before this machine: "
        "the provider's firewall, a security group, NAT, or a DNS name that points elsewhere"
    )


def told(found: Mapping[str, Any], reachable: str, holder: str) -> Sequence[str]:
    """Lines for people. `holder`: the process that listens, as far as it can be seen."""
    lines = [verdict(found, reachable), ""]
    if found["listens"]:
        lines.append(f"listens    {', '.join(found['listens'])}{f' ({holder})' if holder else ''}; from here: {reachable}")
    lines += [f"not open   {listen}: {reason}" for listen, reason in found["unbound"].items()]
    for row in found["servers"]:
        answer = found["dialled"].get(row["address"], {"found": "not dialled", "hint": ""})
        hint = f" ({answer['hint']})" if answer["hint"] else ""
        by = ", ".join(row["held_by"]) or "nobody"
        state = f"{row['state']}, dialled now: {answer['found']}{hint}"
        lines.append(f"server     {row['server']} {row['address']}: {state}; by {by}")
    total = sum(found["ended"].values())
    lines.append(f"sessions   {found['live']} live, {total} ended since the start")
    for code, count in sorted(found["ended"].items(), key=lambda item: -item[1])[:6]:
        lines.append(f"           {code} {count}: {LETTERS.get(code, 'see docs/engine.md')}")
    lines += [f"recorded   {line(one)}" for one in found["recorded"]]
    if found["recorded"]:
        lines.append("           more: pylb explain SESSION, pylb sessions --ended --frontend " + str(found["port"]))
    for one in found["refused"]:
        lines.append(f"refused    {one['address']} token {one['token'] or '-'}: {one['code']}: {one['detail']}")
    lines += [f"changed    {text}" for text in found["history"]]
    return lines
