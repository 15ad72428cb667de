"""The status page over HTTP: its files, its headers, its stream, and its list of live sessions."""

import asyncio
import json
import re
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pylb.core.address import Address, Listen
from pylb.core.errors import Code, Refused
from pylb.core.session import SessionView
from pylb.forward.counters import Counters
from pylb.statuspage import page as module
from pylb.statuspage.page import Files, Page
from pylb.web.admin import MOST_LISTED, Admin
from pylb.web.listener import HttpLimits
from tests.web.loopback import Reply, ask, read_head, serving, until
from tests.web.running import running

UI = Path(module.__file__).parent / "ui"


@dataclass
class Face:
    port: int
    served: list[str] = field(default_factory=list)  # streams: begun, ended
    views: list[SessionView] = field(default_factory=list)

    async def get(self, path: str, method: str = "GET", **headers: str) -> Reply:
        return await ask(self.port, method, path, headers=headers)


@asynccontextmanager
async def facing(
    folder: Path, chunks: Callable[[], AsyncGenerator[bytes]] | None = None, limits: HttpLimits | None = None
) -> AsyncIterator[Face]:
    face = Face(0)

    async def nothing() -> AsyncGenerator[bytes]:
        yield b"data: {}\n\n"

    def stream(source: bytes) -> AsyncGenerator[bytes]:
        assert source == bytes((127, 0, 0, 1))
        return _watched((chunks or nothing)(), face.served)

    async def sessions() -> list[SessionView]:
        return face.views

    async def counters() -> Counters:
        return Counters(0)

    async def scrape() -> bytes:
        return b""

    async with running(folder) as control:
        control.driver.sessions = sessions
        admin = Admin(control.registry, counters, scrape, page=Page(stream).routes(), live=control.driver)
        async with serving(admin.handler(), limits=limits) as server:
            face.port = server.port
            yield face


async def _watched(chunks: AsyncGenerator[bytes], served: list[str]) -> AsyncGenerator[bytes]:
    served.append("begun")
    try:
        async for chunk in chunks:
            yield chunk
    finally:
        served.append("ended")


async def test_the_page_is_there_with_a_strict_policy(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        reply = await face.get("/")
        assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
        policy = reply.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-cache"


async def test_what_it_names_is_served_and_may_be_kept_for_ever(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        html = (await face.get("/")).body.decode()
        assert "{version}" not in html
        named = re.findall(r'(?:src|href)="(ui/[^"]+)"', html)
        assert len(named) == 5
        base = named[0].rsplit("/", 1)[0]
        modules = [f"{base}/{path.relative_to(UI)}" for path in UI.rglob("*.js")]
        for path in [*named, *modules]:
            reply = await face.get(f"/{path}")
            assert reply.status == 200, path
            assert reply.headers["cache-control"] == "public, max-age=31536000, immutable"
            assert reply.body
        assert (await face.get(f"/{base}/page.js")).headers["content-type"] == "text/javascript; charset=utf-8"


async def test_a_copy_that_is_the_same_is_not_sent_again(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        first = await face.get("/")
        again = await face.get("/", **{"If-None-Match": f'"other", W/{first.headers["etag"]}'})
        assert (again.status, again.body) == (304, b"")
        assert "content-security-policy" in again.headers
        assert (await face.get("/", **{"If-None-Match": '"other"'})).status == 200


async def test_files_of_another_version_and_files_that_are_none_are_not_there(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        version = Files().version
        for path in (
            f"/ui/{'0' * 16}/page.js",
            f"/ui/{version}/index.html",
            f"/ui/{version}/..%2f..%2fpage.py",
            f"/ui/{version}/vendor/nothing.js",
            f"/ui/{version}/",
        ):
            assert (await face.get(path)).status == 404, path


async def test_a_stranger_gets_neither_page_nor_stream(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        for path in ("/", "/v1/stream", "/v1/sessions?live=1"):
            assert (await face.get(path, Host="evil.example")).status == 403
            assert (await face.get(path, Origin="http://evil.example")).status == 403
        for site in ("cross-site", "same-origin", "none"):
            for kind in ("document", "iframe", "embed"):
                fetched = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": kind}
                assert (await ask(face.port, "GET", "/v1/stream", headers=fetched)).status == 403
        assert face.served == []


async def test_the_stream_comes_as_it_is_made_and_ends_when_the_reader_leaves(tmp_path: Path) -> None:
    news = asyncio.Queue[bytes]()

    async def chunks() -> AsyncGenerator[bytes]:
        while True:
            yield await news.get()

    async with facing(tmp_path, chunks) as face:
        reader, writer = await asyncio.open_connection("127.0.0.1", face.port)
        writer.write(b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        status, headers = await read_head(reader)
        assert (status, headers["content-type"], headers["cache-control"]) == (200, "text/event-stream", "no-store")
        for number in range(3):
            news.put_nowait(b"data: %d\n\n" % number)
            assert await asyncio.wait_for(reader.readuntil(b"\n\n\r\n"), 5) == b"9\r\ndata: %d\n\n\r\n" % number
        writer.close()
        while face.served != ["begun", "ended"]:
            news.put_nowait(b"data: x\n\n")
            await asyncio.sleep(0.01)
        head = await face.get("/v1/stream", method="HEAD")
        assert (head.status, head.headers["content-type"]) == (200, "text/event-stream")
        assert face.served == ["begun", "ended"]


async def test_a_reader_that_takes_nothing_is_cut_and_nothing_piles_up_for_it(tmp_path: Path) -> None:
    made = 0

    async def chunks() -> AsyncGenerator[bytes]:
        nonlocal made
        while True:
            made += 1
            yield b"data: " + b"x" * 200_000 + b"\n\n"

    async with facing(tmp_path, chunks, HttpLimits(answer=0.3)) as face:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, ("127.0.0.1", face.port))
            await loop.sock_sendall(sock, b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await until(lambda: face.served == ["begun", "ended"])
        assert made < 50  # what the kernel takes, and 128 KiB


async def test_a_server_that_stops_does_not_wait_for_its_readers(tmp_path: Path) -> None:
    async def chunks() -> AsyncGenerator[bytes]:
        yield b"data: {}\n\n"
        await asyncio.sleep(3600)  # the loop holds it; of an Event that nobody has, a collection would free the task

    async with facing(tmp_path, chunks) as face:
        reader, writer = await asyncio.open_connection("127.0.0.1", face.port)
        writer.write(b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"data: {}\n\n")
        at = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - at < 3.0
    await until(lambda: face.served == ["begun", "ended"])
    with_rest = await asyncio.wait_for(reader.read(), 5)
    assert with_rest in (b"", b"\r\n")
    writer.close()


async def test_the_stream_of_a_client_that_left_ends_at_once_also_if_it_has_nothing_to_say(tmp_path: Path) -> None:
    quiet = asyncio.Event()

    async def chunks() -> AsyncGenerator[bytes]:
        yield b"data: {}\n\n"
        await quiet.wait()

    async with facing(tmp_path, chunks) as face:
        reader, writer = await asyncio.open_connection("127.0.0.1", face.port)
        writer.write(b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"data: {}\n\n")
        writer.transport.abort()
        await until(lambda: face.served == ["begun", "ended"])


async def test_too_many_readers_are_told_when_to_come_again(tmp_path: Path) -> None:
    def chunks() -> AsyncGenerator[bytes]:
        raise Refused(Code.TOO_MANY, "16 pages are open already", retry_after=5)

    async with facing(tmp_path, chunks) as face:
        reply = await face.get("/v1/stream")
        assert (reply.status, reply.headers["retry-after"]) == (429, "5")


def view(number: int, **given: object) -> SessionView:
    listen = Listen("tcp", "*", 443)
    one = SessionView(
        f"192.0.2.{number}", 50000, "web", listen, "pod", Address("10.0.0.7", 30443), "relaying", float(number), 0, 0
    )
    return one._replace(**given)


async def test_live_sessions_are_the_largest_or_oldest_that_match(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        face.views = [view(1, bytes_out=5), view(2, bytes_in=9), view(3, frontend="mail", server="", address=None)]

        async def clients(query: str) -> list[str]:
            answer = json.loads((await face.get(f"/v1/sessions?live=1&counts=0{query}")).body)
            assert answer.keys() == {"live_total", "live_matching", "live"}
            assert answer["live_total"] == 3
            assert answer["live_matching"] == len(answer["live"])
            return [one["client"] for one in answer["live"]]

        assert await clients("&by=bytes") == ["192.0.2.2:50000", "192.0.2.1:50000", "192.0.2.3:50000"]
        assert await clients("") == ["192.0.2.3:50000", "192.0.2.2:50000", "192.0.2.1:50000"]
        assert await clients("&text=mail&by=age") == ["192.0.2.3:50000"]
        assert await clients("&text=10.0.0.7%3A304") == ["192.0.2.2:50000", "192.0.2.1:50000"]
        assert (await face.get("/v1/sessions?live=1&by=name")).status == 422


async def test_of_many_live_sessions_only_the_first_are_sent(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        face.views = [view(1, client_port=port, bytes_in=port) for port in range(1, 5001)]
        answer = json.loads((await face.get("/v1/sessions?live=1&by=bytes")).body)
        assert (answer["live_total"], answer["live_matching"], len(answer["live"])) == (5000, 5000, MOST_LISTED)
        assert [one["bytes_in"] for one in answer["live"]] == list(range(5000, 5000 - MOST_LISTED, -1))
        assert answer["frontends"] == []


async def test_where_live_sessions_were_listed_it_says_where_they_are_now(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        reply = await face.get("/v1/sessions/live?by=bytes")
        assert (reply.status, b"/v1/sessions?live=1" in reply.body) == (404, True)
