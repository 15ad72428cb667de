"""`pylb explain`: why a port does not answer, or what happened to one session."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from pylb.cli import session_trace
from pylb.cli.client import CONFIG, JSON, ask, say
from pylb.cli.completion import words
from pylb.cli.session_trace import REASONS, of_letters
from pylb.cli.tables import Block, facts, port_of, prose
from pylb.core.address import UDP
from pylb.core.health import NO_OBJECTION, NOT_ASKED, PASSED, YES
from pylb.core.text import whole_number

WELL = PASSED | {NOT_ASKED}


@click.command()
@CONFIG
@JSON
@click.argument("what", metavar="PORT|NAME|SESSION", shell_complete=words("port", "frontend", "registration", "session"))
@click.option(
    "--name",
    "asked",
    metavar="SERVER_NAME",
    shell_complete=words("server_name"),
    help="What a TLS client gets that asks for this name.",
)
def explain(config_path: Path | None, as_json: bool, what: str, asked: str | None) -> None:
    """Why a port does not answer: is it open, and by whom; who registered it, who was refused and why; whether each of its
    servers accepts connections and passes its check right now; how its sessions ended; with a shared table which balancer
    hears it, and who owns the port on all of them.

    The first line is the first thing that is wrong. Exit code 1: nothing is known about the port. NAME may be a
    frontend or a registration, also as NAME/INSTANCE: then each of its ports is explained.

    With the id of a session, as `pylb sessions` and `pylb sessions --ended` show it: why it went to this server, what was
    tried before, who closed first, and what the kernel knew about both connections.
    """
    if what.startswith("0x"):
        trace = ask(config_path, {"verb": "explain", "session": what})["explained"]
        say(*([json.dumps(trace, indent=2)] if as_json else session_trace.describe(trace)))
        return
    if what.isascii() and what.isdigit() and not whole_number(what, 65535):
        raise click.BadParameter(f"{what} is not a port (1 to 65535)", param_hint="PORT")
    from pylb.host.machine import listeners_of  # noqa: PLC0415

    answers = ask(config_path, {"verb": "explain", "what": what, "name": asked})["all"]
    by_port = listeners_of([one["port"] for one in answers if "protocol" not in one])
    holders = {port_of(one): by_port.get(one["port"], "") for one in answers if "protocol" not in one}
    if as_json:
        found = [{"verdict": verdict(one), "holder": holders.get(port_of(one), "")} | one for one in answers]
        say(json.dumps(found[0] if len(found) == 1 else found, indent=2))
        return
    for number, one in enumerate(answers):
        if number:
            say()
        say(*describe(one, holders.get(port_of(one), "")))


def verdict(found: Mapping[str, Any]) -> str:
    """The first thing that is wrong, and what to do about it."""
    port = port_of(found)
    fate = "what clients send is dropped" if found.get("protocol") == UDP else "clients are reset"
    unserved = found.get("cluster", {}).get("unserved", ())
    if not found["listens"]:
        if unserved:
            one = unserved[0]
            return (
                f"port {port} is closed here: another balancer hears {one['registration']} on it, and this one {_refuses(one)}"
            )
        if found["refused"]:
            last = found["refused"][-1]
            return f"nobody has port {port}: the last call that wanted it was refused ({last['code']}: {last['detail']})"
        return f"port {port} is closed: its last registration was released or overstayed (see the changes below)"
    if found["unbound"]:
        return f"port {port} is not open: {next(iter(found['unbound'].values()))}"
    if not found["servers"] and (names := found.get("unresolved")):  # an older pylb does not say it
        names = ", ".join(names)
        return f"port {port} has no server: {names} cannot be resolved (try `getent hosts NAME`), and {fate} until then"
    if "asked" in found and not found["servers"]:
        return f"a client that asks port {port} for {found['asked']} gets no server: {_route(found)}"
    if not found["servers"]:
        return f"port {port} has no server: {fate} until a registration joins the frontend"
    if (wrong := _servers_wrong(found)) is not None:
        return wrong
    if all(one["found"] == NOT_ASKED for one in found["dialled"].values()):
        return (
            f"port {port} is open here. Its servers are not asked: which ports of a range are in use, only the app knows. A "
            "`port` in the check of the frontend or registration lets pylb find out whether they live"
        )
    if found.get("protocol") != UDP and found["reachable"] != "yes":
        return (
            f"its servers are well, but a connect from this machine to port {port} met {found['reachable']}: see the firewall"
        )
    if sum(found["denied"].values()) > found["ended"].get("--", 0):
        return f"most clients are refused: {_denials(found['denied'])}"
    well = "nobody refuses datagrams to its servers" if found.get("protocol") == UDP else "its servers accept connections"
    return (
        f"port {port} is open here, and {well}{_and_pass(found)}. If it does not answer from outside, "
        "it is before this machine: the provider's firewall, a security group, NAT, or a DNS name that points elsewhere"
    )


def _refuses(unserved: Mapping[str, Any]) -> str:
    return f"may not serve it: {unserved['why']}"


def _servers_wrong(found: Mapping[str, Any]) -> str | None:
    """What is wrong with all of them; None: at least one is fine."""
    dialled, checked = found["dialled"], found["checked"]
    serving = [one["address"] for one in found["servers"] if one["state"] not in ("drain", "maint")]
    if not serving:
        return "every server was taken out by the operator: pylb ctl ready TARGET"
    if not any(dialled[address]["found"] in WELL for address in serving):
        answers = ", ".join(f"{address}: {dialled[address]['found']}" for address in serving)
        hint = next((dialled[address]["hint"] for address in serving if dialled[address]["hint"]), "")
        what = "every server refuses datagrams" if found.get("protocol") == UDP else "no server accepts a connection"
        return f"{what} ({answers})" + (f": {hint}" if hint else "")
    if not any(checked[address]["found"] in WELL for address in serving):
        answers = ", ".join(f"{address}{_at(checked[address])}: {checked[address]['found']}" for address in serving)
        accepting = "servers accept" if len(serving) > 1 else "server accepts"
        refuses = all(checked[address]["when_all_down"] == "refuse" for address in serving)
        then = "clients are refused (when_all_down: refuse)" if refuses else "clients are sent there for want of a better one"
        hint = next((checked[address]["hint"] for address in serving if checked[address].get("hint")), "")
        whats = "datagrams" if found.get("protocol") == UDP else "connections"
        text = f"its {accepting} {whats}, but none passes its check ({answers}); {then}: "
        return text + (hint or "see the app, or `health.check`")
    if all(one["state"] == "down" for one in found["servers"] if one["address"] in serving):
        return "its servers pass their checks now, but all were out a moment ago: they are back after `health.rise` checks"
    return None


def _and_pass(found: Mapping[str, Any]) -> str:
    failing = [f"{address}{_at(one)}" for address, one in found["checked"].items() if one["found"] not in PASSED]
    if not found["checked"]:
        return ""
    passed = ", which pass their checks" if found.get("protocol") == UDP else " and pass their checks"
    return passed + (f", but for {', '.join(failing)}" if failing else "")


def _at(check: Mapping[str, Any]) -> str:
    """Where the check asks, if that is not where clients go. An older pylb does not say it."""
    return f" at port {check['port']}" if check.get("port") else ""


def _denials(denied: Mapping[str, int]) -> str:
    most = sorted(denied.items(), key=lambda item: -item[1])
    return "; ".join(f"{count} ({reason}): {REASONS.get(reason, 'see the metric')}" for reason, count in most)


def describe(found: Mapping[str, Any], holder: str) -> list[Block]:
    """For people. `holder`: the process that listens, if it is visible."""
    rows: list[tuple[str, str]] = []
    if "asked" in found:
        rows.append(("asked for", f"{found['asked']}: {_route(found)}"))
    if found["listens"]:
        where = f"{', '.join(found['listens'])}{f' ({holder})' if holder else ''}"
        rows.append(("listens", where if found.get("protocol") == UDP else f"{where}; from here: {found['reachable']}"))
    rows += [("not open", f"{listen}: {reason}") for listen, reason in found["unbound"].items()]
    rows += [("server", _server_line(row, found)) for row in found["servers"]]
    rows.append(("sessions", f"{found['live']} live, {sum(found['ended'].values())} ended since the start"))
    for code, count in sorted(found["ended"].items(), key=lambda item: -item[1])[:6]:
        if code[0] != "P":
            rows.append(("", f"{code} {count}: {of_letters(code, udp=found.get('protocol') == UDP)}"))
    rows += [("denied", f"{count} ({reason}): {REASONS.get(reason, '')}") for reason, count in found["denied"].items() if count]
    rows += [("recorded", session_trace.line(one)) for one in found["recorded"]]
    if found["recorded"]:
        rows.append(("", f"more: pylb explain SESSION, pylb sessions --ended --frontend {port_of(found)}"))
    for one in found["refused"]:
        rows.append(("refused", f"{one['address']} token {one['token'] or '-'}: {one['code']}: {one['detail']}"))
    rows += [("changed", text) for text in found["history"]]
    if "cluster" in found:
        rows += _cluster(found["cluster"])
    return [prose(verdict(found)), "", facts(rows)]


def _cluster(shared: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Who owns the port among the balancers, and which of them hears it."""
    for one in shared["owners"]:
        yield "owner", f"{one['owner']} has {one['what']} on all balancers"
    for one in shared["heard"]:
        where = (
            f"{one['balancer']} (this one)"
            if one["here"]
            else one["balancer"]
            if one["present"]
            else f"{one['balancer']} (away)"
        )
        yield (
            "heard by",
            f"{where}: {one['registration']} at {one['address'] or 'an address that is not known'}, {one['state']}",
        )
    for one in shared["unserved"]:
        yield "not served", f"{one['registration']}, which another balancer hears: this one {_refuses(one)}"
    if shared["trouble"]:
        yield "etcd", f"{shared['trouble']}; what the others hear may be older"


def _route(found: Mapping[str, Any]) -> str:
    routes = [listen for listen in found["listens"] if " " in listen]
    if routes:
        return f"route {', '.join(routes)}"
    return "the default route" if found["servers"] else "no route, and no default route: the alert unrecognized_name"


def _server_line(row: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    nobody = {"found": "not asked", "hint": "", "connect_only": True}  # it has joined since
    met, check = found["dialled"].get(row["address"], nobody), found["checked"].get(row["address"], nobody)
    name = row["address"] if row["server"] == row["address"].removesuffix(f"/{UDP}") else f"{row['server']} {row['address']}"
    hint = f" ({met['hint']})" if met["hint"] else ""
    passes = YES if check["found"] in PASSED else check["found"]
    passes = "" if check["connect_only"] else f", passes its check{_at(check)} now: {passes}"
    by = ", ".join("the config" if one == "static" else one for one in row["held_by"]) or "nobody"
    if found.get("protocol") == UDP:
        words = {YES: "answers a datagram now", NO_OBJECTION: "nobody refuses a datagram"}
        accepts = words.get(met["found"], f"a datagram met {met['found']}")
    else:
        accepts = f"accepts connections now: {met['found']}"
    return f"{name}: {row['state']}, {accepts}{hint}{passes}; by {by}"
