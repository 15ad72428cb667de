"""The hot path: move bytes from one half to the other until one side would block.

One function serves both directions. It returns an outcome and decides nothing about the session's life.

Why a short read is an end: both sockets are registered edge-triggered, so whatever arrives after the read that came back short
raises a new event. It is not an end when the event carried RDHUP, HUP, ERR or PRI (`read_on`): what it announced may sit right
behind the short read, and no further event will tell (measured; pitfalls of every proxy before this one).

Why a short read is the FIN if RDHUP came without ERR and PRI: the kernel reports RDHUP once the FIN is behind the last byte in
the receive queue (tcp_fin, net/ipv4/tcp_input.c), and from there a read stops early only at an urgent byte, which PRI reports,
or at the FIN itself, which it takes with the last bytes (tcp_recvmsg_locked, net/ipv4/tcp.c). A reset that comes later is an
event of its own. So nobody has to read once more to get the 0: a system call less for a connection that ends with its answer.
"""

import errno
import os
from collections.abc import Callable
from os import SPLICE_F_MOVE, SPLICE_F_NONBLOCK
from select import EPOLLERR, EPOLLPRI, EPOLLRDHUP
from socket import MSG_DONTWAIT, MSG_PEEK

from pylb.forward.counters import Counters
from pylb.forward.linger import arm
from pylb.forward.pipes import SIZE, Pipe, Pipes
from pylb.forward.run_queue import RunQueue
from pylb.forward.session import Half
from pylb.forward.sockets import unbound_unsent

WAIT = 0  # nothing more to do before the next event; the others are true
FIN = 1  # the source has sent its last byte, and all before it is written to the destination or waits for it
SOURCE_RESET = 2  # the source is in error; what came before that was read
DESTINATION_RESET = 3
AGAIN = 4  # it moved as much as it may for now; there may be more

_ENDING = EPOLLRDHUP | EPOLLERR | EPOLLPRI
READ = 64 * 1024  # one recv; also the most that waits in memory for a blocked destination
READ_STALLED = 16 * 1024  # the same for a destination that was blocked before
FIRST = READ  # bytes moved at an event; the run queue moves the rest
FULL_READS = 4  # in a row, then splice: with fewer the switch costs more than it saves
# Bytes: more than the kernels of both sides hold for a reader that stalls (tcp_wmem and tcp_rmem, 4 and 6 MiB at most).
PROVEN = 16 << 20
SHORT_SPLICE = 16 * 1024  # a splice that moves less is not faster than recv and send
# Errors of splice itself (splice(2); a seccomp filter or a security module, capabilities(7)) that say nothing about the peer.
# Any other error is the connection's. It must not be read again: the kernel reports it once, and the next read returns 0.
UNSPLICEABLE = frozenset(
    (
        errno.EACCES,
        errno.EBADF,
        errno.EINVAL,
        errno.ENOMEM,
        errno.ENOSYS,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.ESPIPE,
    )
)


class Relay:
    """What all sessions of an engine share on the hot path: one receive buffer and the pipes."""

    def __init__(self, run_queue: RunQueue, counters: Counters, pipes: Pipes, *, splice: bool, max_buffered: int) -> None:
        self._buffer = memoryview(bytearray(READ))
        self._run_queue = run_queue
        self._counters = counters
        self.pipes = pipes
        self._full_reads = FULL_READS if splice else 1 << 62
        self._max_buffered = max_buffered
        self.pump: Callable[[Half, int], int] = self._pump  # or _pump_unbuffered; chosen when the sum changes, not per chunk

    # One tight function for both directions; every branch is an outcome.
    def _pump(self, source: Half, most: int) -> int:  # noqa: C901, PLR0912
        """Move about `most` bytes from `source` to its peer; at an event that is FIRST.

        It never reads while the peer is blocked: that is the back-pressure.
        """
        destination = source.peer
        if destination is None:
            return WAIT
        if source.bulk:
            if most == FIRST:
                return AGAIN
            if source.pipe is not None:
                return self._splice(source, most)
        if destination.blocked:
            return WAIT
        buffer = self._buffer
        want = READ_STALLED if destination.stalled else READ
        while True:
            try:
                count = source.sock.recv_into(buffer, want, MSG_DONTWAIT)
            except BlockingIOError:
                return WAIT
            except OSError:
                return SOURCE_RESET
            if not count:
                return SOURCE_RESET if source.broken else FIN
            source.received += count
            try:
                sent = destination.sock.send(buffer[:count], MSG_DONTWAIT)
            except BlockingIOError:
                sent = 0
            except OSError:
                return DESTINATION_RESET
            if sent != count:
                destination.pending = bytes(buffer[sent:count])
                self._hold(destination, count - sent)
                return WAIT
            if count < want:
                if source.bulk:
                    source.full_reads = 0
                    source.bulk = False
                if not source.read_on:
                    return WAIT
                if source.read_on & _ENDING == EPOLLRDHUP:
                    return SOURCE_RESET if source.broken else FIN
            else:
                source.bulk = True
                source.full_reads += 1
                if not destination.armed:
                    arm(destination)
                self._run_queue.budget -= count
                if source.full_reads >= self._full_reads and self._start_splice(source, destination):
                    return self._splice(source, most)
            most -= count
            if most <= 0:
                return AGAIN

    def _pump_unbuffered(self, source: Half, most: int) -> int:
        """Like `_pump` while max_buffered is reached: nothing is read from the source before the destination has taken it."""
        destination = source.peer
        if destination is None or destination.blocked:
            return WAIT
        self.release(source)  # it is empty, or the destination would be blocked
        buffer = self._buffer
        while most > 0:
            try:
                count = source.sock.recv_into(buffer, READ_STALLED, MSG_DONTWAIT | MSG_PEEK)
            except BlockingIOError:
                return WAIT
            except OSError:
                return SOURCE_RESET
            if not count:
                return SOURCE_RESET if source.broken else FIN
            try:
                sent = destination.sock.send(buffer[:count], MSG_DONTWAIT)
            except BlockingIOError:
                sent = 0
            except OSError:
                return DESTINATION_RESET
            if sent:
                source.received += source.sock.recv_into(buffer, sent, MSG_DONTWAIT)
            if sent != count:
                self._hold(destination, 0)
                return WAIT
            if count < READ_STALLED and not source.read_on:
                return WAIT
            self._run_queue.budget -= count
            most -= count
        return AGAIN

    def _hold(self, destination: Half, waiting: int) -> None:
        """`destination` is blocked, and `waiting` bytes wait for it."""
        destination.blocked = destination.stalled = True
        self._count(destination, waiting)

    def _count(self, destination: Half, waiting: int) -> None:
        self._counters.buffered += waiting - destination.held
        destination.held = waiting
        self.pump = self._pump_unbuffered if self._counters.buffered >= self._max_buffered else self._pump

    def flush(self, destination: Half) -> int:
        """Write what waits for `destination`: WAIT and `blocked` cleared, WAIT and still blocked, or DESTINATION_RESET."""
        pending, source = destination.pending, destination.peer
        behind = source.pipe.count if source is not None and source.pipe is not None else 0
        if pending is not None:
            try:
                sent = destination.sock.send(pending, MSG_DONTWAIT)
            except BlockingIOError:
                return WAIT
            except OSError:
                return DESTINATION_RESET
            if sent < len(pending):
                destination.pending = pending[sent:]
                self._hold(destination, len(pending) - sent + behind)
                return WAIT
            destination.pending = None
        if source is not None and behind:
            return self._drain(source, destination)
        self.free(destination)
        return WAIT

    def free(self, destination: Half) -> None:
        """Nothing waits for `destination` any more. Idempotent."""
        destination.blocked = False
        self._count(destination, 0)

    def release(self, half: Half) -> None:
        """Give back the pipe of `half`, if any. Idempotent. A pipe with bytes in it is destroyed by the pool."""
        pipe = half.pipe
        if pipe is not None:
            half.pipe = None
            self._counters.bytes_spliced += half.received - pipe.mark
            self.pipes.give_back(pipe)

    def _start_splice(self, source: Half, destination: Half) -> bool:
        if source.copies:
            source.full_reads = 0
            return False
        pipe = self.pipes.borrow()
        if pipe is None:
            source.full_reads = 0  # splice is tried again after as many full reads
            self._counters.pipe_fallbacks += 1
            return False
        pipe.mark = source.received
        source.pipe = pipe  # from here on it is given back with the session, whatever fails below
        # SPLICE_F_NONBLOCK concerns the pipe only: without O_NONBLOCK on the socket splice blocks (measured).
        os.set_blocking(source.fd, False)
        os.set_blocking(destination.fd, False)
        return True

    def _splice(self, source: Half, most: int) -> int:
        """From socket to pipe to socket. EAGAIN on the first step means "pipe full" or "socket empty": see the pipe's count."""
        destination, pipe = source.peer, source.pipe
        if destination is None or pipe is None or destination.blocked:
            return WAIT
        if source.copies:
            return self._back_to_recv(source)
        if source.received > PROVEN and not destination.reads:
            destination.reads = True
            unbound_unsent(destination.sock)
        short = 0
        while True:
            try:
                count = os.splice(source.fd, pipe.write_fd, SIZE, flags=SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
            except BlockingIOError:
                # The pipe is empty here (see below), so the source has no data, or has an urgent byte next.
                return self._back_to_recv(source) if source.read_on else WAIT
            except OSError as error:
                return self._give_up_splice(source) if error.errno in UNSPLICEABLE else SOURCE_RESET
            if not count:
                return self._back_to_recv(source)
            pipe.count += count
            source.received += count
            self._run_queue.budget -= count
            outcome = self._drain(source, destination)
            if outcome or destination.blocked:
                return outcome
            short = short + 1 if count < SHORT_SPLICE else 0
            if short > 2 or source.copies:
                return self._back_to_recv(source)
            most -= count
            if most <= 0:
                return AGAIN

    def _back_to_recv(self, source: Half) -> int:
        """Let recv find out whether there is more; the pipe is empty.

        Only recv can: splice never passes an urgent byte. It says EAGAIN before one, and 0 if a FIN follows (tcp_read_sock and
        tcp_splice_read; measured).
        """
        self.release(source)
        source.full_reads = 0
        return AGAIN

    def _give_up_splice(self, source: Half) -> int:
        """Splice is forbidden or unknown here: this direction uses recv and send for good, and they report what is wrong."""
        self._counters.pipe_fallbacks += 1
        source.copies = True
        return AGAIN

    def _drain(self, source: Half, destination: Half) -> int:
        """Write all that is in the pipe, not only what the last read brought. Then it is empty or `destination` is blocked."""
        pipe = source.pipe
        if pipe is None:
            return WAIT
        if source.copies:
            return self._drain_by_copy(pipe, destination)
        while pipe.count:
            try:
                pipe.count -= os.splice(pipe.read_fd, destination.fd, pipe.count, flags=SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
            except BlockingIOError:
                self._hold(destination, pipe.count)
                return WAIT
            except OSError as error:
                if error.errno not in UNSPLICEABLE:
                    return DESTINATION_RESET
                self._give_up_splice(source)
                return self._drain_by_copy(pipe, destination)
        if destination.blocked:
            self.free(destination)
        return WAIT

    def _drain_by_copy(self, pipe: Pipe, destination: Half) -> int:
        """Like `_drain`, after splice has failed with bytes in the pipe."""
        while pipe.count:
            data = os.read(pipe.read_fd, min(READ, pipe.count))
            pipe.count -= len(data)
            try:
                sent = destination.sock.send(data, MSG_DONTWAIT)
            except BlockingIOError:
                sent = 0
            except OSError:
                return DESTINATION_RESET
            if sent != len(data):
                destination.pending = data[sent:]
                self._hold(destination, len(data) - sent + pipe.count)
                return WAIT
        if destination.blocked:
            self.free(destination)
        return WAIT
