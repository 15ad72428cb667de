"""Translates the servers of a backend, and their health, for one place where a frontend listens."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv6Address, ip_address
from itertools import count
from math import inf
from typing import Any

from pylb.config.values import duration_text
from pylb.haproxy.config_parser import Line, Notes, Parser, shortened, word_set
from pylb.haproxy.health_checks import check_of
from pylb.haproxy.proxies import Proxy, ServerLine, is_number, milliseconds

MOST_NAME = 253  # characters, as in the config
LONGEST = 366 * 86_400_000  # milliseconds, as in the config; stands for "no timeout" where pylb must have one
_SEND = {"send-proxy": "v1", "send-proxy-v2": "v2", "send-proxy-v2-ssl": "v2", "send-proxy-v2-ssl-cn": "v2"}
_FLAGS = word_set(
    """
    non-stick stick no-agent-check tfo no-tfo no-check-ssl no-verifyhost allow-0rtt ssl-reuse no-ssl-reuse
    """
)
_WITH_VALUE = word_set(
    """
    weight maxconn inter rise fall port fastinter downinter error-limit on-error id cookie init-addr init-state resolvers
    resolve-opts resolve-net resolve-prefer slowstart on-marked-down on-marked-up agent-port agent-inter agent-addr
    agent-send verify ca-file ca-verify-file crt crl-file sni alpn ciphers ciphersuites ssl-min-ver ssl-max-ver verifyhost
    check-sni check-alpn check-proto proto npn pool-low-conn pool-max-conn pool-purge-delay max-reuse tcp-ut log-proto ws
    guid hash-key proxy-v2-options set-proxy-v2-tlv-fmt curves sigalgs client-sigalgs log-bufsize shard cc
    """
)
_OPEN = {  # options that change who gets a connection, with the number of words that follow
    "minconn": (1, "HAProxy would let it have fewer connections while there are few clients"),
    "maxqueue": (1, "HAProxy would let at most so many clients wait for it, and send others elsewhere"),
    "track": (1, "HAProxy would consider it up while that server is up"),
    "observe": (1, "HAProxy would judge it by its traffic; pylb counts failed connects"),
    "addr": (1, "HAProxy would check that address; pylb checks the server's own"),
    "source": (1, "HAProxy would connect to it from that address"),
    "usesrc": (1, "it would see the client's address; send it the PROXY header instead"),
    "interface": (1, "HAProxy would connect to it through that interface"),
    "socks4": (1, "HAProxy would connect to it through that proxy"),
    "namespace": (1, "HAProxy would connect to it in that network namespace"),
    "agent-check": (0, "HAProxy would ask an agent for its weight and state"),
    "check-ssl": (0, "HAProxy would check it over TLS; pylb only connects"),
    "check-via-socks4": (0, "HAProxy would check it through that proxy"),
}


_FIELDS = {
    "check": "checked",
    "check-send-proxy": "check_sends",
    "backup": "backup",
    "disabled": "disabled",
    "enabled": "disabled",
}
_NO_TCP = ("/", "unix@", "abns@", "abnsz@", "fd@", "sockpair@", "udp@", "quic", "rhttp@", "@")


@dataclass(slots=True)
class Server:
    """A `server` line."""

    line: Line
    name: str
    address: str
    options: dict[str, str] = field(default_factory=dict)
    headers: set[str] = field(default_factory=set)
    checked: bool = False
    check_sends: bool = False  # a PROXY header, whatever its port is, and whether sessions have one
    backup: bool = False
    disabled: bool = False

    @property
    def label(self) -> str:
        return f"server {shortened(self.name)}"

    @property
    def sends(self) -> str:
        """The version of the PROXY header. Of two, HAProxy sends the newer one."""
        return max(self.headers, default="none")

    @property
    def health(self) -> dict[str, Any]:
        """Its settings under the keys of `servers[].health`, with HAProxy's defaults."""
        found: dict[str, Any] = {"interval": duration(max(100, milliseconds(self.options.get("inter", "")) or 2000))}
        for key, default in (("rise", 2), ("fall", 3), ("port", 0)):
            number = self.options.get(key, "")
            found[key] = int(number) if is_number(number) else default
        return found


def servers_of(proxy: Proxy, parser: Parser, notes: Notes) -> list[Server]:
    """The servers that pylb can use. The others are noted as differences."""
    found = [made for one in proxy.servers if (made := _server(proxy, one, parser, notes)) is not None]
    return _by_id(found, proxy) if proxy.balance[0] == "first" else found


def _by_id(servers: list[Server], proxy: Proxy) -> list[Server]:
    """Sort them as HAProxy's `first` does: by `id`; a server without one gets the lowest free id. A single active backup is
    the first in the file.
    """
    taken = {int(one.options["id"]) for one in servers if is_number(one.options.get("id", ""))}
    free = (number for number in count(1) if number not in taken)
    ids = [int(one.options["id"]) if is_number(one.options.get("id", "")) else next(free) for one in servers]
    order = {id(one): number for number, one in zip(ids, servers, strict=True) if proxy.all_backups or not one.backup}
    return sorted(servers, key=lambda one: order.get(id(one), 0))


def _server(proxy: Proxy, read: ServerLine, parser: Parser, notes: Notes) -> Server | None:
    line = read.line
    template = line.words[0] == "server-template"
    name, address, options = line.words[1], line.words[3 if template else 2], line.words[4 if template else 3 :]
    made = Server(line, name, parser.address(line, address))
    rest = iter([*proxy.default_server[: read.defaults], *options])
    for option in rest:
        _option(made, option, rest, notes)
    if "ssl" in made.options:
        notes.differs(line, f"{made.label}: HAProxy would encrypt; pylb passes bytes on unchanged, and leaves the server out")
        return None
    if made.address.startswith(_NO_TCP):
        what = f"HAProxy would use {shortened(made.address)}; pylb leaves it out: a server is HOST:PORT"
        notes.differs(line, f"{made.label}: {what}")
        return None
    if made.checked:
        _say_other_checks(made, notes)
    if template:
        what = "HAProxy would use so many of the name's addresses; pylb uses all of them"
        notes.differs(line, f"server-template {shortened(name)} {line.words[2]}: {what}")
    return made


def _say_other_checks(made: Server, notes: Notes) -> None:
    """Note that a dead server would be out, or back, at another time, or that a good one would be out."""
    for word, when in (("fastinter", "while its state changes"), ("downinter", "while it is down")):
        inter, other = (milliseconds(made.options.get(key, "")) or 2000 for key in ("inter", word))
        if word in made.options and other != inter:
            what = f"HAProxy would check it at that interval {when}; pylb always uses {duration(inter)}"
            notes.differs(made.line, f"{made.label}: {word} {shortened(made.options[word])}: {what}")
    if made.check_sends and (made.sends == "none" or made.health["port"]):
        what = (
            "HAProxy would begin its check with a PROXY header; pylb does so at the server's own port, where sessions have one"
        )
        notes.differs(made.line, f"{made.label}: check-send-proxy: {what}")


def _option(made: Server, option: str, rest: Iterator[str], notes: Notes) -> None:
    if option in _OPEN:
        count, why = _OPEN[option]
        values = [next(rest, "") for _ in range(count)]
        notes.differs(made.line, f"{made.label}: {' '.join((option, *values))}: {why}; pylb would ignore it")
    elif option in _WITH_VALUE:
        made.options[option] = next(rest, "")
    elif option in _SEND:
        made.headers.add(_SEND[option])
    elif option.removeprefix("no-") in _SEND:
        made.headers.discard(_SEND[option.removeprefix("no-")])
    elif option in ("ssl", "no-ssl"):
        made.options = {key: value for key, value in made.options.items() if key != "ssl"}
        made.options |= {"ssl": ""} if option == "ssl" else {}
    elif (field_name := _FIELDS.get(option.removeprefix("no-"))) is not None and option != "no-enabled":
        setattr(made, field_name, not option.startswith("no-") and option != "enabled")
    elif option not in _FLAGS and not re.match(r"(no|force)-(ssl|tls)", option):
        notes.differs(made.line, f"{made.label}: {shortened(option)}: pylb has nothing like it, and would ignore it")


def split_address(server: Server, port: int, notes: Notes) -> tuple[str, int, str] | None:
    """(host, port, family) for a client of `port`, which an address without a port uses; +N and -N are relative to it."""
    family, _, text = server.address.rpartition("@")
    host, colon, digits = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, digits = text, ""
    match = re.fullmatch(r"([+-]?)([0-9]{1,5})|", digits)
    number = int(match[2] or 0) if match else -1
    if match and (match[1] or not digits):
        number = port - number if match[1] == "-" else port + number
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    label = server.label
    if family not in ("", "ipv4", "ipv6", "tcp", "tcp4", "tcp6") or not 1 <= number <= 65535:
        notes.differs(server.line, f"{label}: {shortened(server.address)} is not understood, and left out")
        return None
    if host in ("", "*", "0.0.0.0", "::"):
        what = "HAProxy would connect to where the client wanted to go; pylb is not transparent and leaves it out"
        notes.differs(server.line, f"{label}: {what}")
        return None
    try:
        IPv6Address(host)
    except AddressValueError:
        return host, number, family
    return f"[{host}]", number, family


def entries(servers: list[Server], port: int, notes: Notes) -> Iterator[tuple[Server, dict[str, Any]]]:
    """The entries of pylb's `servers` for a place at `port`, each with its server."""
    taken: set[str] = set()
    for one in servers:
        found = split_address(one, port, notes)
        if found is None:
            continue
        host, number, family = found
        entry: dict[str, Any] = {"name": plain_name(one.name), "address": f"{host}:{number}"}
        if entry["address"] in taken:
            what = f"HAProxy would use {shortened(entry['address'])} twice, with two shares; pylb uses it once"
            notes.differs(one.line, f"{one.label}: {what}")
            continue
        taken.add(entry["address"])
        if entry["name"] != one.name:
            notes.note(one.line, f"{one.label} is called {shortened(entry['name'])}")
        if not _is_ip(host):
            what = "HAProxy would look the name up at its start and use one address; pylb uses all of them and follows changes"
            notes.differs(one.line, f"{one.label}: {what}")
            prefers = family or one.options.get("resolve-prefer", "")
            if prefers[:4] in ("ipv4", "tcp4", "ipv6", "tcp6"):
                entry["resolve"] = f"ipv{prefers[3]}"
        weight, most = one.options.get("weight", "1"), one.options.get("maxconn", "0")
        if one.disabled:
            notes.note(one.line, f"{one.label} is disabled: weight 0, no new connections, until you change it")
            entry["weight"] = 0
        elif is_number(weight) and weight != "1":
            entry["weight"] = int(weight)
        if one.backup:
            entry["backup"] = True
        if is_number(most) and int(most):
            entry["max_connections"] = int(most)
        yield one, entry


def _is_ip(host: str) -> bool:
    try:
        ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


# ---------------------------------------------------------------- health, and what servers have in common


def shared(proxy: Proxy, found: list[tuple[Server, dict[str, Any]]], notes: Notes) -> dict[str, Any]:
    """The settings that pylb has at the frontend. A server's own settings go into its entry."""
    servers = [one for one, _ in found]
    policy: dict[str, Any] = {"health": _health(proxy, found, notes)}
    if (sends := _same(servers, "send-proxy", [one.sends for one in servers], notes, "the PROXY header")) != "none":
        policy["proxy_protocol"] = {"send": sends}
        options = {word for one in servers for word in one.options.get("proxy-v2-options", "").split(",")}
        if "crc32c" in options and sends == "v2":
            policy["proxy_protocol"]["crc32c"] = True
    checked = [one for one in servers if one.checked]
    marks = [one.options.get("on-marked-down", "") for one in checked]
    if _same(checked, "on-marked-down", marks, notes, "what happens to sessions") == "shutdown-sessions":
        policy["on_down"] = "close"
    for one in servers:
        if (mark := one.options.get("on-marked-up", "none")) != "none":
            what = "HAProxy would end the backups' sessions when this server is back; pylb lets them end by themselves"
            notes.differs(one.line, f"{one.label}: on-marked-up {mark}: {what}")
    slow = [one.options.get("slowstart", "0") for one in checked]
    if (ms := milliseconds(_same(checked, "slowstart", slow, notes, "slow start") or "0")) and ms:
        policy["slow_start"] = duration(ms)
    if sum(one.backup for one in servers) > 1:
        policy["backups"] = "all" if proxy.all_backups else "first"
    return policy


def _same(servers: list[Server], word: str, values: list[str], notes: Notes, what: str) -> str:
    """The common value of all servers. If they differ, that is noted, and it is the first one's."""
    for one, value in zip(servers, values, strict=True):
        if value != values[0]:
            notes.differs(one.line, f"{one.label}: {word} differs from the first server's; {what} is the frontend's in pylb")
    return values[0] if values else "none"


def _health(proxy: Proxy, found: list[tuple[Server, dict[str, Any]]], notes: Notes) -> dict[str, Any]:
    """The settings of `health`. If no server is checked, none is ever down."""
    checked = [(one, entry) for one, entry in found if one.checked]
    if not checked:
        return {"mode": "none"}
    for one, _ in found:
        if not one.checked and not one.disabled and len(found) > 1:
            what = "HAProxy would not check it and always consider it up; pylb checks all servers of a frontend"
            notes.differs(one.line, f"{one.label}: {what}")
    common, check = checked[0][0].health, check_of(proxy.check_lines, notes)
    for one, entry in found:
        own = {key: value for key, value in one.health.items() if one.checked and value != common[key]}
        if "port" in check:
            own.pop("port", None)  # `tcp-check connect port` counts for all
        elif own.get("port") == 0:
            own["port"] = int(entry["address"].rpartition(":")[2])
        if own:
            entry["health"] = own
    if port := common.pop("port"):
        check.setdefault("port", port)
    defaults = {"interval": "2s", "rise": 2, "fall": 3}
    written = {key: value for key, value in common.items() if value != defaults[key]}
    timeout = _check_timeout(proxy, [one for one, _ in checked], plain=not check.keys() - {"port"})
    return {
        "mode": "active",
        **({"check": check} if check else {}),
        "timeout": duration(timeout),
        **written,
        "when_all_down": "refuse",
    }


def _check_timeout(proxy: Proxy, servers: list[Server], *, plain: bool) -> float:
    """Milliseconds for a whole check. In HAProxy that is `inter`; with `timeout check` it is that time for the answer, plus
    `timeout connect`, but at most `inter`, for the connect."""
    inter = max(milliseconds(one.options.get("inter", "")) or 2000 for one in servers)
    answer = proxy.timeouts.get("check")
    if answer is None:
        return inter
    connect = min(proxy.timeouts.get("connect", inf), inter)
    return min(connect if plain else connect + answer, LONGEST)


def duration(ms: float) -> str:
    """A time in the notation of pylb.yaml."""
    return duration_text(int(min(ms, LONGEST)) / 1000)


def plain_name(text: str) -> str:
    """`text` as a name: letters and digits, and '.', '_' and '-' between them."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text[:MOST_NAME]).strip("._-") or "frontend"
