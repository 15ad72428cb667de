"""Opens the sockets of the HTTP listeners, and holds their limits."""

import socket
from dataclasses import dataclass

import aiohttp
from aiohttp import http_parser

from pylb.core.address import Listen
from pylb.forward.sockets import listening

OLDEST_AIOHTTP = (3, 14, 3)


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """The limits of one listener, in seconds, bytes and connections."""

    deadline: float = 5.0  # from accept to a complete request, TLS handshake included; again for a later body
    keepalive: float = 5.0  # idle between two requests
    answer: float = 30.0  # in which a client must take its answer
    body: int = 4096
    hook_body: int = 65536  # on /hooks/, where an HTML page in dst-ip makes even an honest body this long (see webhook)
    header: int = 4096  # one header line, or the request line
    headers: int = 64
    connections: int = 256
    per_address: int = 32  # a source's share (network_of); more are accepted as long as their requests arrive complete
    patience: float = 0.5  # seconds within which they must


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


# Connections that wait to be accepted. TCP_DEFER_ACCEPT is not used: in a flood its queue is full within a second, the kernel
# then answers with SYN cookies, and silent clients arrive here all the same, only later.
BACKLOG = 1024


def bind(listen: Listen, backlog: int = BACKLOG) -> socket.socket:
    """A listening, non-blocking TCP socket; `*` takes IPv4 and IPv6 where the machine has both. Raises OSError."""
    return socket.socket(fileno=listening(listen, _no_delay, backlog).detach())


def _no_delay(sock: socket.SocketType) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
