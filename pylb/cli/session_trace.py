"""Describes a connection in words, from the JSON of web/sessions, for `pylb explain SESSION` and `pylb sessions`."""

from collections.abc import Mapping, Sequence
from typing import Any

from pylb.cli.tables import LABEL, Block, Column, Table, clock, facts, prose, size
from pylb.core.tcp_info import TcpInfo, in_words
from pylb.core.text import span

LETTERS = {  # first what happened, then what it usually means
    "--": "ended by both sides",
    "CR": "the client left before its PROXY header was whole",
    "CQ": "the client left while it waited for a server with room",
    "CC": "the client left while pylb was connecting",
    "CD": "the client reset",
    "CL": "the client reset when it only had to read the last of an answer",
    "SC": "no server accepted",
    "SD": "the server reset",
    "cR": "the PROXY header did not come in time",
    "cD": "a timeout while waiting for the client",
    "cL": "a timeout while the client only had to read the last of an answer",
    "sQ": "timeouts.queue passed before a server had room",
    "sC": "no server answered the connect in time",
    "sD": "a timeout while waiting for the server",
    "RC": "local ports, descriptors or memory ran out",
    "RD": "a flow of UDP made room at a limit: its client had not shown that it gets the answers, so its address may be forged",
    "PR": "refused by access, limits, or for want of a PROXY header",
    "PQ": "max_queue clients were waiting already",
    "DD": "its server was found down (on_down: close)",
    "KR": "ended by a drain, a shutdown or the operator",
    "KQ": "ended by a drain, a shutdown or the operator",
    "KC": "ended by a drain, a shutdown or the operator",
    "KD": "ended by a drain, a shutdown or the operator",
    "KL": "ended by a drain, a shutdown or the operator",
    "IC": "a fault of pylb itself: its log has the traceback",
    "ID": "a fault of pylb itself: its log has the traceback",
}
REASONS = {  # why pylb refused a client: the labels of pylb_frontend_denied_total
    "access": "refused by the frontend's access list",
    "per_source": "its source has as many connections as limits.per_source allows",
    "per_source_rate": "its source opens connections faster than limits.per_source_rate allows",
    "rate": "new flows came faster than limits.rate allows",
    "max_connections": "its frontend had max_connections flows of clients that had shown that they get the answers",
    "flows": "the process had as many flows as its descriptors and local ports allow",
    "source_share": "its source has its limits.source_share of all connections",
    "proxy_header": "it did not start with a PROXY header, which proxy_protocol.accept_from requires of it",
    "hello": "it sent only a part of a TLS hello within timeouts.hello or before its FIN, or a hello of more than 16 KiB",
    "server_name": "no route of the port is for the server name that it asked for, and there is no default route",
    "queue": "max_queue clients were waiting already",
    "loop": "it came from pylb itself, or in a circle of proxies",
}
_CANDIDATES = (
    Column("SERVER", folds=True),
    Column("ADDRESS"),
    Column("STATE", state=True),
    Column("WEIGHT", right=True),
    Column("WHY, OR WHY NOT", below=True),
)
_ENDED = (
    *(Column(heading) for heading in ("ENDED", "ID", "CLIENT")),
    *(Column(heading, folds=True) for heading in ("FRONTEND", "SERVER")),
    Column("CODE"),
    Column("Q/C/T MS", right=True, goes=2),
    *(Column(f"BYTES {way}", right=True, people=(way, size), goes=goes) for way, goes in (("IN", 4), ("OUT", 3))),
    Column("CLOSED FIRST BY", folds=True, goes=1),
)


def describe(trace: Mapping[str, Any]) -> list[Block]:
    """The description as lines; the first one says how the session ended, or that it is live."""
    by = f"{trace['frontend']}, by the table of generation {trace['generation']} (`pylb history` has its changes)"
    came = f"{clock(trace['accepted_at'])} from {trace['client']} to {trace['listen']}"
    if asked := trace.get("server_name"):
        came += f", and asked for {asked}"
    head, rest = [("came", came), ("frontend", by)], [*_attempts(trace), *_passed(trace), *_closing(trace)]
    rest += [("client", _tcp(trace["client_tcp"])), ("server", _tcp(trace["server_tcp"]))]
    if not trace["candidates"]:
        return [prose(_headline(trace)), "", facts([*head, ("servers", "the frontend had none"), *rest])]
    head.append(("servers", "as they stood when one was picked:"))
    return [prose(_headline(trace)), "", facts(head), _candidates(trace), facts(rest)]


def line(trace: Mapping[str, Any]) -> str:
    """An ended session in one line."""
    return (
        f"{clock(trace['ended_at'], day=False)} {trace['id']} {trace['client']} to {trace['server'] or 'no server'}: "
        f"{trace['code']} after {_duration(trace['total_ms'])}, {meaning(trace)}"
    )


def _headline(trace: Mapping[str, Any]) -> str:
    who = f"session {trace['id']} of {trace['client']}"
    if trace["code"] is None:
        return f"{who} lives, for {_duration(trace['total_ms'])} now: {trace['state']}"
    return f"{who} ended at {clock(trace['ended_at'], day=False)} with {trace['code']}: {meaning(trace)}"


def meaning(trace: Mapping[str, Any]) -> str:
    """The meaning of its two letters, and why it was refused, if that is known."""
    return REASONS.get(trace["reason"] or "") or of_letters(trace["code"], udp=trace["listen"].endswith("/udp"))


def of_letters(code: str, *, udp: bool) -> str:
    """What two letters mean. Nobody ends a flow of UDP."""
    return (
        "silent for timeouts.udp_idle, or all answers came" if udp and code == "--" else LETTERS.get(code, "see docs/engine.md")
    )


def _candidates(trace: Mapping[str, Any]) -> Table:
    from pylb.core.table_diff import RANKS  # noqa: PLC0415 - a fifth of the time that `pylb --help` would take

    rows = [
        (
            one["server"],
            one["address"],
            RANKS[one["rank"]] if one["admin"] == "ready" else one["admin"],
            str(one["weight"]),
            why(one, trace),
        )
        for one in sorted(trace["candidates"], key=lambda one: one["rank"])
    ]
    return Table(_CANDIDATES, rows, indent=LABEL)


def why(one: Mapping[str, Any], trace: Mapping[str, Any]) -> str:
    """Why this candidate was picked, or why not."""
    here = (one["server"], one["address"])
    tried = [attempt for attempt in trace["attempts"] if (attempt["server"], attempt["address"]) == here]
    ranks = [other["rank"] for other in trace["candidates"] if other["address"] == trace["address"]]
    if tried:
        return f"tried: {_result(tried[-1])}"
    if here == (trace["server"], trace["address"]):
        return f"picked ({trace['balance']})"
    if one["admin"] != "ready":
        return "the operator took it out (pylb ctl)"
    if one["weight"] == 0:
        return "its weight is 0"
    if not ranks:
        return "not asked: the session ended before"
    if one["rank"] > ranks[0]:
        return "only for when no better one is left"
    limit = f" (or it was full: max_connections {one['max_connections']})" if one["max_connections"] else ""
    return f"{trace['balance']} chose another{limit}"


def _attempts(trace: Mapping[str, Any]) -> list[tuple[str, str]]:
    steps = []
    for one in trace["attempts"]:
        if one["result"] == "waited":
            steps.append(f"waited {_duration(one['ms'])} in the queue")
        else:
            steps.append(f"{_server(one)}: {_result(one)} after {_duration(one['ms'])}")
    if trace["state"] == "queued":
        steps.append(f"waits in the queue, {trace['ahead']} before it when it came")
    elif trace["ahead"]:
        steps = [f"{step}, {trace['ahead']} before it" if step.endswith("in the queue") else step for step in steps]
    if trace["dial_ms"] >= 0:
        steps.append(f"{_server(trace)}: accepted after {_duration(trace['dial_ms'])}")
    elif trace["state"] == "dialing":
        steps.append(f"{_server(trace)}: no answer yet")
    return [("attempts" if number == 1 else "", f"{number}. {step}") for number, step in enumerate(steps, 1)]


def _server(one: Mapping[str, Any]) -> str:
    label, address = one["server"], one["address"]
    return str(address) if label == address else f"{label} {address}"


def _result(attempt: Mapping[str, Any]) -> str:
    if attempt["error"]:
        return f"{attempt['result']} ({attempt['error']})"
    return "no answer within timeouts.connect"


def _passed(trace: Mapping[str, Any]) -> list[tuple[str, str]]:
    stages = [f"{_duration(trace['queue_ms'])} in the queue"] if trace["queue_ms"] > 0 else []
    if trace["connect_ms"] >= 0:
        stages.append(f"{_duration(trace['connect_ms'])} until a server accepted")
    stages.append(f"{_duration(trace['total_ms'])} in all")
    return [
        ("time", ", ".join(stages)),
        ("bytes", f"{trace['bytes_in']:,} from the client, {trace['bytes_out']:,} from the server"),
    ]


def _closing(trace: Mapping[str, Any]) -> list[tuple[str, str]]:
    first = trace["closed_first"]
    if first is None:
        return [("closed", "by nobody yet")]
    return [("closed", f"first by {_the(first['by'])} ({first['how']}), {_duration(first['ms'])} after it came")]


def _the(who: str) -> str:
    return who if who == "pylb" else f"the {who}"


def _tcp(info: Mapping[str, Any] | None) -> str:
    return "no connection" if info is None else in_words(TcpInfo(**info))


def _duration(ms: int) -> str:
    return span(ms / 1000) if ms else "less than 1 ms"


def reach(found: Mapping[str, Any]) -> str:
    """How far back a list of ended sessions goes, from its JSON."""
    began = clock(found["began"])
    if not found["codes"]:
        return f"all that ended since {began}"
    parts = [f"{code} since {clock(since)}" for code, since in found["codes"].items()]
    return f"all that ended since {began}, but of these only the last: {', '.join(parts)} (recorder.sessions)"


def ended_table(traces: Sequence[Mapping[str, Any]]) -> Table:
    """One line for each session."""
    return Table(_ENDED, [_ended(one) for one in traces])


def _ended(one: Mapping[str, Any]) -> tuple[str | int, ...]:
    first = one["closed_first"]
    return (
        clock(one["ended_at"], day=False),
        one["id"],
        one["client"],
        one["frontend"],
        one["server"] or "-",
        one["code"],
        f"{one['queue_ms']}/{one['connect_ms']}/{one['total_ms']}",
        one["bytes_in"],
        one["bytes_out"],
        f"{first['by']} ({first['how']})" if first else "-",
    )
