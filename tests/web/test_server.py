"""The HTTP listener against clients that are slow, huge, broken or many."""

import asyncio
import os
import resource
import socket
import subprocess
import sys
import time

import pytest

from pylb.web.listener import HttpLimits
from pylb.web.protocol import Protocol
from pylb.web.types import Answer, Call, json_answer, text_answer
from tests.web.loopback import ask, read_head, read_reply, serving, until

QUICK = HttpLimits(deadline=0.4, keepalive=0.4, answer=0.5)


async def echo(call: Call) -> Answer:
    return json_answer(
        200,
        {"method": call.method, "path": call.path, "peer": call.peer, "local": call.local, "body": call.body.decode()},
    )


async def _ends(reader: asyncio.StreamReader) -> bytes:
    """Everything until the server ends the connection, by FIN or reset."""
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


async def _one_of(clients: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> bytes:
    """As `_ends`, of whichever ends first."""
    loop = asyncio.get_running_loop()
    ends = [loop.create_task(_ends(reader)) for reader, _ in clients]
    done, others = await asyncio.wait(ends, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    for other in others:
        other.cancel()
    return done.pop().result()


async def test_a_request_is_answered_with_its_body_and_the_address_it_came_from() -> None:
    async with serving(echo) as server:
        reply = await ask(server.port, "PUT", "/a%2Fb", body=b"hello")
        assert reply.status == 200
        assert reply.headers["server"] == "pylb"
        assert reply.body == (b'{"method":"PUT","path":"/a%2Fb","peer":"127.0.0.1","local":"127.0.0.1","body":"hello"}\n')


async def test_a_mapped_ipv4_peer_of_a_dual_stack_listener_is_an_ipv4_address() -> None:
    async with serving(echo, listen="*:0") as server:
        reply = await ask(server.port, "GET", "/")
        assert b'"peer":"127.0.0.1","local":"127.0.0.1"' in reply.body


async def test_one_connection_carries_several_requests() -> None:
    async with serving(echo) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for number in range(3):
            writer.write(f"PUT /{number} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi".encode())
            reply = await read_reply(reader)
            assert f'"path":"/{number}"'.encode() in reply.body
        writer.close()


async def test_a_client_that_leaves_before_its_request_is_read_leaves_no_traceback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """aiohttp takes that for a fault of ours; a stranger could fill the log with it."""
    receive = Protocol.data_received

    def receive_and_lose(self: Protocol, data: bytes) -> None:
        receive(self, data)
        assert self.transport is not None
        self.transport.abort()  # as a reset does that is met in the same turn of the loop as the headers

    async with serving(echo) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        monkeypatch.setattr(Protocol, "data_received", receive_and_lose)
        writer.write(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
        assert await _ends(reader) == b""
        writer.close()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"PUT / HT", id="half a request line"),
        pytest.param(b"PUT / HTTP/1.1\r\nHost: x\r\nX-A: b", id="half a header"),
    ],
)
async def test_a_client_that_never_finishes_its_header_is_cut_at_the_deadline(start: bytes) -> None:
    async with serving(echo, limits=QUICK) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        began = time.monotonic()
        writer.write(start)
        assert await _ends(reader) == b""
        assert 0.3 < time.monotonic() - began < 2
        writer.close()
        assert server.connections == 0


async def test_a_trickle_of_header_bytes_does_not_move_the_deadline() -> None:
    async with serving(echo, limits=QUICK) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        began = time.monotonic()
        writer.write(b"GET / HTTP/1.1\r\n")
        end = asyncio.get_running_loop().create_task(_ends(reader))
        while not end.done():
            writer.write(b"X: y\r\n")
            await asyncio.wait([end], timeout=0.05)
        assert time.monotonic() - began < 2
        writer.close()


async def test_a_body_that_never_completes_gets_408_at_the_deadline() -> None:
    async with serving(echo, limits=QUICK) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nsome")
        reply = await read_reply(reader)
        assert reply.status == 408
        assert b'"error":"request_timeout"' in reply.body
        assert reply.headers["connection"] == "close"
        assert await _ends(reader) == b""
        writer.close()


async def test_an_idle_kept_alive_connection_is_closed() -> None:
    async with serving(echo, limits=QUICK) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await read_reply(reader)).status == 200
        began = time.monotonic()
        assert await _ends(reader) == b""
        assert time.monotonic() - began < 2
        writer.close()


async def test_a_client_that_does_not_take_its_answer_is_cut() -> None:
    async def big(_call: Call) -> Answer:
        return text_answer(200, "x" * 20_000_000)

    async with serving(big, limits=QUICK) as server:
        sock = socket.create_connection(("127.0.0.1", server.port))
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: server.connections == 1)
        await until(lambda: server.connections == 0)
        sock.close()


async def test_a_body_over_the_limit_gets_413_even_while_it_is_still_being_sent() -> None:
    async with serving(echo) as server:
        for size in (4097, 500_000):
            reply = await ask(server.port, "PUT", "/", body=b"x" * size)
            assert reply.status == 413
            assert reply.body == b'{"error":"body_too_large","detail":"the body is over 4096 bytes","hint":""}\n'
        assert (await ask(server.port, "PUT", "/", body=b"x" * 4096)).status == 200


async def test_chunked_and_compressed_bodies_are_refused() -> None:
    async with serving(echo) as server:
        reply = await ask(
            server.port,
            "PUT",
            "/",
            headers={"Transfer-Encoding": "chunked"},
        )
        assert (reply.status, b"length_required" in reply.body) == (411, True)
        reply = await ask(server.port, "PUT", "/", headers={"Content-Encoding": "gzip"}, body=b"\x1f\x8b")
        assert (reply.status, b"unsupported_media_type" in reply.body) == (415, True)


async def test_the_hook_paths_are_refused_in_a_line_of_text() -> None:
    async with serving(echo) as server:
        reply = await ask(server.port, "POST", "/hooks/update-haproxy", body=b"x" * 65537)
        assert (reply.status, reply.body) == (413, b"the body is over 65536 bytes\n")


async def test_the_body_of_a_get_is_ignored() -> None:
    async with serving(echo) as server:
        for size in (10, 100_000):
            reply = await ask(server.port, "GET", "/", body=b"x" * size)
            assert (reply.status, b'"body":""' in reply.body) == (200, True)


async def test_a_client_that_waits_for_100_continue_gets_it() -> None:
    async with serving(echo) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert (await read_head(reader))[0] == 100
        writer.write(b"hi")
        reply = await read_reply(reader)
        assert (reply.status, b'"body":"hi"' in reply.body) == (200, True)
        writer.close()


async def test_what_is_not_http_gets_a_json_400_and_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(echo) as server:
        for garbage in (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET / HTTP/1.1\r\n bad: 1\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(garbage)
            reply = await read_reply(reader)
            assert reply.status == 400
            assert b'"error":"bad_request"' in reply.body
            writer.close()
        reply = await ask(server.port, "GET", "/", headers={"X-Long": "x" * 9000})
        assert reply.status == 400
    assert caplog.records == []


@pytest.mark.parametrize("start", [b"CONNECT \n", b"CONNECT \r\n"])
async def test_a_request_without_a_path_is_answered_and_leaves_no_trace(start: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """The parser has no URL for it: found by make fuzz-webhook."""
    async with serving(echo) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(start + b"Host: lb\r\n\r\n")
        await reader.read()
        writer.close()
    assert caplog.records == []


async def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_no_trace(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(echo) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nsome")
        await writer.drain()
        writer.close()
        assert (await ask(server.port, "GET", "/")).status == 200
        await until(lambda: server.connections == 0)
    assert caplog.records == []


async def test_an_unexpected_fault_is_a_500_without_internals_and_a_logged_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken(_call: Call) -> Answer:
        raise KeyError("secret detail")

    async with serving(broken) as server:
        reply = await ask(server.port, "GET", "/thing")
        assert reply.status == 500
        assert b"secret" not in reply.body
        assert b'"error":"internal"' in reply.body
    assert [record.message for record in caplog.records] == ["GET /thing failed"]
    assert caplog.records[0].exc_info is not None


async def test_beyond_its_share_an_address_loses_one_who_waits_too_long_and_its_honest_call_is_served() -> None:
    async with serving(echo, limits=HttpLimits(per_address=4, patience=0.2)) as server:
        idle = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(4)]
        began = time.monotonic()
        while time.monotonic() - began < 0.25:
            assert (await ask(server.port, "GET", "/")).status == 200
        assert await _one_of(idle) == b""
        for _, writer in idle:
            writer.close()


async def test_a_burst_of_honest_calls_from_one_address_is_served_whole() -> None:
    async with serving(echo) as server:
        replies = await asyncio.gather(*(ask(server.port, "PUT", "/", body=b"x" * 2000) for _ in range(200)))
        assert [reply.status for reply in replies] == [200] * 200


async def test_a_flood_of_silent_connections_does_not_delay_an_honest_call() -> None:
    async with serving(echo) as server:
        # As many as the machine's usual soft limit of 1024 descriptors allows for both ends.
        flood = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(300)]
        assert server.connections <= HttpLimits().connections
        began = time.monotonic()
        assert (await ask(server.port, "GET", "/", host="127.0.0.1")).status == 200
        assert time.monotonic() - began < 1
        for _, writer in flood:
            writer.close()


async def test_the_cap_over_all_addresses_holds_as_well() -> None:
    async with serving(echo, limits=HttpLimits(connections=3), listen="*:0") as server:
        idle = [await asyncio.open_connection("127.0.0.1", server.port, local_addr=(f"127.0.0.{n}", 0)) for n in (2, 3, 4)]
        assert (await ask(server.port, "GET", "/")).status == 200
        assert server.connections <= 3
        assert await _one_of(idle) == b""  # no address is above its share: one of them goes
        for _, writer in idle:
            writer.close()


async def test_while_every_connection_is_being_answered_a_new_one_is_refused() -> None:
    release, started = asyncio.Event(), []

    async def slow(call: Call) -> Answer:
        started.append(call)
        await release.wait()
        return text_answer(200, "done")

    async with serving(slow, limits=HttpLimits(connections=2)) as server:
        loop = asyncio.get_running_loop()
        running = [loop.create_task(ask(server.port, "GET", "/")) for _ in range(2)]
        await until(lambda: len(started) == 2)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        assert await _ends(reader) == b""
        writer.close()
        release.set()
        assert [(await one).status for one in running] == [200, 200]


async def test_at_the_cap_an_address_above_its_share_pays_and_not_its_neighbour() -> None:
    async with serving(echo, limits=HttpLimits(connections=4, per_address=3), listen="*:0") as server:
        neighbour = await asyncio.open_connection("127.0.0.1", server.port, local_addr=("127.0.0.2", 0))
        crowd = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(3)]
        assert (await ask(server.port, "GET", "/")).status == 200
        assert await _one_of(crowd) == b""
        neighbour[1].write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await read_reply(neighbour[0])).status == 200
        for _, writer in (neighbour, *crowd):
            writer.close()


async def test_without_a_free_descriptor_accepting_pauses_and_goes_on_later(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(echo) as server:
        client = socket.create_connection(("127.0.0.1", server.port))  # waits in the backlog
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        client.setblocking(False)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        fill = _every_descriptor()
        try:
            await until(lambda: bool(caplog.records))
            assert server.connections == 0
        finally:
            for descriptor in fill:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        answer = await asyncio.get_running_loop().sock_recv(client, 9999)
        assert answer.startswith(b"HTTP/1.1 200 ")
        client.close()
    assert [record.message for record in caplog.records] == ["out of file descriptors; new calls wait until some are free"]


def _every_descriptor() -> list[int]:
    taken = []
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        return taken


async def test_stop_lets_a_running_answer_finish_and_cuts_the_idle() -> None:
    started, release = asyncio.Event(), asyncio.Event()

    async def slow(_call: Call) -> Answer:
        started.set()
        await release.wait()
        return text_answer(200, "done")

    async with serving(slow) as server:
        loop = asyncio.get_running_loop()
        running = loop.create_task(ask(server.port, "GET", "/"))
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        await started.wait()
        stop = loop.create_task(server.stop())
        assert await _ends(reader) == b""
        writer.close()
        release.set()
        assert (await running).body == b"done"
        await stop
        assert server.connections == 0


def test_pylb_refuses_to_run_on_aiohttp_without_its_c_parser() -> None:
    code = "from pylb.web.listener import check_aiohttp\ncheck_aiohttp()"
    environment = os.environ | {"AIOHTTP_NO_EXTENSIONS": "1"}
    python = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert python.returncode == 1
    assert "RuntimeError: aiohttp runs without its C parser" in python.stderr
