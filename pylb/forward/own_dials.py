"""The local addresses of those dials that may come back to this machine's pylb: one table for all its workers.

A dial to a port number that pylb listens on may reach pylb itself, by an address that the machine was given after the start or
by a firewall rule, and the kernel gives the connection to any of the workers. So they share the table, in memory made by main.
It has one entry per local port: a byte with the number of the worker that dials, which is all that an accept looks at, and a
hash of the local address, because clients elsewhere use the same port numbers. Two dials from one port to different servers
share an entry, and the later one wins: if the earlier one is a loop, it goes one hop further before it is noticed.

No locks: the byte is written after the hash, each by one store. A reader between two dials sees at worst a hash that does not
belong to the byte.
"""

import mmap

from pylb.forward.admission import pack

PORTS = 65536
MARK = 8  # bytes
SIZE = PORTS * (1 + MARK)


class OwnDials:
    """One worker's view; `worker` is its number, 0 for a process without workers. `memory`: SIZE bytes, if it is shared."""

    def __init__(self, worker: int, memory: mmap.mmap | None = None) -> None:
        whole = memoryview(mmap.mmap(-1, SIZE) if memory is None else memory)
        self.owners = whole[:PORTS]
        self._marks = whole[PORTS:].cast("Q")
        self._owner = worker + 1

    def add(self, ip: str, port: int) -> None:
        """Note that we dial from there."""
        self.owners[port] = 0
        self._marks[port] = _mark(ip)
        self.owners[port] = self._owner

    def remove(self, ip: str, port: int) -> None:
        """The dial is over. Idempotent, and another worker's dial from the same port is not touched."""
        if self.owners[port] == self._owner and self._marks[port] == _mark(ip):
            self.owners[port] = 0

    def has(self, ip: str, port: int) -> bool:
        return self.owners[port] != 0 and self._marks[port] == _mark(ip)

    def forget(self, worker: int) -> None:
        """Called by main: that worker is gone, and its dials with it."""
        self.owners[:] = bytes(self.owners).replace(bytes([worker + 1]), b"\0")


def _mark(ip: str) -> int:
    """A hash that is the same in every process, unlike hash()."""
    from hashlib import blake2b  # noqa: PLC0415 - it loads OpenSSL: 4 MB, which workers that never dial pylb's own ports save

    return int.from_bytes(blake2b(pack(ip), digest_size=MARK).digest())
