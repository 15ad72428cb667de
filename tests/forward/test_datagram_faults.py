"""Each system call that a frontend of UDP makes fails with each errno of its manual page, and with a fault of pylb.

No flow, descriptor or datagram is lost from the counts, nothing spins, and the next client is served.
"""

import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from pylb.forward import datagram_sockets
from tests.support.datagrams import DatagramDrive

FAULT = -1  # not an errno: an exception that nobody expects
_ICMP = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EMSGSIZE)
_SHORT = (errno.ENOBUFS, errno.ENOMEM)
CALLS = {  # udp(7), ip(7), socket(2), connect(2), recv(2), send(2), setsockopt(2), epoll_ctl(2)
    "__init__": (errno.EMFILE, errno.ENFILE, *_SHORT, errno.EACCES, errno.EAFNOSUPPORT, FAULT),
    "setsockopt": (errno.ENOPROTOOPT, errno.EINVAL, errno.ENOMEM, FAULT),
    "connect_ex": (errno.EAGAIN, errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.EACCES, errno.EPERM, FAULT),
    "recvmsg_into": (*_ICMP, *_SHORT, errno.EINTR, errno.EIO, FAULT),
    "send": (*_ICMP, *_SHORT, errno.EAGAIN, errno.EPERM, errno.EINVAL, errno.EIO, FAULT),
    "sendmsg": (*_ICMP, *_SHORT, errno.EAGAIN, errno.EPERM, errno.EINVAL, errno.EIO, FAULT),
    "getsockopt": (errno.ENOMEM, FAULT),
    "getsockname": (errno.ENOBUFS, FAULT),
    "register": (errno.ENOMEM, errno.ENOSPC, FAULT),
}
armed: list[tuple[str, int]] = []


def meet(call: str) -> None:
    """Fail once, if that is armed."""
    if armed and armed[0][0] == call:
        _, code = armed.pop()
        raise RuntimeError("a fault of the test") if code == FAULT else OSError(code, "armed by the test")


class Sick(socket.SocketType):
    """A socket whose calls fail when they are armed."""

    def __init__(self, *arguments: Any) -> None:
        meet("__init__")
        super().__init__(*arguments)


def _failing(call: str) -> Any:
    real = getattr(socket.SocketType, call)

    def method(self: Sick, *arguments: Any) -> Any:
        meet(call)
        return real(self, *arguments)

    return method


for _call in set(CALLS) - {"__init__", "register"}:
    setattr(Sick, _call, _failing(_call))


class SickEpoll:
    def __init__(self, epoll: Any) -> None:
        self._epoll = epoll

    def register(self, fd: int, events: int) -> None:
        meet("register")
        self._epoll.register(fd, events)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)


@pytest.fixture
def drive(_back_to_the_base_line: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[DatagramDrive]:
    monkeypatch.setattr(datagram_sockets, "SocketType", Sick)
    driven = DatagramDrive()
    yield driven
    armed.clear()
    driven.faults.clear()
    driven.finish()


@pytest.mark.parametrize(("call", "code"), [(call, code) for call, codes in CALLS.items() for code in codes])
def test_a_call_that_fails_costs_one_flow_or_one_datagram(drive: DatagramDrive, call: str, code: int) -> None:
    server = drive.server()
    listen = drive.serve_udp(server)
    flows = drive.engine._flows
    assert flows is not None
    flows.ports._epoll = flows.homes._epoll = SickEpoll(drive.engine._epoll)  # type: ignore[assignment]
    old, new, train = (drive.client(listen) for _ in range(3))
    drive.exchange(old, server)
    armed[:] = [(call, code)]
    for client in (old, new):
        client.send(b"x")
        drive.settle()
    train.send(b"y" * 50, size=10)
    drive.settle()
    server.answer()
    drive.settle()
    drive.pass_time(2)
    drive.settle()
    armed.clear()
    for client in (old, new, train):
        client.texts()
    server.texts()
    for client in (old, new, train):
        drive.exchange(client, server)
    assert len(drive.faults) <= 1
    assert drive.balances(listen)


def test_each_attempt_to_open_a_port_may_fail_and_the_next_succeeds(drive: DatagramDrive) -> None:
    listen = drive.serve_udp()
    drive.remove(listen)
    for call in ("__init__", "setsockopt"):
        for code in (errno.ENOMEM, errno.EMFILE):
            armed[:] = [(call, code)]
            assert list(drive.serve_or_fail(listen=listen)) == [listen]
            assert not armed
    assert not drive.publish()
