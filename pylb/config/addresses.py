"""The types of addresses, ports, networks, host names, server names and URLs. Every parser is as those of values.py."""

import re
from collections.abc import Callable
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator, PlainValidator

from pylb.config.problems import wrong
from pylb.config.value_type import TEXT, Json, JsonType, listed, one_or_more, parsed, plain_text, show
from pylb.core import address as core
from pylb.core.server_names import parse_scope, parse_server_name

_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*", re.IGNORECASE)
_PORT_NUMBER: Json = {"type": "integer", "minimum": 1, "maximum": 65535}
_PORT: Json = {"anyOf": [_PORT_NUMBER, {"type": "string", "pattern": "^[0-9]+(-[0-9]+)?(/tcp|/udp)?$"}]}
_TARGET_PORT: Json = {"anyOf": [_PORT_NUMBER, {"type": "string", "pattern": "^[0-9]+(-[0-9]+)?$"}]}


def parse_listen_at(value: object) -> core.Listen:
    """`*:443`, `192.0.2.1:443`, `[2001:db8::1]:443`."""
    return _listen_at(value, core.parse_listen)


def parse_listens_at(value: object) -> core.Listen:
    """Parse `*:443` or a range, `*:20000-20099`; `/udp` behind it makes it a frontend of UDP."""
    return _listen_at(value, core.parse_listens_of)


def _listen_at(value: object, parse: Callable[[str], core.Listen]) -> core.Listen:
    hint = 'ADDRESS:PORT, as in "*:443", "192.0.2.1:443" or "[2001:db8::1]:443"'
    if isinstance(value, int) and not isinstance(value, bool):
        raise wrong(f"{value} is a port without an address", f'write "*:{value}" for all addresses')
    text = plain_text(value, "an address to listen on")
    if re.fullmatch(r":?[0-9]+", text):
        hint = f'write "*:{text.lstrip(":")}" for all addresses'
    return parsed(parse, text, hint)


def parse_server_at(value: object) -> core.Address | core.HostPort:
    """`IP:PORT` or `HOST:PORT`."""
    found = parse_servers_at(value)
    if found.last:
        raise wrong(f"{found}: a range has no place here", "one port")
    return found


def parse_servers_at(value: object) -> core.Address | core.HostPort:
    """A server's address, or a range of its ports: `192.0.2.7:30000-30099`."""
    hint = 'IP:PORT or HOST:PORT, as in "192.0.2.7:30443"'
    text = plain_text(value, "an address")
    host, colon, port = text.rpartition(":")
    if colon and not re.fullmatch(r"[0-9.]+", host) and _HOST.fullmatch(host.removesuffix(".")):
        return core.HostPort(host.removesuffix(".").lower(), *parsed(core.parse_port_range, port, hint))
    if colon and not host.isascii():
        raise wrong(f"{show(text)} is not a DNS host name", "write its xn-- form")
    if colon and "[" not in host and not re.fullmatch(r"[0-9.]*|.*[:/].*", host):
        raise wrong(f"{show(host)} is neither an IP address nor a host name", "a name has letters, digits, '-' and '.'")
    address = parsed(core.parse_addresses, text, hint)
    if (refused := core.refused_class(address.ip)) is not None:
        raise wrong(f"{address.ip} is {refused}: never a server", hint)
    return address


def _ip(value: object) -> str:
    return parsed(core.parse_ip, plain_text(value, "an IP address"), "")


def _bind(value: object) -> str:
    text = plain_text(value, "an address to bind to")
    return core.ANY if text == core.ANY else parsed(core.parse_ip, text, 'an IP address of this machine, or "*"')


def parse_host(value: object) -> str:
    text = plain_text(value, "a host name or IP address")
    if re.fullmatch(r"[0-9.]+|[0-9a-fA-F:.%]*:[0-9a-fA-F:.%]*", text):
        return parsed(core.parse_ip, text, "a host name or an IP address, without port")
    if _HOST.fullmatch(text) is None:
        raise wrong(f"{show(text)} is not a host name", "a host name or an IP address, without scheme and port")
    return text


def parse_url(value: object) -> str:
    """Without a slash at its end. No user and password: whoever reads the page or the log would read them, too."""
    hint = 'as in "http://192.0.2.7:8404" or "https://lb-2.example.net"'
    text = plain_text(value, "a URL")
    try:
        parts = urlsplit(text)
        host, _port = parts.hostname or "", parts.port
    except ValueError:
        raise wrong(f"{show(text)} is not a URL", hint) from None
    if "@" in parts.netloc:
        raise wrong("a URL with a user or password would show them to whoever reads the page", "leave them out")
    if parts.scheme not in ("http", "https"):
        raise wrong(f"{show(text)} is not an http:// or https:// URL", hint)
    if parts.query or parts.fragment or not re.fullmatch(r"[!-~]{1,500}", text):
        raise wrong(f"{show(text)} has more than a host, a port and a path", hint)
    parse_host(host)
    return text.rstrip("/")


def parse_network(value: object) -> core.Network:
    return parsed(core.parse_network, plain_text(value, "a network"), 'CIDR, as in "192.0.2.0/24", or one address')


def _ports(value: object) -> core.PortsOf:
    return _port_numbers(value, 'such as 8443, "8883-8899" or "443/udp"')


def _target_ports(value: object) -> core.PortsOf:
    if isinstance(value, str) and "/" in value:
        raise wrong(f"{show(value)}: a protocol has no place here", "the number alone; it counts for TCP and UDP")
    return _port_numbers(value, 'such as 8443 or "8883-8899"')


def _port_numbers(value: object, example: str) -> core.PortsOf:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise wrong(f"{show(value)} is not a port", 'a port (1-65535) or a range, as in "8883-8899"')
    hint = 'write a list: ["8443", "8883-8899"]' if "," in str(value) else example
    return parsed(core.parse_ports_of, str(value)[:80], hint)


_NAMES_HINT = 'as in "git.example.net", "*.apps.example.net" (one label) or "**.example.net" (one or more)'


def _server_name(value: object) -> str:
    return parsed(parse_server_name, plain_text(value, "a server name"), _NAMES_HINT)


def _scope(value: object) -> str:
    return parsed(parse_scope, plain_text(value, "a server name"), f"{_NAMES_HINT}; `*` for any")


ListenAt = Annotated[core.Listen, PlainValidator(parse_listen_at), JsonType("`ADDRESS:PORT`, `*` for all addresses")]
ListensAt = Annotated[
    core.Listen,
    PlainValidator(parse_listens_at),
    JsonType("`ADDRESS:PORT` or `ADDRESS:PORT-PORT`, `*` for all addresses; `/udp` behind it: UDP"),
]
ServersAt = Annotated[
    core.Address | core.HostPort,
    PlainValidator(parse_servers_at),
    JsonType("`IP:PORT` or `HOST:PORT`; for a range `IP:PORT-PORT`"),
]
Ip = Annotated[str, PlainValidator(_ip), JsonType("IP address")]
Bind = Annotated[str, PlainValidator(_bind), JsonType("IP address or `*`")]
Host = Annotated[str, PlainValidator(parse_host), JsonType("host name or IP address")]
Url = Annotated[str, PlainValidator(parse_url), JsonType("`http://HOST:PORT` or `https://HOST:PORT`")]
NetworkText = Annotated[core.Network, PlainValidator(parse_network), JsonType("CIDR")]
PortRange = Annotated[core.PortsOf, PlainValidator(_ports), JsonType("port or range", _PORT)]
TargetRange = Annotated[core.PortsOf, PlainValidator(_target_ports), JsonType("port or range", _TARGET_PORT)]
TargetRanges = Annotated[
    tuple[TargetRange, ...], BeforeValidator(one_or_more), JsonType("list of ports and ranges", listed(_TARGET_PORT))
]
Networks = Annotated[tuple[NetworkText, ...], BeforeValidator(one_or_more), JsonType("list of CIDR", listed(TEXT))]
PortRanges = Annotated[
    tuple[PortRange, ...],
    BeforeValidator(one_or_more),
    JsonType("list of ports and ranges; TCP, unless `/udp` stands behind it", listed(_PORT)),
]
ServerNames = Annotated[
    tuple[Annotated[str, PlainValidator(_server_name)], ...],
    BeforeValidator(one_or_more),
    JsonType("list of server names", listed(TEXT)),
]
ServerNameScopes = Annotated[
    tuple[Annotated[str, PlainValidator(_scope)], ...],
    BeforeValidator(one_or_more),
    JsonType("list of server names, `*` for any", listed(TEXT)),
]
Ips = Annotated[tuple[Ip, ...], BeforeValidator(one_or_more), JsonType("list of IP addresses", listed(TEXT))]
