"""What the status page shows, as three tables of flat records by key, so that a change is a field of a record. Pure.

Times in records are seconds of pylb's monotonic clock. They change only when a heartbeat or a check changes them; the page
does the counting.
"""

from collections.abc import Mapping
from typing import Any

from pylb.control.views import FrontendView, Holder, RegistrationView, ServerView, title_of
from pylb.core.policy import Policy
from pylb.statuspage.timeseries import Rate
from pylb.web.views import frontend_json, registration_json, server_json, tenths
from pylb.workers.sampler import FrontendSum, ServerSum

Record = dict[str, Any]
TABLES = ("frontends", "servers", "registrations")
NOTHING: Mapping[str, Any] = {}
_NO_SESSIONS = ServerSum()


def frontend_record(view: FrontendView, health: str, trouble: str, counted: FrontendSum, rate: Rate) -> Record:
    """`trouble`: what is wrong, "" if it is healthy."""
    return frontend_json(view) | {
        "health": health,
        "trouble": trouble.removeprefix(f"{view.name} "),
        "routes": view.routes,
        "limits": limits(view.frontend.policy),
        "sessions": counted.sessions,
        "total": counted.total,
        "queued": counted.queued,
        "denied": counted.denied,
        "rate": _rounded(rate.connections),
        "in": round(rate.bytes_in),
        "out": round(rate.bytes_out),
    }


def server_record(view: ServerView, most: int, checked_at: float | None, counted: FrontendSum, sessions_rate: float) -> Record:
    """`most`: its max_connections, 0 for none. `checked_at`: time of its last check."""
    own = counted.servers.get(view.server, _NO_SESSIONS)
    return server_json(view) | {
        "frontend": str(view.listen),
        "max": most,
        "accepts": view.accepts,
        "check": view.passes,
        "hint": view.hint if view.reachable != "yes" else "",
        "held_by": [[holder_key(one), one.note] for one in view.held_by],
        "checked_at": tenths(checked_at),
        "sessions": own.sessions,
        "total": own.total,
        "rate": _rounded(sessions_rate),
    }


def registration_record(view: RegistrationView) -> Record:
    return registration_json(view) | {
        "ttl": view.ttl,
        "ends_at": tenths(view.ends_at),
        "seen_at": tenths(view.seen_at),
    }


def registration_key(view: RegistrationView) -> str:
    return holder_key(Holder(view.key, view.name))


def holder_key(one: Holder) -> str:
    """A registration's key in its table, or "static"."""
    if one.key is None:
        return str(one)
    title = title_of(one.key, one.name)  # the legacy protocol has no instance: a token may hold many ports under one name
    return f"{title} {one.key.legacy_port}" if one.key.is_legacy else title


def limits(policy: Policy) -> dict[str, int]:
    """The limits that are set."""
    found = {
        "connections": policy.max_connections,
        "queue": policy.max_queue,
        "rate": policy.limits.rate,
        "per source": policy.limits.per_source,
        "rate per source": policy.limits.per_source_rate,
    }
    return {name: value for name, value in found.items() if value}


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> Record:
    """The fields of `new` that differ."""
    return {name: value for name, value in new.items() if name not in old or old[name] != value}


def _rounded(value: float) -> float:
    return round(value, 1 if value < 100 else 0)
