"""HAProxy's exporter: its metric names and labels over the rows of `show stat` and `show info` (addons/promex of its source).

Dashboards and alert packs made for HAProxy read these; pylb's own metrics say more. HTTP's metrics are not there, as there
are none for HAProxy's own TCP proxies. A thousand frontends with three servers each are 200,000 lines: text is made here
directly, and the loop gets its turn after every few rows.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, NamedTuple

from pylb.control.steps import turn
from pylb.haproxy.stats import BACKEND, FRONTEND, SERVER, Row, is_up
from pylb.haproxy.view import View
from pylb.metrics.text import escaped

PIECE = 128 * 1024  # characters that are joined at once


class Family(NamedTuple):
    suffix: str  # behind haproxy_frontend_, …; a counter's has _total
    column: str
    scale: float = 1.0


class InfoFamily(NamedTuple):
    suffix: str
    key: str
    scale: float = 1.0


MS = 0.001
_TRAFFIC = (
    Family("current_sessions", "scur"),
    Family("max_sessions", "smax"),
    Family("limit_sessions", "slim"),
    Family("sessions_total", "stot"),
    Family("bytes_in_total", "bin"),
    Family("bytes_out_total", "bout"),
    Family("responses_denied_total", "dresp"),
    Family("max_session_rate", "rate_max"),
    Family("failed_header_rewriting_total", "wrew"),
    Family("internal_errors_total", "eint"),
)
_SERVING = (
    Family("current_queue", "qcur"),
    Family("max_queue", "qmax"),
    Family("connection_errors_total", "econ"),
    Family("response_errors_total", "eresp"),
    Family("retry_warnings_total", "wretr"),
    Family("redispatch_warnings_total", "wredis"),
    Family("weight", "weight"),
    Family("uweight", "uweight"),
    Family("check_up_down_total", "chkdown"),
    Family("check_last_change_seconds", "lastchg"),
    Family("downtime_seconds_total", "downtime"),
    Family("loadbalanced_total", "lbtot"),
    Family("client_aborts_total", "cli_abrt"),
    Family("server_aborts_total", "srv_abrt"),
    Family("last_session_seconds", "lastsess"),
    Family("queue_time_average_seconds", "qtime", MS),
    Family("connect_time_average_seconds", "ctime", MS),
    Family("response_time_average_seconds", "rtime", MS),
    Family("total_time_average_seconds", "ttime", MS),
    Family("max_queue_time_seconds", "qtime_max", MS),
    Family("max_connect_time_seconds", "ctime_max", MS),
    Family("max_response_time_seconds", "rtime_max", MS),
    Family("max_total_time_seconds", "ttime_max", MS),
    Family("connection_attempts_total", "connect"),
    Family("connection_reuses_total", "reuse"),
)
FAMILIES: Mapping[int, tuple[Family, ...]] = {
    FRONTEND: (
        *_TRAFFIC,
        Family("requests_denied_total", "dreq"),
        Family("request_errors_total", "ereq"),
        Family("limit_session_rate", "rate_lim"),
        Family("connections_rate_max", "conn_rate_max"),
        Family("connections_total", "conn_tot"),
        Family("denied_connections_total", "dcon"),
        Family("denied_sessions_total", "dses"),
    ),
    BACKEND: (
        *_TRAFFIC,
        *_SERVING,
        Family("requests_denied_total", "dreq"),
        Family("active_servers", "act"),
        Family("backup_servers", "bck"),
    ),
    SERVER: (
        *_TRAFFIC,
        *_SERVING,
        Family("check_failures_total", "chkfail"),
        Family("check_code", "check_code"),
        Family("check_duration_seconds", "check_duration", MS),
        Family("idle_connections_current", "srv_icur"),
        Family("unsafe_idle_connections_current", "idle_conn_cur"),
        Family("safe_idle_connections_current", "safe_conn_cur"),
        Family("used_connections_current", "used_conn_cur"),
        Family("need_connections_current", "need_conn_est"),
    ),
}
PROCESS = tuple(
    InfoFamily(*pair)
    for pair in (
        ("nbthread", "Nbthread"),
        ("nbproc", "Nbproc"),
        ("relative_process_id", "Process_num"),
        ("uptime_seconds", "Uptime_sec"),
        ("max_fds", "Ulimit-n"),
        ("max_sockets", "Maxsock"),
        ("max_connections", "Maxconn"),
        ("hard_max_connections", "Hard_maxconn"),
        ("current_connections", "CurrConns"),
        ("connections_total", "CumConns"),
        ("requests_total", "CumReq"),
        ("max_ssl_connections", "MaxSslConns"),
        ("current_ssl_connections", "CurrSslConns"),
        ("ssl_connections_total", "CumSslConns"),
        ("max_pipes", "Maxpipes"),
        ("pipes_used_total", "PipesUsed"),
        ("pipes_free_total", "PipesFree"),
        ("current_connection_rate", "ConnRate"),
        ("limit_connection_rate", "ConnRateLimit"),
        ("max_connection_rate", "MaxConnRate"),
        ("current_session_rate", "SessRate"),
        ("limit_session_rate", "SessRateLimit"),
        ("max_session_rate", "MaxSessRate"),
        ("current_ssl_rate", "SslRate"),
        ("limit_ssl_rate", "SslRateLimit"),
        ("max_ssl_rate", "MaxSslRate"),
        ("current_frontend_ssl_key_rate", "SslFrontendKeyRate"),
        ("max_frontend_ssl_key_rate", "SslFrontendMaxKeyRate"),
        ("frontend_ssl_reuse", "SslFrontendSessionReuse_pct"),
        ("current_backend_ssl_key_rate", "SslBackendKeyRate"),
        ("max_backend_ssl_key_rate", "SslBackendMaxKeyRate"),
        ("ssl_cache_lookups_total", "SslCacheLookups"),
        ("ssl_cache_misses_total", "SslCacheMisses"),
        ("http_comp_bytes_in_total", "CompressBpsIn"),
        ("http_comp_bytes_out_total", "CompressBpsOut"),
        ("limit_http_comp", "CompressBpsRateLim"),
        ("current_tasks", "Tasks"),
        ("current_run_queue", "Run_queue"),
        ("idle_time_percent", "Idle_pct"),
        ("stopping", "Stopping"),
        ("jobs", "Jobs"),
        ("unstoppable_jobs", "Unstoppable Jobs"),
        ("listeners", "Listeners"),
        ("active_peers", "ActivePeers"),
        ("connected_peers", "ConnectedPeers"),
        ("dropped_logs_total", "DroppedLogs"),
        ("busy_polling_enabled", "BusyPolling"),
        ("bytes_out_total", "TotalBytesOut"),
        ("spliced_bytes_out_total", "TotalSplicdedBytesOut"),
        ("bytes_out_rate", "BytesOutRate"),
        ("recv_logs_total", "CumRecvLogs"),
        ("max_memory_bytes", "Memmax_bytes"),
        ("pool_allocated_bytes", "PoolAlloc_bytes"),
        ("pool_used_bytes", "PoolUsed_bytes"),
        ("pool_failures_total", "PoolFailed"),
        ("start_time_seconds", "Start_time_sec"),
    )
)
_PREFIX = {FRONTEND: "haproxy_frontend_", BACKEND: "haproxy_backend_", SERVER: "haproxy_server_"}
_STATES: Mapping[int, tuple[str, ...]] = {
    FRONTEND: ("DOWN", "UP"),
    BACKEND: ("DOWN", "UP"),
    SERVER: ("DOWN", "UP", "MAINT", "DRAIN", "NOLB"),
}
CHECKS = ("HANA", "SOCKERR", "L4OK", "L4TOUT", "L4CON", "L6OK", "L6TOUT", "L6RSP", "L7TOUT", "L7RSP", "L7OK", "L7OKC", "L7STS")

Lines = dict[str, list[str]]


class Exporter:
    """`render` is one scrape, in Prometheus' text format 0.0.4."""

    def __init__(self, view: View) -> None:
        self._view = view

    async def render(self, found: bytearray) -> bytearray:
        """`found`, with these behind it: the 20 MB of a thousand frontends are not joined in one go."""
        async for piece in self.pieces():
            found += piece
        return found

    async def pieces(self) -> AsyncIterator[bytes]:
        """Each is some milliseconds of work, and the loop has its turn behind it."""
        info = await self._view.info()
        yield "".join(_process_lines(info)).encode()
        found: Lines = {name: [] for name in names() if not name.startswith("haproxy_process_")}
        picture = await self._view.picture()
        async for rows in self._view.proxies(picture):
            for row in rows:
                _add(found, row)
            _add_sums(found, rows)
        for name in list(found):
            lines = found.pop(name)  # 200,000 lines are not freed in one go, either
            if lines:
                yield _head(name).encode()
            for start in range(0, len(lines), 2000):
                yield "".join(lines[start : start + 2000]).encode()
                await turn()


def names() -> Iterator[str]:
    """Of all metrics."""
    yield from (f"haproxy_process_{family.suffix}" for family in PROCESS)
    yield "haproxy_process_build_info"
    for kind, families in FAMILIES.items():
        yield f"{_PREFIX[kind]}status"
        yield from (f"{_PREFIX[kind]}{family.suffix}" for family in families)
    yield "haproxy_server_check_status"
    yield "haproxy_backend_agg_server_status"
    yield "haproxy_backend_agg_server_check_status"
    yield "haproxy_backend_agg_check_status"


def reference() -> str:
    """docs/haproxy.md: a Markdown table of all names."""
    labels = {FRONTEND: "`proxy`", BACKEND: "`proxy`", SERVER: "`proxy`, `server`"}
    rows = [f"| `haproxy_process_{family.suffix}` | | `show info` {family.key} |\n" for family in PROCESS]
    rows.append("| `haproxy_process_build_info` | `version` | `show info` Version |\n")
    for kind, families in FAMILIES.items():
        rows += [f"| `{_PREFIX[kind]}{family.suffix}` | {labels[kind]} | {family.column} |\n" for family in families]
        rows.append(f"| `{_PREFIX[kind]}status` | {labels[kind]}, `state` | status |\n")
    rows.append("| `haproxy_server_check_status` | `proxy`, `server`, `state` | check_status |\n")
    for name in ("server_status", "server_check_status", "check_status"):
        rows.append(f"| `haproxy_backend_agg_{name}` | `proxy`, `state` | servers in that state |\n")
    return "| name | labels | column of `show stat` |\n|---|---|---|\n" + "".join(rows)


def _head(name: str) -> str:
    return f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}\n"


def _process_lines(info: Mapping[str, int | str]) -> Iterator[str]:
    for family in PROCESS:
        name = f"haproxy_process_{family.suffix}"
        yield f"{_head(name)}{name} {info[family.key]}\n"
    name = "haproxy_process_build_info"
    yield f'{_head(name)}{name}{{version="{info["Version"]}"}} 1\n'


def _labels(row: Row) -> str:
    proxy = f'proxy="{escaped(row["pxname"])}"'
    return f'{proxy},server="{escaped(row["svname"])}"' if row["type"] == SERVER else proxy


def _add(found: Lines, row: Row) -> None:
    """A line for whatever the row has; what is empty has no series."""
    kind, labels = row["type"], _labels(row)
    prefix = _PREFIX[kind]
    for suffix, column, scale in FAMILIES[kind]:
        value = row.get(column)
        if value is None and column == "check_code" and row["check_status"] is not None:
            value = 0  # as HAProxy, whose CSV has nothing there
        if value is not None:
            name = prefix + suffix
            found[name].append(f"{name}{{{labels}}} {value if scale == 1.0 else value * scale:.15g}\n")
    _add_states(found[f"{prefix}status"], f"{prefix}status{{{labels}", _STATES[kind], state_of(row))
    if kind == SERVER and row["check_status"] is not None:
        name = "haproxy_server_check_status"
        _add_states(found[name], f"{name}{{{labels}", CHECKS, row["check_status"])


def _add_states(lines: list[str], head: str, states: tuple[str, ...], state: str) -> None:
    lines += [f'{head},state="{word}"}} {int(word == state)}\n' for word in states]


def state_of(row: Row) -> str:
    """The status as one of the exporter's states."""
    status: str = row["status"]
    if row["type"] == FRONTEND:
        return "DOWN" if status == "STOP" else "UP"
    return "UP" if is_up(status) else status.partition(" ")[0]


def _add_sums(found: Lines, rows: list[Row]) -> None:
    """How many servers of a backend are in which state."""
    labels = _labels(rows[-1])
    servers = [row for row in rows if row["type"] == SERVER]
    counted: tuple[tuple[str, tuple[str, ...], Callable[[Row], Any]], ...] = (
        ("haproxy_backend_agg_server_status", _STATES[SERVER], state_of),
        ("haproxy_backend_agg_server_check_status", _STATES[SERVER], state_of),  # says the same in HAProxy, too
        ("haproxy_backend_agg_check_status", CHECKS, lambda row: row["check_status"]),
    )
    for name, states, state in counted:
        words = [state(row) for row in servers]
        found[name] += [f'{name}{{{labels},state="{word}"}} {words.count(word)}\n' for word in states]
