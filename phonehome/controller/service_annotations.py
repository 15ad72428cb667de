"""What an owner may say about a Service with annotations. Pure.

    pylb.io/proxy-protocol: "v2"              or by port: "25=v1 443=v2"
    pylb.io/health: "tcp"                     or {"http": "/ready", "port": 30444}, as in PYLB_HEALTH; or by port as JSON
    pylb.io/idle-timeout: "2h"
    pylb.io/weight: "10"                      on a Node

An annotation that is wrong or unknown has no effect and is reported: a misspelt one must not be silent.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from phonehome.controller.objects import PREFIX, Service
from phonehome.values import MAX_WEIGHT, NotationError, parse_port, parse_seconds

KNOWN = ("health", "idle-timeout", "proxy-protocol")


class Said(NamedTuple):
    """The annotations of one Service. A port of 0 means all ports that are not named."""

    proxy_protocol: dict[int, str]
    health: dict[int, object]
    idle_timeout: int | None  # seconds
    problems: tuple[str, ...]


def read(service: Service) -> Said:
    problems: list[str] = []
    proxy: dict[int, str] = {}
    health: dict[int, object] = {}
    idle: int | None = None
    for key, text in service.annotations:
        try:
            if key == "proxy-protocol":
                proxy = _proxy(text)
            elif key == "health":
                health = _health(text)
            elif key == "idle-timeout":
                idle = parse_seconds(text.strip())
            else:
                problems.append(f"annotation {PREFIX}{key}: {_unknown(key)}")
        except NotationError as exc:
            problems.append(f"annotation {PREFIX}{key}: {exc}; it has no effect")
    ports = {one.port for one in service.ports}
    for key, named in (("proxy-protocol", set(proxy)), ("health", set(health))):
        problems += [
            f"annotation {PREFIX}{key}: port {port} is not a port of the Service; it has no effect"
            for port in sorted(named - ports - {0})
        ]
    return Said(proxy, health, idle, tuple(problems))


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


def _unknown(key: str) -> str:
    if key == "weight":
        return "a weight belongs on a Node: the servers of a Service are its nodes"
    if key == "server-names":
        return "server names are not read from Services yet; it has no effect"
    return f"unknown (known: {', '.join(KNOWN)})"
