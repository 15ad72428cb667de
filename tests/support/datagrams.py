"""An engine with frontends of UDP, driven by hand: clients and servers are sockets of the test.

The identity that every test checks: what was sent to a frontend was relayed, or counted as dropped, by pylb or by the kernel.
"""

import select
import socket
import struct
from collections import Counter

from pylb.core.address import Address, Listen
from pylb.core.policy import Policy
from pylb.core.table import Server
from pylb.forward.counters import FrontendCounters
from pylb.forward.flow import Flow
from tests.support.drive import Drive
from tests.support.ports import free_port

SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104


class DatagramPeer:
    """A client or a server."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)
        self.sent = 0

    @property
    def address(self) -> Address:
        return Address(*self.sock.getsockname()[:2], "udp")

    def send(self, data: bytes, to: tuple[str, int] | None = None, size: int = 0) -> None:
        """`size`: the data is a train of datagrams of that size."""
        items = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", size))] if size else []
        self.sock.sendmsg([data], items, 0, *([to] if to else []))
        self.sent += -(-len(data) // size) if size else 1

    def got(self) -> list[tuple[bytes, tuple[str, int]]]:
        """All that waits, each with its source."""
        found = []
        while True:
            try:
                data, source = self.sock.recvfrom(70000)
            except BlockingIOError:
                return found
            found.append((data, source[:2]))

    def texts(self) -> list[bytes]:
        return [data for data, _ in self.got()]

    def answer(self) -> list[bytes]:
        """Send everything back to where it came from."""
        found = self.got()
        for data, source in found:
            self.send(data, source)
        return [data for data, _ in found]


class DatagramDrive(Drive):
    """A Drive with peers of UDP."""

    def __init__(self, **more: int) -> None:
        super().__init__(splice=False, **more)
        self.socks: list[socket.socket] = []
        self.sent_to: dict[Listen, list[DatagramPeer]] = {}

    def server(self, ip: str = "127.0.0.1", *, rcvbuf: int = 0) -> DatagramPeer:
        sock = self._sock(ip)
        if rcvbuf:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        sock.bind((ip, 0))
        return DatagramPeer(sock)

    def nobody_there(self) -> Address:
        """An address that refuses, and that nobody else takes: its socket is connected elsewhere."""
        sock = self._sock("127.0.0.1")
        sock.bind(("127.0.0.1", 0))
        sock.connect(("127.0.0.1", 9))
        return Address(*sock.getsockname(), "udp")

    def client(self, listen: Listen, ip: str = "", source: str = "") -> DatagramPeer:
        """A connected one: it gets only answers from the address that it called."""
        ip = ip or ("127.0.0.1" if listen.ip == "*" else listen.ip)
        sock = self._sock(ip)
        if source:
            sock.bind((source, 0))
        sock.connect((ip, listen.port))
        peer = DatagramPeer(sock)
        self.sent_to.setdefault(listen, []).append(peer)
        return peer

    def serve_udp(self, *servers: Server | DatagramPeer, policy: Policy | None = None, listen: Listen | None = None) -> Listen:
        named = [one if isinstance(one, Server) else Server("abcdef"[place], one.address) for place, one in enumerate(servers)]
        return self.serve(*named, policy=policy, listen=listen or Listen("udp", "127.0.0.1", free_port()))

    def settle(self) -> None:
        """Until the engine has read all that there is."""
        while self.engine.on_ready() or select.select([self.engine], [], [], 0)[0]:
            pass

    def exchange(self, client: DatagramPeer, server: DatagramPeer, data: bytes = b"ping") -> None:
        """A datagram to the server, and back."""
        client.send(data)
        self.settle()
        assert server.answer() == [data]
        self.settle()
        assert client.texts() == [data]

    def pass_time(self, seconds: float, step: float = 0.5) -> None:
        super().pass_time(seconds, step)

    def flows(self) -> list[Flow]:
        return list(self.engine._flows.flows) if self.engine._flows is not None else []

    def counters(self, listen: Listen) -> FrontendCounters:
        return self.engine.counters.frontends[listen]

    def dropped(self, listen: Listen) -> Counter[str]:
        datagrams = self.counters(listen).datagrams
        assert datagrams is not None
        return datagrams.dropped

    def balances(self, listen: Listen) -> bool:
        """Sent by the clients = relayed + dropped, now. The servers' directions have to have been lossless."""
        datagrams = self.counters(listen).datagrams
        assert datagrams is not None
        self.pass_time(1.1)
        live = sum(flow.datagrams_in - flow.counted[0] for flow in self.flows() if flow.frontend.frontend.listen == listen)
        sent = sum(client.sent for client in self.sent_to.get(listen, ()))
        return sent == datagrams.relayed_in + live + datagrams.dropped.total()

    def finish(self) -> None:
        flows = self.engine._flows
        try:
            self.settle()
            assert not self.faults, self.faults
        finally:
            self.engine.close()
            for sock in self.socks:
                sock.close()
        if flows is not None:
            assert not flows.flows
            assert not flows._unsettled
            assert not flows.groups
            assert not flows.ports.by_listen
            assert not self.engine._udp_by_fd
            assert not flows.homes.own
        assert self.engine.counters.open_flows == 0
        for counters in self._counters.values():
            assert counters.sessions == 0
            assert sum(one.closed.total() for one in counters.servers.values()) + counters.forgotten == counters.sessions_total
            assert all(one.sessions == 0 for one in counters.servers.values())

    def _sock(self, ip: str) -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM)
        self.socks.append(sock)
        sock.setblocking(False)
        return sock


def codes(drive: DatagramDrive) -> list[str]:
    return [record.code for record in drive.records]


def settled(drive: DatagramDrive, listen: Listen, server: DatagramPeer) -> DatagramPeer:
    client = drive.client(listen)
    drive.exchange(client, server)
    drive.exchange(client, server)
    return client
