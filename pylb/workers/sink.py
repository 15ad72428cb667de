"""Takes control's tables for workers: listening sockets are opened here, and each worker gets its own one for each port.

A port has one socket per worker (SO_REUSEPORT), so the kernel spreads clients evenly, and clients in a dead worker's accept
queue wait for its replacement. With one worker nothing is shared, and listen() is the probe for a taken port.
"""

import asyncio
import errno
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from operator import attrgetter
from socket import SocketType
from typing import Protocol

from pylb.core.address import Listen
from pylb.core.table import Diff, Frontend, Table, diff
from pylb.forward.sockets import open_each, share
from pylb.workers.process import WorkerProcess
from pylb.workers.requests import APPLY, ChangeSignal
from pylb.workers.tables import TableEncoder

log = logging.getLogger("pylb")


class SocketSource(Protocol):
    """Where listening sockets come from."""

    def open(self, listen: Listen, *, freebind: bool = ..., shared: bool = ...) -> SocketType:
        """Raises OSError."""

    def closed(self, listen: Listen) -> None:
        """No process with a copy may accept clients there any more."""

    def give_back(self, listen: Listen) -> None:
        """Undo `open`: other processes that have the sockets must not notice."""


class TableSink:
    """Like control.desired_state.Sink, for all `workers`."""

    def __init__(self, workers: Sequence[WorkerProcess], ports: SocketSource, signal: ChangeSignal) -> None:
        self._workers = workers
        self._ports = ports
        self._signal = signal
        self._given = Table()  # the last table passed to `apply`
        self._unopened: tuple[Listen, ...] = ()  # its ports that could not be opened
        self._encoder = TableEncoder()
        self.table = Table()  # without the ports that could not be opened

    def open(self, listen: Listen, *, freebind: bool) -> None:
        """Bind and listen, for all workers. Idempotent. Raises OSError."""
        if listen in self._workers[0].sockets:
            return
        shared = len(self._workers) > 1
        opened: list[SocketType] = []
        try:
            # The first one without sharing, so that the kernel reports a port that another program has.
            opened.append(self._ports.open(listen, freebind=freebind))
            if shared:
                share(opened[0])
            opened += [self._ports.open(listen, freebind=freebind, shared=True) for _ in self._workers[1:]]
        except OSError:
            self._ports.give_back(listen)
            raise
        for worker, sock in zip(self._workers, opened, strict=True):
            worker.sockets[listen] = sock

    def _open_all(self, frontend: Frontend) -> None:
        """Its port, or all of its range or none. Raises OSError."""
        listen, known = frontend.listen, self._workers[0].sockets
        if listen.server_name and listen.default not in known:
            raise OSError(errno.ENOTCONN, "its port is not open")
        open_each(listen, known, partial(self.open, freebind=frontend.policy.freebind), self._close)

    def discard(self, listen: Listen) -> None:
        """Close what no table has."""
        if listen not in self.table.frontends:
            self._close(listen)

    def apply(self, table: Table) -> tuple[Diff, Mapping[Listen, OSError]]:
        """Open and close here, and send the workers what is new. Returns the changes and the ports that failed to open."""
        before, asked = self.table, diff(self._given, table)
        edits: dict[Listen, Frontend | None] = {new.listen: new for _, new in asked.changed}
        for frontend in asked.closed:
            if frontend.listen in before.frontends:
                self._close(frontend.listen)
            edits[frontend.listen] = None
        failed: dict[Listen, OSError] = {}
        again = (table.frontends[listen] for listen in self._unopened if listen in table.frontends)
        for frontend in sorted((*asked.opened, *again), key=attrgetter("listen")):  # a port before its routes
            try:
                self._open_all(frontend)
            except OSError as error:
                failed[frontend.listen] = error
                edits.pop(frontend.listen, None)  # it may have changed while it is not open
            else:
                edits[frontend.listen] = frontend
        self._given, self._unopened = table, tuple(failed)
        self.table = before.edited(table.generation, edits)
        change = diff(before, self.table)
        pieces = self._encoder.change(before, self.table, change)
        opened = [one for frontend in change.opened for one in frontend.listen.each()]
        for worker in self._workers:
            if worker.serves:
                worker.tell(pieces, opened)
        return change, failed

    async def applied(self) -> None:
        """Wait until every serving worker has applied the last `apply`, for at most APPLY seconds."""
        try:
            async with asyncio.timeout(APPLY):
                while any(worker.pending for worker in self._workers):
                    await self._signal.wait()
        except TimeoutError:
            for worker in self._workers:
                if worker.pending:
                    log.error("worker %d (pid %d) has not applied the table within %g s", worker.index, worker.pid, APPLY)

    def introduce(self, worker: WorkerProcess) -> None:
        """Send the whole table to a worker that has sent Ready."""
        worker.tell(self._encoder.whole(self.table), [one for listen in self.table.frontends for one in listen.each()])

    def _close(self, listen: Listen) -> None:
        for one in listen.each():
            # In all processes that have it: a worker that hangs must not keep a closed port open.
            self._ports.closed(one)
            for worker in self._workers:
                sock = worker.sockets.pop(one, None)
                if sock is not None:
                    sock.close()
