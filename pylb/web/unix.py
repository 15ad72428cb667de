"""A unix socket that only root and pylb's own user may use: its file, and the check of who connects."""

import asyncio
import logging
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from pylb.core.errors import Code, Refused, break_cycles
from pylb.web.control_client import reachable

log = logging.getLogger(__name__)

MOST_CLIENTS = 16
UNLINK = 2.0  # seconds for the disk to remove a file

# From 3.13 on asyncio removes the file of a socket that it closes, with calls on the loop, by the path that it was bound to.
# Here that path was a temporary one, and `_remove` does it in a thread.
_KEEP_FILE: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}

Converse = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class UnixServer:
    """Passes every client to `converse`. An OSError or TimeoutError there ends only that client's connection.

    `line_bytes`: the longest line that a client may send.
    """

    def __init__(self, path: Path, converse: Converse, line_bytes: int) -> None:
        self._path = path
        self._converse = converse
        self._line_bytes = line_bytes
        self._inode = 0
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Start listening. Replaces a socket file on which nobody listens. Idempotent.

        Raises OSError, and FileExistsError if another pylb answers there.
        """
        if self._server is not None:
            return
        sock, self._inode = await asyncio.to_thread(_take, self._path)
        self._server = await asyncio.start_unix_server(self._client, sock=sock, limit=self._line_bytes, **_KEEP_FILE)

    async def leave(self) -> None:
        """Stop listening, for a successor; connected clients are still served. `start` undoes it."""
        if self._server is not None:
            self._server.close()
            self._server = None
            await self._remove()

    async def stop(self) -> None:
        """Stop listening and end all connections. Idempotent."""
        server, self._server = self._server, None
        for writer in list(self._clients):
            writer.close()
        if server is not None:
            server.close()
            await server.wait_closed()
            await self._remove()

    async def _remove(self) -> None:
        """Remove the file. If the disk does not let us, whoever listens there next replaces it."""
        try:
            async with asyncio.timeout(UNLINK):
                await asyncio.to_thread(self._unlink, self._inode)
        except OSError as error:
            log.warning("%s could not be removed: %s", self._path, error.strerror or "the disk did not answer in time")

    def _unlink(self, inode: int) -> None:
        """In a thread. Remove the file if it is that one: a successor, or this server again, may have put another there."""
        try:
            if self._path.stat().st_ino == inode:
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
            log.debug("%s: a client went away or fell silent: %r", self._path.name, error)
            break_cycles(error)  # error and reader refer to each other, which would keep unread input in memory
            writer.transport.abort()  # close would wait for a client that takes nothing
        finally:
            self._clients.discard(writer)
            writer.close()


async def write(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Write `data`, and wait until the client has taken most of it. Raises ConnectionResetError if the client has left.

    uvloop raises RuntimeError for a write on a closed transport, which would look like a fault of pylb's.
    """
    if writer.is_closing():
        raise ConnectionResetError("the client has left")
    writer.write(data)
    await writer.drain()


def answers(path: Path) -> bool:
    """Does somebody listen on this socket? Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, reachable(path) as address:
        sock.settimeout(1.0)
        try:
            sock.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except (TimeoutError, BlockingIOError):
            return True  # its backlog is full: a busy process is listening
        return True


def _take(path: Path) -> tuple[socket.socket, int]:
    """The listening socket and the inode of its file. Raises OSError."""
    if answers(path):
        raise FileExistsError(f"another pylb is running with this state directory: {path} answers")
    sock = _listen(path)
    return sock, path.stat().st_ino


def _listen(path: Path) -> socket.socket:
    """Bind the socket and restrict its mode under a temporary name, then rename it: nobody can connect before it is ready."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with reachable(temporary) as address:
            sock.bind(address)
        temporary.chmod(0o600)
        sock.listen(MOST_CLIENTS)
        temporary.rename(path)
    except BaseException:
        sock.close()
        temporary.unlink(missing_ok=True)
        raise
    return sock


def check_peer(writer: asyncio.StreamWriter) -> None:
    """Check the client's uid as the kernel saw it at connect (SO_PEERCRED, unix(7)). Raises Refused."""
    credentials = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, uid, _ = struct.unpack("iII", credentials)
    if uid not in (0, os.geteuid()):
        raise Refused(Code.UNAUTHORIZED, "only root and pylb's own user may do this")
