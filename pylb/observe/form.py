"""One line per session, in HAProxy's TCP format or as JSON: text only, written by whoever has a place for it.

tcplog is `%ci:%cp [%t] %ft %b/%s %Tw/%Tc/%Tt %B %ts %ac/%fc/%bc/%sc/%rc %sq/%bq` (HAProxy's configuration manual, 8.2.2
"TCP log format"); `halog` and existing parsers read it. A frontend is its own backend here, and has the only queue.
"""

import json
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

from pylb.core.session import SessionRecord

Format = Literal["tcplog", "json", "none"]

# Not strftime's %b: that one follows the locale, HAProxy does not.
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def tcplog(record: SessionRecord) -> str:
    """HAProxy's line, without a newline. The date is local time, as there."""
    r = record
    retries = f"+{r.retries}" if r.redispatched else str(r.retries)
    return (
        f"{r.client}:{r.client_port} [{_local_date(r.accepted_at)}] {r.frontend} {r.frontend}/{r.server or '<NOSRV>'} "
        f"{r.queue_ms}/{r.connect_ms}/{r.total_ms} {r.bytes_out} {r.code} "
        f"{r.active}/{r.frontend_active}/{r.frontend_active}/{r.server_active}/{retries} 0/{r.ahead}"
    )


def json_line(record: SessionRecord) -> str:
    """The same as one JSON object; `time` is UTC, times are milliseconds, -1 where a stage was not reached."""
    r = record
    return json.dumps(
        {
            "time": stamp(r.accepted_at),
            "client": r.client,
            "client_port": r.client_port,
            "frontend": r.frontend,
            "listen_port": r.listen_port,
            "server": r.server or None,
            "queue_ms": r.queue_ms,
            "connect_ms": r.connect_ms,
            "total_ms": r.total_ms,
            "bytes_in": r.bytes_in,
            "bytes_out": r.bytes_out,
            "code": r.code,
            "retries": r.retries,
            "redispatched": r.redispatched,
            "active": r.active,
            "frontend_active": r.frontend_active,
            "server_active": r.server_active,
            "ahead": r.ahead,
            "unique_id": r.unique_id or None,
        },
        separators=(",", ":"),
    )


def form_of(style: Format) -> Callable[[SessionRecord], str] | None:
    """How a session becomes a line; None: no lines."""
    return None if style == "none" else json_line if style == "json" else tcplog


def _local_date(unix: float) -> str:
    seconds, millis = divmod(int(unix * 1000), 1000)
    return f"{_local_second(seconds)}.{millis:03}"


@lru_cache(maxsize=8)  # thousands of sessions share a second
def _local_second(seconds: int) -> str:
    t = time.localtime(seconds)
    return f"{t.tm_mday:02}/{_MONTHS[t.tm_mon - 1]}/{t.tm_year}:{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}"


def stamp(unix: float) -> str:
    """Unix time as `2026-11-23T07:41:09.123Z`."""
    # Whole milliseconds first: rounding the fraction alone could give ".1000".
    seconds, millis = divmod(int(unix * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{millis:03}Z"
