"""PYLB_WAIT: does the app answer yet? A TCP connect to each address; nothing is sent."""

from __future__ import annotations

import socket
from collections.abc import Iterable

CONNECT_TIMEOUT = 1.0  # seconds; these are neighbours in the pod or on the node


def silent(addresses: Iterable[tuple[str, int]], timeout: float = CONNECT_TIMEOUT) -> list[str]:
    """Those that do not accept a connection, as HOST:PORT."""
    return [f"{host}:{port}" for host, port in addresses if not _accepts(host, port, timeout)]


def _accepts(host: str, port: int, timeout: float) -> bool:
    try:
        socket.create_connection((host, port), timeout).close()
    except (OSError, UnicodeError):
        return False
    return True
