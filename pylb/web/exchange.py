"""Turns aiohttp's request into a `Call`, and an `Answer` into aiohttp's response."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from urllib.parse import parse_qsl

import aiohttp
from aiohttp import web

from pylb.core.errors import Code, Refused
from pylb.web.listener import HttpLimits
from pylb.web.types import Answer, Call

DISCARD_BYTES = 1 << 20  # of a refused body are read and discarded, so that our close is not a reset that destroys the answer
DISCARD_SECONDS = 1.0
PIECE = 1 << 16  # bytes of a stream written at once; no more than that waits for a slow client


def to_call(request: web.BaseRequest, peer: str, local: str) -> Call:
    """Without its body."""
    headers = {name.lower(): ", ".join(request.headers.getall(name)) for name in request.headers}
    query = dict(parse_qsl(request.rel_url.raw_query_string, keep_blank_values=True))
    return Call(request.method, request.rel_url.raw_path, headers, peer, local, query=query)


async def read_body(request: web.BaseRequest, limits: HttpLimits, deadline: float, longest: int = 0) -> bytes:
    """The body of a PUT, POST or the like; a GET's body is ignored. Raises Refused.

    `longest`: the bytes that this request may have, if they are more than the limits say.
    """
    if request.method in ("GET", "HEAD"):
        return b""
    if "Content-Encoding" in request.headers:
        raise Refused(Code.MEDIA_TYPE, "a Content-Encoding is not accepted", "send the body as plain JSON")
    if "Transfer-Encoding" in request.headers:
        raise Refused(Code.LENGTH_REQUIRED, "a chunked body is not accepted", "send a Content-Length")
    most = max(longest, limits.hook_body if request.rel_url.raw_path.startswith("/hooks/") else limits.body)
    if (request.content_length or 0) > most:
        raise Refused(Code.TOO_LARGE, f"the body is over {most} bytes")
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # aiohttp does the same: "100 Continue" is not yet part of the answer
    try:
        async with asyncio.timeout_at(deadline):
            return await request.content.read()
    except TimeoutError:
        raise Refused(Code.TIMEOUT, f"no complete request within {limits.deadline:g} s") from None


def response(answer: Answer) -> web.Response:
    response = web.Response(status=answer.status, body=answer.body, headers=_headers(answer))
    if answer.close:
        response.force_close()
    return response


def _headers(answer: Answer) -> dict[str, str]:
    standard = {
        "Content-Type": answer.content_type,
        "Server": "pylb",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }
    return standard | dict(answer.headers)


async def stream(
    request: web.BaseRequest, answer: Answer, chunks: AsyncGenerator[bytes], patience: Callable[[bool], None]
) -> web.StreamResponse:
    """Write the chunks as they come. The connection ends after the last one, or when the client leaves.

    `patience(True)` is called before each piece and `patience(False)` after it; it cuts a client that takes nothing.
    """
    reply = web.StreamResponse(status=answer.status, headers=_headers(answer))
    reply.force_close()
    try:
        await reply.prepare(request)
        if request.method != "HEAD":
            async for chunk in chunks:
                for start in range(0, len(chunk), PIECE):
                    patience(True)
                    await reply.write(chunk[start : start + PIECE])
                    patience(False)
        await reply.write_eof()
    except OSError:
        pass  # the client has left, or was cut
    finally:
        await chunks.aclose()
    return reply


async def send(request: web.BaseRequest, answer: Answer, *, last: bool) -> web.Response:
    """Write `answer` (aiohttp does it, with the response returned here). With `last` the connection ends after it."""
    reply = response(answer)
    if last:
        reply.force_close()
    if request.content.is_eof():
        return reply
    # The client is still sending a body that nobody wants. Answer first, then read and discard some of it: closing a
    # socket with unread input sends a reset, which may destroy the answer before the client has read it.
    reply.force_close()
    await reply.prepare(request)
    await reply.write_eof()
    await _discard(request.content)
    return reply


async def _discard(content: aiohttp.StreamReader) -> None:
    left = DISCARD_BYTES
    try:
        async with asyncio.timeout(DISCARD_SECONDS):
            while left > 0 and not content.is_eof():
                left -= len(await content.readany())
    except (TimeoutError, OSError, aiohttp.ClientPayloadError, web.RequestPayloadError):
        return  # nobody wants the rest
