"""New connections at a steady rate, so that a test can say which of them failed during a change."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple, Self

from tests.support.netns import Namespace
from tests.support.waiting import pause


class Failure(NamedTuple):
    began: float  # time.monotonic(), before the connection was asked for
    what: str


class Load:
    """`rate` new connections a second from a few threads. Each is opened, used by `exchange`, which says whether all went well,
    and closed. `timeout` seconds are for each step of a connection.
    """

    THREADS = 8

    def __init__(
        self,
        address: tuple[str, int],
        rate: float,
        exchange: Callable[[socket.socket], bool],
        *,
        at: Namespace | None = None,
        timeout: float = 10.0,
    ) -> None:
        self._address = address
        self._pause = self.THREADS / rate
        self._exchange = exchange
        self._at = at
        self._timeout = timeout
        self._over = threading.Event()
        self.done = 0
        self.failed: list[Failure] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(self.THREADS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_failure: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(2 * self._timeout)

    def _run(self) -> None:
        with self._at.inside() if self._at else nullcontext():
            due = time.monotonic()
            while not self._over.is_set():
                self._once()
                due += self._pause
                pause(max(0.0, due - time.monotonic()))

    def _once(self) -> None:
        began = time.monotonic()
        try:
            with socket.create_connection(self._address, timeout=self._timeout) as sock:
                if not self._exchange(sock):
                    self.failed.append(Failure(began, "cut"))
        except OSError as error:
            self.failed.append(Failure(began, repr(error)))
        self.done += 1
