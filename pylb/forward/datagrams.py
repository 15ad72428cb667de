"""The hot path of UDP: datagrams and trains from a listening socket to the flows' sockets, and back.

Boundaries are never moved: what came as one datagram leaves as one, an empty one too. What a full buffer does not take is
dropped and counted; nothing is queued here. Both functions go on until the kernel has nothing more, or until their share of the
turn is spent and the run queue calls them again. All sockets are level-triggered, so nothing is lost if they stop earlier.
"""

import errno
from typing import Protocol

from pylb.forward.datagram_sockets import (
    ANCILLARY,
    BUFFER,
    FULL,
    IP_PKTINFO,
    IPV6_PKTINFO,
    NO_SEGMENTS,
    TRUNCATED,
    UDP_GRO,
    Client,
    segments,
    unpack_size,
)
from pylb.forward.flow import DatagramPort, Flow
from pylb.forward.run_queue import RunQueue

BULK = 1000  # bytes; a flow of larger datagrams is a stream: more of them are read in a row
DATAGRAM = 8 * 1024  # units, besides its bytes: a system call that moves a datagram or a train


class FlowCalls(Protocol):
    """The part of `Flows` that is needed here."""

    def find(self, port: DatagramPort, flow: Flow | None, client: Client, local: bytes, count: int) -> Flow | None: ...

    def on_answer(self, flow: Flow) -> None: ...

    def on_error(self, flow: Flow, error: int) -> None: ...

    def rehome(self, flow: Flow) -> None: ...

    def on_header_sent(self, flow: Flow) -> None: ...

    def fault(self, flow: Flow, error: Exception) -> None: ...

    def on_port_error(self, port: DatagramPort, error: OSError) -> None: ...

    def dropped(self, port: DatagramPort | None, reason: str, count: int) -> None: ...


class Datagrams:
    """What all flows of an engine share: one buffer."""

    def __init__(self, run_queue: RunQueue, flows: FlowCalls) -> None:
        self._run_queue = run_queue
        self._flows = flows
        self._buffer = memoryview(bytearray(BUFFER))
        self._buffers = [self._buffer]

    def from_clients(self, port: DatagramPort, share: int) -> bool:  # noqa: C901, PLR0912 - calls would be paid per datagram
        """Pass on what clients sent to `port`. True: there may be more."""
        run_queue, flows, buffer, buffers = self._run_queue, port.flows, self._buffer, self._buffers
        receive = port.sock.recvmsg_into
        end = run_queue.budget - share
        while run_queue.budget > end:
            try:
                count, ancillary, flags, client = receive(buffers, ANCILLARY)
            except BlockingIOError:
                return False
            except OSError as error:
                self._flows.on_port_error(port, error)
                return False
            run_queue.budget -= count + DATAGRAM
            size, local = 0, b""
            for _, kind, data in ancillary:
                if kind == IP_PKTINFO:
                    local = data[4:8]  # ipi_spec_dst: ours, even if the datagram was a broadcast
                elif kind == UDP_GRO:
                    size = unpack_size(data)[0]
                elif kind == IPV6_PKTINFO and not local:  # of a v4-mapped client both come, in either order
                    local = data[:16]
            if flags & TRUNCATED or not client[1]:
                self._flows.dropped(port, "truncated" if flags & TRUNCATED else "source_port", 1)
                continue
            flow = flows.get((client, local))
            if flow is None or flow.check_in:
                flow = self._flows.find(port, flow, client, local, _number(count, size))
                if flow is None:
                    continue
            sock = flow.sock
            try:
                if flow.header or flow.single or sock is None:
                    number, count = self._slowly_to_server(flow, count, size)
                elif not size:
                    sock.send(buffer[:count])
                    number = 1
                else:
                    sock.sendmsg([buffer[:count]], [segments(size)])
                    number = -(-count // size)
            except OSError as error:
                number, count = self._again_to_server(port, flow, count, size, error)
            except Exception as error:  # noqa: BLE001 - the boundary of one flow: the others of this port go on
                number, count = self._fault(port, flow, count, size, error)
            flow.datagrams_in += number
            flow.bytes_in += count
        return True

    def from_server(self, flow: Flow, share: int) -> bool:  # noqa: C901 - as above
        """Pass on what the server sent to `flow`. True: there may be more."""
        sock, port, run_queue, buffer, buffers = flow.sock, flow.port, self._run_queue, self._buffer, self._buffers
        if sock is None or port is None:
            return False
        receive, send = sock.recvmsg_into, port.sock.sendmsg
        end = run_queue.budget - share
        while run_queue.budget > end:
            try:
                count, ancillary, flags, _ = receive(buffers, ANCILLARY)
            except BlockingIOError:
                return False
            except OSError as error:
                run_queue.budget -= DATAGRAM
                self._flows.on_error(flow, error.errno or errno.EIO)
                if flow.sock is not sock:
                    return False
                continue
            run_queue.budget -= count + DATAGRAM
            if flags & TRUNCATED:
                self._flows.dropped(port, "truncated", 1)
                continue
            size = unpack_size(ancillary[0][2])[0] if ancillary else 0
            try:
                if not size:
                    send([buffer[:count]], flow.reply, 0, flow.client)
                    number = 1
                elif flow.single:
                    number, count = self._singly_to_client(flow, count, size)
                else:
                    send([buffer[:count]], [*flow.reply, segments(size)], 0, flow.client)
                    number = -(-count // size)
            except OSError as error:
                number, count = self._again_to_client(flow, count, size, error)
            flow.datagrams_out += number
            flow.bytes_out += count
            if flow.check_out:
                self._flows.on_answer(flow)
                if flow.sock is not sock:
                    return False
            if count < BULK:
                return False  # most likely there is no more, and to ask costs a tenth of a round trip; epoll reports the others
        return True

    # ------------------------------------------------------------ slow ways to send: each returns how many datagrams and bytes

    def _fault(self, port: DatagramPort, flow: Flow, count: int, size: int, error: Exception) -> tuple[int, int]:
        self._flows.fault(flow, error)
        self._flows.dropped(port, "fault", _number(count, size))
        return 0, 0

    def _again_to_server(self, port: DatagramPort, flow: Flow, count: int, size: int, error: OSError) -> tuple[int, int]:
        """A datagram or a train was not sent. Never raises."""
        try:
            return self._retry(flow, count, size, error)
        except Exception as bug:  # noqa: BLE001 - as above
            return self._fault(port, flow, count, size, bug)

    def _retry(self, flow: Flow, count: int, size: int, error: OSError) -> tuple[int, int]:
        if error.errno in FULL:
            self._flows.dropped(flow.port, "buffer_full", _number(count, size))
            return 0, 0
        if not (size and error.errno in NO_SEGMENTS):
            # An ICMP message about an earlier datagram, which the kernel reports here. It did not send this one.
            self._flows.on_error(flow, error.errno or errno.EIO)
            self._flows.rehome(flow)
            return self._slowly_to_server(flow, count, size)
        sent = self._slowly_to_server(flow, count, size)
        flow.single |= sent[0] > 0  # else it was not the segmentation
        return sent

    def _slowly_to_server(self, flow: Flow, count: int, size: int) -> tuple[int, int]:
        """Datagram by datagram, behind the PROXY header where one is due."""
        number = total = 0
        for one in self._cut(count, size):
            if self._send(flow, one):
                number += 1
                total += len(one)
        return number, total

    def _send(self, flow: Flow, one: memoryview) -> bool:
        reason = "no_server"
        for _ in range(2):  # the first error may be an earlier datagram's
            if flow.sock is None:
                break
            try:
                if flow.header:
                    flow.sock.sendmsg([flow.header, one])
                    self._flows.on_header_sent(flow)
                else:
                    flow.sock.send(one)
            except OSError as error:
                if error.errno in FULL:
                    reason = "buffer_full"
                    break
                if error.errno == errno.EMSGSIZE:
                    reason = "too_large"
                    continue
                self._flows.on_error(flow, error.errno or errno.EIO)
                self._flows.rehome(flow)
            else:
                return True
        self._flows.dropped(flow.port, reason, 1)
        return False

    def _again_to_client(self, flow: Flow, count: int, size: int, error: OSError) -> tuple[int, int]:
        if size and error.errno in NO_SEGMENTS:
            sent = self._singly_to_client(flow, count, size)
            flow.single |= sent[0] > 0
            return sent
        self._flows.dropped(flow.port, _why(error), _number(count, size))
        return 0, 0

    def _singly_to_client(self, flow: Flow, count: int, size: int) -> tuple[int, int]:
        number, total, port = 0, 0, flow.port
        if port is None:
            return 0, 0
        for one in self._cut(count, size):
            try:
                port.sock.sendmsg([one], flow.reply, 0, flow.client)
            except OSError as error:
                self._flows.dropped(port, _why(error), 1)
            else:
                number += 1
                total += len(one)
        return number, total

    def _cut(self, count: int, size: int) -> list[memoryview]:
        """The datagrams of a block."""
        if not size:
            return [self._buffer[:count]]
        return [self._buffer[start : min(start + size, count)] for start in range(0, count, size)]


def _number(count: int, size: int) -> int:
    """How many datagrams a block of `count` bytes is."""
    return -(-count // size) if size else 1


def _why(error: OSError) -> str:
    """The reason under which an answer counts as dropped: a full buffer, or our address or the route to the client is gone."""
    if error.errno in FULL:
        return "buffer_full"
    return "too_large" if error.errno == errno.EMSGSIZE else "gone"
