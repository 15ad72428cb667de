"""Pipes for os.splice: borrowed while bytes flow in bulk, returned only when empty.

A pipe that still holds bytes would hand them to the next session, another client's: it is closed, never returned.
"""

import os
from fcntl import F_SETPIPE_SZ, fcntl

SIZE = 256 * 1024  # bytes asked for; the kernel counts in pages of 4 KiB
PIPES = 512  # most pipes lent at a time


def pipe_limit(nofile: int) -> int:
    """Pipes at a time under RLIMIT_NOFILE: they take an eighth of it at most."""
    return min(PIPES, nofile // 16)


class Pipe:
    __slots__ = ("count", "mark", "read_fd", "write_fd")

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self.read_fd = read_fd
        self.write_fd = write_fd
        self.mark = 0  # bytes that its half had received when the pipe was lent
        self.count = 0  # bytes inside, from the return values of splice alone: the kernel does not report how full a pipe is

    def close(self) -> None:
        for fd in (self.read_fd, self.write_fd):
            try:
                os.close(fd)
            except OSError:
                pass  # the descriptor is free all the same (close(2), NOTES)


class Pipes:
    """At most `most` pipes are lent at a time (they count in the descriptor limit); `keep` empty ones wait for reuse."""

    def __init__(self, most: int, keep: int = 16) -> None:
        self._most = most
        self._keep = keep
        self._free: list[Pipe] = []
        self.lent = 0

    def borrow(self) -> Pipe | None:
        """None when the cap or a kernel limit is reached: the session then goes on with recv and send."""
        if self._free:
            self.lent += 1
            return self._free.pop()
        if self.lent >= self._most:
            return None
        try:
            pipe = Pipe(*os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError:  # EMFILE, ENFILE
            return None
        try:
            fcntl(pipe.write_fd, F_SETPIPE_SZ, SIZE)
        except OSError:
            # EPERM: this user's pipes exceed fs.pipe-user-pages-soft, so a new one has only a page or two (pipe(7)).
            pipe.close()
            return None
        self.lent += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        self.lent -= 1
        if pipe.count or len(self._free) >= self._keep:
            pipe.close()
        else:
            self._free.append(pipe)

    def close(self) -> None:
        while self._free:
            self._free.pop().close()
