"""A second implementation of control's `Sink`: real listening sockets that nobody serves."""

import socket
from collections.abc import Mapping

from pylb.core.address import TCP, Listen
from pylb.core.table import Table


class PortSink:
    """Opens and closes ports as the engine would, and keeps every table that it was given."""

    def __init__(self) -> None:
        self.sockets: dict[Listen, socket.socket] = {}
        self.tables: list[Table] = []

    def open(self, listen: Listen, *, freebind: bool = False) -> None:  # noqa: ARG002 - the protocol's
        if listen in self.sockets:
            return
        sock = socket.socket(type=socket.SOCK_STREAM if listen.protocol == TCP else socket.SOCK_DGRAM)
        try:
            if listen.protocol == TCP:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("" if listen.ip == "*" else listen.ip, listen.port))
            if listen.protocol == TCP:
                sock.listen(8)
        except OSError:
            sock.close()
            raise
        self.sockets[listen] = sock

    def discard(self, listen: Listen) -> None:
        published = self.tables[-1].frontends if self.tables else {}
        if listen not in published:
            for one in listen.each():
                if one in self.sockets:
                    self.sockets.pop(one).close()

    def apply(self, table: Table) -> Mapping[Listen, OSError]:
        failed = {}
        wanted = {one for listen in table.frontends for one in listen.each()}
        for listen in [listen for listen in self.sockets if listen not in wanted]:
            self.sockets.pop(listen).close()
        for listen in table.frontends:
            try:
                for one in listen.each():
                    self.open(one)
            except OSError as error:
                failed[listen] = error
        self.tables.append(table)
        return failed

    async def applied(self) -> None:
        """Nothing to wait for: a table is in force at once."""

    @property
    def ports(self) -> set[int]:
        return {listen.port for listen in self.sockets}

    def close(self) -> None:
        for sock in self.sockets.values():
            sock.close()
        self.sockets.clear()
