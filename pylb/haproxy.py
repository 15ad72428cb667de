"""haproxy.cfg as pylb.yaml: TCP frontends with their backends, and a note with file and line for what has no counterpart.

Values of `defaults` sections count for the proxies behind them, as in HAProxy; what all frontends have in common becomes
`defaults` of pylb. Nothing raises: a line that is not understood is a note. (HAProxy 2.6 to 3.4, Configuration Manual.)
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from pylb.config.yamlplace import MAX_CHARACTERS
from pylb.core.address import parse_address
from pylb.importer import Note, shortened, split_words

_PROXIES = frozenset(("frontend", "backend", "listen"))
_OTHER_SECTIONS = "userlist peers resolvers mailers program cache ring log-forward http-errors fcgi-app"
_SECTIONS = _PROXIES | {"global", "defaults"} | frozenset(_OTHER_SECTIONS.split())
# What pylb does by itself, or what says nothing about TCP.
_SILENT_WORDS = "log description id backlog log-format log-tag errorfile monitor-uri stats email-alert dispatch"
_SILENT = frozenset(_SILENT_WORDS.split())
_SILENT_OPTION_WORDS = """
    tcplog httplog dontlognull redispatch tcpka clitcpka srvtcpka splice-auto splice-request splice-response contstats nolinger
    log-health-checks allbackups logasap socket-stats persist abortonclose http-server-close forwardfor
"""
_SILENT_OPTIONS = frozenset(_SILENT_OPTION_WORDS.split())
_BALANCE = {name: name for name in ("roundrobin", "leastconn", "source", "first", "random")} | {"static-rr": "roundrobin"}
_TIMEOUTS = {"connect": "connect", "queue": "queue", "client-fin": "half_close", "server-fin": "half_close"}
_OTHER_TIMEOUTS = frozenset(("tunnel", "client", "server", "check", "http-request", "http-keep-alive", "tarpit"))
_SEND = {"send-proxy": "v1", "send-proxy-v2": "v2"}
# Of a server: words alone, and words with a value, that pylb has no need of.
_FLAG_WORDS = "check-send-proxy non-stick no-check no-backup agent-check no-agent-check tfo no-tfo enabled"
_SERVER_FLAGS = frozenset(_FLAG_WORDS.split())
_VALUE_WORDS = "fastinter downinter observe error-limit id slowstart cookie minconn maxqueue track init-addr resolvers"
_SERVER_VALUES = frozenset(_VALUE_WORDS.split())
_NO_TCP = ("/", "unix@", "abns@", "fd@")
LEAST_FRONTEND = 40  # characters in pylb.yaml, beside its name and its servers
MOST_TEXT = 1024  # characters that a check sends, as core.checks
MOST_NAME = 253  # characters, as in the config
_UNITS = {"us": 0.001, "ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class Translation(NamedTuple):
    text: str  # pylb.yaml
    notes: tuple[Note, ...]
    frontends: int


@dataclass(slots=True)
class _Proxy:
    """A section, with what it inherits."""

    kind: str
    name: str
    file: str
    line: int
    mode: str = "tcp"
    binds: list[tuple[int, str, list[str]]] = field(default_factory=list)
    servers: list[tuple[int, list[str]]] = field(default_factory=list)
    default_server: list[str] = field(default_factory=list)
    backend: str = ""
    timeouts: dict[str, int] = field(default_factory=dict)  # HAProxy's names, milliseconds
    policy: dict[str, Any] = field(default_factory=dict)  # pylb's keys
    check: dict[str, Any] = field(default_factory=dict)  # http, send, expect
    source: str = ""

    def heir(self, kind: str, name: str, file: str, line: int) -> "_Proxy":
        made = _Proxy(kind, name, file, line, self.mode)
        made.default_server, made.timeouts = list(self.default_server), dict(self.timeouts)
        made.policy, made.check, made.source = dict(self.policy), dict(self.check), self.source
        return made


def translate(texts: Iterable[tuple[str, str]]) -> Translation:
    """`(file name, text)` of files that HAProxy reads as one."""
    reading = _Reading()
    for file, text in texts:
        reading.read(file, text)
    frontends = reading.frontends()
    document = _factored(frontends)
    return Translation(_rendered(document), tuple(reading.notes), len(frontends))


class _Reading:
    def __init__(self) -> None:
        self.notes: dict[Note, None] = {}  # a backend is read once for each place where its frontend listens
        self._room = MAX_CHARACTERS
        self._proxies: list[_Proxy] = []
        self._defaults = _Proxy("defaults", "", "", 0, mode="tcp")
        self._named: dict[str, _Proxy] = {}
        self._current: _Proxy | None = None
        self._section = ""

    def read(self, file: str, text: str) -> None:
        for number, line in enumerate(text.split("\n"), 1):
            try:
                words = _words(line)
            except ValueError as error:
                self._note(file, number, f"not understood: {str(error).lower()}")
                continue
            if words and words[0] in _SECTIONS:
                self._begin(file, number, words)
            elif words and self._current is not None:
                self._directive(self._current, number, words)
            elif words and self._section == "global":
                self._global(file, number, words)
            elif words and not self._section:
                self._note(file, number, f"not understood: {shortened(line.strip())}")

    def _begin(self, file: str, line: int, words: list[str]) -> None:
        kind, name = words[0], words[1] if len(words) > 1 else ""
        self._section, self._current = kind, None
        if kind == "defaults":
            parent = self._named.get(words[3]) if words[2:3] == ["from"] and len(words) > 3 else None
            self._defaults = (parent or _Proxy("defaults", "", file, line)).heir("defaults", name, file, line)
            self._named[name] = self._current = self._defaults
        elif kind in _PROXIES:
            parent = self._named.get(words[3], self._defaults) if words[2:3] == ["from"] and len(words) > 3 else self._defaults
            self._current = parent.heir(kind, name, file, line)
            if not self._has_room(self._current, line, _length(self._current.default_server)):
                self._current.default_server.clear()
            self._proxies.append(self._current)
        elif kind != "global":
            self._note(file, line, f"section {kind} {shortened(name)}: not translated")

    def _global(self, file: str, line: int, words: list[str]) -> None:
        if words[0] == "maxconn":
            self._note(file, line, "global maxconn: pylb derives its limit from the limit of open files (LimitNOFILE)")

    def _note(self, file: str, line: int, message: str) -> None:
        self.notes[Note(file, line, message)] = None

    def _has_room(self, proxy: _Proxy, line: int, characters: int) -> bool:
        """In a pylb.yaml. A `bind *:1-65535` and a hundred servers would be hundreds of megabytes."""
        if characters > self._room:
            what = f"not translated to its end: with it pylb.yaml has more than the {MAX_CHARACTERS} characters that pylb reads"
            self._note(proxy.file, line, f"{proxy.kind} {shortened(proxy.name)} is {what}")
            return False
        self._room -= characters
        return True

    def _lost(self, proxy: _Proxy, line: int, words: Iterable[str], why: str = "") -> None:
        text = f"not translated: {shortened(' '.join(words))}"
        self._note(proxy.file, line, f"{text} ({why})" if why else text)

    # ------------------------------------------------------------ lines of a section

    def _directive(self, proxy: _Proxy, line: int, words: list[str]) -> None:
        match words:
            case ["bind", where, *options]:
                proxy.binds += [(line, one, options) for one in where.split(",")]
            case ["server", *rest] if len(rest) >= 2:
                proxy.servers.append((line, rest))
            case ["default-server", *options] if self._has_room(proxy, line, _length(options)):
                proxy.default_server += options
            case ["default_backend", name]:
                proxy.backend = name
            case ["mode", mode]:
                proxy.mode = mode
            case ["timeout", name, value]:
                self._timeout(proxy, line, name, value)
            case ["source", where, *more]:
                self._source(proxy, line, where, more)
            case ["option", *option]:
                self._option(proxy, line, option)
            case ["tcp-check" | "http-check", *step]:
                self._check_step(proxy, line, words[0], step)
            case [word, *_] if word not in _SILENT:
                self._setting(proxy, line, words)

    def _setting(self, proxy: _Proxy, line: int, words: list[str]) -> None:
        match words:
            case ["maxconn" | "retries" as key, number] if number.isdigit():
                proxy.policy["max_connections" if key == "maxconn" else key] = int(number)
            case ["rate-limit", "sessions", number] if number.isdigit():
                proxy.policy["limits"] = {"rate": int(number)}
            case ["balance", how, *_]:
                self._balance(proxy, line, how)
            case ["stick", "on", "src"] | ["stick-table", *_]:
                if proxy.policy.get("balance") != "source":
                    proxy.policy["balance"] = "source"
                    self._note(proxy.file, line, "stickiness by client address became `balance: source`, which keeps no table")
            case _:
                self._lost(proxy, line, words)

    def _balance(self, proxy: _Proxy, line: int, how: str) -> None:
        name = _BALANCE.get(how.partition("(")[0])
        if name is None:
            self._lost(proxy, line, ["balance", how], f"pylb has {', '.join(sorted(set(_BALANCE.values())))}")
        else:
            proxy.policy["balance"] = name

    def _timeout(self, proxy: _Proxy, line: int, name: str, value: str) -> None:
        ms = _milliseconds(value)
        if ms is None or name not in (*_TIMEOUTS, *_OTHER_TIMEOUTS):
            self._lost(proxy, line, ["timeout", name, value])
        else:
            proxy.timeouts[name] = ms

    def _source(self, proxy: _Proxy, line: int, where: str, more: list[str]) -> None:
        if more:
            self._lost(proxy, line, ["source", where, *more], "pylb is not transparent: send the PROXY header instead")
            return
        try:
            proxy.source = str(parse_address(where if ":" in where else f"{where}:1").ip)
        except ValueError:
            self._lost(proxy, line, ["source", where])

    def _option(self, proxy: _Proxy, line: int, option: list[str]) -> None:
        match option:
            case ["httpchk", *rest]:
                path = next((word for word in rest if word.startswith("/")), "/")
                proxy.check |= {"http": path}
            case ["tcp-check"]:
                proxy.check.pop("http", None)
            case [name, *_] if name not in _SILENT_OPTIONS:
                self._lost(proxy, line, ["option", *option])

    def _check_step(self, proxy: _Proxy, line: int, kind: str, step: list[str]) -> None:
        match step:
            case ["send", text] if len(proxy.check.get("send", "")) + len(text) <= MOST_TEXT:
                proxy.check["send"] = proxy.check.get("send", "") + text
            case ["expect", "string", text]:
                proxy.check["expect"] = text
            case ["expect", "status", status] if kind == "http-check":
                proxy.check["expect"] = status
            case ["send", *rest] if kind == "http-check" and "uri" in rest:
                proxy.check["http"] = rest[rest.index("uri") + 1] if rest[-1] != "uri" else "/"
            case ["connect"]:
                pass
            case _:
                self._lost(proxy, line, [kind, *step])

    # ------------------------------------------------------------ frontends

    def frontends(self) -> list[dict[str, Any]]:
        backends = {one.name: one for one in self._proxies if one.kind in ("backend", "listen")}
        found: list[dict[str, Any]] = []
        used: set[str] = set()
        for proxy in self._proxies:
            if proxy.kind == "backend":
                continue
            backend = proxy if proxy.kind == "listen" else backends.get(proxy.backend)
            if backend is None:
                what = f"it has no backend called {shortened(proxy.backend)}" if proxy.backend else "it has no default_backend"
                self._note(proxy.file, proxy.line, f"{proxy.kind} {shortened(proxy.name)} is left out: {what}")
                continue
            used.add(backend.name)
            found += self._frontend(proxy, backend)
        for name, backend in backends.items():
            if backend.kind == "backend" and name not in used:
                self._note(
                    backend.file, backend.line, f"backend {shortened(name)} is left out: no frontend has it as its default"
                )
        return found

    def _frontend(self, proxy: _Proxy, backend: _Proxy) -> list[dict[str, Any]]:
        name, where = _name(proxy.name), f"{proxy.kind} {shortened(proxy.name)}"
        if "http" in (proxy.mode, backend.mode):
            self._note(
                proxy.file, proxy.line, f"{where} is left out: mode http; pylb forwards TCP (mode tcp passes HTTP through)"
            )
            return []
        listens = [listen for bind in proxy.binds for listen in self._bind(proxy, *bind)]
        if not listens:
            self._note(proxy.file, proxy.line, f"{where} is left out: nothing it binds can be translated")
        policy = self._policy(proxy, backend)
        found: list[dict[str, Any]] = []
        defaults = _length(backend.default_server)
        servers = sum(_length(words) + defaults for _, words in backend.servers)
        for listen, options in listens:
            if not self._has_room(proxy, proxy.line, servers):
                break
            entry: dict[str, Any] = {"name": name if not found else f"{name}-{listen.rpartition(':')[2]}", "listen": listen}
            entry |= policy | options
            pool = _Pool([], set(), {}, {})
            for line, words in backend.servers:
                self._server(backend, line, words, listen, pool)
            if len(pool.sends) > 1:
                self._note(backend.file, backend.line, "servers with different send-proxy: the PROXY header is the frontend's")
            if pool.sends - {"none"}:
                entry["proxy_protocol"] = entry.get("proxy_protocol", {}) | {"send": max(pool.sends)}
            if pool.checks:
                entry["health"] = _health(backend.check, pool.checks)
            found.append(entry | pool.more | {"servers": pool.servers})
        return found

    def _bind(self, proxy: _Proxy, line: int, where: str, options: list[str]) -> list[tuple[str, dict[str, Any]]]:
        host, _, ports = where.rpartition(":")
        match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", ports)
        if match is None or where.startswith(_NO_TCP):
            self._lost(proxy, line, ["bind", where], "ADDRESS:PORT is what pylb listens on")
            return []
        if "ssl" in options:
            self._lost(proxy, line, ["bind", where, "ssl"], "TLS ends in the server; pylb passes it through")
            return []
        settings: dict[str, Any] = {}
        for option in options:
            if option == "accept-proxy":
                settings["proxy_protocol"] = {"accept_from": ["0.0.0.0/0", "::/0"]}
                self._note(proxy.file, line, "accept-proxy: accept_from is everybody; write who your proxies are")
            elif option == "transparent":
                settings["freebind"] = True
        first, last = int(match[1]), int(match[2] or match[1])
        host = "*" if host in ("", "*", "0.0.0.0", "::", "[::]", ":::") else host
        if not re.fullmatch(r"\*|[0-9.]+|\[[0-9a-fA-F:.]+\]", host) or not 1 <= first <= last <= 65535:
            self._lost(proxy, line, ["bind", where], "write the address as an IP")
            return []
        if not self._has_room(proxy, line, (last - first + 1) * (len(_name(proxy.name)) + LEAST_FRONTEND)):
            return []
        return [(f"{host}:{port}", settings) for port in range(first, last + 1)]

    def _policy(self, proxy: _Proxy, backend: _Proxy) -> dict[str, Any]:
        policy = {
            **backend.policy,
            **{key: value for key, value in proxy.policy.items() if key in ("max_connections", "limits")},
        }
        if proxy.kind != "listen" and "max_connections" not in proxy.policy:
            policy.pop("max_connections", None)
        policy.setdefault("balance", "roundrobin")  # HAProxy's default before 3.3; pylb's own is leastconn
        timeouts = {**backend.timeouts, **{key: ms for key, ms in proxy.timeouts.items() if key.startswith("client")}}
        written = {_TIMEOUTS[key]: ms for key, ms in timeouts.items() if key in _TIMEOUTS}
        idle = max((timeouts[key] for key in ("client", "server") if key in timeouts), default=0)
        if idle := timeouts.get("tunnel", idle):
            written["idle"] = idle
        if written:
            policy["timeouts"] = {key: duration(ms) for key, ms in sorted(written.items())}
        if backend.source:
            policy["source_addresses"] = [backend.source]
        return policy

    def _server(self, proxy: _Proxy, line: int, words: list[str], listen: str, into: "_Pool") -> None:
        name, text, *options = words
        options = [*proxy.default_server, *options]
        if text.startswith(_NO_TCP):
            self._lost(proxy, line, ["server", name, text], "a server is an IP or host name with a port")
            return
        if "ssl" in options:
            self._lost(proxy, line, ["server", name, "ssl"], "TLS ends in the server; pylb passes it through")
            return
        # Without a port it is the one that the client connected to.
        entry: dict[str, Any] = {"address": text if re.search(r":[0-9]+\Z", text) else f"{text}:{listen.rpartition(':')[2]}"}
        sends, rest = "none", iter(options)
        for option in rest:
            if option in _SEND:
                sends = _SEND[option]
            elif option in ("weight", "maxconn", "inter", "rise", "fall", "port", *_SERVER_VALUES, "on-marked-down"):
                self._server_value(proxy, line, (option, next(rest, "")), entry, into)
            elif option == "disabled":
                self._note(proxy.file, line, f"server {shortened(name)} is disabled there: `pylb ctl maint` once pylb runs")
            elif option == "backup":
                entry["backup"] = True
            elif option == "check":
                into.checks["mode"] = "active"
            elif option not in _SERVER_FLAGS:
                self._lost(proxy, line, ["server", name, option])
        into.sends.add(sends)
        into.servers.append(entry if len(entry) > 1 else entry["address"])

    def _server_value(self, proxy: _Proxy, line: int, option: tuple[str, str], entry: dict[str, Any], into: "_Pool") -> None:
        match option:
            case ["weight" | "maxconn" as key, number] if number.isdigit():
                default = 1 if key == "weight" else 0
                if int(number) != default:
                    entry["max_connections" if key == "maxconn" else key] = int(number)
            case ["rise" | "fall" | "port" as key, number] if number.isdigit():
                into.checks[key] = int(number)
            case ["inter", value] if (ms := _milliseconds(value)) is not None:
                into.checks["interval"] = duration(max(100, ms))
            case ["on-marked-down", "shutdown-sessions"]:
                into.more["on_down"] = "close"
            case [key, value] if key not in _SERVER_VALUES:
                self._lost(proxy, line, ["server", key, value])


def _words(line: str) -> list[str]:
    """As HAProxy splits a line (its manual, 2.2): quotes and backslashes as in a shell, but \\r and \\n are what they are in C.

    Raises ValueError.
    """
    marked = line.replace("\\r", "\ue00d").replace("\\n", "\ue00a")  # private use: in no config
    return [word.replace("\ue00d", "\r").replace("\ue00a", "\n") for word in split_words(marked)]


def _length(words: Iterable[str]) -> int:
    return sum(len(word) + 1 for word in words)


class _Pool(NamedTuple):
    """Where the servers of one frontend are collected."""

    servers: list[Any]
    sends: set[str]
    checks: dict[str, Any]
    more: dict[str, Any]


def _health(check: dict[str, Any], checks: dict[str, Any]) -> dict[str, Any]:
    """`health` of a frontend; its check only if it is more than a connect."""
    port = {"port": checks["port"]} if "port" in checks else {}
    found = {key: value for key, value in checks.items() if key != "port"}
    return found | ({"check": {**check, **port}} if check or port else {})


def _milliseconds(text: str) -> int | None:
    """HAProxy's time: without a unit milliseconds; at least one."""
    match = re.fullmatch(r"([0-9]{1,12})(us|ms|s|m|h|d)?", text)
    return max(1, round(int(match[1]) * _UNITS[match[2] or "ms"])) if match else None


def duration(ms: int) -> str:
    """As pylb.yaml has it."""
    for size, unit in ((3_600_000, "h"), (60_000, "m"), (1000, "s")):
        if ms % size == 0:
            return f"{ms // size}{unit}"
    return f"{ms}ms"


def _name(text: str) -> str:
    """Letters, digits and inside '.', '_', '-'."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text[:MOST_NAME]).strip("._-") or "frontend"


def _factored(frontends: list[dict[str, Any]]) -> dict[str, Any]:
    """What all have in common stands once, under `defaults`."""
    shared: dict[str, Any] = {}
    if len(frontends) > 1:
        for key in ("balance", "retries", "timeouts", "health", "source_addresses", "max_connections"):
            first = frontends[0].get(key)
            if first is not None and all(one.get(key) == first for one in frontends):
                shared[key] = first
                for one in frontends:
                    del one[key]
    names: dict[str, int] = {}
    for one in frontends:
        names[one["name"]] = names.get(one["name"], 0) + 1
        if names[one["name"]] > 1:
            one["name"] += f"-{names[one['name']]}"
    return {**({"defaults": shared} if shared else {}), "frontends": frontends}


def _rendered(document: dict[str, Any]) -> str:
    head = (
        "# Translated by `pylb import` from an haproxy.cfg. What was not translated was printed beside it.\n"
        "# Add tokens (pylb token create), then: pylb check -c pylb.yaml; pylb run -c pylb.yaml\n"
    )
    dump: Callable[..., str] = yaml.safe_dump
    return head + dump(document, sort_keys=False, default_flow_style=None, width=120)
