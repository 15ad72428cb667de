"""The rows of `show stat`. Each frontend of pylb gives a FRONTEND row, a row for each server, and a BACKEND row. A route by
server name is what HAProxy's use_backend leads to: its servers and a BACKEND row; the FRONTEND row of its port counts it, too.

Columns (columns.py), words and units are those of HAProxy 2.6's `show stat` (its management guide, 9.1 "CSV format"); where
pylb has nothing of the kind (HTTP, TLS, agents) a column is empty, or 0 where HAProxy's own TCP mode has 0. `stot` of a
server counts the sessions that were connected to it; `lbtot` and `connect` count the attempts to connect. A retry always goes
to another server, so `wretr` and `wredis` are equal.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pylb.control.views import FrontendView, ServerView
from pylb.core.address import Listen
from pylb.core.health import PASSED
from pylb.core.policy import CheckKind, HealthMode, HealthPolicy
from pylb.core.table import Frontend
from pylb.forward.counters import Counters, FrontendCounters, ServerCounters
from pylb.haproxy.rates import ProxyRates, Rates

FRONTEND, BACKEND, SERVER = range(3)  # the column `type`
Row = dict[str, Any]  # int, str or None by column; a missing column is empty
_NO_SERVER = ServerCounters()
_DOOR = frozenset(
    {"access", "per_source", "per_source_rate", "source_share"}
)  # reasons in `denied`: refused before a session, or right after its PROXY header


@dataclass(frozen=True)
class Statistics:
    """All values at one moment. `proxies` makes the rows one by one, in some 60 µs for a frontend with three servers."""

    frontends: Sequence[FrontendView]  # in the order of their ports
    counters: Counters
    rates: Rates
    now: float  # monotonic
    names: dict[Listen, str] = field(default_factory=dict)  # unique names
    routed: dict[Listen, list[FrontendCounters]] = field(default_factory=dict)  # of the routes of each port

    def __post_init__(self) -> None:
        taken: set[str] = set()
        for one in self.frontends:
            name = one.name if one.name not in taken else f"{one.name}@{one.listen}"
            taken.add(name)
            self.names[one.listen] = name

        for one in self.frontends:
            if one.listen.server_name and (counted := self.counters.frontends.get(one.listen)) is not None:
                self.routed.setdefault(one.listen.default, []).append(counted)

    def proxies(self) -> Iterator[list[Row]]:
        """The rows of each frontend (FRONTEND, servers, BACKEND), in the order of the ports."""
        return map(self.proxy, self.frontends)

    def proxy(self, view: FrontendView) -> list[Row]:
        frontend, listen = view.frontend, view.listen
        counted = self.counters.frontends.get(listen) or FrontendCounters(view.name)
        rates = self.rates.proxy(listen, self.now)
        head = {"pxname": self.names[listen], "pid": 1, "iid": rates.number, "mode": listen.protocol}
        rows = [head | self._server(frontend, one, counted, rates) for one in view.servers]
        backends = [] if view.has_no_default_route else [head | self._backend(frontend, counted, rates, rows)]
        frontends = [] if listen.server_name else [head | self._frontend(view, counted, rates)]
        return [*frontends, *rows, *backends]

    def _limit(self, frontend: Frontend) -> int:
        return min(frontend.policy.max_connections or self.counters.max_connections, self.counters.max_connections)

    def _frontend(self, view: FrontendView, counted: FrontendCounters, rates: ProxyRates) -> Row:
        frontend = view.frontend
        limit = self._limit(frontend)
        all_of_it = [counted, *self.routed.get(view.listen, ())]
        ended = _ended(server for one in all_of_it for server in one.servers.values())
        sessions = counted.sessions  # with those of its routes
        at_limit = sessions >= limit or self.counters.open_sessions >= self.counters.max_connections
        return _ZERO_FRONTEND | {
            "svname": "FRONTEND",
            "type": FRONTEND,
            "sid": 0,
            "status": "STOP" if view.unbound is not None else "FULL" if at_limit else "OPEN",
            "scur": sessions,
            "smax": max(rates.sessions.peak, sessions),
            "slim": limit,
            "stot": sum(one.sessions_total for one in all_of_it),
            "bin": sum(one.bytes_in for one in all_of_it),
            "bout": sum(one.bytes_out for one in all_of_it),
            "ereq": counted.denied["proxy_header"],
            "dreq": counted.denied["hello"] + counted.denied["server_name"],
            "dcon": sum(number for reason, number in counted.denied.items() if reason in _DOOR),
            "rate": rates.sessions.rate,
            "rate_lim": frontend.policy.limits.rate,
            "rate_max": rates.sessions.most,
            "conn_rate": rates.connections.rate,
            "conn_rate_max": rates.connections.most,
            "conn_tot": counted.connections,
            "eint": ended["internal"],
        }

    def _server(self, frontend: Frontend, view: ServerView, counted: FrontendCounters, proxy: ProxyRates) -> Row:
        """A server's row. The function is long because the row is one literal, column by column; so is the backend's."""
        one, rates = counted.servers.get(view.server, _NO_SERVER), proxy.server(view.server)
        ended, status = _ended([one]), status_of(view, view.policy)
        record = view.record
        is_down = status.startswith("DOWN")
        most = next((server.max_connections for server in frontend.servers if server.name == view.server), 0)
        return (
            _ZERO_SERVER
            | {
                "svname": view.server,
                "type": SERVER,
                "sid": rates.number,
                "status": status,
                "scur": one.sessions,
                "smax": max(rates.sessions.peak, one.sessions),
                "slim": most or None,
                "stot": one.sessions_total,
                "bin": one.bytes_in,
                "bout": one.bytes_out,
                "econ": one.failures.total(),
                "eresp": ended["server"],
                "wretr": one.redispatches,
                "wredis": one.redispatches,
                "weight": view.weight,
                "uweight": view.initial_weight if view.state in ("drain", "maint") else view.weight,
                "act": int(not view.backup),
                "bck": int(view.backup),
                "lastchg": int(self.now - record.changed_at),
                "downtime": int(record.down_seconds + (self.now - record.changed_at if is_down and record.downs else 0)),
                "lbtot": one.attempts,
                "connect": one.attempts,
                "rate": rates.sessions.rate,
                "rate_max": rates.sessions.most,
                "cli_abrt": ended["client"],
                "srv_abrt": ended["server"],
                "lastsess": int(self.now - one.last_at) if one.last_at else -1,
                "qtime": _ms(rates.queue.value),
                "ctime": _ms(rates.connect.value),
                "ttime": _ms(rates.total.value),
                "qtime_max": _ms(one.longest_queue),
                "ctime_max": _ms(one.longest_connect),
                "ttime_max": _ms(one.longest_total),
                "eint": ended["internal"],
                "used_conn_cur": one.sessions,
                "need_conn_est": one.sessions,
                "addr": str(view.address),
                "initial_weight": view.initial_weight,  # in no column; `get weight` needs it
            }
            | _check(view, view.policy)
        )

    def _backend(self, frontend: Frontend, counted: FrontendCounters, rates: ProxyRates, rows: Sequence[Row]) -> Row:
        ended = _ended(counted.servers.values())
        sessions = counted.sessions - sum(one.sessions for one in self.routed.get(frontend.listen, ()))
        up = [row for row in rows if is_up(row["status"]) and row["weight"]]
        active = [row for row in up if row["act"]] or up
        last = [row["lastsess"] for row in rows if row["lastsess"] >= 0]
        summed = {
            key: sum(row[key] for row in rows) for key in ("econ", "wretr", "wredis", "lbtot", "connect")
        }  # only of the servers that it has now
        status = "UP" if up else "DOWN"
        down_now = self.now - rates.changed_at if not rates.usable else 0
        weights = sum(row["weight"] for row in active)
        return _ZERO_BACKEND | {
            "svname": "BACKEND",
            "type": BACKEND,
            "sid": 0,
            "status": status,
            "qcur": counted.queued,
            "qmax": max(rates.queue.peak, counted.queued),
            "scur": sessions,
            "smax": max(rates.sessions.peak, sessions),
            "slim": self._limit(frontend),
            "stot": counted.sessions_total,
            "bin": counted.bytes_in,
            "bout": counted.bytes_out,
            **summed,
            "eresp": ended["server"],
            "weight": weights,
            "uweight": weights,
            "act": sum(row["act"] for row in up),
            "bck": sum(row["bck"] for row in up),
            "chkdown": rates.downs,
            "lastchg": int(self.now - rates.changed_at),
            "downtime": int(rates.down_seconds + down_now),
            "rate": rates.sessions.rate,
            "rate_max": rates.sessions.most,
            "cli_abrt": ended["client"],
            "srv_abrt": ended["server"],
            "lastsess": min(last, default=-1),
            **{key: _mean(rows, key) for key in ("qtime", "ctime", "ttime")},
            **{key: max((row[key] for row in rows), default=0) for key in ("qtime_max", "ctime_max", "ttime_max")},
            "eint": ended["internal"],
            "algo": str(frontend.policy.balance),
        }


def _zeros(columns: str) -> Row:
    return dict.fromkeys(columns.split(), 0)


# Columns that are 0 in TCP mode: nothing was denied, cached, compressed or reused, and there are no idle connections.
_ZERO_FRONTEND = _zeros("dresp req_rate req_rate_max req_tot comp_in comp_out comp_byp comp_rsp dses wrew")
_ZERO_SERVER = _zeros("qcur qmax dresp rtime rtime_max wrew reuse srv_icur idle_conn_cur safe_conn_cur")
_ZERO_BACKEND = _zeros(
    "dreq dresp req_tot comp_in comp_out comp_byp comp_rsp rtime rtime_max wrew reuse"
    " agg_server_status agg_server_check_status agg_check_status"
)


def status_of(view: ServerView, policy: HealthPolicy) -> str:
    """The status in HAProxy's words. A checked server that never answered is DOWN: pylb uses it only as a last resort."""
    health = view.health
    if view.state in ("drain", "maint"):
        return view.state.upper()
    if policy.mode is HealthMode.NONE:
        return "no check"
    if view.state == "down":
        return f"DOWN {health.answers}/{policy.rise}" if health.answers else "DOWN"
    if view.state == "unproven" and view.reachable != "unknown":
        return "DOWN"
    return f"UP {policy.fall - health.failures}/{policy.fall}" if 0 < health.failures < policy.fall else "UP"


def is_up(status: str) -> bool:
    return status.startswith("UP") or status == "no check"


_DESCRIPTIONS = {
    "INI": "Initializing",
    "SOCKERR": "Socket error",
    "L4OK": "Layer4 check passed",
    "L4TOUT": "Layer4 timeout",
    "L4CON": "Layer4 connection problem",
    "L7OK": "Layer7 check passed",
    "L7TOUT": "Layer7 timeout",
    "L7STS": "Layer7 wrong status",
    "L7RSP": "Layer7 invalid response",
}


def _check(view: ServerView, policy: HealthPolicy) -> Row:
    if policy.mode is HealthMode.NONE:
        return {"check_status": None}
    record, health = view.record, view.health
    word, code = check_status(record.found, policy.check.kind)
    answers = health.answers if health.down else policy.rise + policy.fall - 1 - min(health.failures, policy.fall - 1)
    return {
        "chkfail": record.failures,
        "chkdown": record.downs,
        "check_status": word,
        "check_code": code,
        "check_duration": round(record.seconds * 1000) if record.found else None,
        "check_desc": _DESCRIPTIONS[word],
        "last_chk": "" if record.found in PASSED else view.hint or record.found,
        "check_rise": policy.rise,
        "check_fall": policy.fall,
        "check_health": answers,
    }


def check_status(found: str, kind: CheckKind) -> tuple[str, int | None]:
    """The result of a check in HAProxy's words, and the status code of an HTTP answer."""
    if not found:
        return "INI", None
    if found in PASSED:
        return "L4OK" if kind is CheckKind.TCP else "L7OK", None
    if found in ("refused", "unreachable"):
        return "L4CON", None
    if found == "timeout":
        return "L4TOUT" if kind is CheckKind.TCP else "L7TOUT", None
    if found == "resource":
        return "SOCKERR", None
    _, is_status, status = found.partition("HTTP status ")
    return ("L7STS", int(status)) if is_status and status.isdigit() else ("L7RSP", None)


def _ended(servers: Any) -> dict[str, int]:
    """The number of broken-off sessions by cause, from the first letter of their codes: C, S while data flowed, I."""
    found = {"client": 0, "server": 0, "internal": 0}
    for one in servers:
        for code, number in one.closed.items():
            if code[0] == "C":
                found["client"] += number
            elif code == "SD":
                found["server"] += number
            elif code[0] == "I":
                found["internal"] += number
    return found


def _mean(rows: Sequence[Row], key: str) -> int:
    """The mean of the servers' averages, weighted by their sessions."""
    sessions = sum(row["stot"] for row in rows)
    return round(sum(row[key] * row["stot"] for row in rows) / sessions) if sessions else 0


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
