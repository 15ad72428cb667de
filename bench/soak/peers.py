"""The servers of the soak, and its clients up to the greeting."""

import asyncio
import socket

from bench.processes import Address
from bench.soak.streams import GREETING, NUMBER, Half, Peer, Script, play


class Servers:
    """The servers behind pylb. Each speaks first, reads the number of the script, and plays its side of it."""

    def __init__(self) -> None:
        self.expected: dict[int, tuple[Script, asyncio.Future[tuple[Half, int]]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, server: socket.socket) -> None:
        """Accept connections for ever."""
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(server)
            sock.setblocking(False)
            task = loop.create_task(self._one(sock))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _one(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with sock:
            try:
                port = sock.getpeername()[1]
                await loop.sock_sendall(sock, GREETING)
                number = await exactly(sock, NUMBER.size)
                while number == NUMBER.pack(0):  # an idle session's round
                    await loop.sock_sendall(sock, number)
                    number = await exactly(sock, NUMBER.size)
            except (OSError, EOFError):
                return  # reset or closed before it said what it wants
            found = self.expected.get(NUMBER.unpack(number)[0])
            if found is not None:
                script, done = found
                peer = Peer(sock, sends=script.number + 1, expects=script.number)
                await play(peer, script, client=False)
                if not done.done():
                    done.set_result((peer.half, port))


async def exactly(sock: socket.socket, size: int) -> bytes:
    """Raises EOFError if the other end says FIN before."""
    loop, data = asyncio.get_running_loop(), b""
    while len(data) < size:
        more = await loop.sock_recv(sock, size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


async def greeted(sock: socket.socket, listen: Address) -> None:
    """Raises OSError or EOFError."""
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, listen)
    await exactly(sock, len(GREETING))


async def connected(listen: Address) -> socket.socket:
    """A client that has been greeted. Raises OSError or EOFError."""
    sock = socket.socket()
    try:
        await greeted(sock, listen)
    except BaseException:
        sock.close()
        raise
    return sock


async def echo(sock: socket.socket) -> None:
    """One round on an idle session. Raises OSError or EOFError."""
    await asyncio.get_running_loop().sock_sendall(sock, NUMBER.pack(0))
    if await exactly(sock, NUMBER.size) != NUMBER.pack(0):
        raise EOFError
