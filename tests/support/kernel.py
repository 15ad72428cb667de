"""The kernel that forward/ sees, with failures on demand: its sockets, pipes, epoll, and the errno of any call."""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from pylb.forward import engine, listener, pipes, relay, sockets

# Of man-pages 6: the ERRORS of each page, with those that tcp(7), ip(7) and socket(7) add. Without EFAULT, which needs a bug in
# Python itself, and without EAGAIN, which is no failure.
ERRNOS = {
    "accept": "ECONNABORTED EINTR EINVAL EMFILE ENFILE ENOBUFS ENOMEM EOPNOTSUPP EPERM EPROTO ENETDOWN EHOSTUNREACH "
    "ETIMEDOUT EBADF ENOTSOCK ENOSR ESOCKTNOSUPPORT EPROTONOSUPPORT ENETUNREACH EHOSTDOWN ENONET ENOPROTOOPT",
    "socket": "EACCES EAFNOSUPPORT EINVAL EMFILE ENFILE ENOBUFS ENOMEM EPROTONOSUPPORT",
    "connect": "EACCES EPERM EADDRINUSE EADDRNOTAVAIL EAFNOSUPPORT EAGAIN EALREADY EBADF ECONNREFUSED EINTR EISCONN "
    "ENETUNREACH ENOTSOCK EPROTOTYPE ETIMEDOUT EHOSTUNREACH ENOBUFS ENOMEM",
    "recv": "EBADF ECONNREFUSED ECONNRESET EINTR EINVAL ENOMEM ENOTCONN ENOTSOCK ETIMEDOUT EHOSTUNREACH",
    "send": "EACCES EALREADY EBADF ECONNRESET EDESTADDRREQ EINTR EINVAL EISCONN EMSGSIZE ENOBUFS ENOMEM ENOTCONN ENOTSOCK "
    "EOPNOTSUPP EPIPE ETIMEDOUT EHOSTUNREACH",
    "splice": "EBADF EINVAL ENOMEM ESPIPE EPERM ENOSYS EPIPE ECONNRESET ETIMEDOUT",
    "shutdown": "EBADF EINVAL ENOTCONN ENOTSOCK",
    "setsockopt": "EBADF EINVAL ENOPROTOOPT ENOTSOCK ENOMEM ENOBUFS EDOM",
    "getsockopt": "EBADF EINVAL ENOPROTOOPT ENOTSOCK",
    "getsockname": "EBADF EINVAL ENOBUFS ENOTSOCK",
    "epoll_ctl": "EBADF EEXIST EINVAL ELOOP ENOENT ENOMEM ENOSPC EPERM",
    "pipe2": "EINVAL EMFILE ENFILE ENOPKG",
    "fcntl": "EBADF EBUSY EPERM EINVAL ENOMEM",
    "ioctl": "EBADF EINVAL ENOTTY",
    "close": "EBADF EINTR EIO ENOSPC EDQUOT",
    "bind": "EACCES EADDRINUSE EBADF EINVAL ENOTSOCK EADDRNOTAVAIL EAFNOSUPPORT ENODEV ENOBUFS ENOMEM",
    "listen": "EADDRINUSE EBADF ENOTSOCK EOPNOTSUPP",
    "read": "EBADF EINTR EINVAL EIO EISDIR",
    "open": "EACCES EBUSY EINTR EMFILE ENFILE ENODEV ENOENT ENOMEM ENXIO EPERM",
    "epoll_wait": "EBADF EINTR EINVAL",
    "getrandom": "EAGAIN EINTR EINVAL ENOSYS",
}
CALLS = {call: [getattr(errno, name) for name in names.split()] for call, names in ERRNOS.items()}
# How Python spells them, in forward/.
SPELLED = {
    **{name: name for name in ("bind", "close", "getsockname", "getsockopt", "ioctl", "listen", "open", "pipe2", "read")},
    **{name: name for name in ("recv", "send", "setsockopt", "shutdown", "splice", "fcntl")},
    "_accept": "accept",
    "SocketType": "socket",
    "connect_ex": "connect",
    "recv_into": "recv",
    "register": "epoll_ctl",
    "unregister": "epoll_ctl",
    "poll": "epoll_wait",
    "set_blocking": "fcntl",
    "urandom": "getrandom",
}
PASS = -1  # instead of an errno: the call that it meets succeeds


class Sick:
    """What fails next: `armed` says so per call, once for each time it was armed."""

    def __init__(self) -> None:
        self.armed: dict[str, list[int]] = {}
        self.hits = 0
        self.calls = 0  # of all system calls

    def meet(self, call: str) -> None:
        self.calls += 1
        if waiting := self.armed.get(call):
            code = waiting.pop()
            if code == PASS:
                return
            self.hits += 1
            if code:
                raise OSError(code, os.strerror(code))
            raise RuntimeError(f"{call} failed, as it was told to")


class Socket(socket.SocketType):
    """A socket whose calls may fail."""

    sick: Sick

    def _accept(self) -> Any:
        self.sick.meet("accept")
        return super()._accept()  # type: ignore[misc]

    def connect_ex(self, *args: Any) -> int:
        try:
            self.sick.meet("connect")
        except OSError as error:
            return error.errno or errno.EIO
        return super().connect_ex(*args)

    def bind(self, *args: Any) -> None:
        self.sick.meet("bind")
        super().bind(*args)

    def listen(self, *args: Any) -> None:
        self.sick.meet("listen")
        super().listen(*args)

    def recv(self, *args: Any) -> bytes:
        self.sick.meet("recv")
        return super().recv(*args)

    def recv_into(self, *args: Any) -> int:
        self.sick.meet("recv")
        return super().recv_into(*args)

    def send(self, *args: Any) -> int:
        self.sick.meet("send")
        return super().send(*args)

    def shutdown(self, *args: Any) -> None:
        self.sick.meet("shutdown")
        super().shutdown(*args)

    def setsockopt(self, *args: Any) -> None:
        self.sick.meet("setsockopt")
        super().setsockopt(*args)

    def getsockopt(self, *args: Any) -> Any:
        self.sick.meet("getsockopt")
        return super().getsockopt(*args)

    def getsockname(self) -> Any:
        self.sick.meet("getsockname")
        return super().getsockname()

    def close(self) -> None:
        had = self.fileno() >= 0
        super().close()  # Linux frees the descriptor, and then says what it says
        if had:
            self.sick.meet("close")


def wrapped(call: Callable[..., Any], name: str, sick: Sick) -> Callable[..., Any]:
    def failing(*args: Any, **more: Any) -> Any:
        sick.meet(name)
        return call(*args, **more)

    return failing


def closing(sick: Sick) -> Callable[[int], None]:
    def close(fd: int) -> None:
        os.close(fd)
        sick.meet("close")

    return close


@contextmanager
def sickness() -> Iterator[Sick]:
    """The modules of forward/ see sockets, pipes and splice that may fail; the test's own peers do not."""
    sick = Sick()
    made = type("Made", (Socket,), {"sick": sick})

    def new(*args: Any) -> Any:
        if args[-1:] == (0,) and len(args) == 3:
            sick.meet("socket")
        return made(*args)

    system = SimpleNamespace(**{name: getattr(os, name) for name in dir(os)})
    system.close = closing(sick)
    for spelled in ("pipe2", "splice", "set_blocking", "read", "open", "urandom"):
        setattr(system, spelled, wrapped(getattr(os, spelled), SPELLED[spelled], sick))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sockets, "SocketType", new)
        patched.setattr(listener, "SocketType", new)
        patched.setattr(sockets, "ioctl", wrapped(sockets.ioctl, "ioctl", sick))
        patched.setattr(pipes, "fcntl", wrapped(pipes.fcntl, "fcntl", sick))
        for module in (engine, pipes, relay, listener):
            patched.setattr(module, "os", system)
        yield sick


class Epoll:
    def __init__(self, epoll: Any, sick: Sick) -> None:
        self._epoll, self._sick = epoll, sick

    def register(self, fd: int, events: int) -> None:
        try:
            self._sick.meet("epoll_ctl")
        except FileExistsError:
            self._epoll.register(fd, events)  # it says so only of one that is watched (epoll_ctl(2), EEXIST)
            raise
        self._epoll.register(fd, events)

    def unregister(self, fd: int) -> None:
        self._epoll.unregister(fd)
        self._sick.meet("epoll_ctl")

    def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
        self._sick.meet("epoll_wait")
        return self._epoll.poll(timeout, most)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)
