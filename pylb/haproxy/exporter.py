"""The rows of `show stat` and `show info` under the names and labels of HAProxy's exporter (addons/promex in its source).

Dashboards and alert packs made for HAProxy read these; pylb's own metrics say more. There are no HTTP metrics, as HAProxy has
none for its own TCP proxies. A thousand frontends with three servers each make 260,000 samples, which is 0.8 s of work, so
the event loop runs other tasks after every few of them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from pylb.haproxy.stats import BACKEND, FRONTEND, SERVER, Row, is_up
from pylb.haproxy.view import View
from pylb.metrics.families import Labelled, Scrape, labelled


class Family(NamedTuple):
    suffix: str  # follows haproxy_frontend_, …; of a counter it ends in _total
    column: str
    divisor: int = 1


class InfoFamily(NamedTuple):
    suffix: str
    key: str


MS = 1000  # HAProxy counts milliseconds; metrics are in seconds
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
_LABELS = {FRONTEND: ("proxy",), BACKEND: ("proxy",), SERVER: ("proxy", "server")}
_STATES: Mapping[int, tuple[str, ...]] = {
    FRONTEND: ("DOWN", "UP"),
    BACKEND: ("DOWN", "UP"),
    SERVER: ("DOWN", "UP", "MAINT", "DRAIN", "NOLB"),
}
CHECKS = ("HANA", "SOCKERR", "L4OK", "L4TOUT", "L4CON", "L6OK", "L6TOUT", "L6RSP", "L7TOUT", "L7RSP", "L7OK", "L7OKC", "L7STS")


class Exporter:
    def __init__(self, view: View) -> None:
        self._view = view

    async def scrape(self) -> Scrape:
        """The rows of `show stat`, made in steps; they become samples while the scrape is written."""
        info, statistics = await self._view.info(), await self._view.statistics()
        proxies = deque([[(_labels(row), row) for row in rows] async for rows in self._view.proxies(statistics)])
        return Scrape(chain(_process(info), _proxies(proxies), _sums(proxies)))


Series = tuple[dict[str, str], Row]  # the labels, which all families of one kind share, and the row


def _process(info: Mapping[str, int | str]) -> Iterator[Metric]:
    for suffix, key in PROCESS:
        yield from _family(f"haproxy_process_{suffix}", f"`show info` {key}", [({}, int(info[key]))])
    yield from _family("haproxy_process_build_info", "`show info` Version", [({"version": str(info["Version"])}, 1)])


def _proxies(proxies: Iterable[Sequence[Series]]) -> Iterator[Metric]:
    for kind, families in FAMILIES.items():
        prefix = _PREFIX[kind]
        series = [one for proxy in proxies for one in proxy if one[1]["type"] == kind]
        states = ((labels, state_of(row)) for labels, row in series)
        yield from _family(f"{prefix}status", "status", _states(states, _STATES[kind]))
        for family in families:
            yield from _family(prefix + family.suffix, family.column, _values(series, family))
        if kind == SERVER:
            checked = ((labels, row["check_status"]) for labels, row in series if row["check_status"] is not None)
            yield from _family("haproxy_server_check_status", "check_status", _states(checked, CHECKS))


def _sums(proxies: deque[list[Series]]) -> Iterator[Metric]:
    *others, last = _SUMS
    for name, states, state in others:
        yield from _family(name, "servers in that state", _counts(proxies, states, state))
    # The rows are freed as they are used for the last time: a thousand frontends at once are a pause.
    name, states, state = last
    yield from _family(name, "servers in that state", _counts(_leaving(proxies), states, state))


def _leaving(proxies: deque[list[Series]]) -> Iterator[list[Series]]:
    while proxies:
        yield proxies.popleft()


def _family(name: str, text: str, rows: Iterable[Labelled]) -> Iterator[Metric]:
    """One metric family. A row without a value gives no sample."""
    new = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    return (part for part in labelled(new, name, text, rows) if part.samples)


def _labels(row: Row) -> dict[str, str]:
    return {"proxy": row["pxname"], "server": row["svname"]} if row["type"] == SERVER else {"proxy": row["pxname"]}


def _values(series: Iterable[Series], family: Family) -> Iterator[Labelled]:
    column, divisor = family.column, family.divisor
    for labels, row in series:
        value = row.get(column)
        if value is None and column == "check_code" and row["check_status"] is not None:
            value = 0  # as in HAProxy, whose CSV is empty there
        if value is not None:
            yield labels, value if divisor == 1 else value / divisor


def _states(found: Iterable[tuple[dict[str, str], str]], states: tuple[str, ...]) -> Iterator[Labelled]:
    """A sample for each state: 1 for the current one, 0 for the others."""
    for labels, state in found:
        for word in states:
            yield labels | {"state": word}, int(word == state)


def _counts(proxies: Iterable[Sequence[Series]], states: tuple[str, ...], state: Callable[[Row], Any]) -> Iterator[Labelled]:
    """For each backend and state, how many servers are in that state."""
    for proxy in proxies:
        words = [state(row) for _, row in proxy if row["type"] == SERVER]
        labels, _ = proxy[-1]
        for word in states:
            yield labels | {"state": word}, words.count(word)


def _families() -> Iterator[tuple[str, tuple[str, ...], str]]:
    """The families of proxies and servers: name, labels, and the column of `show stat`."""
    for kind, families in FAMILIES.items():
        yield f"{_PREFIX[kind]}status", (*_LABELS[kind], "state"), "status"
        yield from ((_PREFIX[kind] + family.suffix, _LABELS[kind], family.column) for family in families)
    yield "haproxy_server_check_status", (*_LABELS[SERVER], "state"), "check_status"
    for name, _, _ in _SUMS:
        yield name, ("proxy", "state"), "servers in that state"


def reference() -> Iterator[tuple[str, Sequence[str], str]]:
    """All names for docs/haproxy.md, each with its labels and what it is in HAProxy's own words."""
    for family in PROCESS:
        yield f"haproxy_process_{family.suffix}", (), f"`show info` {family.key}"
    yield "haproxy_process_build_info", ("version",), "`show info` Version"
    yield from _families()


def state_of(row: Row) -> str:
    """The status of a row as one of the exporter's states."""
    status: str = row["status"]
    if row["type"] == FRONTEND:
        return "DOWN" if status == "STOP" else "UP"
    return "UP" if is_up(status) else status.partition(" ")[0]


# How a backend's servers are counted by state: metric name, states, and the function that gives a server's state.
_SUMS: tuple[tuple[str, tuple[str, ...], Callable[[Row], Any]], ...] = (
    ("haproxy_backend_agg_server_status", _STATES[SERVER], state_of),
    ("haproxy_backend_agg_server_check_status", _STATES[SERVER], state_of),  # has the same values in HAProxy, too
    ("haproxy_backend_agg_check_status", CHECKS, lambda row: row["check_status"]),
)
