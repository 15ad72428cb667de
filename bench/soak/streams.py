"""Scripted streams: both ends of a connection through a proxy, what they do, and whether the result is right.

A client sends its script's number first; the server, which always speaks first, looks the script up. Each end checks every
byte against the pattern of the script as it comes (a lost, added or reordered byte is found where it is), and both keep
SHA-256 of what they sent and got.
"""

import asyncio
import errno
import hashlib
import random
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

GREETING = b"220 soak\r\n"
NUMBER = struct.Struct("!Q")
READ = 128 * 1024
END_SECONDS = 120.0  # a stream that takes longer is stuck: no script has pauses of more than a few seconds
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_RESETS = {errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN}  # ENOTCONN: a shutdown() after the reset


class End(StrEnum):
    """How a stream is meant to end."""

    TOGETHER = "both send and say FIN"
    CLIENT_FIRST = "client sends and says FIN, then the server"
    SERVER_FIRST = "server sends and says FIN, then the client"
    CLIENT_RESET = "client resets"
    SERVER_RESET = "server resets"


@dataclass(frozen=True)
class Script:
    """What one client and its server do. Sizes in bytes, pauses in seconds."""

    number: int
    end: End
    up: int  # client to server, after the number
    down: int  # server to client, after the greeting
    chunk: int  # most per send
    pause_up: float = 0.0  # the server's, now and then, before it reads on
    pause_down: float = 0.0  # the client's
    urgent: bool = False  # the client sends a byte out of band half way
    reset_at: int = 0  # bytes sent before the reset

    def __str__(self) -> str:
        return f"stream {self.number} ({self.end}; {self.up} up, {self.down} down, chunks of {self.chunk})"


def pattern(number: int) -> memoryview:
    """The text whose repetition is the endless stream of a number. It differs for each number."""
    return memoryview(random.Random(number).randbytes(65521))  # a prime, so that it never lines up with a buffer


@dataclass
class Half:
    """One end's account of a stream."""

    sent: int = 0
    got: int = 0
    sent_sha: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    got_sha: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    ended: str = ""  # "fin" or "reset", as the other end seemed to do it; "self" if this end reset
    wrong: str = ""  # the first byte that was not what it should be


class Peer:
    """One end of a connection: sends its pattern, checks what comes against the other's."""

    def __init__(self, sock: socket.socket, sends: int, expects: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._sends, self._expects = pattern(sends), pattern(expects)
        self.half = Half()

    async def send(self, size: int, chunk: int, *, urgent_at: int = -1) -> None:
        """Send the pattern. `urgent_at`: after so many bytes one is out of band. Raises OSError if the other end is gone."""
        half, text, end = self.half, self._sends, self.half.sent + size
        while half.sent < end:
            at, urgent = half.sent % len(text), half.sent == urgent_at
            stop = urgent_at if half.sent < urgent_at else end
            piece = text[at : at + (1 if urgent else min(chunk, stop - half.sent))]
            if urgent:
                await self._send_urgent(piece)
            else:
                await self._loop.sock_sendall(self._sock, piece)
            half.sent += len(piece)
            half.sent_sha.update(piece)

    async def _send_urgent(self, byte: memoryview) -> None:
        try:
            self._sock.send(byte, socket.MSG_OOB)
        except BlockingIOError:
            await self._loop.sock_sendall(self._sock, byte)

    async def read(self, pause: float) -> None:
        """Until the other end says FIN. Raises OSError when it resets."""
        half, text = self.half, self._expects
        reads = 0
        while data := await self._loop.sock_recv(self._sock, READ):
            self._check(data, text)
            half.got += len(data)
            half.got_sha.update(data)
            reads += 1
            if pause and reads % 8 == 1:
                await asyncio.sleep(pause)
        half.ended = "fin"

    def _check(self, data: bytes, text: memoryview) -> None:
        view, place = memoryview(data), self.half.got
        while view and not self.half.wrong:
            at = place % len(text)
            count = min(len(view), len(text) - at)
            if view[:count] != text[at : at + count]:
                self.half.wrong = f"byte {place} or one of the {count} behind it is not what was sent"
            view, place = view[count:], place + count

    def finish(self) -> None:
        self._sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._sock.close()
        self.half.ended = "self"


async def play(peer: Peer, script: Script, *, client: bool) -> None:
    """Play one end. Returns when it is over, however it ended; `peer.half` has the result."""
    mine = script.up if client else script.down
    pause = script.pause_down if client else script.pause_up
    first = End.CLIENT_FIRST if client else End.SERVER_FIRST
    last = End.SERVER_FIRST if client else End.CLIENT_FIRST
    resets = script.end == (End.CLIENT_RESET if client else End.SERVER_RESET)
    urgent_at = mine // 2 if client and script.urgent else -1
    try:
        if resets:
            await peer.send(min(script.reset_at, mine), script.chunk)
            peer.reset()
        elif script.end == first:
            await peer.send(mine, script.chunk, urgent_at=urgent_at)
            peer.finish()
            await peer.read(pause)
        elif script.end == last:
            await peer.read(pause)
            await peer.send(mine, script.chunk, urgent_at=urgent_at)
            peer.finish()
        else:
            async with asyncio.TaskGroup() as group:
                group.create_task(peer.read(pause))
                group.create_task(_send_and_finish(peer, mine, script.chunk, urgent_at))
    except* OSError as errors:
        codes = {error.errno for error in _leaves(errors)}
        peer.half.ended = "reset" if codes <= _RESETS else f"error {codes}"


async def _send_and_finish(peer: Peer, size: int, chunk: int, urgent_at: int) -> None:
    await peer.send(size, chunk, urgent_at=urgent_at)
    peer.finish()


def _leaves(group: BaseExceptionGroup[OSError]) -> list[OSError]:
    found: list[OSError] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def verdict(script: Script, client: Half, server: Half | None) -> list[str]:
    """What is wrong with the result of the stream, normally nothing. `server` is None if it was never reached."""
    if server is None:
        return [] if script.end == End.CLIENT_RESET else [f"no server was reached; the client saw {client.ended}"]
    found = [f"{who}: {half.wrong}" for who, half in (("client", client), ("server", server)) if half.wrong]
    for way, sender, receiver in (("up", client, server), ("down", server, client)):
        if receiver.got > sender.sent:
            found.append(f"{way}: {receiver.got} bytes of {sender.sent} arrived")
        if receiver.ended == "fin":
            if receiver.got < sender.sent:
                found.append(f"{way}: a clean FIN after {receiver.got} of {sender.sent} bytes")
            elif receiver.got_sha.digest() != sender.sent_sha.digest():
                found.append(f"{way}: SHA-256 differs")
            if sender.ended == "self":
                found.append(f"{way}: a reset arrived as a clean FIN")
        elif receiver.ended == "reset":
            if sender.ended != "self":
                found.append(f"{way}: a reset that nobody sent, after {receiver.got} of {sender.sent} bytes")
        elif receiver.ended != "self":
            found.append(f"{way}: ended by {receiver.ended or 'nothing'}")
    return found


def scripts(rng: random.Random, largest: int) -> Iterator[Script]:
    """An endless series of scripts, the same for the same `rng`. Half of them are small, and few have `largest` bytes."""
    ends = [End.TOGETHER, End.TOGETHER, End.CLIENT_FIRST, End.SERVER_FIRST, End.CLIENT_RESET, End.SERVER_RESET]
    while True:
        up, down = (int(largest ** rng.random() ** 1.5) if rng.random() > 0.1 else 0 for _ in "ud")
        chunk = rng.choice([1, 100, 1448, 16384, 65536, 1 << 20])
        if chunk < 1448:  # otherwise one stream of small segments would last for minutes
            up, down = min(up, chunk * 3000), min(down, chunk * 3000)
        end = rng.choice(ends)
        slow = rng.random() < 0.15
        yield Script(
            number=rng.getrandbits(63),
            end=end,
            up=up,
            down=down,
            chunk=chunk,
            pause_up=rng.random() / 20 if slow else 0.0,
            pause_down=rng.random() / 20 if slow else 0.0,
            urgent=rng.random() < 0.1,
            reset_at=rng.randrange(1 + (up if end == End.CLIENT_RESET else down)),
        )
