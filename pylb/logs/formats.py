"""One line per session: HAProxy's TCP format, logfmt or JSON. Only the text; the caller writes it somewhere.

tcplog is `%ci:%cp [%t] %ft %b/%s %Tw/%Tc/%Tt %B %ts %ac/%fc/%bc/%sc/%rc %sq/%bq` (HAProxy's configuration manual, 8.2.2
"TCP log format"); `halog` and existing parsers read it. Here a frontend is its own backend, and has the only queue. On a port
with routes the server name that the client asked for follows, as a captured header does in HAProxy: `{git.example.net}`.
"""

import json
import random
import time
from collections.abc import Callable
from functools import lru_cache

from pylb.core.log import Format, Selection
from pylb.core.session import SessionRecord

BURST = 500  # records turned into lines at once: about 1 ms of the loop

# Not strftime's %b, which follows the locale; HAProxy does not.
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def tcplog(record: SessionRecord) -> str:
    """HAProxy's line, without a newline. The date is local time, as in HAProxy.

    HAProxy counts the sessions of a backend and a server without the one that has just ended, and those of a frontend and the
    process with it; and the first session in a queue has number 1 (observed in 2.6, the manual does not say).
    """
    # All fields at once: looking up a name in the record costs as much as formatting a number.
    frontend, server, client, port, _, accepted_at, queued, connect, total = record[:9]
    _, out, code, retries, redispatched, active, frontend_active, server_active, ahead = record[9:18]
    asked = f" {{{record.asked}}}" if record.asked else ""
    return (
        f"{client}:{port} [{_local_date(accepted_at)}] {frontend} {frontend}/{server or '<NOSRV>'} "
        f"{queued}/{connect}/{total} {out} {code} {active}/{frontend_active}/{frontend_active - 1}/{server_active}/"
        f"{'+' if redispatched else ''}{retries} 0/{ahead + (queued > 0)}{asked}"
    )


def logfmt(record: SessionRecord) -> str:
    """The session as `key=value`, with the keys and meanings of the JSON line; an empty field has no value."""
    r = record
    asked = f" server_name={word(r.asked)}" if r.asked else ""
    return (
        f"time={stamp(r.accepted_at)} client={r.client} client_port={r.client_port} frontend={word(r.frontend)} "
        f"listen_port={r.listen_port} server={word(r.server)} queue_ms={r.queue_ms} connect_ms={r.connect_ms} "
        f"total_ms={r.total_ms} bytes_in={r.bytes_in} bytes_out={r.bytes_out} code={r.code} retries={r.retries} "
        f"redispatched={'true' if r.redispatched else 'false'} active={r.active} frontend_active={r.frontend_active} "
        f"server_active={r.server_active} ahead={r.ahead} unique_id={r.unique_id}{asked}"
    )


def json_line(record: SessionRecord) -> str:
    """The session as one JSON object; `time` is UTC, durations are milliseconds, -1 for a stage that was not reached."""
    r = record
    asked = f',"server_name":{_quoted(r.asked)}' if r.asked else ""
    # By hand: json.dumps takes three times as long, and this is paid per session.
    return (
        f'{{"time":"{stamp(r.accepted_at)}","client":{_quoted(r.client)},"client_port":{r.client_port},'
        f'"frontend":{_quoted(r.frontend)},"listen_port":{r.listen_port},"server":{_quoted(r.server) if r.server else "null"},'
        f'"queue_ms":{r.queue_ms},"connect_ms":{r.connect_ms},"total_ms":{r.total_ms},"bytes_in":{r.bytes_in},'
        f'"bytes_out":{r.bytes_out},"code":"{r.code}","retries":{r.retries},'
        f'"redispatched":{"true" if r.redispatched else "false"},"active":{r.active},"frontend_active":{r.frontend_active},'
        f'"server_active":{r.server_active},"ahead":{r.ahead},'
        f'"unique_id":{_quoted(r.unique_id) if r.unique_id else "null"}{asked}}}'
    )


_FORMS: dict[Format, Callable[[SessionRecord], str]] = {"tcplog": tcplog, "logfmt": logfmt, "json": json_line}


class LineBatch:
    """Ended sessions that get a line, collected until the lines are taken: making them together is cheaper."""

    def __init__(self, style: Format, selection: Selection, draw: Callable[[], float] = random.random) -> None:
        self._form = _FORMS.get(style)
        self._takes = selection.takes if selection != Selection() else None
        self._draw = draw
        self._records: list[SessionRecord] = []

    @property
    def wants_records(self) -> bool:
        return self._form is not None

    def add(self, record: SessionRecord) -> bool:
        """True: there are enough now to be taken."""
        if self._form is None or (self._takes is not None and not self._takes(record, self._draw)):
            return False
        self._records.append(record)
        return len(self._records) >= BURST

    def take(self) -> tuple[str, int]:
        """The lines as one text without a newline at the end, and their number."""
        records, self._records = self._records, []
        return ("\n".join(map(self._form, records)) if self._form is not None else ""), len(records)


_MILLIS = tuple(f"{number:03}" for number in range(1000))


def _local_date(unix: float) -> str:
    seconds, millis = divmod(int(unix * 1000), 1000)
    return f"{_local_second(seconds)}.{_MILLIS[millis]}"


@lru_cache(maxsize=8)  # thousands of sessions share a second
def _local_second(seconds: int) -> str:
    t = time.localtime(seconds)
    return f"{t.tm_mday:02}/{_MONTHS[t.tm_mon - 1]}/{t.tm_year}:{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}"


def syslog_date(unix: float) -> str:
    """`Nov 25 03:10:23`, local time (RFC 3164, 4.1.2)."""
    t = time.localtime(unix)
    return f"{_MONTHS[t.tm_mon - 1]} {t.tm_mday:2} {t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}"


def stamp(unix: float) -> str:
    """Unix time as `2026-11-23T07:41:09.123Z`."""
    # Whole milliseconds first: rounding the fraction alone could give ".1000".
    seconds, millis = divmod(int(unix * 1000), 1000)
    return f"{_second(seconds)}.{_MILLIS[millis]}Z"


@lru_cache(maxsize=8)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


_quoted = lru_cache(maxsize=4096)(json.dumps)


@lru_cache(maxsize=1024)
def word(text: str) -> str:
    """A logfmt value, quoted if a reader would otherwise stop too early."""
    plain = text.isascii() and text.isprintable() and not any(char in text for char in ' "=\\')
    return text if plain else json.dumps(text)
