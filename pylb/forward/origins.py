"""Where this machine's pylb dials from, of the dials that might come back to it: one table for all its workers.

A dial to a port number that pylb listens on may reach pylb itself, by an address that the machine was given after the start or
by a firewall's rule, and the kernel gives it to any of the workers. So they share the table, in memory that main makes. It has
one place for each local port: a byte that says whose dial it is (0: nobody's), which is all that an accept looks at, and a
mark of the local address, for clients elsewhere have the same port numbers. Two dials from one port to different servers
share a place, and the later one has it: of a loop one more hop is then not seen, the next one is.

Nothing is locked: the byte is written after the mark, each by one store, and who reads both between two dials sees at worst a
mark that is not its own.
"""

import mmap
from hashlib import blake2b

from pylb.forward.admission import pack

PORTS = 65536
MARK = 8  # bytes
SIZE = PORTS * (1 + MARK)


class Origins:
    """As one worker sees it; `seat` is its number, 0 of a process that is alone. `memory`: SIZE bytes, if it is shared."""

    def __init__(self, seat: int, memory: mmap.mmap | None = None) -> None:
        whole = memoryview(mmap.mmap(-1, SIZE) if memory is None else memory)
        self.owners = whole[:PORTS]
        self._marks = whole[PORTS:].cast("Q")
        self._owner = seat + 1

    def add(self, ip: str, port: int) -> None:
        """We dial from there."""
        self.owners[port] = 0
        self._marks[port] = _mark(ip)
        self.owners[port] = self._owner

    def remove(self, ip: str, port: int) -> None:
        """Not any more. Idempotent, and another's dial from the same port is not touched."""
        if self.owners[port] == self._owner and self._marks[port] == _mark(ip):
            self.owners[port] = 0

    def has(self, ip: str, port: int) -> bool:
        return self.owners[port] != 0 and self._marks[port] == _mark(ip)

    def forget(self, seat: int) -> None:
        """Main: that worker is gone, and its dials with it."""
        self.owners[:] = bytes(self.owners).replace(bytes([seat + 1]), b"\0")


def _mark(ip: str) -> int:
    """The same in every process, which hash() is not."""
    return int.from_bytes(blake2b(pack(ip), digest_size=MARK).digest())
