"""Listening ports of UDP: level-triggered in the engine's epoll. Opening is the probe for a taken port, as with TCP."""

import errno
from collections import Counter
from collections.abc import Iterator
from select import EPOLLIN, epoll
from typing import Protocol

from pylb.core.address import Listen
from pylb.forward import sockets
from pylb.forward.datagram_sockets import kernel_drops
from pylb.forward.faults import Faults
from pylb.forward.flow import DatagramPort, FrontendFlows
from pylb.forward.session import FrontendState
from pylb.forward.sockets import Opener

BACKOFF = 1.0  # seconds until a port that could not be read is tried again


class Events(Protocol):
    """The engine's map from descriptors to what has events."""

    def __setitem__(self, fd: int, one: DatagramPort) -> None: ...

    def __delitem__(self, fd: int) -> None: ...


class DatagramPorts:
    """The listening sockets of UDP of one engine."""

    def __init__(self, events: epoll, by_fd: Events, opener: Opener, faults: Faults) -> None:
        self._epoll = events
        self._by_fd = by_fd
        self._opener = opener
        self._faults = faults
        self.by_listen: dict[Listen, DatagramPort] = {}  # each port of a range by itself
        self.numbers: Counter[int] = Counter()  # on how many addresses each port number listens
        self._backing_off: dict[DatagramPort, float] = {}  # seconds that are left

    def open(self, listen: Listen, *, freebind: bool) -> DatagramPort:
        """Bind; nothing is read yet. Idempotent. Raises OSError."""
        port = self.by_listen.get(listen)
        if port is None:
            port = self.by_listen[listen] = DatagramPort(listen, self._opener(listen, freebind=freebind))
            self.numbers[listen.port] += 1
        return port

    def of(self, listen: Listen) -> Iterator[DatagramPort]:
        """The open ports of a frontend."""
        return (self.by_listen[one] for one in listen.each() if one in self.by_listen)

    def frontend(self, listen: Listen) -> FrontendState | None:
        """What serves there."""
        return next((port.frontend for port in self.of(listen)), None)

    def watch(self, port: DatagramPort) -> None:
        """Read from it. Idempotent. If the kernel refuses to watch it, it is tried again later."""
        if port.watched or port in self._backing_off:
            return
        try:
            self._epoll.register(port.fd, EPOLLIN)
        except OSError as error:
            if error.errno != errno.EEXIST:
                self.back_off(port, error)
                return
        port.watched = True
        self._by_fd[port.fd] = port

    def unwatch(self, port: DatagramPort) -> None:
        """Read nothing more. Idempotent. Needed before a close: another process may have the socket, and epoll reports that."""
        self._backing_off.pop(port, None)
        if port.watched:
            port.watched = False
            del self._by_fd[port.fd]
            try:
                self._epoll.unregister(port.fd)
            except OSError:
                pass  # it was closed elsewhere

    def back_off(self, port: DatagramPort, error: OSError | None = None) -> None:
        """Do not read it for a while: it cannot be read, and epoll would report it for ever. `error` None: that is reported."""
        self.unwatch(port)
        self._backing_off[port] = BACKOFF
        if error is not None:
            self._faults.report(f"{port.listen} cannot be read; it is tried again every {BACKOFF:g} s", error)

    def resume(self, elapsed: float) -> None:
        """Called by the tick."""
        for port, left in list(self._backing_off.items()):
            self._backing_off[port] = left - elapsed
            if left <= elapsed:
                del self._backing_off[port]
                self.watch(port)

    def close(self, listen: Listen) -> None:
        """Idempotent. Not by shutdown(): epoll would report the copies of other processes for ever."""
        port = self.by_listen.pop(listen, None)
        if port is not None:
            self.numbers[listen.port] -= 1
            if not self.numbers[listen.port]:
                del self.numbers[listen.port]
            self.unwatch(port)
            sockets.close(port.sock)


def count_kernel_drops(group: FrontendFlows) -> None:
    """Add what the kernel has dropped on the frontend's ports since the last look."""
    counters = group.frontend.counters.datagrams
    for port in group.ports:
        dropped = kernel_drops(port.sock)
        if dropped > port.kernel_dropped and counters is not None:
            counters.dropped["kernel"] += dropped - port.kernel_dropped
            port.kernel_dropped = dropped
