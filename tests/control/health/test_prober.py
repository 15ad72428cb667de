"""Probes of real servers, on both kinds of loop."""

import asyncio
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pylb.control.health.prober import ProbeRequest, ask
from pylb.core.address import Address
from pylb.core.policy import Check, CheckKind, ProxyProtocol, Step
from tests.control.harness import NODE_A, black_hole, target
from tests.support.ports import free_ports

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_who_listens_answers() -> None:
    (port,) = free_ports(1)
    with target(port):
        assert await ask(ProbeRequest(Address(NODE_A, port), timeout=1.0)) == "yes"


async def test_who_does_not_listen_refuses() -> None:
    (port,) = free_ports(1)
    assert await ask(ProbeRequest(Address(NODE_A, port), timeout=1.0)) == "refused"
    assert await ask(ProbeRequest(Address("::1", port), timeout=1.0)) == "refused"


async def test_who_drops_the_syn_times_out() -> None:
    (port,) = free_ports(1)
    with black_hole(port):
        assert await ask(ProbeRequest(Address(NODE_A, port), timeout=0.1)) == "timeout"


async def test_where_no_route_leads_is_unreachable() -> None:
    assert await ask(ProbeRequest(Address("255.255.255.255", 30443), timeout=1.0)) == "unreachable"


async def test_no_dial_leaves_a_descriptor_behind() -> None:
    (closed, hole, listening) = free_ports(3)
    with black_hole(hole), target(listening):
        await ask(ProbeRequest(Address(NODE_A, closed), timeout=1.0))  # whatever the loop itself opens lazily
        before = open_fds()
        ports = (closed, hole, listening) * 5
        await asyncio.gather(*(ask(ProbeRequest(Address(NODE_A, port), timeout=0.1)) for port in ports))
        assert open_fds() == before


async def test_without_descriptors_nothing_is_said_of_the_target() -> None:
    async def starved() -> str:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            return await ask(ProbeRequest(Address(NODE_A, 30443), timeout=1.0))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert await starved() == "resource"


# ---------------------------------------------------------------- questions and answers

HTTP = Check(CheckKind.HTTP, path="/up", host="app.example.net")
SMTP = Check(CheckKind.SEND, (Step(b"EHLO check\r\n", b"250 "),))


@contextmanager
def app(reply: Callable[[socket.socket, list[bytes]], None]) -> Iterator[tuple[Address, list[bytes]]]:
    """A server that answers one connection by `reply(connection, heard)`, and what it heard."""
    heard: list[bytes] = []
    with socket.create_server((NODE_A, 0)) as server:
        server.settimeout(10)

        def serve() -> None:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(10)
                try:
                    reply(connection, heard)
                except OSError:
                    pass  # the check has what it wanted and is gone

        thread = threading.Thread(target=serve)
        thread.start()
        yield Address(*server.getsockname()), heard
        thread.join(10)
        assert not thread.is_alive()


def says(*pieces: bytes) -> Callable[[socket.socket, list[bytes]], None]:
    def reply(connection: socket.socket, heard: list[bytes]) -> None:
        heard.append(connection.recv(4096))
        for piece in pieces:
            connection.sendall(piece)

    return reply


def says_nothing(connection: socket.socket, heard: list[bytes]) -> None:
    heard.append(connection.recv(4096))
    connection.recv(4096)  # until the check has given up


def hears(connection: socket.socket, heard: list[bytes]) -> None:
    while piece := connection.recv(4096):
        heard.append(piece)


@pytest.mark.parametrize(
    ("check", "pieces", "found"),
    [
        (HTTP, [b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nbody"], "yes"),
        (HTTP, [b"HTTP/1", b".0 2", b"04\r\n"], "yes"),
        (HTTP, [b"HTTP/1.1 503 Service Unavailable\r\n\r\n"], "wrong answer: HTTP status 503"),
        (HTTP, [b"SSH-2.0-OpenSSH_9.2\r\n"], "wrong answer: b'SSH-2.0-OpenSSH_9.2' is not a status line"),
        (HTTP, [], "wrong answer: closed without an answer"),
        (HTTP, [b"x" * 1_000_000], "wrong answer: b'" + "x" * 40 + "' is not a status line"),
        (SMTP, [b"220 mx ESMTP\r\n", b"250 mx\r\n"], "yes"),
        (SMTP, [b"421 busy\r\n"], "wrong answer: b'250 ' is not in b'421 busy\\r\\n'"),
        (Check(CheckKind.SEND, (Step(b"ping"),)), [], "yes"),
        (Check(CheckKind.SEND, (Step(expect=b"220 "),)), [b"220 hello\r\n"], "yes"),
    ],
)
async def test_what_a_server_answers_decides(check: Check, pieces: list[bytes], found: str) -> None:
    def reply(connection: socket.socket, heard: list[bytes]) -> None:
        if check is HTTP or check.steps[0].send:
            heard.append(connection.recv(4096))
        for piece in pieces:
            connection.sendall(piece)

    with app(reply) as (server, _):
        assert await ask(ProbeRequest(server, check, timeout=10.0)) == found


async def test_an_http_check_asks_for_its_path_and_host() -> None:
    with app(says(b"HTTP/1.1 200 OK\r\n\r\n")) as (server, heard):
        await ask(ProbeRequest(server, HTTP))
    assert heard[0].startswith(b"GET /up HTTP/1.0\r\nHost: app.example.net\r\n")
    with app(says(b"HTTP/1.1 200 OK\r\n\r\n")) as (server, heard):
        await ask(ProbeRequest(server, Check(CheckKind.HTTP)))
    assert heard[0].startswith(f"GET / HTTP/1.0\r\nHost: {server}\r\n".encode())


@pytest.mark.parametrize(("low", "high", "found"), [(200, 200, "wrong answer: HTTP status 204"), (204, 204, "yes")])
async def test_the_status_that_is_right_is_the_operators_matter(low: int, high: int, found: str) -> None:
    with app(says(b"HTTP/1.1 204 No Content\r\n\r\n")) as (server, _):
        assert await ask(ProbeRequest(server, Check(CheckKind.HTTP, status=(low, high)))) == found


async def test_a_server_that_accepts_and_never_answers_times_out() -> None:
    with app(says_nothing) as (server, _):
        assert await ask(ProbeRequest(server, HTTP, timeout=0.1)) == "timeout"


@pytest.mark.parametrize(
    ("version", "expected"), [(ProxyProtocol.V1, b"PROXY UNKNOWN\r\n"), (ProxyProtocol.V2, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0")]
)
async def test_a_server_that_wants_proxy_headers_is_told_whose_connection_it_is(
    version: ProxyProtocol, expected: bytes
) -> None:
    with app(hears) as (server, heard):
        assert await ask(ProbeRequest(server, Check(), version)) == "yes"
    assert b"".join(heard) == expected
    with app(hears) as (server, heard):
        assert await ask(ProbeRequest(server, Check(CheckKind.SEND, (Step(b"ping"),)), version)) == "yes"
    assert b"".join(heard) == expected + b"ping"


async def test_another_port_is_asked_without_a_proxy_header() -> None:
    with app(hears) as (checked, heard):
        question = ProbeRequest(
            Address(NODE_A, 1), Check(CheckKind.SEND, (Step(b"ping"),), port=checked.port), ProxyProtocol.V2
        )
        assert await ask(question) == "yes"
    assert heard == [b"ping"]


REDIS = Check(
    CheckKind.SEND,
    (Step(b"PING\r\n", b"+PONG"), Step(b"info replication\r\n", b"role:master"), Step(b"QUIT\r\n", b"+OK")),
)


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ([b"+PONG\r\n", b"$9\r\nrole:master\r\n", b"+OK\r\n"], "yes"),
        ([b"+PONG\r\nrole:slave"], "wrong answer: step 2: b'role:master' is not in b'\\r\\nrole:slave'"),
        ([b"-NOAUTH\r\n"], "wrong answer: step 1: b'+PONG' is not in b'-NOAUTH\\r\\n'"),
        ([b"+PONG\r\nrole:master\r\n+OK"], "yes"),
        ([], "wrong answer: step 1: b'+PONG' is not in b''"),
    ],
)
async def test_a_check_goes_step_by_step_and_says_which_one_failed(answers: list[bytes], found: str) -> None:
    def reply(connection: socket.socket, heard: list[bytes]) -> None:
        for answer in answers:
            heard.append(connection.recv(4096))
            connection.sendall(answer)
        if found == "yes":
            connection.recv(4096)  # until it hangs up

    with app(reply) as (server, _):
        assert await ask(ProbeRequest(server, REDIS, timeout=10.0)) == found


async def test_a_replica_that_says_so_and_stays_connected_is_wrong_and_not_silent() -> None:
    def reply(connection: socket.socket, _heard: list[bytes]) -> None:
        for answer in (b"+PONG\r\n", b"role:slave\r\n"):
            connection.recv(4096)
            connection.sendall(answer)
        connection.recv(4096)  # until it hangs up

    with app(reply) as (server, _):
        found = await ask(ProbeRequest(server, REDIS, timeout=1.0))
    assert found == "wrong answer: step 2: b'role:master' is not in b'\\r\\nrole:slave\\r\\n'"
