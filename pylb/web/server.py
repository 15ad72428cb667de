"""An HTTP listener for the open Internet: aiohttp's parser inside limits of our own.

aiohttp has no deadline for a request, no cap on connections, and generous sizes. So pylb accepts connections itself. A
client has `deadline` seconds from accept to its complete request, TLS handshake included; at the cap one connection of the
largest source is cut (connections.py). Nothing is made for a client before its first byte: only then `connect_accepted_socket`
gives the socket to the event loop, with TLS and aiohttp's protocol on it.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import cast

from aiohttp import web

from pylb.core.address import parse_ip
from pylb.core.errors import Refused
from pylb.web import exchange
from pylb.web.answers import refusal
from pylb.web.client_address import network_of
from pylb.web.connections import Connection, Connections
from pylb.web.listener import HttpLimits, check_aiohttp
from pylb.web.protocol import Http, Protocol
from pylb.web.tls import Certificate
from pylb.web.types import Answer, Call, Handler, json_answer

log = logging.getLogger(__name__)

ACCEPTS_PER_EVENT = 4  # others wait in the backlog until the event loop has served everybody else once
GOODBYE = 1.0  # seconds in which a client that spoke plain HTTP to a TLS port must take its answer
PLAIN_BYTES = 65536  # of its request, read and discarded at a time
_TLS_TEXT = b"this port speaks TLS: use https://\n"
SPEAK_TLS = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_TLS_TEXT), _TLS_TEXT)
)
ACCEPT_PAUSE = 0.1  # seconds without accepting after EMFILE: the listener stays readable, so watching it would spin
SAY_AGAIN = 10.0  # seconds between two warnings about it
NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# Caused by a client, and no fault of the listener: accept(2) reports errors that were pending on the new socket.
LOST = {
    errno.ECONNABORTED,
    errno.EPERM,
    errno.EPROTO,
    errno.ENETDOWN,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
}


def _no_long_body(_call: Call) -> int:
    return 0


class HttpServer:
    """Serves `handler` on one listening socket, which it takes over (and closes at `stop`)."""

    def __init__(
        self,
        sock: socket.socket,
        handler: Handler,
        *,
        limits: HttpLimits | None = None,
        tls: Certificate | None = None,
        long_body: Callable[[Call], int] = _no_long_body,
    ) -> None:
        """`long_body`: how many bytes of a body over `limits.body` are read; it gets the call without its body."""
        check_aiohttp()
        self._sock = sock
        self._handler = handler
        self._limits = limits or HttpLimits()
        self._tls = tls
        self._long_body = long_body
        self._open = Connections(self._limits)
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
        self._http = Http(self.serve, self.ended, self._limits)
        self._loop.add_reader(self._sock, self._accept)

    def pause(self) -> None:
        """Accept no connections until `resume`. New clients wait in the backlog; calls under way continue."""
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._sock)

    def resume(self) -> None:
        if not self._stopping:
            self._loop.add_reader(self._sock, self._accept)

    async def stop(self, grace: float = 1.0) -> None:
        """Stop accepting, give running answers `grace` seconds, and cut the rest. Idempotent."""
        if self._stopping:
            return
        self._stopping = True
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()
        for connection in self._open:
            if connection.streams or not connection.busy:
                self._cut(connection)
        await self._http.shutdown(grace)
        handshakes = [connection.task for connection in self._open if connection.task is not None]
        for connection in self._open:
            self._cut(connection)
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
        """Stop accepting for a moment. The socket stays readable, so without a pause the event loop would do nothing else."""
        if self._loop.time() >= self._say_again:
            why = "out of file descriptors; new calls wait until some are free"
            log.warning("%s", why if error.errno in NO_DESCRIPTORS else f"new calls cannot be accepted at the moment: {error}")
            self._say_again = self._loop.time() + SAY_AGAIN
        self._loop.remove_reader(self._sock)
        self._resume = self._loop.call_later(ACCEPT_PAUSE, self._loop.add_reader, self._sock, self._accept)

    def _admit(self, sock: socket.socket, host: str) -> None:
        """Count the connection and watch it for its first byte. A silent client costs no more than that and a timer."""
        peer, now = _canonical(host), self._loop.time()
        source = network_of(peer)
        if not self._open.make_room(source, now, self._cut):
            sock.close()
            return
        sock.setblocking(False)
        connection = Connection(peer, source, sock, now)
        self._open.add(connection)
        self._arm(connection, self._limits.deadline)
        self._listen_for(connection)

    def _listen_for(self, connection: Connection) -> None:
        """Set the connection up when its first byte arrives. The client speaks first, in TLS as in HTTP."""
        self._unwatch(connection)
        try:
            first = connection.sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            connection.watched = True
            self._loop.add_reader(connection.sock, self._listen_for, connection)
            return
        except OSError:
            first = b""
        if not first:
            self._forget(connection)
        elif self._tls is not None and first.isalpha():
            self._say_https(connection)
        else:
            connection.task = self._loop.create_task(self._set_up(connection))

    def _unwatch(self, connection: Connection) -> None:
        if connection.watched:
            connection.watched = False
            self._loop.remove_reader(connection.sock)

    def _say_https(self, connection: Connection) -> None:
        """Answer a client that speaks plain HTTP to a TLS port once, in plain text. No TLS record begins with a letter."""
        self._arm(connection, GOODBYE)
        self._read_away(connection)
        if connection in self._open:
            try:
                connection.sock.send(SPEAK_TLS)  # a new connection's send buffer has room for all of it
                connection.sock.shutdown(socket.SHUT_WR)
            except OSError:
                self._forget(connection)
                return
            connection.watched = True
            self._loop.add_reader(connection.sock, self._read_away, connection)

    def _read_away(self, connection: Connection) -> None:
        """Discard its input, since closing with unread input sends a reset, which may destroy the answer. A timer ends this."""
        try:
            if connection.sock.recv(PLAIN_BYTES):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass
        self._forget(connection)

    async def _set_up(self, connection: Connection) -> None:
        """Give the socket to the event loop, with TLS if it is on. Any error here ends only this connection."""
        limit = self._limits.deadline
        context = None if self._tls is None else self._tls.context  # the present one: a renewed certificate has another
        tls_limits = {"ssl_handshake_timeout": limit, "ssl_shutdown_timeout": 1.0} if context else {}
        try:
            await self._loop.connect_accepted_socket(
                lambda: self._http.protocol(connection), connection.sock, ssl=context, **tls_limits
            )
        except (OSError, TimeoutError) as error:
            # Port scanners and half-open clients, about which an operator can do nothing. ssl.SSLError is an OSError.
            log.debug("connection from %s ended before its request: %s", connection.peer, error)
            self._forget(connection)
        except asyncio.CancelledError:
            self._forget(connection)
            raise
        finally:
            connection.task = None

    # ------------------------------------------------------------ deadlines

    def _arm(self, connection: Connection, seconds: float) -> None:
        self._disarm(connection)
        connection.timer = self._loop.call_later(seconds, self._cut, connection)

    def _disarm(self, connection: Connection) -> None:
        if connection.timer is not None:
            connection.timer.cancel()
            connection.timer = None

    def _cut(self, connection: Connection) -> None:
        """End the connection now, whatever it is doing."""
        if connection.watched:
            self._forget(connection)
            return
        self._disarm(connection)
        if connection.protocol is not None and connection.protocol.transport is not None:
            # Not close, which would wait for a client that takes nothing, or for its TLS closure alert.
            connection.protocol.transport.abort()
        elif connection.task is not None:
            connection.task.cancel()
        self._open.discard(connection)

    def _forget(self, connection: Connection) -> None:
        self._disarm(connection)
        self._unwatch(connection)
        self._open.discard(connection)
        connection.sock.close()

    def ended(self, connection: Connection) -> None:
        """Called by the protocol when its transport is gone."""
        self._disarm(connection)
        self._open.discard(connection)
        if connection.streams and connection.task is not None:
            connection.task.cancel()  # a stream that waits for its next chunk would not notice

    # ------------------------------------------------------------ one request

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Read the request within the deadline, have it answered, and give the client `limits.answer` to take the answer."""
        if request.transport is None:  # it left before this first step: aiohttp would log a fault, with a traceback
            raise ConnectionResetError
        connection = cast("Protocol", request.protocol).connection
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
        self, request: web.BaseRequest, connection: Connection, answer: Answer, chunks: AsyncGenerator[bytes]
    ) -> web.StreamResponse:
        """Write an endless answer. The connection counts as busy and is not cut for others; the handler bounds their number."""
        connection.streams, connection.task = True, asyncio.current_task()

        def patience(waiting: bool) -> None:
            if waiting:
                self._arm(connection, self._limits.answer)
            else:
                self._disarm(connection)

        return await exchange.stream(request, answer, chunks, patience)

    async def _answer(self, request: web.BaseRequest, connection: Connection, deadline: float) -> Answer:
        local = request.get_extra_info("sockname")
        call = exchange.to_call(request, connection.peer, _canonical(local[0]) if local else "")
        longest = self._long_body(call) if (request.content_length or 0) > self._limits.body else 0
        try:
            call = replace(call, body=await exchange.read_body(request, self._limits, deadline, longest))
        except Refused as refused:
            return replace(refusal(request.rel_url.raw_path, refused), close=True)
        connection.busy = True
        try:
            return await self._handler(call)
        except Exception:
            # The task boundary of a request: whatever went wrong, the caller gets an answer and the server continues.
            log.exception("%s %s failed", call.method, call.path)
            return json_answer(500, {"error": "internal", "detail": "pylb failed to answer", "hint": "its log says why"})


def _canonical(host: str) -> str:
    """An address from the kernel without its zone ("fe80::1%eth0"), and as IPv4 if it is a mapped one."""
    return parse_ip(host.partition("%")[0])
