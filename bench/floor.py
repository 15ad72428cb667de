"""The floor: what a new connection costs in Python at the least. A target of every run that shows how far pylb is above it.

    python -m bench.floor FILE        a line for each port: HOST:PORT of the port, HOST:PORT of its server

It makes the system calls that no forwarder can do without, from one edge-triggered epoll inside uvloop, as pylb with
`workers: 0` does. It has no log, table, limits, timeouts or health, moves bulk without splice, and does not care how a
connection ends: a reset arrives as a FIN, and its own death looks like a clean end to everybody. So it is no proxy that
anybody could use.
"""

import asyncio
import errno
import gc
import select
import socket
import sys
from pathlib import Path
from select import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP
from socket import MSG_DONTWAIT, SocketType

import uvloop

from bench.endpoints import address
from bench.processes import Address

WATCHED = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
ENDING = EPOLLRDHUP | EPOLLHUP | EPOLLERR
READ = 256 * 1024
ACCEPTS, EVENTS = 64, 1024  # in a row, per poll


class Half:
    """One connection. What is read from it is sent to its peer."""

    __slots__ = ("ended", "peer", "pending", "sock")

    def __init__(self, sock: SocketType) -> None:
        self.sock = sock
        self.peer: Half | None = None
        self.pending = b""  # read, and not yet taken by the peer
        self.ended = False


class Floor:
    """All of it: ports, halves, and the epoll that reports their events."""

    def __init__(self, routes: list[tuple[Address, Address]]) -> None:
        self.epoll = select.epoll()
        self._buffer = memoryview(bytearray(READ))
        self._halves: dict[int, Half] = {}
        self._ports: dict[int, tuple[SocketType, Address]] = {}
        for listen, server in routes:
            port = SocketType(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0)
            port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            port.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited
            port.bind(listen)
            port.listen(4096)
            self._ports[port.fileno()] = port, server
            self.epoll.register(port.fileno(), EPOLLIN)

    def on_ready(self) -> None:
        """Handle events until there are none."""
        while batch := self.epoll.poll(0, EVENTS):
            for fd, events in batch:
                half = self._halves.get(fd)
                if half is not None:
                    try:
                        self._on_event(half, events)
                    except OSError as error:
                        if error.errno not in (errno.ENOTCONN, errno.EAGAIN):  # its connect is not through yet
                            self._close(half)
                elif fd in self._ports:
                    self._accept(*self._ports[fd])

    def _accept(self, port: SocketType, server: Address) -> None:
        for _ in range(ACCEPTS):
            try:
                fd, _address = port._accept()  # type: ignore[attr-defined]  # noqa: SLF001 - as pylb does
            except BlockingIOError:
                return
            client = SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, fd)
            upstream = SocketType(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0)
            upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if upstream.connect_ex(server) not in (0, errno.EINPROGRESS):
                client.close()
                upstream.close()
                continue
            one, other = Half(client), Half(upstream)
            one.peer, other.peer = other, one
            for half in (other, one):
                self._halves[half.sock.fileno()] = half
                self.epoll.register(half.sock.fileno(), WATCHED)

    def _on_event(self, half: Half, events: int) -> None:
        peer = half.peer
        if peer is None:
            return
        if events & EPOLLOUT and peer.pending and self._sent(peer, half):
            self._pump(peer, half, ending=True)
        if events & (EPOLLIN | ENDING):
            self._pump(half, peer, ending=bool(events & ENDING))

    def _sent(self, half: Half, peer: Half) -> bool:
        """Send what waits for the peer. True: all of it is gone."""
        try:
            half.pending = half.pending[peer.sock.send(half.pending, MSG_DONTWAIT) :]
        except BlockingIOError:
            pass
        return not half.pending

    def _pump(self, half: Half, peer: Half, *, ending: bool) -> None:
        while not half.pending and not half.ended:
            try:
                count = half.sock.recv_into(self._buffer, READ, MSG_DONTWAIT)
            except BlockingIOError:
                return
            if not count:
                self._finish(half, peer)
                return
            try:
                sent = peer.sock.send(self._buffer[:count], MSG_DONTWAIT)
            except BlockingIOError:
                sent = 0
            if sent < count:
                half.pending = bytes(self._buffer[sent:count])
            elif count < READ and not ending:
                return

    def _finish(self, half: Half, peer: Half) -> None:
        half.ended = True
        if peer.ended:
            self._close(half)
        else:
            peer.sock.shutdown(socket.SHUT_WR)

    def _close(self, half: Half) -> None:
        for one in (half, half.peer):
            if one is not None:
                self._halves.pop(one.sock.fileno(), None)
                one.sock.close()
                one.peer = None


async def serve(routes: list[tuple[Address, Address]]) -> None:
    """Forward until the process is killed."""
    floor = Floor(routes)
    asyncio.get_running_loop().add_reader(floor.epoll.fileno(), floor.on_ready)
    gc.freeze()
    gc.disable()
    await asyncio.Event().wait()


if __name__ == "__main__":
    lines = [line.split() for line in Path(sys.argv[1]).read_text().splitlines()]
    uvloop.run(serve([(address(listen), address(server)) for listen, server in lines]))
