"""Questions to servers of UDP, on both kinds of loop: an empty datagram that nobody refuses, and texts."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pylb.control.health import prober
from pylb.control.health.prober import ProbeRequest, ask
from pylb.core.address import UDP, Address
from pylb.core.policy import Check, CheckKind, ProxyProtocol, Step
from pylb.core.proxy_protocol import SIGNATURE
from tests.control.harness import NODE_A, target
from tests.support.ports import free_ports

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])


@contextmanager
def server(answer: Callable[[bytes], bytes | None], ip: str = NODE_A) -> Iterator[tuple[Address, list[bytes]]]:
    """Answers each datagram; None: says nothing."""
    got: list[bytes] = []
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((ip, 0))
        address = Address(ip, sock.getsockname()[1], UDP)

        def serve() -> None:
            while (came := sock.recvfrom(2000))[0] != b"end":
                got.append(came[0])
                if (said := answer(came[0])) is not None:
                    sock.sendto(said, came[1])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield address, got
        finally:
            with socket.socket(sock.family, socket.SOCK_DGRAM) as last:
                last.sendto(b"end", (ip, address.port))
            thread.join(5)


def closed(ip: str = NODE_A) -> Address:
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((ip, 0))
        return Address(ip, sock.getsockname()[1], UDP)


@pytest.mark.parametrize("ip", [pytest.param(NODE_A, id="IPv4"), pytest.param("::1", id="IPv6")])
async def test_who_has_no_such_port_refuses(ip: str) -> None:
    assert await ask(ProbeRequest(closed(ip), timeout=1.0)) == "refused"


async def test_who_says_nothing_to_an_empty_datagram_may_well_live() -> None:
    with server(lambda _: None) as (address, got):
        assert await ask(ProbeRequest(address, timeout=1.0)) == "unknown"
        assert got == [b""]


async def test_who_answers_it_lives() -> None:
    with server(lambda _: b"what?") as (address, _):
        assert await ask(ProbeRequest(address, timeout=1.0)) == "yes"


async def test_where_no_route_leads_is_unreachable() -> None:
    assert await ask(ProbeRequest(Address("255.255.255.255", 30443, UDP), timeout=1.0)) == "unreachable"


def texts(*steps: tuple[bytes, bytes]) -> Check:
    return Check(CheckKind.SEND, tuple(Step(*step) for step in steps))


async def test_a_text_is_a_datagram_and_so_is_its_answer() -> None:
    with server(lambda data: data.upper()) as (address, got):
        assert await ask(ProbeRequest(address, texts((b"ping", b"PING"), (b"who", b"WHO")), timeout=1.0)) == "yes"
        assert got == [b"ping", b"who"]


async def test_a_wrong_answer_is_read_to_the_end_of_the_time() -> None:
    with server(lambda _: b"busy") as (address, _):
        assert await ask(ProbeRequest(address, texts((b"ping", b"pong")), timeout=0.1)) == "timeout"


async def test_a_server_that_should_answer_and_does_not_is_silent() -> None:
    with server(lambda _: None) as (address, _):
        assert await ask(ProbeRequest(address, texts((b"ping", b"pong")), timeout=0.1)) == "timeout"


async def test_a_text_without_an_answer_asks_only_that_nobody_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prober, "OBJECTION", 0.05)
    with server(lambda _: None) as (address, got):
        assert await ask(ProbeRequest(address, texts((b"ping", b"")), timeout=1.0)) == "unknown"
        assert got == [b"ping"]
    assert await ask(ProbeRequest(closed(), texts((b"ping", b"")), timeout=1.0)) == "refused"


async def test_the_proxy_header_is_in_front_of_the_first_datagram_and_says_that_it_is_our_own() -> None:
    with server(lambda data: data[-4:]) as (address, got):
        check = texts((b"ping", b"ping"), (b"pong", b"pong"))
        assert await ask(ProbeRequest(address, check, ProxyProtocol.V2, timeout=1.0)) == "yes"
        assert [data.startswith(SIGNATURE + b"\x20") for data in got] == [True, False]


async def test_a_check_with_a_port_of_its_own_is_a_connect_of_tcp() -> None:
    (port,) = free_ports(1)
    with target(port):
        assert await ask(ProbeRequest(closed(), Check(port=port), timeout=1.0)) == "yes"


async def test_many_at_once_are_told_apart() -> None:
    with server(lambda _: b"") as (address, _):
        asked = [ProbeRequest(one, timeout=1.0) for one in (address, closed(), address, closed())]
        assert await asyncio.gather(*map(ask, asked)) == ["yes", "refused", "yes", "refused"]
