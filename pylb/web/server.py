"""An HTTP listener for the open Internet: aiohttp's parser inside limits of our own.

aiohttp has no deadline for a request, no cap on connections, and generous sizes. So pylb accepts by itself: a client
has `deadline` seconds from accept to its complete request, TLS handshake included; at the cap the oldest one without
a running request is cut. Then `connect_accepted_socket` hands the socket to the loop, with aiohttp's protocol on it.
"""

import asyncio
import errno
import logging
import socket
import ssl
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any, cast

from aiohttp import StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawRequestMessage
from yarl import URL

from pylb.core.address import parse_ip
from pylb.core.errors import Refused
from pylb.web import exchange
from pylb.web.answers import refusal
from pylb.web.call import Answer, Handler, json_answer
from pylb.web.listener import Limits, check_aiohttp

log = logging.getLogger(__name__)

ACCEPTS_PER_EVENT = 16
ACCEPT_PAUSE = 0.1  # seconds without accepting after EMFILE: the listener stays readable, watching it would spin
SAY_AGAIN = 10.0  # seconds between two complaints about it
NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# A client's doing, not a fault of the listener: accept(2) passes on errors that were pending on the new socket.
LOST = {
    errno.ECONNABORTED,
    errno.EPERM,
    errno.EPROTO,
    errno.ENETDOWN,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
}


@dataclass(slots=True, eq=False)
class _Connection:
    """One accepted client, from accept to the end of its last answer."""

    peer: str
    local: str
    sock: socket.socket
    timer: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None  # the TLS handshake, or the moment it takes to set up a plain connection
    protocol: "_Protocol | None" = None
    busy: bool = False  # a complete request is being answered
    streams: bool = False  # by an answer without an end
    asked: int = 0  # requests so far
    waits_since: float = 0.0  # loop time of its accept or of its last answer


class HttpServer:
    """Serves `handler` on one listening socket, which it takes over (and closes at `stop`)."""

    def __init__(
        self, sock: socket.socket, handler: Handler, *, limits: Limits | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        check_aiohttp()
        self._sock = sock
        self._handler = handler
        self._limits = limits or Limits()
        self._tls = tls
        self._open: dict[_Connection, None] = {}  # in the order of accept
        self._resume: asyncio.TimerHandle | None = None
        self._say_again = 0.0  # loop time
        self._stopping = False

    @property
    def port(self) -> int:
        port: int = self._sock.getsockname()[1]
        return port

    @property
    def connections(self) -> int:
        return len(self._open)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._http = _Http(self)
        self._loop.add_reader(self._sock, self._accept)

    def pause(self) -> None:
        """Accept nobody: who connects waits. Calls under way go on. Until `resume`."""
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._sock)

    def resume(self) -> None:
        if not self._stopping:
            self._loop.add_reader(self._sock, self._accept)

    async def stop(self, grace: float = 1.0) -> None:
        """Accept no more, give running answers `grace` seconds, cut the rest. Idempotent."""
        if self._stopping:
            return
        self._stopping = True
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()
        for connection in list(self._open):
            if connection.streams or not connection.busy:
                self._cut(connection)
        await self._http.shutdown(grace)
        for connection in list(self._open):
            self._cut(connection)
        handshakes = [connection.task for connection in self._open if connection.task is not None]
        await asyncio.gather(*handshakes, return_exceptions=True)

    # ------------------------------------------------------------ accepting

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_EVENT):
            try:
                sock, address = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in LOST:
                    continue
                self._pause(error)
                return
            self._admit(sock, address[0])

    def _pause(self, error: OSError) -> None:
        """Whatever it is, the socket stays readable: without a pause the loop would do nothing else."""
        if self._loop.time() >= self._say_again:
            why = "out of file descriptors: new calls wait until some are free"
            log.warning("%s", why if error.errno in NO_DESCRIPTORS else f"no call can be accepted just now: {error}")
            self._say_again = self._loop.time() + SAY_AGAIN
        self._loop.remove_reader(self._sock)
        self._resume = self._loop.call_later(ACCEPT_PAUSE, self._loop.add_reader, self._sock, self._accept)

    def _admit(self, sock: socket.socket, host: str) -> None:
        peer = _canonical(host)
        if not self._make_room(peer):
            sock.close()
            return
        sock.setblocking(False)
        connection = _Connection(peer, _canonical(sock.getsockname()[0]), sock, waits_since=self._loop.time())
        self._open[connection] = None
        self._arm(connection, self._limits.deadline)
        connection.task = self._loop.create_task(self._set_up(connection))

    def _make_room(self, peer: str) -> bool:
        """Cut who waits without a complete request where there are too many; False if there is nobody to cut.

        A burst of honest calls from one address (a node that comes back) is complete at once and is served. What stays
        incomplete beyond the address's share goes after `patience`, or at the overall cap before anybody else's.
        """
        limits, crowd = self._limits, Counter(connection.peer for connection in self._open)
        waiting = [connection for connection in self._open if not connection.busy]
        if crowd[peer] >= limits.per_address:
            same = [connection for connection in waiting if connection.peer == peer]
            if same and self._loop.time() - min(one.waits_since for one in same) >= limits.patience:
                self._cut(min(same, key=lambda one: one.waits_since))
                return True
        if len(self._open) < limits.connections:
            return True
        if not waiting:
            return False
        self._cut(min(waiting, key=lambda one: (crowd[one.peer] < limits.per_address, one.waits_since)))
        return True

    async def _set_up(self, connection: _Connection) -> None:
        """Give the socket to the loop, with TLS where it is on. Whatever goes wrong here ends this connection alone."""
        limit = self._limits.deadline
        tls_limits = {"ssl_handshake_timeout": limit, "ssl_shutdown_timeout": 1.0} if self._tls else {}
        try:
            await self._loop.connect_accepted_socket(
                lambda: self._http.protocol(connection), connection.sock, ssl=self._tls, **tls_limits
            )
        except (OSError, TimeoutError) as error:
            # Port scanners and half-open clients: nothing an operator can act on. ssl.SSLError is an OSError.
            log.debug("connection from %s ended before its request: %s", connection.peer, error)
            self._forget(connection)
        except asyncio.CancelledError:
            self._forget(connection)
            raise
        finally:
            connection.task = None

    # ------------------------------------------------------------ deadlines

    def _arm(self, connection: _Connection, seconds: float) -> None:
        self._disarm(connection)
        connection.timer = self._loop.call_later(seconds, self._cut, connection)

    def _disarm(self, connection: _Connection) -> None:
        if connection.timer is not None:
            connection.timer.cancel()
            connection.timer = None

    def _cut(self, connection: _Connection) -> None:
        """End it now, whatever it is doing."""
        self._disarm(connection)
        if connection.protocol is not None and connection.protocol.transport is not None:
            # abort, not close: close would wait for a client that takes nothing, or for its TLS goodbye.
            connection.protocol.transport.abort()
        elif connection.task is not None:
            connection.task.cancel()
        self._open.pop(connection, None)

    def _forget(self, connection: _Connection) -> None:
        self._disarm(connection)
        self._open.pop(connection, None)
        connection.sock.close()

    def ended(self, connection: _Connection) -> None:
        """The protocol says its transport is gone."""
        self._disarm(connection)
        self._open.pop(connection, None)

    # ------------------------------------------------------------ one request

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Read it whole within the deadline, have it answered, give the client `limits.answer` to take the answer."""
        connection = cast("_Protocol", request.protocol).connection
        connection.asked += 1
        now = self._loop.time()
        deadline = (connection.waits_since if connection.asked == 1 else now) + self._limits.deadline
        self._disarm(connection)
        try:
            answer = await self._answer(request, connection, deadline)
            if answer.chunks is not None:
                return await self._stream(request, connection, answer, answer.chunks)
        finally:
            connection.busy = False
        connection.waits_since = self._loop.time()
        self._arm(connection, self._limits.answer)
        return await exchange.send(request, answer, last=self._stopping)

    async def _stream(
        self, request: web.BaseRequest, connection: _Connection, answer: Answer, chunks: AsyncGenerator[bytes]
    ) -> web.StreamResponse:
        """It stays busy, so that nobody's rush cuts it; how many there may be is the handler's to bound."""
        connection.streams = True

        def patience(waiting: bool) -> None:
            if waiting:
                self._arm(connection, self._limits.answer)
            else:
                self._disarm(connection)

        return await exchange.stream(request, answer, chunks, patience)

    async def _answer(self, request: web.BaseRequest, connection: _Connection, deadline: float) -> Answer:
        try:
            body = await exchange.read_body(request, self._limits, deadline)
        except Refused as refused:
            return replace(refusal(request.rel_url.raw_path, refused), close=True)
        connection.busy = True
        call = exchange.to_call(request, connection.peer, connection.local, body)
        try:
            return await self._handler(call)
        except Exception:
            # The task boundary of a request: whatever it is, the caller gets an answer and the server goes on.
            log.exception("%s %s failed", call.method, call.path)
            return json_answer(500, {"error": "internal", "detail": "pylb failed to answer", "hint": "its log says why"})


def _canonical(host: str) -> str:
    """An address from the kernel: mapped IPv4 folded, a zone ("fe80::1%eth0") dropped."""
    return parse_ip(host.partition("%")[0])


class _Http(web.Server):
    """aiohttp's server, making protocols that know their connection."""

    def __init__(self, server: HttpServer) -> None:
        limits = server._limits  # noqa: SLF001 - two halves of one thing in one file
        super().__init__(server.serve, request_factory=_request)
        self._server = server
        self._settings: dict[str, object] = {
            "access_log": None,
            "keepalive_timeout": limits.keepalive,
            "lingering_time": 0,
            "auto_decompress": False,
            "max_line_size": limits.header,
            "max_field_size": limits.header,
            "max_headers": limits.headers,
        }

    def protocol(self, connection: _Connection) -> "_Protocol":
        connection.protocol = _Protocol(self, connection, self._server, self._settings)
        return connection.protocol


def _request(
    message: RawRequestMessage, payload: StreamReader, protocol: web.RequestHandler, writer: Any, task: "asyncio.Task[None]"
) -> web.BaseRequest:
    """aiohttp's parser knows no path of `CONNECT ` without one, and BaseRequest fails on it (found by fuzzing)."""
    if not message.path:
        message = message._replace(url=URL("/"), path="/")
    return web.BaseRequest(message, payload, protocol, writer, task, asyncio.get_running_loop())


class _Protocol(web.RequestHandler):
    __slots__ = ("_server", "connection")

    def __init__(self, http: _Http, connection: _Connection, server: HttpServer, settings: dict[str, object]) -> None:
        super().__init__(http, loop=asyncio.get_running_loop(), **settings)  # type: ignore[arg-type]
        self.connection = connection
        self._server = server

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._server.ended(self.connection)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is not HTTP, or breaks off, gets a 400 and no traceback in the log: the Internet sends it all day."""
        if not isinstance(exc, (HttpProcessingError, web.RequestPayloadError, OSError)):
            return super().handle_error(request, status, exc, message)
        log.debug("not HTTP from %s: %r", self.connection.peer, exc)
        what = exc.message if isinstance(exc, HttpProcessingError) else "it broke off"
        body = {"error": "bad_request", "detail": f"not a valid HTTP request: {_first_line(what)}"}
        return exchange.response(replace(json_answer(400, body), close=True))


def _first_line(text: str) -> str:
    return text.partition("\n")[0].rstrip(":")
