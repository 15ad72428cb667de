"""The admin socket: whatever changes something from this machine goes through `{state_dir}/control.sock`.

One JSON object a line, `{"verb": "release", "what": "443"}`, answered by one line: `{"ok": true, …}` or
`{"ok": false, "error", "detail", "hint"}`. The file is 0600 and the kernel says who is at the other end.
"""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

from pylb.control.steps import turn
from pylb.core.errors import Code, Refused
from pylb.web.answers import refusal_body
from pylb.web.unix import UnixServer, check_peer, reachable

log = logging.getLogger(__name__)

Verb = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]

LINE_BYTES = 8 << 20  # a config to be planned is in one
SHORT = 65536  # bytes of a line that every client may have; who has more waits until nobody else has
ITEMS = 100  # of a list in an answer, between two turns of the loop: 1 ms
DEADLINE = 5.0  # seconds for a request line to arrive, and for an answer to be taken


class ControlSocket:
    """Serves `verbs` on `path`. A verb raises Refused to say no; what it returns is added to `{"ok": true}`."""

    def __init__(self, path: Path, verbs: Mapping[str, Verb], *, deadline: float = DEADLINE) -> None:
        self._verbs = verbs
        self._deadline = deadline
        self._long = asyncio.Lock()
        server = UnixServer(path, self._converse, SHORT)
        self.start, self.leave, self.stop = server.start, server.leave, server.stop

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        rest = b""
        try:
            while True:
                async with AsyncExitStack() as held:
                    line, rest = await self._line(reader, rest, held)
                    if not line:
                        return
                    check_peer(writer)  # after the line: closing with unread input would eat the answer
                    answer = await self._answer(line)
                await self._say(writer, answer)
        except Refused as refused:
            await self._say(writer, _no(refused))

    async def _line(self, reader: asyncio.StreamReader, line: bytes, held: AsyncExitStack) -> tuple[bytes, bytes]:
        """The next request, which begins with `line`, and what came behind it; b"" at the end. Raises Refused, TimeoutError.

        A long one takes the lock until it is answered: so all clients together have little more than one long line.
        """
        pieces, size, is_long = [line], len(line), False
        async with asyncio.timeout(self._deadline):
            while b"\n" not in pieces[-1]:
                if size > LINE_BYTES:
                    raise Refused(Code.TOO_LARGE, f"a request line is over {LINE_BYTES} bytes")
                if size > SHORT and not is_long:
                    is_long = True
                    await held.enter_async_context(self._long)
                piece = await reader.read(SHORT)
                if not piece:
                    break
                pieces.append(piece)
                size += len(piece)
        before, newline, rest = b"".join(pieces).partition(b"\n")
        return before + newline, rest

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            verb = self._verbs.get(str(request.get("verb"))) if isinstance(request, dict) else None
        except (ValueError, RecursionError, TypeError):
            return _no(Refused(Code.INVALID_JSON, "the line is not a JSON object"))
        if verb is None:
            return _no(Refused(Code.NOT_FOUND, "unknown verb", "known: " + ", ".join(self._verbs)))
        try:
            return {"ok": True} | await verb(request)
        except Refused as refused:
            return _no(refused)
        except Exception:
            # The task boundary of a request: the client gets an answer and the server goes on.
            log.exception("control socket: %s failed", request["verb"])
            return {"ok": False, "error": "internal", "detail": "pylb failed to answer", "hint": "its log says why"}

    async def _say(self, writer: asyncio.StreamWriter, answer: Mapping[str, Any]) -> None:
        async with asyncio.timeout(self._deadline):
            async with aclosing(pieces(answer)) as some:  # closed here also if the client has left, and not by the collector
                async for piece in some:
                    writer.write(piece)
                    await writer.drain()


async def pieces(answer: Mapping[str, Any]) -> AsyncGenerator[bytes]:
    """The line, whole if it is short; else the loop has its turn between two pieces. Lists in it are emptied: to free ten
    thousand rows at once takes as long as to write them."""
    text = ""
    for number, (key, value) in enumerate(answer.items()):
        text += ("," if number else "{") + _json(key) + ":"
        if not isinstance(value, list):
            text += _json(value)
            continue
        text += "["
        for start in range(0, len(value), ITEMS):
            if start:
                yield (text + ",").encode()
                await turn()
                text = ""
            some = value[start : start + ITEMS]
            value[start : start + ITEMS] = [None] * len(some)
            text += _json(some)[1:-1]
        text += "]"
    yield (text + "}\n").encode()


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def call(path: Path, request: Mapping[str, Any], timeout: float = 30.0) -> dict[str, Any]:
    """Ask the running pylb, from another process, and wait for its answer.

    Raises FileNotFoundError or ConnectionRefusedError if none is running, PermissionError, TimeoutError (`timeout`
    seconds for each step), ConnectionError if it ended without an answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, reachable(path) as address:
        sock.settimeout(timeout)
        sock.connect(address)
        sock.sendall(json.dumps(request).encode() + b"\n")
        with sock.makefile("rb") as file:
            line = file.readline()
    if not line.endswith(b"\n"):
        raise ConnectionError("pylb ended the connection without an answer")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _no(refused: Refused) -> dict[str, Any]:
    return {"ok": False} | refusal_body(refused)
