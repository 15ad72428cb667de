"""`pylb` under observation: `python -m tests.support.watched run -c FILE`, with a file in $TOUCHED.

Whatever touches a file or asks DNS in the thread of the loop, from the moment when ports serve until the stop, is a line of
that file: what, and the stack. Python's own audit events say most of it; the calls without one are wrapped.
"""

import functools
import os
import ssl
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from pylb.app.upgrade import IncomingUpgrade
from pylb.cli.main import main
from pylb.host.systemd import SystemdService

EVENTS = ("open", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "subprocess.Popen", "shutil.", "glob.")
OF_OS = ("listdir", "scandir", "rename", "remove", "mkdir", "rmdir", "chmod", "chown", "link", "symlink", "truncate", "utime")
WRAPPED: tuple[tuple[Any, str], ...] = (
    *((os, name) for name in ("stat", "lstat", "fsync", "fdatasync", "access", "statvfs", "readlink")),
    (ssl.SSLContext, "load_cert_chain"),
    (ssl.SSLContext, "load_verify_locations"),
)


class Watcher:
    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.on = False
        self._busy = False

    def touched(self, what: str) -> None:
        if not self.on or self._busy or threading.current_thread() is not threading.main_thread():
            return
        self._busy = True  # the stack's own text may touch files
        try:
            stack = " < ".join(f"{frame.f_code.co_qualname}:{line}" for frame, line in traceback.walk_stack(sys._getframe(1)))
            os.write(self._fd, f"{what}: {stack}\n".encode())
        finally:
            self._busy = False

    def on_audit(self, event: str, args: tuple[object, ...]) -> None:
        if event.startswith(EVENTS) or event.removeprefix("os.") in OF_OS:
            self.touched(f"{event} {args[:1]}")

    def wrap(self, owner: Any, name: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(inner)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.touched(f"{name} {args[-1:]}")
            return inner(*args, **kwargs)

        setattr(owner, name, call)

    def between(self, owner: Any, name: str, *, on: bool) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.on = on
            return inner(*args, **kwargs)

        setattr(owner, name, call)


def watch(watcher: Watcher) -> None:
    for owner, name in WRAPPED:
        watcher.wrap(owner, name)
    sys.addaudithook(watcher.on_audit)


if __name__ == "__main__":
    watcher = Watcher(os.open(os.environ["TOUCHED"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    watch(watcher)
    watcher.between(IncomingUpgrade, "count_on", on=True)  # the first thing after the first table
    watcher.between(SystemdService, "stopping", on=False)
    main()
