"""One worker as main sees it: its listening sockets, which main keeps open for good, and the process that serves them now.

When the process dies, the same object starts the next one, which gets the same sockets.
"""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from socket import SocketType
from typing import Any

from pylb.control.tasks import Part
from pylb.core.address import Listen
from pylb.workers.archive import CodeArchive
from pylb.workers.channel import MOST_BODY, MOST_FDS, BadFrame, Channel, ChannelClosed
from pylb.workers.messages import VERSION, Hello, PassedSockets, Ready, decoded, encoded

BYTES = 32 << 10  # read in one turn of the loop: a report of busy frontends, 4 ms of work


class WorkerProcess:
    """`on_message` gets the worker's messages, from Ready on; `on_end` its exit status, negative for a signal."""

    def __init__(
        self,
        index: int,
        archive: CodeArchive,
        on_message: Callable[["WorkerProcess", Any], None],
        on_end: Callable[["WorkerProcess", int, str], None],
    ) -> None:
        self.index = index
        self.sockets: dict[Listen, SocketType] = {}
        self.serves = False  # it has sent Ready
        self.pending = 0  # tables it has not applied yet
        self.heard = 0.0  # the loop's time of its last message
        self.started = 0.0
        self.doubts = 0  # 1: its silence was reported; 2: it is being replaced because of it
        self.pid = 0
        self._archive = archive
        self._on_message = on_message
        self._on_end = on_end
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._pidfd = -1
        self._fault = ""  # why it is being killed

    @property
    def runs(self) -> bool:
        return self._process is not None

    def start(self, hello: Hello) -> None:
        """Start a new process. Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            process = self._archive.start(theirs.fileno())
            try:
                self._pidfd = os.pidfd_open(process.pid)
            except OSError:  # no descriptor is free for it
                process.kill()
                process.wait()
                raise
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        loop = asyncio.get_running_loop()
        self._process = process
        self.pid, self.serves, self.pending, self._fault, self.doubts = process.pid, False, 0, "", 0
        self.heard = self.started = loop.time()
        self._channel = Channel(ours)
        loop.add_reader(ours.fileno(), self._on_readable)
        loop.add_reader(self._pidfd, self._reap)
        self.say(hello)

    def say(self, message: Any, fds: Sequence[int] = ()) -> None:
        """Send to the worker, if there is one; what it misses, its replacement gets."""
        self._send(*encoded(message), fds)

    def _send(self, kind: int, body: bytes, fds: Sequence[int] = ()) -> None:
        if self._channel is not None:
            try:
                self._channel.send(kind, body, fds)
            except ChannelClosed:
                pass  # its end is about to be noticed

    def flush(self) -> None:
        if self._channel is not None and self._channel.backlog:
            try:
                self._channel.flush()
            except ChannelClosed:
                pass

    def tell(self, change: Sequence[tuple[int, bytes]], opened: Sequence[Listen]) -> None:
        """Send a table in its pieces, as `encoded`, and the sockets of the ports that are new in it."""
        for start in range(0, len(opened), MOST_FDS):
            some = opened[start : start + MOST_FDS]
            self.say(PassedSockets(tuple(some)), [self.sockets[listen].fileno() for listen in some])
        self.pending += 1
        for kind, body in change:
            self._send(kind, body)

    def signal(self, number: int) -> None:
        if self._process is not None:
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                pass  # it has just ended

    def close(self) -> None:
        """Kill the worker if there is one, and close the sockets. Idempotent."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._forget(self._process)
        self.release()

    def release(self) -> None:
        """Close the sockets; the worker has copies. Idempotent."""
        for sock in self.sockets.values():
            sock.close()
        self.sockets.clear()

    # ------------------------------------------------------------ from the loop

    def _on_readable(self) -> None:
        channel = self._channel
        if channel is None:
            return
        try:
            self._hear(channel, BYTES)
        except ChannelClosed:
            asyncio.get_running_loop().remove_reader(channel.fileno())  # the end of the process follows
        except BadFrame as error:
            self._fault = f"it said what no worker says ({error})"
            asyncio.get_running_loop().remove_reader(channel.fileno())
            self.signal(signal.SIGKILL)

    def _hear(self, channel: Channel, most: int) -> bool:
        """Read up to `most` bytes. Was there anything? Raises ChannelClosed, BadFrame."""
        frames, loop = channel.receive(most), asyncio.get_running_loop()
        for frame in frames:
            frame.close()  # a worker never sends descriptors; close all of them before one of the frames turns out to be bad
        for frame in frames:
            self.heard, self.doubts = loop.time(), 0
            message = decoded(frame)
            if isinstance(message, Ready):
                if message.version != VERSION:
                    raise BadFrame(f"it is of version {message.version}")
                self.serves = True
            try:
                self._on_message(self, message)
            except BadFrame:
                raise
            except Exception as error:  # noqa: BLE001 - the rest of the batch is processed all the same
                context = {"message": f"what worker {self.index} said", "exception": error, "part": Part.WORKERS}
                loop.call_exception_handler(context)
        return bool(frames)

    def _reap(self) -> None:
        process, channel = self._process, self._channel
        if process is None or process.poll() is None or channel is None:
            return
        try:
            while self._hear(channel, MOST_BODY):
                pass  # its last messages
        except (ChannelClosed, BadFrame):
            pass
        fault = self._fault
        self._forget(process)
        self._on_end(self, process.returncode, fault)

    def _forget(self, process: "subprocess.Popen[bytes]") -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        if self._channel is not None:
            loop.remove_reader(self._channel.fileno())
            self._channel.close()
        process.wait()
        self._process, self._channel, self._pidfd, self.serves, self.pending = None, None, -1, False, 0
