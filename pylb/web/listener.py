"""Where the HTTP listeners come from, and their limits."""

import socket
from dataclasses import dataclass

import aiohttp
from aiohttp import http_parser

from pylb.core.address import Listen
from pylb.forward.sockets import listening

OLDEST_AIOHTTP = (3, 14, 3)


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Seconds, bytes and connections."""

    deadline: float = 5.0  # from accept to a complete request, TLS handshake included; again for a later body
    keepalive: float = 5.0  # idle between two requests
    answer: float = 30.0  # for a client to take its answer
    body: int = 4096
    hook_body: int = 65536  # on /hooks/, where a page in dst-ip makes an honest body this long (see webhook)
    header: int = 4096  # one header line, or the request line
    headers: int = 64
    connections: int = 256
    per_address: int = 32  # a source's share (network_of); more than that is let in as long as requests come in complete
    patience: float = 0.5  # within which they have to


def check_aiohttp() -> None:
    """Raises RuntimeError if the installed aiohttp is too old for our limits or runs without its C parser."""
    version = tuple(int(part) for part in aiohttp.__version__.split(".")[:3] if part.isdigit())
    if version < OLDEST_AIOHTTP:
        wanted = ".".join(map(str, OLDEST_AIOHTTP))
        raise RuntimeError(f"aiohttp {aiohttp.__version__} is too old, pylb needs {wanted} or newer: pip install -U aiohttp")
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise RuntimeError(
            "aiohttp runs without its C parser, which is slower and less strict: install a binary wheel of aiohttp "
            "and unset AIOHTTP_NO_EXTENSIONS"
        )


# Connections that wait to be accepted. No TCP_DEFER_ACCEPT: in a flood its queue is full in the first second, so that the
# kernel answers with SYN cookies, and whoever is silent arrives here all the same, only later.
BACKLOG = 1024


def bind(listen: Listen, backlog: int = BACKLOG) -> socket.socket:
    """A listening, non-blocking TCP socket; `*` takes IPv4 and IPv6 where the machine has both. Raises OSError."""
    return socket.socket(fileno=listening(listen, _no_delay, backlog).detach())


def _no_delay(sock: socket.SocketType) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited by what is accepted
