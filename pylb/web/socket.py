"""The admin socket: whatever changes something from this machine goes through `{state_dir}/control.sock`.

One JSON object a line, `{"verb": "release", "what": "443"}`, answered by one line: `{"ok": true, …}` or
`{"ok": false, "error", "detail", "hint"}`. The file is 0600 and the kernel says who is at the other end.
"""

import asyncio
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pylb.core.errors import Code, Refused
from pylb.web.answers import refusal_body

log = logging.getLogger(__name__)

Verb = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]

LINE_BYTES = 8 << 20  # a config to be planned is in one
DEADLINE = 5.0  # seconds for a request line to arrive, and for an answer to be taken
MOST_CLIENTS = 16


class ControlSocket:
    """Serves `verbs` on `path`. A verb raises Refused to say no; what it returns is added to `{"ok": true}`."""

    def __init__(self, path: Path, verbs: Mapping[str, Verb], *, deadline: float = DEADLINE) -> None:
        self._path = path
        self._verbs = verbs
        self._deadline = deadline
        self._inode = 0
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Raises OSError; FileExistsError if another pylb answers there. A file nobody listens on is replaced."""
        if _alive(self._path):
            raise FileExistsError(f"another pylb is running with this state directory: {self._path} answers")
        sock = _listen(self._path)
        self._inode = self._path.stat().st_ino
        self._server = await asyncio.start_unix_server(self._client, sock=sock, limit=LINE_BYTES)

    def leave(self) -> None:
        """Make place for a successor; who is connected is still served. `start` takes the place back."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._unlink()

    async def stop(self) -> None:
        """Idempotent."""
        server, self._server = self._server, None
        for writer in list(self._clients):
            writer.close()
        if server is not None:
            server.close()
            await server.wait_closed()
            self._unlink()

    def _unlink(self) -> None:
        """Only what we made: a successor may have put its own socket there."""
        try:
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        except FileNotFoundError:
            pass

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= MOST_CLIENTS:
            writer.close()
            return
        self._clients.add(writer)
        try:
            await self._converse(reader, writer)
        except (OSError, TimeoutError) as error:
            log.debug("control socket: a client went away or fell silent: %r", error)
            writer.transport.abort()  # close would wait for a client that takes nothing
        finally:
            self._clients.discard(writer)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await self._line(reader):
                _check_peer(writer)  # after the line: closing with unread input would eat the answer
                await self._say(writer, await self._answer(line))
        except Refused as refused:
            await self._say(writer, _no(refused))

    async def _line(self, reader: asyncio.StreamReader) -> bytes:
        """The next request, b"" at the end. Raises Refused, TimeoutError."""
        try:
            async with asyncio.timeout(self._deadline):
                return await reader.readline()
        except ValueError:  # StreamReader's word for a line over its limit
            raise Refused(Code.TOO_LARGE, f"a request line is over {LINE_BYTES} bytes") from None

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
        writer.write(json.dumps(answer, separators=(",", ":")).encode() + b"\n")
        async with asyncio.timeout(self._deadline):
            await writer.drain()


def call(path: Path, request: Mapping[str, Any], timeout: float = 30.0) -> dict[str, Any]:
    """Ask the running pylb, from another process, and wait for its answer.

    Raises FileNotFoundError or ConnectionRefusedError if none is running, PermissionError, TimeoutError (`timeout`
    seconds for each step), ConnectionError if it ended without an answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, _reachable(path) as address:
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


@contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """A name for `path` that fits into the 108 bytes of a unix address, however deep the directory is."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _alive(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, _reachable(path) as address:
        sock.settimeout(1.0)
        try:
            sock.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except (TimeoutError, BlockingIOError):
            return True  # its backlog is full: somebody is there, and busy
        return True


def _listen(path: Path) -> socket.socket:
    """Bound and restricted under a name of our own first, then renamed: nobody ever meets an open or half-made socket."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with _reachable(temporary) as address:
            sock.bind(address)
        temporary.chmod(0o600)
        sock.listen(MOST_CLIENTS)
        temporary.rename(path)
    except BaseException:
        sock.close()
        temporary.unlink(missing_ok=True)
        raise
    return sock


def _check_peer(writer: asyncio.StreamWriter) -> None:
    """SO_PEERCRED (unix(7)): pid, uid, gid as the kernel saw them at connect. Raises Refused."""
    credentials = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, uid, _ = struct.unpack("iII", credentials)
    if uid not in (0, os.geteuid()):
        raise Refused(Code.UNAUTHORIZED, "only root and pylb's own user may do this")
