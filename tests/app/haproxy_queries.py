"""What the public dashboards and alert packs ask of HAProxy's exporter, as data.

Grafana's dashboard 12693 ("HAProxy", revision 14): its variables and all expressions of its panels. Alert packs:
awesome-prometheus-alerts (HAProxy, embedded exporter v2) and Grafana's haproxy-mixin. `$host` and the like are variables.
"""

VARIABLES = (  # label_values(series, label)
    ('haproxy_process_nbproc{job="prometheus"}', "instance"),
    ('haproxy_backend_status{instance="$host"}', "proxy"),
    ('haproxy_frontend_status{instance="$host"}', "proxy"),
    ('haproxy_server_status{instance="$host"}', "server"),
)

_FRONT = 'proxy=~"$frontend",instance="$host"'
_BACK = 'proxy=~"$backend",instance="$host"'
_SERVER = 'proxy=~"$backend",server=~"$server",instance="$host"'
_HOST = 'instance="$host"'
_RATE = "[$__rate_interval]"


def _usage(side: str, labels: str) -> str:
    limit, live = f"haproxy_{side}_limit_sessions{{{labels}}}", f"haproxy_{side}_current_sessions{{{labels}}}"
    return f"({limit} > bool 0) * ((max_over_time({live}{_RATE}) / {limit}) * 100)"


PANELS = (
    *(
        f"sum(rate(haproxy_{side}_bytes_{way}_total{{{labels}}}{_RATE})*8) by (instance)"
        for side, labels in (("frontend", _FRONT), ("backend", _BACK))
        for way in ("in", "out")
    ),
    f"sum(rate(haproxy_frontend_sessions_total{{{_FRONT}}}{_RATE})) by (instance)",
    f"sum(rate(haproxy_backend_sessions_total{{{_BACK}}}{_RATE})) by (instance)",
    f"sum(rate(haproxy_frontend_connections_total{{{_FRONT}}}{_RATE})) by (instance)",
    f"sum(rate(haproxy_backend_connection_attempts_total{{{_BACK}}}{_RATE})) by (instance)",
    f'sum(haproxy_frontend_status{{{_HOST},state="UP"}} == 1)',
    f'sum(haproxy_backend_status{{{_HOST},state="UP"}} ==1)',
    f"time() - haproxy_process_start_time_seconds{{{_HOST}}}",
    *(
        f"rate(haproxy_frontend_{name}_total{{{_FRONT}}}{_RATE})"
        for name in (
            "request_errors",
            "requests_denied",
            "responses_denied",
            "connections",
            "denied_connections",
            "sessions",
            "denied_sessions",
            "failed_header_rewriting",
            "internal_errors",
        )
    ),
    *(
        f"rate(haproxy_backend_{name}_total{{{_BACK}}}{_RATE})"
        for name in (
            "requests_denied",
            "responses_denied",
            "redispatch_warnings",
            "retry_warnings",
            "response_errors",
            "connection_attempts",
            "connection_errors",
            "connection_reuses",
            "sessions",
            "failed_header_rewriting",
            "client_aborts",
            "server_aborts",
            "check_up_down",
            "internal_errors",
        )
    ),
    *(
        f"rate(haproxy_server_{name}_total{{{_SERVER}}}{_RATE})"
        for name in (
            "responses_denied",
            "redispatch_warnings",
            "retry_warnings",
            "response_errors",
            "connection_attempts",
            "connection_errors",
            "connection_reuses",
            "sessions",
            "failed_header_rewriting",
            "client_aborts",
            "server_aborts",
            "check_up_down",
            "check_failures",
            "internal_errors",
        )
    ),
    *(
        f"rate(haproxy_{side}_bytes_{way}_total{{{labels}}}{_RATE})*8"
        for side, labels in (("frontend", _FRONT), ("backend", _BACK), ("server", _SERVER))
        for way in ("in", "out")
    ),
    *(f"haproxy_frontend_{name}{{{_FRONT}}}" for name in ("current_sessions", "max_sessions")),
    *(
        f"haproxy_backend_{name}{{{_BACK}}}"
        for name in (
            "current_sessions",
            "max_sessions",
            "connect_time_average_seconds",
            "total_time_average_seconds",
            "response_time_average_seconds",
            "queue_time_average_seconds",
            "weight",
            "active_servers",
            "backup_servers",
        )
    ),
    *(
        f"haproxy_server_{name}{{{_SERVER}}}"
        for name in (
            "max_sessions",
            "connect_time_average_seconds",
            "total_time_average_seconds",
            "response_time_average_seconds",
            "queue_time_average_seconds",
            "weight",
            "check_duration_seconds",
            "last_session_seconds",
        )
    ),
    _usage("frontend", _FRONT),
    _usage("backend", _BACK),
    f"haproxy_backend_uweight{{{_BACK}}} - haproxy_backend_weight{{{_BACK}}}",
    f"haproxy_server_uweight{{{_SERVER}}} - haproxy_server_weight{{{_SERVER}}}",
    f'haproxy_frontend_status{{{_FRONT},state="UP"}}',
    f'haproxy_backend_status{{{_BACK},state="UP"}}',
    f'haproxy_server_status{{{_SERVER},state="UP"}}',
    f'haproxy_server_status{{{_SERVER},state!~"UP|DOWN"}}',
    *(
        f"haproxy_process_{name}{{{_HOST}}}"
        for name in (
            "max_connection_rate",
            "limit_connection_rate",
            "current_connections",
            "hard_max_connections",
            "max_session_rate",
            "limit_session_rate",
            "max_ssl_rate",
            "limit_ssl_rate",
            "current_ssl_connections",
            "max_ssl_connections",
            "current_frontend_ssl_key_rate",
            "current_backend_ssl_key_rate",
            "frontend_ssl_reuse",
            "max_pipes",
            "listeners",
            "max_memory_bytes",
            "pool_allocated_bytes",
            "pool_used_bytes",
            "jobs",
            "unstoppable_jobs",
            "nbthread",
            "nbproc",
            "active_peers",
            "connected_peers",
            "current_tasks",
            "current_run_queue",
            "idle_time_percent",
            "stopping",
            "uptime_seconds",
        )
    ),
    *(
        f"rate(haproxy_process_{name}_total{{{_HOST}}}{_RATE})"
        for name in (
            "ssl_cache_lookups",
            "ssl_cache_misses",
            "ssl_connections",
            "pipes_used",
            "pipes_free",
            "pool_failures",
            "dropped_logs",
            "recv_logs",
        )
    ),
)

# The rest of its panels stays empty, as it does for a HAProxy of TCP proxies alone: HTTP, its cache and its compression; zlib,
# which is NaN there; stick tables; and failed resolutions, of which pylb keeps no count.
EMPTY = (
    *(f"haproxy_{side}_http_responses_total" for side in ("frontend", "backend", "server")),
    *(
        f"haproxy_{side}_http_{name}_total"
        for side in ("frontend", "backend")
        for name in (
            "requests",
            "cache_lookups",
            "cache_hits",
            "comp_bytes_in",
            "comp_bytes_out",
            "comp_bytes_bypassed",
            "comp_responses",
        )
    ),
    "haproxy_process_current_zlib_memory",
    "haproxy_process_max_zlib_memory",
    "haproxy_sticktable_size",
    "haproxy_sticktable_used",
    "haproxy_process_failed_resolutions",
)

# The alerts that are about TCP. Those that say something in the test, and of which proxies:
FIRING = {
    "haproxy_backend_active_servers + haproxy_backend_backup_servers == 0": {"dead"},
    "increase(haproxy_server_check_failures_total[1m]) > 0": {"dead"},
    "rate(haproxy_server_check_up_down_total[5m]) != 0": {"dead"},
    "rate(haproxy_backend_check_up_down_total[5m]) != 0": {"dead"},
}
QUIET = (
    "(sum by (proxy) (rate(haproxy_backend_connection_errors_total[1m]))) > 100",
    "(sum by (proxy) (rate(haproxy_server_connection_errors_total[1m]))) > 100",
    "((haproxy_server_max_sessions >0) * 100) / (haproxy_server_limit_sessions > 0) > 80",
    "sum by (proxy) (rate(haproxy_backend_current_queue[2m])) > 0",
    "avg by (instance, proxy) (haproxy_backend_max_total_time_seconds) > 1",
    "sum by (proxy) (rate(haproxy_backend_retry_warnings_total[1m])) > 10",
    "sum by (proxy) (rate(haproxy_frontend_denied_connections_total[2m])) > 10",
    "rate(haproxy_process_dropped_logs_total[5m]) != 0",
)
