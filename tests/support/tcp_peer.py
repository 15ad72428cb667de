"""One end of a TCP connection outside the engine, a client or a server: it remembers what it got and how it ended."""

import errno
import socket
import struct

from pylb.core.address import Address

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_CHUNK = 256 * 1024


class Peer:
    """One end of a connection outside the engine. It reads while `reading` is set, and writes what `say` was given."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)
        self.reading = True
        self.got = bytearray()
        self.eof = False  # the other end's FIN
        self.error = ""  # errno name of what ended it otherwise
        self._outbox: list[memoryview] = []
        self._finishing = False

    def say(self, data: bytes) -> None:
        if data:
            self._outbox.append(memoryview(data))

    def finish(self) -> None:
        """Send FIN after the last byte."""
        self._finishing = True

    def reset(self) -> None:
        """Send RST now. Unsent data is lost."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.close()

    def close(self) -> None:
        self._outbox.clear()
        self.sock.close()

    def give_up(self) -> None:
        """Drop unsent data."""
        self._outbox.clear()

    @property
    def closed(self) -> bool:
        return self.sock.fileno() < 0

    @property
    def unsaid(self) -> int:
        """The bytes that its own kernel has not taken yet."""
        return sum(len(piece) for piece in self._outbox)

    @property
    def local(self) -> Address:
        name = self.sock.getsockname()
        return Address(name[0], name[1])

    def step(self) -> bool:
        """Do what is possible without waiting. True if anything was done."""
        if self.closed or self.error:
            return False
        try:
            return self._write() | (self.reading and not self.eof and self.read(_CHUNK) > 0)
        except OSError as error:
            self.error = errno.errorcode[error.errno or 0]
            return True

    def read(self, most: int) -> int:
        """Read at most `most` bytes now, also while not `reading`."""
        try:
            data = self.sock.recv(most)
        except BlockingIOError:
            return 0
        self.got += data
        self.eof = not data
        return len(data) or 1

    def _write(self) -> bool:
        moved = False
        while self._outbox:
            try:
                sent = self.sock.send(self._outbox[0])
            except BlockingIOError:
                return moved
            moved = True
            self._outbox[0] = self._outbox[0][sent:]
            if not self._outbox[0]:
                del self._outbox[0]
        if self._finishing:
            self._finishing = False
            self.sock.shutdown(socket.SHUT_WR)
            moved = True
        return moved
