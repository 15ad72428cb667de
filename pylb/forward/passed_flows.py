"""Flows pass from one pylb to the next with their sockets: the server sees the same address, the client the same server.

The old process reads nothing more, neither from clients nor from servers, so the kernel holds what comes meanwhile. Each flow
is described as JSON, beside its descriptor. The next process takes the flows of a port before it reads from the port: never
two readers of one socket, which would split a client's datagrams between them. If it fails, the old one reads on.
"""

import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from socket import SOCK_DGRAM, SocketType
from typing import Any

from pylb.core.address import Listen, written_address, written_listen
from pylb.core.flow import FlowBatch, FlowState
from pylb.forward.datagram_sockets import Client
from pylb.forward.flow import DatagramPort, Flow

MOST = 200  # flows of a message


def described(flows: Iterable[Flow], now: float) -> Iterator[FlowBatch]:
    """Describe all flows that have a server, in batches. The descriptors stay the flows' own."""
    some: list[Mapping[str, Any]] = []
    fds: list[int] = []
    for flow in list(flows):  # each batch is sent before the next is asked for
        if flow.server is None or flow.port is None:
            continue
        some.append(_described(flow, flow.port, now))
        fds.append(flow.fd)
        if len(some) == MOST:
            yield some, fds
            some, fds = [], []
    if some:
        yield some, fds


def _described(flow: Flow, port: DatagramPort, now: float) -> Mapping[str, Any]:
    server = flow.server.server if flow.server is not None else None
    return {
        "frontend": str(flow.frontend.frontend.listen),
        "port": port.listen.port,
        "client": list(flow.client),
        "local": flow.local.hex(),
        "server": server.name if server is not None else "",
        "address": str(server.address) if server is not None else "",
        "state": str(flow.state),
        "answered": flow.answered,
        "single": flow.single,
        "header": flow.header.hex(),
        "moved": [flow.datagrams_in, flow.datagrams_out, flow.bytes_in, flow.bytes_out],
        "age": now - flow.accepted,
        "quiet": now - flow.quiet_since,
    }


class PassedFlow:
    """A flow as it came. Whoever takes `sock` owns it."""

    __slots__ = (
        "address",
        "age",
        "answered",
        "client",
        "header",
        "local",
        "moved",
        "port",
        "quiet",
        "server",
        "single",
        "sock",
        "state",
    )

    def __init__(self, said: Mapping[str, Any], sock: SocketType) -> None:
        """Raises ValueError, TypeError or LookupError: another version writes it differently."""
        host, port, *rest = said["client"]
        self.client: Client = (
            (_text(host), _whole(port), _whole(rest[0]), _whole(rest[1])) if rest else (_text(host), _whole(port))
        )
        self.local = bytes.fromhex(said["local"])
        if len(self.local) not in (0, 4, 16):
            raise ValueError(f"{self.local!r} is not an address")
        self.port = _whole(said["port"])
        self.server, self.address = _text(said["server"]), written_address(said["address"])
        self.state = FlowState(said["state"])
        if self.state is FlowState.CLOSED:
            raise ValueError("it is closed")
        self.answered, self.single = said["answered"] is True, said["single"] is True
        self.header = bytes.fromhex(said["header"])
        self.moved = _four(said["moved"])
        self.age, self.quiet = (max(0.0, float(said[key])) for key in ("age", "quiet"))
        self.sock = sock


class PassedFlows:
    """Flows that came from the previous pylb, until the ports are open that they belong to."""

    def __init__(self) -> None:
        self._flows: dict[Listen, list[PassedFlow]] = {}

    def add(self, flows: Sequence[Any], fds: list[int]) -> None:
        """Takes all descriptors; those of flows that cannot be read are closed."""
        for number, fd in enumerate(fds):
            sock = None
            try:
                sock = SocketType(-1, -1, -1, fd)
                if sock.type != SOCK_DGRAM:
                    raise ValueError("it is not a UDP socket")  # noqa: TRY301 - one place closes it
                os.set_inheritable(fd, False)
                sock.setblocking(False)
                said = flows[number]
                listen = written_listen(said["frontend"])
                self._flows.setdefault(listen, []).append(PassedFlow(said, sock))
            except (OSError, ValueError, TypeError, LookupError, AttributeError):
                _close(sock, fd)

    def take(self, listen: Listen) -> list[PassedFlow]:
        """Take those of a frontend out."""
        return self._flows.pop(listen, [])

    def close(self) -> int:
        """Close those that nobody has taken. Returns how many."""
        left = [flow for flows in self._flows.values() for flow in flows]
        self._flows.clear()
        for flow in left:
            flow.sock.close()
        return len(left)


def _close(sock: SocketType | None, fd: int) -> None:
    try:
        if sock is not None:
            sock.close()
        else:
            os.close(fd)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not a text")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r:.40} is not a number")
    return value


def _four(value: Any) -> tuple[int, int, int, int]:
    first, second, third, fourth = map(_whole, value)
    return first, second, third, fourth
