"""aiohttp's HTTP/1.1 on one accepted connection, with our own bounds on what a stranger can make it do.

After the first byte that is not HTTP nothing is parsed, and no error keeps its traceback: aiohttp's parse errors refer to the
frame that refers to them, with up to 256 KiB of input each, and our garbage collector runs too rarely to free such cycles.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawRequestMessage
from yarl import URL

from pylb.core.errors import break_cycles
from pylb.web import exchange
from pylb.web.connections import Connection
from pylb.web.listener import HttpLimits
from pylb.web.types import json_answer

log = logging.getLogger(__name__)


class Http(web.Server):
    """aiohttp's server, which makes protocols that know their connection."""

    def __init__(
        self,
        serve: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        ended: Callable[[Connection], None],
        limits: HttpLimits,
    ) -> None:
        super().__init__(serve, request_factory=_request)
        self._ended = ended
        self._settings: dict[str, object] = {
            "access_log": None,
            "keepalive_timeout": limits.keepalive,
            "lingering_time": 0,
            "auto_decompress": False,
            "max_line_size": limits.header,
            "max_field_size": limits.header,
            "max_headers": limits.headers,
        }

    def protocol(self, connection: Connection) -> "Protocol":
        connection.protocol = protocol = Protocol(self, connection, self._ended, self._settings)
        return protocol


def _request(
    message: RawRequestMessage, payload: StreamReader, protocol: web.RequestHandler, writer: Any, task: "asyncio.Task[None]"
) -> web.BaseRequest:
    """A request. aiohttp's parser gives `CONNECT ` no path, on which BaseRequest would fail (found by fuzzing)."""
    if not message.path:
        message = message._replace(url=URL("/"), path="/")
    return web.BaseRequest(message, payload, protocol, writer, task, asyncio.get_running_loop())


class Protocol(web.RequestHandler):
    __slots__ = ("_broken", "_ended", "connection")

    def __init__(
        self, http: Http, connection: Connection, ended: Callable[[Connection], None], settings: dict[str, object]
    ) -> None:
        super().__init__(http, loop=asyncio.get_running_loop(), **settings)  # type: ignore[arg-type]
        self.connection = connection
        self._ended = ended
        self._broken = False

    def data_received(self, data: bytes) -> None:
        """Parse up to the first error. Later input is discarded until the client has taken the 400, or the deadline is over."""
        if self._broken:
            return
        super().data_received(data)
        error = getattr(self._messages[-1][0], "exc", None) if self._messages else None
        if error is not None:
            self._broken = True
            break_cycles(error)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        # Break the connection's reference cycles, so that its memory is free at once and not when the collector runs.
        self._messages.clear()
        self.connection.protocol = None
        self._ended(self.connection)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer input that is not HTTP, or breaks off, with a 400. It is not logged: the Internet sends it all day."""
        if not isinstance(exc, (HttpProcessingError, web.RequestPayloadError, OSError)):
            return super().handle_error(request, status, exc, message)
        log.debug("not HTTP from %s: %r", self.connection.peer, exc)
        what = exc.message if isinstance(exc, HttpProcessingError) else "it is not complete"
        body = {"error": "bad_request", "detail": f"not a valid HTTP request: {_first_line(what)}"}
        return exchange.response(replace(json_answer(400, body), close=True))


def _first_line(text: str) -> str:
    return text.partition("\n")[0].rstrip(":")
