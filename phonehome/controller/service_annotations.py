"""What an owner may say about a Service with annotations. Pure.

    pylb.io/proxy-protocol: "v2"              or by port: "25=v1 443=v2"
    pylb.io/health: "tcp"                     or {"http": "/ready", "port": 30444}, as in PYLB_HEALTH; or by port as JSON
    pylb.io/idle-timeout: "2h"
    pylb.io/server-names: "git.example.net"   several with blanks; of port 443 or the only one; or by port: "8443=a.example.net"
    pylb.io/server-names: "allowed"           others may have names on that port
    pylb.io/weight: "10"                      on a Node

An annotation that is wrong or unknown has no effect and is reported: a misspelt one must not be silent. Server names are the
exception: without them a Service would get the clients of all names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import NamedTuple

from phonehome.controller.objects import PREFIX, Service
from phonehome.values import MAX_WEIGHT, NotationError, parse_port, parse_seconds

KNOWN = ("health", "idle-timeout", "proxy-protocol", "server-names")
ALLOWED = "allowed"  # in place of server names
HTTPS = 443


class Said(NamedTuple):
    """The annotations of one Service. A port of 0 means all ports that are not named."""

    proxy_protocol: dict[int, str]
    health: dict[int, object]
    idle_timeout: int | None  # seconds
    server_names: dict[int, tuple[str, ...]] | None  # by port, or only ALLOWED; None: they are not understood
    problems: tuple[str, ...]


def read(service: Service) -> Said:
    problems: list[str] = []
    proxy: dict[int, str] = {}
    health: dict[int, object] = {}
    idle: int | None = None
    names: dict[int, tuple[str, ...]] | None = {}
    for key, text in service.annotations:
        try:
            if key == "proxy-protocol":
                proxy = _proxy(text)
            elif key == "health":
                health = _health(text)
            elif key == "idle-timeout":
                idle = parse_seconds(text.strip())
            elif key == "server-names":
                names = None
                names = _server_names(text, [one.port for one in service.ports if one.protocol == "TCP"])
            else:
                problems.append(f"annotation {PREFIX}{key}: {_unknown(key)}")
        except NotationError as exc:
            effect = "until it is corrected, nothing of this Service is changed" if names is None else "it has no effect"
            problems.append(f"annotation {PREFIX}{key}: {exc}; {effect}")
    ports = {one.port for one in service.ports}
    for key, named in (("proxy-protocol", set(proxy)), ("health", set(health))):
        problems += [
            f"annotation {PREFIX}{key}: port {port} is not a port of the Service; it has no effect"
            for port in sorted(named - ports - {0})
        ]
    return Said(proxy, health, idle, names, tuple(problems))


def parse_weight(text: str) -> int | None:
    """The weight in a Node's annotation; None: it is not usable."""
    text = text.strip()
    return int(text) if re.fullmatch(r"[0-9]{1,3}", text) and 1 <= int(text) <= MAX_WEIGHT else None


def _proxy(text: str) -> dict[int, str]:
    found: dict[int, str] = {}
    for part in text.replace(",", " ").split():
        port, equals, version = part.partition("=")
        number = parse_port(port) if equals else 0
        version = version if equals else port
        if version not in ("none", "v1", "v2"):
            raise NotationError(f"{version!r} is not none, v1 or v2 (or by port: 25=v1 443=v2)")
        found[number] = version
    return found


def _health(text: str) -> dict[int, object]:
    if text.strip() == "tcp":
        return {0: "tcp"}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not found:
        raise NotationError('neither tcp nor a JSON object such as {"http": "/ready"}')
    if all(key.isdigit() for key in found):
        return {parse_port(key): check for key, check in found.items()}
    return {0: found}


def _server_names(text: str, ports: Collection[int]) -> dict[int, tuple[str, ...]]:
    """Whether they are names is for pylb to say: it has the rule."""
    found: dict[int, tuple[str, ...]] = {}
    for part in text.replace(",", " ").split():
        left, equals, name = part.rpartition("=")
        if equals:
            port = parse_port(left)
        elif HTTPS in ports or len(ports) == 1:
            port = HTTPS if HTTPS in ports else min(ports)
        else:
            raise NotationError(f"of which port? The Service has {len(ports)}; say it as in 8443={name}")
        if port not in ports:
            raise NotationError(f"port {port} is not a TCP port of the Service")
        if not name:
            raise NotationError(f"{part!r} has no name")
        found[port] = (*found.get(port, ()), name.lower())
    if not found:
        raise NotationError("it has no name")
    for port, names in found.items():
        if ALLOWED in names and len(names) > 1:
            raise NotationError(f"port {port} has names of its own, or is for all clients and allows the names of others")
    return found


def _unknown(key: str) -> str:
    if key == "weight":
        return "a weight belongs on a Node: the servers of a Service are its nodes"
    return f"unknown (known: {', '.join(KNOWN)})"
