"""The control socket `{state_dir}/control.sock`: every change from this machine goes through it.

A request is one JSON object on a line, `{"verb": "release", "what": "443"}`, and its answer is one line: `{"ok": true, …}`
or `{"ok": false, "error", "detail", "hint"}`. The file has mode 0600, and the kernel says who the client is.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

from pylb.control.steps import let_loop_run
from pylb.core.errors import Code, Refused
from pylb.web.answers import refusal_body
from pylb.web.unix import UnixServer, check_peer, write

log = logging.getLogger(__name__)

Verb = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]

LINE_BYTES = 4 << 20  # a request may contain a config, for `plan`, or 10,000 calls, for `import`
MOST_VALUES = 150_000  # JSON values in a request, more than such an import has: 4 MiB of `{},` would take 100 MB
SHORT = 65536  # longest line that every client may send at any time; of longer ones only one is read at a time
ITEMS = 100  # items of a list in one step, 1 ms, before the event loop runs other tasks
DEADLINE = 5.0  # seconds in which a request line must arrive, and in which the client must take its answer


class ControlSocket:
    """Serves `verbs` on `path`. A verb raises Refused to refuse; what it returns is added to `{"ok": true}`."""

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
                    check_peer(writer)  # after the line: closing with unread input would destroy the answer
                    answer = await self._answer(line)
                    line.clear()  # up to 4 MiB, which nobody needs while this client is silent
                await self._say(writer, answer)
        except Refused as refused:
            await self._say(writer, _no(refused))

    async def _line(self, reader: asyncio.StreamReader, line: bytes, held: AsyncExitStack) -> tuple[bytearray, bytes]:
        """The next request, which begins with `line`, and the bytes after it; b"" at the end. Raises Refused, TimeoutError.

        A long request holds the lock until it is answered, so all clients together use little more memory than one line.
        """
        whole, is_long = bytearray(line), False
        async with asyncio.timeout(self._deadline):
            searched = 0
            while (end := whole.find(b"\n", searched)) < 0:
                searched = len(whole)
                if searched > LINE_BYTES:
                    raise Refused(Code.TOO_LARGE, f"a request line is over {LINE_BYTES} bytes")
                if searched > SHORT and not is_long:
                    is_long = True
                    await held.enter_async_context(self._long)
                piece = await reader.read(SHORT)
                if not piece:
                    return whole, b""
                whole += piece
        rest = bytes(whole[end + 1 :])
        del whole[end + 1 :]
        return whole, rest

    async def _answer(self, line: bytearray) -> dict[str, Any]:
        if line.count(b",") + line.count(b"{") + line.count(b"[") > MOST_VALUES:
            return _no(Refused(Code.TOO_LARGE, f"the request has over {MOST_VALUES} values"))
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
            # Closed here even if the client has left, instead of later by the garbage collector.
            async with aclosing(pieces(answer)) as some:
                async for piece in some:
                    await write(writer, piece)


async def pieces(answer: Mapping[str, Any]) -> AsyncGenerator[bytes]:
    """The answer's line, in pieces if it is long, so that the event loop can run other tasks between them.

    Lists in it are emptied on the way, because freeing ten thousand rows at once takes as long as writing them.
    """
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
                await let_loop_run()
                text = ""
            some = value[start : start + ITEMS]
            value[start : start + ITEMS] = [None] * len(some)
            text += _json(some)[1:-1]
        text += "]"
    yield (text + "}\n").encode()


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _no(refused: Refused) -> dict[str, Any]:
    return {"ok": False} | refusal_body(refused)
