"""Other descriptors that the engine's epoll watches for whoever owns them: a worker's channel to main."""

import errno
import select
from collections.abc import Callable
from contextlib import suppress

from pylb.forward.faults import Faults


class Watched:
    def __init__(self, epoll: select.epoll, faults: Faults) -> None:
        self._epoll = epoll
        self._faults = faults
        self.by_fd: dict[int, Callable[[], None]] = {}
        self._suspended: list[int] = []  # those whose callback failed: ignored until the next tick

    def add(self, fd: int, on_ready: Callable[[], None]) -> None:
        """Call `on_ready` as long as `fd` is readable, until the descriptor is closed."""
        self._epoll.register(fd, select.EPOLLIN)
        self.by_fd[fd] = on_ready

    def remove(self, fd: int) -> None:
        del self.by_fd[fd]
        if fd in self._suspended:
            self._suspended.remove(fd)
        else:
            self._forget(fd)

    def _forget(self, fd: int) -> None:
        with suppress(OSError):  # a failure means that it was not watched, or is closed (epoll_ctl(2))
            self._epoll.unregister(fd)

    def call(self, fd: int, on_ready: Callable[[], None]) -> None:
        """Unwatch after a failure: epoll is level-triggered, and a callback that reads nothing would be called for ever."""
        if not self._faults.guard("what came in on a watched descriptor was not dealt with", on_ready) and fd in self.by_fd:
            self._forget(fd)
            self._suspended.append(fd)

    def wake(self) -> None:
        """Watch the suspended ones again. Raises OSError: what could not be watched (ENOMEM, ENOSPC) stays suspended."""
        failure: OSError | None = None
        for fd in list(self._suspended):
            try:
                self._epoll.register(fd, select.EPOLLIN)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.EBADF):  # it is watched already, or closed
                    failure = error
                    continue
            self._suspended.remove(fd)
        if failure is not None:
            raise failure
