"""A small stand-in for systemd: it starts pylb again whenever it dies, and keeps its listening sockets.

Type=notify, NotifyAccess=main, FileDescriptorStoreMax=, Restart=always (systemd.service(5), sd_notify(3), sd_listen_fds(3)).
"""

import array
import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.processes import BenchError, family

RESTART_SECONDS = 0.2
READY_SECONDS = 20.0
STOP_SECONDS = 20.0
_PR_SET_CHILD_SUBREAPER = 36  # prctl(2): orphans become ours, so that nothing of a run outlives it unseen
# Puts the descriptors where sd_listen_fds(3) says, and becomes the program.
_LAUNCHER = """
import fcntl, os, sys
count = int(sys.argv[1])
high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 1000) for fd in sys.argv[2:2 + count]]
for place, fd in enumerate(high, 3):
    os.dup2(fd, place)
os.closerange(3 + count, max([1000, *high]) + 1)
os.environ.update(LISTEN_FDS=str(count), LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2 + count], sys.argv[2 + count:])
"""


class Unit:
    """A service whose main process may be killed at any moment. In an asyncio loop, from `start` to `stop`."""

    def __init__(self, argv: Sequence[str], folder: Path, stdout: int, stderr: int) -> None:
        self._argv, self._out, self._err = argv, stdout, stderr
        self._path = folder / "notify"
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._sock.bind(str(self._path))
        self._store: dict[int, tuple[str, int]] = {}  # by inode: what is there already is not kept twice
        self._pidfd = -1
        self._ready = asyncio.Event()
        self._stopping = False
        self.pid = 0
        self.starts = 0

    @property
    def is_ready(self) -> bool:
        return self._ready.is_set()

    async def start(self) -> None:
        """Returns once it has said READY. Raises BenchError."""
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        asyncio.get_running_loop().add_reader(self._sock, self._hear)
        self._launch()
        await self.ready()

    async def ready(self) -> None:
        """Raises BenchError."""
        try:
            await asyncio.wait_for(self._ready.wait(), READY_SECONDS)
        except TimeoutError:
            raise BenchError(f"pylb (process {self.pid}) was not ready within {READY_SECONDS:g} s") from None

    async def stop(self) -> list[int]:
        """Send SIGTERM, like `systemctl stop`. Returns the processes that did not end and were killed."""
        self._stopping = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while (left := self.processes()) and time.monotonic() < deadline:  # noqa: ASYNC110 - not all are children of ours
            await asyncio.sleep(0.1)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._unwatch()
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()
        for _, fd in self._store.values():
            os.close(fd)
        return left

    def processes(self) -> list[int]:
        """The processes of all its generations; those that have ended are reaped."""
        found = []
        for pid in family(os.getpid())[1:]:
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG) != (0, 0):
                    continue
            with contextlib.suppress(OSError):
                if b"pylb" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def _launch(self) -> None:
        self._ready.clear()
        self.starts += 1
        fds = [fd for _, fd in self._store.values()]
        argv = [sys.executable, "-c", _LAUNCHER, str(len(fds)), *map(str, fds), *self._argv]
        environ = os.environ | {"NOTIFY_SOCKET": str(self._path)}
        process = subprocess.Popen(
            argv,
            env=environ,
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            start_new_session=True,
        )
        process.returncode = 0  # who it is changes with an upgrade, so it is watched by its descriptor, not by this object
        self._follow(process.pid)

    def _follow(self, pid: int) -> None:
        self._unwatch()
        self.pid = pid
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._on_death()
            return
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_death)

    def _unwatch(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _on_death(self) -> None:
        self._unwatch()
        self._ready.clear()
        if not self._stopping:
            asyncio.get_running_loop().call_later(RESTART_SECONDS, self._launch)

    def _hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                room = socket.CMSG_SPACE(4) + socket.CMSG_SPACE(12)
                data, ancillary, _, _ = self._sock.recvmsg(4096, room, socket.MSG_CMSG_CLOEXEC)
                self._heed(dict(line.split("=", 1) for line in data.decode().splitlines()), ancillary)

    def _heed(self, said: dict[str, str], ancillary: list[tuple[int, int, bytes]]) -> None:
        fds, sender = array.array("i"), 0
        for _, kind, content in ancillary:
            if kind == socket.SCM_RIGHTS:
                fds.frombytes(content)
            elif kind == socket.SCM_CREDENTIALS:
                sender = array.array("i", content)[0]
        heeded = sender == self.pid  # NotifyAccess=main
        for fd in fds:
            self._keep(said.get("FDNAME", ""), fd, wanted=heeded)
        if not heeded:
            return
        if "FDSTOREREMOVE" in said:
            self._forget(said["FDNAME"])
        if "MAINPID" in said:
            self._follow(int(said["MAINPID"]))
        if "READY" in said:
            self._ready.set()

    def _keep(self, name: str, fd: int, *, wanted: bool) -> None:
        inode = os.fstat(fd).st_ino
        if not wanted or inode in self._store:
            os.close(fd)
        else:
            self._store[inode] = (name, fd)

    def _forget(self, name: str) -> None:
        for inode, (kept, fd) in list(self._store.items()):
            if kept == name:
                os.close(fd)
                del self._store[inode]
