"""A running HttpServer on a loopback port, and raw clients for it that share nothing with aiohttp."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from pylb.core.address import Listen
from pylb.web.listener import HttpLimits, bind
from pylb.web.server import HttpServer
from pylb.web.tls import Certificate
from pylb.web.types import Call, Handler


@asynccontextmanager
async def serving(
    handler: Handler,
    *,
    limits: HttpLimits | None = None,
    tls: Certificate | None = None,
    listen: str = "127.0.0.1:0",
    long_body: Callable[[Call], int] = lambda _call: 0,
) -> AsyncIterator[HttpServer]:
    server = HttpServer(bind_free(listen.rpartition(":")[0]), handler, limits=limits, tls=tls, long_body=long_body)
    server.start()
    try:
        yield server
    finally:
        await server.stop()


def bind_free(ip: str = "127.0.0.1") -> socket.socket:
    return bind(Listen("tcp", ip, 0))


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for what has no event to wait for. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the condition is inside the thing under test
            await asyncio.sleep(0.005)


@dataclass
class Reply:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


async def ask(
    port: int,
    method: str,
    path: str,
    *,
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
) -> Reply:
    """One request on one connection, which is closed behind it."""
    lines = {"Host": f"{host}:{port}", "Connection": "close"} | (headers or {})
    if body is not None:
        lines.setdefault("Content-Length", str(len(body)))
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    reader, writer = await asyncio.open_connection(host, port, ssl=tls)
    try:
        writer.write(head.encode() + b"\r\n" + (body or b""))
        return await read_reply(reader, method)
    finally:
        writer.close()


async def read_reply(reader: asyncio.StreamReader, method: str = "GET") -> Reply:
    status, headers = await read_head(reader)
    length = 0 if method == "HEAD" else int(headers.get("content-length", "0"))
    return Reply(status, headers, await reader.readexactly(length))


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
    headers = dict(line.split(": ", 1) for line in lines[1:] if line)
    return int(lines[0].split()[1]), {name.lower(): value for name, value in headers.items()}
