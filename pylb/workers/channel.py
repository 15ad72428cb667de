"""One end of the control channel: whole frames over a Unix stream socket, with descriptors beside them (unix(7), SCM_RIGHTS).

A stream, not SEQPACKET, which fails for a table of 300 KB (EMSGSIZE). Nothing here waits: what the other end does not take is
queued.
A frame is magic, kind, length and CRC-32 in network order, then its body.
"""

import array
import os
import socket
from binascii import crc32
from collections import deque
from collections.abc import Sequence
from struct import Struct
from typing import NamedTuple

MOST_BODY = 64 << 20  # bytes
MOST_FDS = 250  # per frame (unix(7): 253)
_HEAD = Struct("!2sBBII")  # magic, kind, descriptors, length, CRC-32 of the body
_MAGIC = b"LB"
_CHUNK = 256 << 10


class ChannelClosed(Exception):  # noqa: N818 - a condition: the other process is gone
    """The other end is gone."""


class BadFrame(Exception):  # noqa: N818 - a condition that one line describes
    """The data is not one of our frames: nothing after it can be trusted."""


class Frame(NamedTuple):
    kind: int
    body: bytes
    fds: list[int]  # to be closed by whoever takes them

    def close(self) -> None:
        """Close the descriptors that nobody has taken out of it."""
        while self.fds:
            os.close(self.fds.pop())


class _Waiting:
    """The unsent rest of a frame. Its descriptors are duplicates: the caller may close its own."""

    def __init__(self, data: memoryview, fds: Sequence[int]) -> None:
        """Raises OSError."""
        self.data = data
        self.fds: list[int] = []
        try:
            for fd in fds:
                self.fds.append(os.dup(fd))
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


class Channel:
    """Owns `sock`."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._out: deque[_Waiting] = deque()
        self._in = bytearray()
        self._fds: deque[int] = deque()
        self.backlog = 0  # bytes that wait to be sent

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        """Idempotent."""
        self._sock.close()
        for waiting in self._out:
            waiting.close()
        self._out.clear()
        self.backlog = 0
        while self._fds:
            os.close(self._fds.popleft())

    # ------------------------------------------------------------ out

    def send(self, kind: int, body: bytes, fds: Sequence[int] = ()) -> None:
        """Send now; what does not fit is sent by a later `flush`. Raises ChannelClosed."""
        if len(body) > MOST_BODY or len(fds) > MOST_FDS:
            raise ValueError(f"a frame of {len(body)} bytes and {len(fds)} descriptors is too large")
        data = memoryview(_HEAD.pack(_MAGIC, kind, len(fds), len(body), crc32(body)) + body)
        if not self._out and (sent := self._send(data, fds)):
            data, fds = data[sent:], ()  # the descriptors went with the first byte
        if not data:
            return
        try:
            self._out.append(_Waiting(data, fds))
        except OSError as error:
            # Half a frame is worse than none: the other end sees the channel close.
            self._sock.shutdown(socket.SHUT_RDWR)
            raise ChannelClosed(f"a frame's descriptors could not be duplicated: {error.strerror}") from None
        self.backlog += len(data)

    def flush(self) -> None:
        """Raises ChannelClosed."""
        while self._out:
            waiting = self._out[0]
            sent = self._send(waiting.data, waiting.fds)
            if not sent:
                return
            waiting.close()
            self.backlog -= sent
            waiting.data = waiting.data[sent:]
            if not waiting.data:
                self._out.popleft()

    def _send(self, data: memoryview, fds: Sequence[int]) -> int:
        """How many bytes were taken, 0 if none can be for now. Raises ChannelClosed."""
        try:
            if not fds:
                return self._sock.send(data, socket.MSG_NOSIGNAL)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
            return self._sock.sendmsg([data], [rights], socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ChannelClosed(error.strerror) from None

    # ------------------------------------------------------------ in

    def receive(self, most: int = MOST_BODY) -> list[Frame]:
        """All frames that are complete after reading at most `most` bytes; the descriptor stays readable while there are more.

        Raises ChannelClosed once nothing more can come, BadFrame.
        """
        closed = False
        try:
            while most > 0:
                most -= self._read(min(most, _CHUNK))
        except BlockingIOError:
            pass
        except (OSError, ChannelClosed):
            closed = True
        frames: list[Frame] = []
        try:
            self._frames(frames)
        except BadFrame:
            for frame in frames:  # the earlier ones: nobody gets them
                frame.close()
            raise
        if closed and not frames:
            raise ChannelClosed("end of the channel")
        return frames  # the next call meets the end again

    def _read(self, most: int) -> int:
        """How many bytes were read. Raises BlockingIOError, OSError, ChannelClosed."""
        room = socket.CMSG_SPACE(MOST_FDS * array.array("i").itemsize)
        data, ancillary, flags, _ = self._sock.recvmsg(most, room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                found = array.array("i")
                found.frombytes(content[: len(content) - len(content) % found.itemsize])
                self._fds.extend(found)
        if flags & socket.MSG_CTRUNC:
            raise BadFrame("descriptors were lost: is the limit of open files reached?")
        if not data:
            raise ChannelClosed
        self._in += data
        return len(data)

    def _frames(self, frames: list[Frame]) -> None:
        """Append the complete ones. Raises BadFrame."""
        start = 0
        while len(self._in) - start >= _HEAD.size:
            magic, kind, count, length, checksum = _HEAD.unpack_from(self._in, start)
            if magic != _MAGIC or length > MOST_BODY:
                raise BadFrame(f"{bytes(self._in[start : start + _HEAD.size])!r} is not the head of a frame")
            end = start + _HEAD.size + length
            if len(self._in) < end:
                break
            body = bytes(self._in[start + _HEAD.size : end])
            if crc32(body) != checksum:
                raise BadFrame(f"a frame of {length} bytes has a wrong checksum")
            if len(self._fds) < count:
                raise BadFrame(f"a frame came with {len(self._fds)} of its {count} descriptors")
            frames.append(Frame(kind, body, [self._fds.popleft() for _ in range(count)]))
            start = end
        del self._in[:start]
