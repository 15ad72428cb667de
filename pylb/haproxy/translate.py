"""Translates the TCP frontends of an haproxy.cfg to pylb.yaml (Configuration Manual of HAProxy 2.6 to 3.4).

A note with `differs` says what HAProxy would do and what pylb would do, where the two would give a connection to different
servers or admit different clients. Settings that all frontends share go to `defaults` in pylb.yaml.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf
from typing import Any, NamedTuple

import yaml

from pylb.config.yamlplace import MAX_CHARACTERS
from pylb.core.address import parse_ip
from pylb.haproxy.binds import Bind, ListenAddress, bind_of, listen_addresses
from pylb.haproxy.clients import EVERYBODY, NOBODY, Clients, Conditions, access_entries
from pylb.haproxy.config_parser import PROXIES, Note, Notes, Parser, shortened
from pylb.haproxy.port_ranges import in_ranges
from pylb.haproxy.proxies import Proxy, Switch, proxy_of
from pylb.haproxy.server_names import asked_names, reached, route_of
from pylb.haproxy.servers import Server, duration, entries, plain_name, servers_of, shared

MOST_LINES = 1_000_000  # of proxies, counted once for each place that uses them; takes some seconds
LEAST_FRONTEND = 40  # characters of a frontend in pylb.yaml, not counting its name and servers
_BALANCE = {
    **{name: name for name in ("roundrobin", "leastconn", "source", "first", "random")},
    "static-rr": "roundrobin",
    "hash src": "source",
}
# With these, HAProxy's `retries` go to other servers at once; otherwise to the same server, and only the last to another.
_REDISPATCHED = ("roundrobin", "random")
_GLOBAL = {
    "maxconnrate": "HAProxy would take at most so many new connections a second in all; pylb limits each frontend: `limits`",
    "maxsessrate": "HAProxy would take at most so many new connections a second in all; pylb limits each frontend: `limits`",
}


class Translation(NamedTuple):
    text: str  # pylb.yaml
    notes: tuple[Note, ...]
    frontends: int

    @property
    def differences(self) -> tuple[Note, ...]:
        return tuple(note for note in self.notes if note.differs)


def translate(texts: Iterable[tuple[str, str]], environ: Mapping[str, str] | None = None) -> Translation:
    """Translate `(file name, text)` of files that HAProxy reads as one config, with the environment that it would have."""
    notes = Notes()
    parser = Parser(notes, environ or {})
    for file, text in texts:
        parser.read(file, text)
    frontends = _Translator(parser, notes).frontends()
    return Translation(_rendered(_factored(frontends)), tuple(notes), len(frontends))


class _Translator:
    def __init__(self, parser: Parser, notes: Notes) -> None:
        self._parser, self._notes = parser, notes
        self._conditions = Conditions(notes)
        self._room = MAX_CHARACTERS
        self._lines = MOST_LINES
        self._proxies = [proxy_of(section) for section in parser.sections if section.kind in PROXIES]
        self._backends = {one.section.name: one for one in self._proxies if one.section.kind in ("backend", "listen")}
        self._used: dict[str, int] = {}  # backend -> number of places that send to it

    def frontends(self) -> list[dict[str, Any]]:
        self._other_sections()
        found: list[dict[str, Any]] = []
        for proxy in self._proxies:
            if proxy.section.kind != "backend" and self._serves(proxy):
                found += self._frontend(proxy)
        for name, backend in self._backends.items():
            if backend.section.kind == "backend" and name not in self._used and not backend.is_page:
                self._notes.note(backend.section.head, f"backend {shortened(name)} is left out: no frontend sends to it")
            if self._used.get(name, 0) > 1:
                self._counted_together(backend)
        return found

    def _other_sections(self) -> None:
        for section in self._parser.sections:
            if section.kind == "global":
                for line in section.lines:
                    if line.words[0] in _GLOBAL:
                        self._notes.differs(line, f"global {line.text}: {_GLOBAL[line.words[0]]}")
                    elif line.words[0] == "maxconn":
                        what = "pylb derives its limit from the limit of open files (LimitNOFILE)"
                        self._notes.note(line, f"global maxconn: {what}")
            elif section.kind == "log-forward":
                self._notes.differs(section.head, f"section {section.label}: HAProxy would take log messages; pylb does not")
            elif section.kind not in PROXIES and section.kind != "defaults":
                self._notes.note(section.head, f"section {section.label}: not translated")

    def _serves(self, proxy: Proxy) -> bool:
        head, label = proxy.section.head, proxy.section.label
        if not proxy.enabled:
            self._notes.note(head, f"{label} is left out: it is disabled")
        elif proxy.is_page:
            what = "pylb has its status page and /metrics at admin.listen, 127.0.0.1:8404"
            self._notes.note(head, f"{label} is left out: {what}")
        elif proxy.mode != "tcp":
            what = f"HAProxy would serve it in mode {shortened(proxy.mode)}; pylb forwards TCP and would not listen there"
            self._notes.differs(head, f"{label} is left out: {what}. With mode tcp it passes HTTP through to one backend")
        else:
            return True
        return False

    # ------------------------------------------------------------ a frontend

    def _frontend(self, proxy: Proxy) -> list[dict[str, Any]]:
        head, label = proxy.section.head, proxy.section.label
        binds = [bind for bind in self._binds(proxy) if self._has_room(proxy, _size_of(bind, proxy))]
        found: list[tuple[str, dict[str, Any]]] = []
        listens = listen_addresses(binds)
        if (behind := head.words[2:3]) not in ([], ["from"]):
            what = "HAProxy up to 1.8 would listen there; pylb would not. Write: bind"
            self._notes.differs(head, f"{label} {shortened(behind[0])}: {what} {shortened(behind[0])}")
        if not listens:
            self._notes.note(head, f"{label} is left out: it listens nowhere")
        for line, why in proxy.odd if listens else ():
            self._notes.differs(line, f"{line.text}: {why}")
        for address in listens:
            if not self._has_time(proxy, proxy):
                break
            backend, names = self._backend(proxy, address.port)
            if backend is None or not self._has_room(proxy, backend.size) or not self._has_time(proxy, backend):
                continue
            name = plain_name(proxy.section.name)
            entry: dict[str, Any] = {"name": name if not found else f"{name}-{address.port}", "listen": address.listen}
            entry |= self._policy(proxy, backend, address, has_routes=bool(names))
            if names:
                entry["routes"] = list(self._routes(proxy, names, address, entry))
                if proxy.inspect_delay:
                    entry["timeouts"]["hello"] = duration(proxy.inspect_delay)
            found.append((backend.section.name, entry))
        joined = self._joined(found)
        if len(joined) > 1:
            for limit in (proxy.max_connections, proxy.rate):
                if limit is not None:
                    what = "HAProxy would count all its places together; pylb counts each place by itself"
                    self._notes.differs(limit[1], f"{label}: {limit[1].text}: {what}")
        return joined

    def _joined(self, found: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
        """The entries, each with its backend's name; ranges of ports as one, which uses its backend once."""
        joined = list(in_ranges(found))
        for name, fewer in (Counter(one for one, _ in found) - Counter(one for one, _ in joined)).items():
            self._used[name] -= fewer
        return [entry for _, entry in joined]

    def _binds(self, proxy: Proxy) -> Iterator[Bind]:
        for line, where, options in proxy.binds:
            for one in self._parser.address(line, where).split(","):
                if (bind := bind_of(line, one, options, self._notes)) is not None:
                    yield bind

    def _has_room(self, proxy: Proxy, characters: int) -> bool:
        """Whether so many more characters fit. `bind *:1-65535` with a hundred servers would need hundreds of megabytes."""
        if characters > self._room:
            what = f"pylb.yaml would have more than the {MAX_CHARACTERS} characters that pylb reads"
            self._notes.differs(proxy.section.head, f"{proxy.section.label} is not translated completely: {what}")
            return False
        self._room -= characters
        return True

    def _has_time(self, proxy: Proxy, read: Proxy) -> bool:
        """Whether the lines of `read` may be read once more. Thousands of rules at thousands of ports would take hours."""
        self._lines -= read.lines
        if self._lines < 0:
            what = "it has too many lines for its number of ports"
            self._notes.differs(proxy.section.head, f"{proxy.section.label} is not translated completely: {what}")
        return self._lines >= 0

    def _backend(self, proxy: Proxy, port: int) -> tuple[Proxy | None, dict[str, list[str]]]:
        """The backend for the clients of `port`, and by other backends the server names whose clients they have."""
        head, label = proxy.section.head, proxy.section.label
        unsure: list[Switch] = []
        names: dict[str, str] = {}
        name = proxy.default_backend
        for switch in proxy.switches:
            dynamic = "%" in switch.backend
            clients = None if dynamic else self._conditions.clients(switch.condition, proxy.acls, port)
            if clients == EVERYBODY:
                name = switch.backend
                break
            if clients == NOBODY:
                continue
            asked = None
            if clients is None and not dynamic:
                asked = asked_names(self._conditions, switch.condition, proxy.acls, port)
            if asked is None:
                unsure.append(switch)
            else:
                names |= dict.fromkeys(reached(asked, names), switch.backend)
        for switch in unsure:
            what = f"HAProxy would send some connections to {shortened(switch.backend)}"
            other = f"all to {shortened(name)}" if name else "none of them there"
            self._notes.differs(switch.line, f"{switch.line.text}: {what}; pylb sends {other}")
        found: dict[str, list[str]] = {}
        for one, other in names.items():
            found.setdefault(other, []).append(one)
        if name is None and (proxy.section.kind == "listen" or names):
            return self._usable(proxy, label, proxy), found
        if name is None:
            self._notes.differs(head, f"{label} is left out: it has no default_backend")
            return None, {}
        return self._usable(proxy, label, name), found

    def _usable(self, proxy: Proxy, label: str, wanted: Proxy | str) -> Proxy | None:
        """The backend, counted as used. None, with a note that `label` is left out: pylb cannot have it."""
        backend = self._backends.get(wanted) if isinstance(wanted, str) else wanted
        if backend is None:
            what = f"it has no backend called {shortened(str(wanted))}"
            self._notes.differs(proxy.section.head, f"{label} is left out: {what}")
            return None
        if backend.mode != "tcp" or not backend.enabled:
            why = "it is disabled" if not backend.enabled else f"it is in mode {shortened(backend.mode)}; pylb forwards TCP"
            self._notes.differs(backend.section.head, f"{label} is left out, and {backend.section.label}: {why}")
            return None
        self._used[backend.section.name] = self._used.get(backend.section.name, 0) + 1
        return backend

    def _routes(
        self, proxy: Proxy, names: dict[str, list[str]], address: ListenAddress, frontend: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """One for each other backend. What it does not say is as in `frontend`, its frontend's entry."""
        if not proxy.inspect_delay:
            what = "without tcp-request inspect-delay HAProxy would choose before most clients have sent a name; pylb waits"
            self._notes.note(proxy.section.head, f"{proxy.section.label}: {what}")
        for name, asked in names.items():
            label = f"{proxy.section.label}: the route to {shortened(name)}"
            backend = self._usable(proxy, label, name)
            if backend is None or not self._has_room(proxy, backend.size) or not self._has_time(proxy, backend):
                continue
            route, elsewhere = route_of(self._policy(proxy, backend, address), frontend)
            for key in elsewhere:
                what = f"HAProxy would have another {key} there than for the other clients; pylb has one for a frontend"
                self._notes.differs(backend.section.head, f"{label}: {what}")
            yield {"server_names": asked, **route}

    def _counted_together(self, backend: Proxy) -> None:
        """Note that several frontends of pylb use these servers, and count their connections separately."""
        for line, defaults, _ in backend.servers:
            if "maxconn" in line.words or "maxconn" in backend.default_server[:defaults]:
                what = "HAProxy would count its connections of all places together; pylb counts each place by itself"
                self._notes.differs(line, f"server {shortened(line.words[1])}: maxconn: {what}")

    # ------------------------------------------------------------ its policy

    def _policy(self, proxy: Proxy, backend: Proxy, address: ListenAddress, *, has_routes: bool = False) -> dict[str, Any]:
        if backend is not proxy:
            for line, why in backend.odd:
                self._notes.differs(line, f"{line.text}: {why}")
        found = list(entries(servers_of(backend, self._parser, self._notes), address.port, self._notes))
        if not found and not has_routes:
            what = "there is no server, so HAProxy would accept connections and close them"
            self._notes.note(backend.section.head, f"{backend.section.label}: {what}, as here")
        policy: dict[str, Any] = {"balance": self._balance(backend, len(found))}
        policy["retries"] = self._retries(backend, policy["balance"])
        if proxy.max_connections is not None and proxy.max_connections[0]:
            policy["max_connections"] = proxy.max_connections[0]
        if proxy.rate is not None:
            policy["limits"] = {"rate": proxy.rate[0]}
        if source := self._source(backend):
            policy["source_addresses"] = [source]
        if entered := access_entries(self._accepted(proxy, backend, address)):
            policy["access"] = entered
        policy |= shared(backend, found, self._notes)
        if policy["balance"] == "first":
            _without_shares(policy, found)
        limited = any("max_connections" in entry for _, entry in found)
        policy["timeouts"] = _timeouts(proxy, backend, limited=limited)
        for key, value in address.settings.items():
            policy[key] = policy.get(key, {}) | value if isinstance(value, dict) else value
        return policy | {"servers": [entry for _, entry in found]}

    def _balance(self, backend: Proxy, servers: int) -> str:
        how, line = backend.balance
        name = _BALANCE.get(how) or _BALANCE.get(how.partition("(")[0])
        if servers < 2:
            return name or "roundrobin"
        if name is None and line is not None:
            what = f"HAProxy would choose servers in this way; pylb has {', '.join(sorted(set(_BALANCE.values())))}"
            self._notes.differs(line, f"{line.text}: {what}, and uses roundrobin")
        if name == "source" and line is not None:
            self._notes.note(line, f"{line.text}: each client always gets the same server, but by another hash than HAProxy's")
            if backend.hash_balance is not None:
                what = "HAProxy would send clients elsewhere while their server has more than its share"
                self._notes.differs(backend.hash_balance, f"{backend.hash_balance.text}: {what}; pylb does not")
        for stick in backend.sticks:
            what = "HAProxy would remember each client's server; pylb remembers none"
            by_client = stick.words[1:3] == ["on", "src"]
            instead = "`balance: source`" if by_client else f"`balance: {name or 'roundrobin'}`"
            self._notes.differs(stick, f"{stick.text}: {what}, and uses {instead}")
            name = "source" if by_client else name
        return name or "roundrobin"

    def _retries(self, backend: Proxy, balance: str) -> int:
        """How many other servers are tried. Without `option redispatch` HAProxy only tries the same one again."""
        if not backend.redispatch or not backend.retries or balance == "source":
            return 0
        return min(backend.retries, 100) if balance in _REDISPATCHED else 1

    def _source(self, backend: Proxy) -> str:
        if backend.source is None:
            return ""
        line = backend.source
        address = self._parser.address(line, line.words[1] if len(line.words) > 1 else "")
        if len(line.words) > 2:
            what = "HAProxy would use the client's address, or an interface; pylb cannot: send the PROXY header"
            self._notes.differs(line, f"{line.text}: {what}")
            return ""
        for text in (address, address.rpartition(":")[0].strip("[]"), address.strip("[]")):
            try:
                found = parse_ip(text)
            except ValueError:
                continue
            return "" if found in ("0.0.0.0", "::") else found
        if address not in ("*", ""):
            self._notes.differs(line, f"{line.text}: HAProxy would connect from there; write the address as an IP address")
        return ""

    def _accepted(self, proxy: Proxy, backend: Proxy, address: ListenAddress) -> Clients:
        found = EVERYBODY
        for one in (proxy,) if backend is proxy else (proxy, backend):
            for level, rules in one.rules.items():
                if "proxy_protocol" in address.settings and rules:
                    what = "HAProxy compares the peer's address or the one in the header; pylb cannot know which"
                    self._notes.differs(rules[0].line, f"{rules[0].line.text}: with accept-proxy: {what}, and ignores them")
                elif level != "connection" or one is proxy:
                    found &= self._conditions.accepted(rules, one.acls, address.port)
        return found


def _size_of(bind: Bind, proxy: Proxy) -> int:
    return (bind.last - bind.first + 1) * (len(plain_name(proxy.section.name)) + LEAST_FRONTEND)


def _without_shares(policy: dict[str, Any], found: list[tuple[Server, dict[str, Any]]]) -> None:
    """Remove what `balance first` ignores, in HAProxy as in pylb."""
    policy.pop("slow_start", None)
    for _, entry in found:
        if entry.get("weight"):
            del entry["weight"]


def _timeouts(proxy: Proxy, backend: Proxy, *, limited: bool) -> dict[str, str]:
    """HAProxy has no timeout unless one is written, and has one for each side of a session where pylb has one for both.

    HAProxy ends a session that is silent both ways by the shorter one. For half-closed sessions the longer one is used, which
    never ends a session that HAProxy would not end.
    """
    sides = [(timeouts, side) for timeouts, side in ((proxy.timeouts, "client"), (backend.timeouts, "server"))]
    tunnel, connect = backend.timeouts.get("tunnel"), backend.timeouts.get("connect", inf)
    silent = [timeouts.get(side, inf) if tunnel is None else tunnel for timeouts, side in sides]
    halves = [timeouts.get(f"{side}-fin", most) for (timeouts, side), most in zip(sides, silent, strict=True)]
    found = {"connect": connect, "idle": min(silent), "half_close": max(halves)}
    if limited:  # otherwise no server is ever full, so no client waits
        found["queue"] = backend.timeouts.get("queue", connect)
    return {key: "0s" if key == "idle" and ms == inf else duration(ms) for key, ms in sorted(found.items())}


def _factored(frontends: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole config. Settings that all frontends share are written once, under `defaults`."""
    common: dict[str, Any] = {}
    if len(frontends) > 1:
        for key in ("balance", "retries", "timeouts", "health", "source_addresses", "max_connections"):
            first = frontends[0].get(key)
            if first is not None and all(one.get(key) == first for one in frontends):
                common[key] = first
                for one in frontends:
                    del one[key]
    names: dict[str, int] = {}
    for one in frontends:
        names[one["name"]] = names.get(one["name"], 0) + 1
        if names[one["name"]] > 1:
            one["name"] += f"-{names[one['name']]}"
    return {**({"defaults": common} if common else {}), "frontends": frontends}


def _rendered(document: dict[str, Any]) -> str:
    head = (
        "# Translated by `pylb import` from an haproxy.cfg. `pylb import` has printed what it did not translate.\n"
        "# Add tokens (pylb token create), then: pylb check -c pylb.yaml; pylb run -c pylb.yaml\n"
    )
    dump: Callable[..., str] = yaml.dump
    return head + dump(document, Dumper=_Plain, sort_keys=False, default_flow_style=None, width=120)


class _Plain(yaml.SafeDumper):
    """Writes no anchors, because pylb's own reader does not accept them."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True
