"""`pylb explain SESSION`: what happened to one connection, in plain words. From the JSON of web/sessions."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from pylb.core.table_diff import RANKS
from pylb.core.tcp_info import TcpInfo, in_words

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
    "source_share": "its source has its limits.source_share of all connections",
    "proxy_header": "what it sent first is no PROXY header, and proxy_protocol.accept_from demands one of it",
    "queue": "max_queue clients were waiting already",
    "loop": "it came from pylb itself, or in a circle of proxies",
}
_FORM = "           {:<24} {:<24} {:<20} {:>6}  {}"


def told(story: Mapping[str, Any]) -> list[str]:
    """Lines for people; the first says how it ended, or that it is live."""
    return [
        _headline(story),
        "",
        f"came       {local_time(story['accepted_at'])} from {story['client']} to {story['listen']}",
        f"frontend   {story['frontend']}, by the table of generation {story['generation']} (`pylb history` has its changes)",
        *_candidates(story),
        *_attempts(story),
        *_passed(story),
        *_closing(story),
        f"client     {_tcp(story['client_tcp'])}",
        f"server     {_tcp(story['server_tcp'])}",
    ]


def line(story: Mapping[str, Any]) -> str:
    """The same as one line."""
    return (
        f"{local_time(story['ended_at'], day=False)} {story['id']} {story['client']} to {story['server'] or 'no server'}: "
        f"{story['code']} after {_duration(story['total_ms'])}, {meaning(story)}"
    )


def _headline(story: Mapping[str, Any]) -> str:
    who = f"session {story['id']} of {story['client']}"
    if story["code"] is None:
        return f"{who} lives, for {_duration(story['total_ms'])} now: {story['state']}"
    return f"{who} ended at {local_time(story['ended_at'], day=False)} with {story['code']}: {meaning(story)}"


def meaning(story: Mapping[str, Any]) -> str:
    """The meaning of its two letters, and why it was refused, if that is known."""
    return REASONS.get(story["reason"] or "") or LETTERS.get(story["code"], "see docs/engine.md")


def _candidates(story: Mapping[str, Any]) -> list[str]:
    if not story["candidates"]:
        return ["servers    the frontend had none"]
    lines = ["servers    as they stood when one was picked:"]
    lines.append(_FORM.format("SERVER", "ADDRESS", "STATE", "WEIGHT", "WHY, OR WHY NOT").rstrip())
    for one in sorted(story["candidates"], key=lambda one: one["rank"]):
        state = RANKS[one["rank"]] if one["admin"] == "ready" else one["admin"]
        lines.append(_FORM.format(one["server"], one["address"], state, one["weight"], why(one, story)))
    return lines


def why(one: Mapping[str, Any], story: Mapping[str, Any]) -> str:
    """Why this candidate was picked, or why not."""
    here = (one["server"], one["address"])
    tried = [attempt for attempt in story["attempts"] if (attempt["server"], attempt["address"]) == here]
    ranks = [other["rank"] for other in story["candidates"] if other["address"] == story["address"]]
    if tried:
        return f"tried: {_result(tried[-1])}"
    if here == (story["server"], story["address"]):
        return f"picked ({story['balance']})"
    if one["admin"] != "ready":
        return "the operator took it out (pylb ctl)"
    if one["weight"] == 0:
        return "its weight is 0"
    if not ranks:
        return "not asked: the session ended before"
    if one["rank"] > ranks[0]:
        return "only for when no better one is left"
    limit = f" (or it was full: max_connections {one['max_connections']})" if one["max_connections"] else ""
    return f"{story['balance']} chose another{limit}"


def _attempts(story: Mapping[str, Any]) -> list[str]:
    steps = []
    for one in story["attempts"]:
        if one["result"] == "waited":
            steps.append(f"waited {_duration(one['ms'])} in the queue")
        else:
            steps.append(f"{_server(one)}: {_result(one)} after {_duration(one['ms'])}")
    if story["state"] == "queued":
        steps.append(f"waits in the queue, {story['ahead']} before it when it came")
    elif story["ahead"]:
        steps = [f"{step}, {story['ahead']} before it" if step.endswith("in the queue") else step for step in steps]
    if story["dial_ms"] >= 0:
        steps.append(f"{_server(story)}: accepted after {_duration(story['dial_ms'])}")
    elif story["state"] == "dialing":
        steps.append(f"{_server(story)}: no answer yet")
    return [f"{'attempts' if number == 1 else '':<11}{number}. {step}" for number, step in enumerate(steps, 1)]


def _server(one: Mapping[str, Any]) -> str:
    label, address = one["server"], one["address"]
    return str(address) if label == address else f"{label} {address}"


def _result(attempt: Mapping[str, Any]) -> str:
    if attempt["error"]:
        return f"{attempt['result']} ({attempt['error']})"
    return "no answer within timeouts.connect"


def _passed(story: Mapping[str, Any]) -> list[str]:
    stages = [f"{_duration(story['queue_ms'])} in the queue"] if story["queue_ms"] > 0 else []
    if story["connect_ms"] >= 0:
        stages.append(f"{_duration(story['connect_ms'])} until a server accepted")
    stages.append(f"{_duration(story['total_ms'])} in all")
    return [
        f"time       {', '.join(stages)}",
        f"bytes      {story['bytes_in']:,} from the client, {story['bytes_out']:,} from the server",
    ]


def _closing(story: Mapping[str, Any]) -> list[str]:
    first = story["closed_first"]
    if first is None:
        return ["closed     by nobody yet"]
    return [f"closed     first by {_the(first['by'])} ({first['how']}), {_duration(first['ms'])} after it came"]


def _the(who: str) -> str:
    return who if who == "pylb" else f"the {who}"


def _tcp(info: Mapping[str, Any] | None) -> str:
    return "no connection" if info is None else in_words(TcpInfo(**info))


def _duration(ms: int) -> str:
    return f"{ms} ms" if ms < 10_000 else f"{ms / 1000:,.1f} s"


def local_time(unix: float, *, day: bool = True) -> str:
    """As in the log."""
    return time.strftime("%Y-%m-%d %H:%M:%S" if day else "%H:%M:%S", time.localtime(unix))


def reach(found: Mapping[str, Any]) -> str:
    """How far back a list of ended sessions goes, from its JSON."""
    began = local_time(found["began"])
    if not found["codes"]:
        return f"all that ended since {began}"
    parts = [f"{code} since {local_time(since)}" for code, since in found["codes"].items()]
    return f"all that ended since {began}, but of these only the last: {', '.join(parts)} (recorder.sessions)"


def ended_table(stories: Sequence[Mapping[str, Any]]) -> list[str]:
    """A header, and one line per session."""
    form = "{:<8} {:<17} {:<46} {:<20} {:<20} {:<4} {:>14} {:>12} {:>12}  {}"
    head = ("ENDED", "ID", "CLIENT", "FRONTEND", "SERVER", "CODE", "Q/C/T MS", "BYTES IN", "BYTES OUT", "CLOSED FIRST BY")
    lines = [form.format(*head)]
    for one in stories:
        times = f"{one['queue_ms']}/{one['connect_ms']}/{one['total_ms']}"
        first = one["closed_first"]
        closed = f"{first['by']} ({first['how']})" if first else "-"
        who = (
            local_time(one["ended_at"], day=False),
            one["id"],
            one["client"],
            one["frontend"],
            one["server"] or "-",
            one["code"],
        )
        lines.append(form.format(*who, times, one["bytes_in"], one["bytes_out"], closed))
    return lines
