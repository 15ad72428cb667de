"""The overall condition in one sentence, and each frontend's in one word: for the status page and `pylb status`. Pure.

Healthy: the port is open, and all servers that the operator left in service are up and belong to a fresh registration (or
to the config). Degraded: it serves, but not from all of them. Down: it serves nobody.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum

from pylb.control.event_log import Event
from pylb.control.liveness import moment
from pylb.control.sharing import ClusterView
from pylb.control.views import FrontendView, ServerView
from pylb.core.address import UDP
from pylb.core.health import PASSED, YES
from pylb.core.table import LAST_RESORT
from pylb.core.text import ago, counted

MOST_SHOWN = 3  # troubles in the sentence; the rest are counted


class Condition(StrEnum):
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    DOWN = "down"
    UNKNOWN = "unknown"  # of a pylb without frontends


def since_down(events: Iterable[Event]) -> dict[tuple[str, str], float]:
    """Unix time by (frontend, server's ip:port) of those that went down and are not back. `events`: oldest first."""
    found: dict[tuple[str, str], float] = {}
    for event in events:
        place = str(event.fields.get("frontend")), str(event.fields.get("address"))
        if event.kind == "server_down":
            found[place] = event.at
        elif event.kind == "server_up":
            found.pop(place, None)
    return found


def condition(one: FrontendView, down_at: Mapping[tuple[str, str], float], now: float | None) -> tuple[Condition, str]:
    """One word, and what is wrong ("" if healthy). `down_at`: from `since_down`; `now`: unix time, None for a text without
    "12 s ago", which changes only with the condition."""
    word, text = _condition(one, down_at, now)
    if one.closes is not None and one.unbound is None:
        text += f"; nobody calls for it any more: its port closes at {moment(one.closes)}"
    return word, text


def _condition(one: FrontendView, down_at: Mapping[tuple[str, str], float], now: float | None) -> tuple[Condition, str]:
    if one.unbound is not None:
        return Condition.DOWN, f"{one.name} cannot open its port: {one.unbound}"
    if one.has_no_default_route:
        return Condition.HEALTHY, ""  # whatever its routes are, they say themselves
    if not one.servers:
        why = f": {', '.join(one.unresolved)} cannot be resolved" if one.unresolved else " yet"
        return Condition.DOWN, f"{one.name} has no server{why}"
    serving = [view for view in one.servers if view.state not in ("drain", "maint") and view.weight]
    if not serving:
        return Condition.DOWN, f"{one.name} has no server in service (pylb ctl ready brings one back)"
    serving = [view for view in serving if not view.not_missed] or serving  # as long as others serve
    lost = [view for view in serving if view.state == "down"]
    silent = [view for view in serving if view.silent]
    if lost or silent:
        serves = len(lost) + len(silent) < len(serving)
        text = _lost(one.name, lost, down_at, now) if lost else _silent(silent, serves=serves)
        if not serves:
            text += " and has no other" if len(serving) == 1 else " and has none left" if lost else ""
        return Condition.DEGRADED if serves else Condition.DOWN, f"{one.name} {text}"
    if all(view.rank == LAST_RESORT for view in serving):
        return Condition.DEGRADED, f"{one.name} is served by registrations that no longer call"
    return Condition.HEALTHY, ""


def _lost(name: str, lost: Sequence[ServerView], down_at: Mapping[tuple[str, str], float], now: float | None) -> str:
    times = {view.address: down_at.get((name, str(view.address)), 0.0) for view in lost}
    latest = max(times, key=lambda address: times[address])
    when = f" {ago(now - times[latest])}" if times[latest] and now is not None else ""
    what = str(latest) if len(lost) == 1 else f"{len(lost)} servers, {latest} last{',' if when else ''}"
    why = _missing(next(view for view in lost if view.address == latest))
    return f"lost {what}{when}" + (f" ({why})" if why else "")


def _missing(view: ServerView) -> str:
    """Which of the two conditions the server lacks."""
    if view.passes in (YES, "unknown"):
        return ""
    if view.address.protocol == UDP:
        return (
            f"it does not pass its check: {view.passes}" if view.accepts in PASSED else f"it refuses datagrams: {view.accepts}"
        )
    if view.accepts == YES:
        where = f" at port {view.policy.check.port}" if view.policy.check.port else ""
        return f"it accepts connections and does not pass its check{where}: {view.passes}"
    return f"it accepts no connections: {view.accepts}"


def _silent(silent: Sequence[ServerView], *, serves: bool) -> str:
    """They have accepted no connection so far."""
    several = f"{len(silent)} servers" if serves else f"any of its {len(silent)} servers"
    return f"has not reached {silent[0].address if len(silent) == 1 else several} yet ({silent[0].reachable})"


def said(found: Sequence[tuple[Condition, str]], also: Iterable[str] = ()) -> str:
    """ "3 of 4 frontends healthy; web-443 lost 10.0.0.7:30443 12 s ago", from the conditions of all frontends. `also`: problems
    of pylb itself, which come first."""
    troubles = [*also, *(text for wanted in (Condition.DOWN, Condition.DEGRADED) for word, text in found if word is wanted)]
    shown = troubles if len(troubles) <= MOST_SHOWN + 1 else [*troubles[:MOST_SHOWN], f"{len(troubles) - MOST_SHOWN} more"]
    healthy = sum(word is Condition.HEALTHY for word, _ in found)
    if not found:
        head = "no frontends yet"
    elif len(found) == 1:
        head = "the one frontend is " + found[0][0]
    else:
        head = f"{'all' if healthy == len(found) else f'{healthy} of'} {len(found)} frontends healthy"
    return "; ".join([head, *shown])


def overall(found: Iterable[tuple[Condition, str]], *, durable: bool, also: Iterable[str] = ()) -> Condition:
    """The whole pylb's condition in one word. `also`: as for `said`."""
    words = {word for word, _ in found}
    if Condition.DOWN in words or not durable:
        return Condition.DOWN
    if Condition.DEGRADED in words or any(also):
        return Condition.DEGRADED
    return Condition.HEALTHY if words else Condition.UNKNOWN


def troubles(
    *,
    durable: bool,
    preserving: bool,
    reloaded: bool,
    unserved: Sequence[str] = (),
    standby: bool = False,
    cluster: ClusterView | None = None,
) -> list[str]:
    """The problems of pylb itself, for `also`. `unserved`: names of registrations that this version is too old for."""
    found = {
        "the state cannot be written to disk": not durable,
        "most phone-homes fell silent at once": preserving,
        "the config on disk was refused, the one before is in force": not reloaded,
        "on standby, so that another balancer has the floating address (pylb active)": standby,
    }
    texts = [text for text, is_so in found.items() if is_so]
    if cluster is not None:
        texts += _of_cluster(cluster)
    return [*texts, *([f"this version is too old to serve {', '.join(unserved)} (pylb routes)"] if unserved else [])]


def _of_cluster(view: ClusterView) -> Iterator[str]:
    if view.trouble:
        yield f"the other balancers and this one do not hear of each other: {view.trouble} (pylb cluster status)"
    if view.held:
        yield f"{counted(len(view.held), 'release')} by another balancer wait for pylb cluster accept"
    if view.unserved:
        yield f"{counted(len(view.unserved), 'registration')} of other balancers cannot be served here (pylb cluster status)"
