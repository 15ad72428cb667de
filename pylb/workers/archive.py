"""The code of a worker, in memory since main's start: replacing the files under a running pylb changes nothing.

A zip of compiled modules in a memfd (memfd_create(2)), from which a fresh interpreter imports (zipimport). It starts without
site-packages, environment or user directory: `-I -S`.
"""

import importlib.util
import io
import marshal
import os
import signal
import subprocess
import sys
import zipfile
from mmap import mmap
from pathlib import Path

from pylb.forward.own_dials import SIZE, OwnDials

# Exactly what a worker imports: a test starts one and compares.
MODULES = (
    "pylb",
    "pylb.core",
    "pylb.forward",
    "pylb.host",
    "pylb.host.loop_lag",
    "pylb.workers.worker",
    "pylb.workers",
    "pylb.workers.channel",
    "pylb.workers.main_connection",
    "pylb.workers.messages",
    "pylb.logs",
    "pylb.logs.formats",
)
SPARED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)  # signals that a whole service may be sent while a worker starts
_BOOT = (
    "import sys; sys.path.insert(0, '/proc/self/fd/{code}'); from pylb.workers.worker import main; "
    "sys.exit(main({channel}, {own_dials}))"
)


class CodeArchive:
    """Owns the memfd, and the memory that the workers share (forward/own_dials.py)."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("pylb-worker", os.MFD_CLOEXEC)
        with os.fdopen(os.dup(self.fd), "wb") as stream:
            stream.write(archive())
        self._shared = os.memfd_create("pylb-own-dials", os.MFD_CLOEXEC)
        os.ftruncate(self._shared, SIZE)
        self.own_dials = OwnDials(0, mmap(self._shared, SIZE))

    def start(self, channel: int) -> "subprocess.Popen[bytes]":
        """Start a worker whose end of the channel is the descriptor `channel`. Raises OSError.

        In a separate session: with autogroups the scheduler divides CPU by session (sched(7)), and a terminal's signals go to
        its session.
        """
        boot = _BOOT.format(code=self.fd, channel=channel, own_dials=self._shared)
        argv = [sys.executable, "-I", "-S", "-c", boot]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SPARED)  # the worker unblocks them: by default they kill
        try:
            fds = (self.fd, self._shared, channel)
            return subprocess.Popen(argv, pass_fds=fds, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._shared)


def archive() -> bytes:
    """The content of the zip."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as packed:
        for name in _names():
            spec = importlib.util.find_spec(name)
            if spec is None or spec.loader is None:
                raise ModuleNotFoundError(name)
            path = name.replace(".", "/") + ("/__init__" if spec.submodule_search_locations else "") + ".pyc"
            code = spec.loader.get_code(name)  # type: ignore[attr-defined]
            # magic, no flags, no time and no size of the source: never compared (PEP 552)
            packed.writestr(path, importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code))
    return data.getvalue()


def _names() -> list[str]:
    """MODULES, and all of core and forward."""
    found = list(MODULES)
    for package in ("pylb.core", "pylb.forward"):
        spec = importlib.util.find_spec(package)
        for folder in spec.submodule_search_locations or () if spec is not None else ():
            found += [f"{package}.{file.stem}" for file in sorted(Path(folder).glob("*.py")) if file.stem != "__init__"]
    return found
