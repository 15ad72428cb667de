"""The main process of an engine that is a worker's, as far as the engine can tell."""

import os
import socket

from pylb.core.address import Listen
from pylb.forward import sockets
from tests.support.drive import Drive
from tests.support.kernel import Sick, wrapped


class Main:
    """What a worker's main has to do with its engine: it has the listening sockets, and the other end of a channel."""

    def __init__(self, drive: Drive, sick: Sick) -> None:
        self._engine = drive.engine
        self.listening: dict[Listen, socket.socket] = {}
        self._theirs, self._ours = socket.socketpair()
        self._ours.setblocking(False)
        self.said = self.heard = 0  # bytes
        self._engine.watch(self._ours.fileno(), wrapped(self._hear, "channel", sick))
        self._engine._ports._opener = self._open

    def _open(self, listen: Listen, *, freebind: bool = False) -> socket.SocketType:  # noqa: ARG002 - main's matter
        if listen not in self.listening:
            self.listening[listen] = socket.create_server((listen.ip, listen.port), backlog=128)
            self.listening[listen].setblocking(False)
            sockets.inheritable(self.listening[listen])
        return sockets.SocketType(-1, -1, -1, os.dup(self.listening[listen].fileno()))  # as workers/main_connection.py has them

    def _hear(self) -> None:
        self.heard += len(self._ours.recv(1 << 16))

    def say(self) -> None:
        self.said += self._theirs.send(b"a table")

    def shut_down(self, listen: Listen) -> None:
        """As it does with a port that the next table has not: in all processes, whatever they do."""
        if sock := self.listening.pop(listen, None):
            sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def close(self) -> None:
        self._engine.unwatch(self._ours.fileno())
        for sock in (self._theirs, self._ours, *self.listening.values()):
            sock.close()
