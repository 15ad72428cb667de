"""Reads a frontend, backend or listen section line by line, together with the `defaults` that it inherits."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from pylb.haproxy.clients import Rule
from pylb.haproxy.config_parser import Line, Section, shortened, word_set
from pylb.haproxy.health_checks import CheckLines

_UNITS = {"us": 0.001, "ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
# Skipped: what pylb always does, what does not affect who gets a connection, and what HAProxy itself ignores in TCP mode.
_SILENT = word_set(
    """
    log log-format log-format-sd log-tag log-steps error-log-format description id guid backlog errorfile errorfiles
    errorloc errorloc302 errorloc303 monitor-uri stats email-alert declare capture unique-id-format unique-id-header
    http-request http-response http-after-response http-error http-reuse http-send-name-header cookie appsession
    compression bind-process max-keep-alive-queue max-session-srv-conns fullconn grace server-state-file-name
    load-server-state-from-file redirect hash-type clitcpka-cnt clitcpka-idle clitcpka-intvl srvtcpka-cnt srvtcpka-idle
    srvtcpka-intvl stick-table use-fcgi-app
    """
)
_SILENT_OPTIONS = word_set(
    """
    tcplog httplog httpslog dontlognull dontlog-normal tcpka clitcpka srvtcpka splice-auto splice-request splice-response
    contstats nolinger log-health-checks logasap socket-stats persist abortonclose http-server-close httpclose forwardfor
    http-keep-alive http-pretend-keepalive http-buffer-request http-use-htx http-ignore-probes http-no-delay forceclose
    originalto prefer-last-server tcp-smart-accept tcp-smart-connect log-separate-errors independent-streams
    idle-close-on-response accept-invalid-http-request accept-invalid-http-response h1-case-adjust-bogus-client
    h1-case-adjust-bogus-server checkcache http-use-proxy-header disable-h2-upgrade httpchk-disable-on-404
    http-restrict-req-hdr-names forwarded accept-unsafe-violations-in-http-request
    accept-unsafe-violations-in-http-response
    """
)
_CHECKS = word_set(
    """
    tcp-check httpchk redis-check smtpchk pgsql-check mysql-check ldap-check ssl-hello-chk spop-check external-check
    """
)
_TIMEOUTS = word_set(
    """
    connect queue client server client-fin server-fin tunnel check http-request http-keep-alive tarpit client-hs server-hs
    """
)
# Actions of `tcp-request` that decide nothing about who may connect.
_COUNTING = re.compile(r"track-sc\d*|sc-.*|set-var.*|unset-var.*|capture|set-(log-level|mark|tos|nice|fc-.*|bc-.*)|lua\.log")


class Switch(NamedTuple):
    line: Line
    backend: str
    condition: list[str]


class ServerLine(NamedTuple):
    line: Line
    defaults: int  # number of words of `default-server` before it; later ones do not apply to it
    size: int  # characters, with those words


@dataclass(slots=True)
class Proxy:
    section: Section
    mode: str = "tcp"
    enabled: bool = True
    binds: list[tuple[Line, str, list[str]]] = field(default_factory=list)
    servers: list[ServerLine] = field(default_factory=list)
    default_server: list[str] = field(default_factory=list)
    default_size: int = 0
    default_backend: str | None = None
    switches: list[Switch] = field(default_factory=list)
    acls: dict[str, list[Line]] = field(default_factory=dict)
    rules: dict[str, list[Rule]] = field(default_factory=dict)  # by level of `tcp-request`
    timeouts: dict[str, float] = field(default_factory=dict)  # by HAProxy's names, in milliseconds; inf: none
    balance: tuple[str, Line | None] = ("roundrobin", None)  # HAProxy's default before 3.3
    hash_balance: Line | None = None
    retries: int = 3
    redispatch: bool = False
    all_backups: bool = False
    check_lines: CheckLines = field(default_factory=CheckLines)
    sticks: list[Line] = field(default_factory=list)
    source: Line | None = None
    inspect_delay: float | None = None  # milliseconds for what the client sends first
    max_connections: tuple[int, Line] | None = None
    rate: tuple[int, Line] | None = None
    odd: list[tuple[Line, str]] = field(default_factory=list)  # differences that are noted if the proxy is used
    page: bool = False  # it serves HAProxy's statistics page or metrics

    @property
    def is_page(self) -> bool:
        """Whether it has no servers either: every proxy may inherit `stats` from `defaults`."""
        return self.page and not (self.servers or self.switches or self.default_backend)

    @property
    def lines(self) -> int:
        """The number of lines that are read again for each place."""
        rules = sum(map(len, self.rules.values()))
        return (
            1 + len(self.switches) + rules + len(self.odd) + len(self.check_lines.rules) + len(self.servers) + len(self.sticks)
        )

    @property
    def size(self) -> int:
        """At most so many characters of pylb.yaml are needed for its servers."""
        return sum(one.size for one in self.servers)


def length(words: Iterable[str]) -> int:
    return sum(len(word) + 1 for word in words)


def proxy_of(section: Section) -> Proxy:
    found = Proxy(section)
    for one in (*reversed(list(section.inherited())), section):
        for line in one.lines:
            _read(found, one, line)
    return found


def _read(proxy: Proxy, section: Section, line: Line) -> None:  # noqa: C901 - one line a directive
    match line.words:
        case ["no", "option", *option]:
            _option(proxy, section, line, option, wanted=False)
        case ["default", "option", *option]:
            _option(proxy, section, line, option, wanted=False)
        case ["option", *option]:
            _option(proxy, section, line, option, wanted=True)
        case ["bind", where, *options]:
            proxy.binds += [(line, one, options) for one in where.split(",")]
        case ["server", _, _, *_] | ["server-template", _, _, _, *_]:
            size = proxy.default_size + length(line.words)
            proxy.servers.append(ServerLine(line, len(proxy.default_server), size))
        case ["default-server", *options]:
            proxy.default_server += options
            proxy.default_size += length(options)
        case ["mode", mode]:
            proxy.mode = mode
        case ["disabled" | "enabled" as word]:
            proxy.enabled = word == "enabled"
        case ["acl", name, *_]:
            proxy.acls.setdefault(name, []).append(line)
        case ["tcp-request", level, *rule] if level in ("connection", "session", "content"):
            _rule(proxy, line, level, rule)
        case ["tcp-request", "inspect-delay", *value]:
            proxy.inspect_delay = milliseconds(value[0]) if value else None
        case ["tcp-check" | "http-check", *_]:
            proxy.check_lines.add_rule(line, section)
        case ["timeout", name, value]:
            _timeout(proxy, line, name, value)
        case _:
            _setting(proxy, line)


def _setting(proxy: Proxy, line: Line) -> None:
    match line.words:
        case ["default_backend", name]:
            proxy.default_backend = name
        case ["use_backend", name, *condition]:
            proxy.switches.append(Switch(line, name, condition))
        case ["balance", *how]:
            proxy.balance = (" ".join(how) or "roundrobin", line)
        case ["hash-balance-factor", _]:
            proxy.hash_balance = line
        case ["stick", *_]:
            proxy.sticks.append(line)
        case ["source", *_]:
            proxy.source = line
        case ["maxconn" | "retries", number] | ["rate-limit", "sessions", number] if is_number(number):
            _number(proxy, line, int(number))
        case ["retry-on", *events]:
            proxy.retries = proxy.retries if {"conn-failure", "all-retryable-errors"} & set(events) else 0
        case [word, *_] if not _is_silent(line.words):
            proxy.odd.append((line, f"pylb has nothing like {shortened(word)}, and would ignore it"))
    if line.words[0] == "stats" or "prometheus-exporter" in line.words:
        proxy.page = True


def _number(proxy: Proxy, line: Line, number: int) -> None:
    match line.words[0]:
        case "maxconn":
            proxy.max_connections = (number, line)
        case "retries":
            proxy.retries = number
        case _:
            proxy.rate = (number, line)


def _is_silent(words: list[str]) -> bool:
    match words:
        case ["no", "log"]:
            return True
        case ["tcp-response", *rule]:
            return not {"reject", "close", "silent-drop"} & set(rule)
        case ["filter", kind, *_]:
            return kind in ("compression", "trace", "cache")
    return words[0] in _SILENT


def is_number(text: str) -> bool:
    """Whether `text` is a number of at most 32 bits."""
    return text.isascii() and text.isdigit() and len(text) < 10


def _rule(proxy: Proxy, line: Line, level: str, rule: list[str]) -> None:
    at = next((place for place, word in enumerate(rule) if word in ("if", "unless")), len(rule))
    match rule[:at]:
        case ["accept" | "reject" | "silent-drop" as action]:
            proxy.rules.setdefault(level, []).append(Rule(line, action == "accept", rule[at:]))
        case [action, *_] if _COUNTING.match(action):
            pass
        case _:
            proxy.odd.append((line, "pylb has nothing like it, and would ignore it"))


def _timeout(proxy: Proxy, line: Line, name: str, value: str) -> None:
    ms = milliseconds(value)
    if ms is None or name not in _TIMEOUTS:
        proxy.odd.append((line, "it is not understood, and pylb would ignore it"))
    else:
        proxy.timeouts[name] = ms or inf


def _option(proxy: Proxy, section: Section, line: Line, option: list[str], *, wanted: bool) -> None:
    match option:
        case ["redispatch", *interval]:
            proxy.redispatch = wanted
            if interval and interval[0] not in ("-1", "1"):
                proxy.odd.append((line, "HAProxy would change the server at a later retry; pylb tries another one at once"))
        case ["allbackups"]:
            proxy.all_backups = wanted
        case [name, *_] if name in _CHECKS and wanted:
            proxy.check_lines.set_option(Line(line.file, line.number, ["option", *option]), section)
        case [name, *_] if name not in _SILENT_OPTIONS and wanted:
            proxy.odd.append((line, f"pylb has no option {shortened(name)}, and would ignore it"))


def milliseconds(text: str) -> float | None:
    """A time in HAProxy's notation, where a number without a unit means milliseconds; None: not understood."""
    match = re.fullmatch(r"([0-9]{1,12})(us|ms|s|m|h|d)?", text)
    if match is None:
        return None
    ms = int(match[1]) * _UNITS[match[2] or "ms"]
    return max(1, round(ms)) if ms else 0
