"""What the page shows of other pylbs, and what it does not believe. Over HTTP on loopback."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pylb.forward.counters import Counters
from pylb.metrics.families import Scrape
from pylb.statuspage.peers import MOST_BYTES, MOST_TEXT, NO_PYLB, Peer, Peers
from pylb.web.admin import Admin
from tests.support.ports import refusing_port
from tests.web.loopback import bind_free, serving, until
from tests.web.running import running

GOOD = {"health": "degraded", "sentence": "1 of 2 frontends healthy", "host": "lb-2", "version": "0.2.0", "sessions": 7}


def http(body: bytes, status: str = "200 OK", *more: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Content-Type: application/json", *more]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


class Other:
    """Whatever listens at a peer's address. `requests`: the heads of what it was asked."""

    def __init__(self, answer: bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]) -> None:
        self._answer = answer
        self.requests: list[str] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            if isinstance(self._answer, bytes):
                writer.write(self._answer)
                await writer.drain()
            else:
                await self._answer(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def answering(answer: bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[Other]:
    other = Other(answer)
    sock = bind_free()
    server = await asyncio.start_server(other.serve, sock=sock)
    other.url = "http://{}:{}".format(*sock.getsockname())
    try:
        yield other
    finally:
        server.close()
        await server.wait_closed()


def peer(url: str, name: str = "lb-2") -> Peer:
    return Peer(name, url, url)


async def asked(*peers: Peer, within: float = 5.0) -> list[dict[str, Any]]:
    found = Peers(lambda: peers, clock=lambda: 42.04, within=within)
    await found.ask()
    return found.records()


async def test_another_pylbs_word_and_sentence_are_shown(tmp_path: Path) -> None:
    async def counters() -> Counters:
        return Counters(0)

    async def scrape() -> Scrape:
        return Scrape()

    async with running(tmp_path) as control:
        admin = Admin(control.registry, counters, scrape, live=control.driver, host=lambda: "lb-2.example.net")
        async with serving(admin.handler()) as server:
            url = f"http://127.0.0.1:{server.port}"
            [found] = await asked(Peer("lb-2", url, "https://lb-2.example.net"))
    assert found.pop("version")
    assert found == {
        "name": "lb-2",
        "page": "https://lb-2.example.net",
        "health": "unknown",
        "sentence": "no frontends yet",
        "host": "lb-2.example.net",
        "sessions": 0,
        "at": 42.0,
        "error": "",
    }


async def test_nothing_secret_is_sent_and_only_that_page_is_asked_for() -> None:
    async with answering(http(json.dumps(GOOD).encode(), "200 OK", "Set-Cookie: a=b")) as other:
        both = Peers(lambda: [peer(other.url)])
        await both.ask()
        await both.ask()
    first, second = (set(request.lower().split("\r\n")) for request in other.requests)
    assert first == second  # no cookie comes back
    assert {line.partition(":")[0] for line in first if line} == {
        "get /v1/health http/1.1",
        *("host", "accept", "accept-encoding", "user-agent", "connection"),
    }


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (http(b"<html>router login</html>"), NO_PYLB),
        (http(b'{"secret": "of a metadata service"}'), NO_PYLB),
        (http(b"[]"), NO_PYLB),
        (http(b"[" * 10_000), NO_PYLB),
        (http(b"\xff"), NO_PYLB),
        (http(json.dumps(GOOD | {"health": "<script>"}).encode()), NO_PYLB),
        (http(json.dumps(GOOD | {"health": ["down"]}).encode()), NO_PYLB),
        (http(json.dumps(GOOD | {"sessions": "7"}).encode()), NO_PYLB),
        (http(json.dumps(GOOD | {"sessions": True}).encode()), NO_PYLB),
        (http(json.dumps(GOOD | {"sentence": None}).encode()), NO_PYLB),
        (http(json.dumps(GOOD).encode() + b" " * MOST_BYTES), NO_PYLB),
        (http(b"x", "200 OK", "Content-Encoding: gzip"), NO_PYLB),
        (http(b"", "200 OK", "X-Long: " + "x" * 100_000), NO_PYLB),
        (b"SSH-2.0-OpenSSH_9.2\r\n", NO_PYLB),
        (b"", NO_PYLB),
        (http(b"", "403 Forbidden"), "it refuses this machine or the name it is called by (403: "),
        (http(b"", "404 Not Found"), "it has no such page (404): an older pylb, or not one"),
        (http(b"", "503 Service Unavailable"), "it answers with status 503"),
    ],
)
async def test_what_is_not_a_pylbs_answer_is_not_shown(answer: bytes, error: str) -> None:
    async with answering(answer) as other:
        [found] = await asked(peer(other.url))
    assert found.pop("error").startswith(error)
    assert found == {"name": "lb-2", "page": other.url}


async def test_a_redirect_is_not_followed() -> None:
    async with (
        answering(http(json.dumps(GOOD).encode())) as inside,
        answering(http(b"", "302 Found", f"Location: {inside.url}/v1/health")) as other,
    ):
        [found] = await asked(peer(other.url))
    assert found["error"] == "it answers with status 302"
    assert inside.requests == []


async def test_an_answer_without_end_is_cut_by_its_size_and_one_that_drips_by_its_time() -> None:
    async def without_end(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1000\r\n" + b" " * 0x1000 + b"\r\n")
            await writer.drain()

    gone = asyncio.Event()

    async def dripping(writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n")
            while not writer.transport.is_closing():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.01)
        finally:
            gone.set()

    async with answering(without_end) as endless, answering(dripping) as slow:
        [found] = await asked(peer(endless.url))
        assert found["error"] == NO_PYLB
        [found] = await asked(peer(slow.url), within=0.2)
        assert found["error"] == "no answer within 0.2 s"
        if slow.requests:  # the machine was not busier than that
            await asyncio.wait_for(gone.wait(), 5)


async def test_text_is_cut_and_made_harmless() -> None:
    text = GOOD | {"sentence": "a\x1b[2J\u202e" + "x" * 1000, "host": "<b>" + "h" * 1000, "sessions": 10**30}
    async with answering(http(json.dumps(text).encode())) as other:
        [found] = await asked(peer(other.url))
    assert found["sentence"].startswith("a\\x1b[2J\\u202exx")
    assert len(found["sentence"]) < MOST_TEXT + 10
    assert (len(found["host"]), found["sessions"]) == (80, 10**9)


async def test_one_that_is_gone_has_its_reason_and_shows_what_it_said_before() -> None:
    async with answering(http(json.dumps(GOOD).encode())) as other:
        peers = [
            peer(other.url),
            peer(f"http://127.0.0.1:{refusing_port()}", "lb-3"),
            peer("http://no-such-name.invalid", "lb-4"),
        ]
        found = Peers(lambda: peers)
        assert [one.get("sentence", "") for one in found.records()] == ["", "", ""]
        await found.ask()
        assert [one["error"] for one in found.records()] == ["", "refused", "its name does not resolve"]
    await found.ask()
    [first, *_] = found.records()
    assert (first["error"], first["sentence"]) == ("refused", GOOD["sentence"])
    del peers[0]
    await found.ask()
    assert [one["name"] for one in found.records()] == ["lb-3", "lb-4"]


async def test_while_nobody_watches_nobody_is_asked() -> None:
    async with answering(http(json.dumps(GOOD).encode())) as other:
        watched = asyncio.Event()
        found = Peers(lambda: [peer(other.url)], period=0)
        asking = asyncio.get_running_loop().create_task(found.run(watched))
        for _ in range(20):
            await asyncio.sleep(0)
        assert other.requests == []
        watched.set()
        await until(lambda: len(other.requests) >= 2)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def test_whether_others_may_have_the_address_is_asked_anew_each_time() -> None:
    def says(status: str, text: str) -> bytes:
        return http(json.dumps({"status": status}).encode(), text)

    async with (
        answering(says("active", "200 OK")) as active,
        answering(says("standby", "503 Service Unavailable")) as standby,
        answering(says("starting", "503 Service Unavailable")) as starting,
        answering(http(b"nothing here", "404 Not Found")) as older,
        answering(http(b'{"status": {}}')) as stranger,
        answering(http(b"x" * (MOST_BYTES + 1), "403 Forbidden")) as closed,
    ):
        others = (active, standby, starting, older, stranger, closed)
        urls = [*(one.url for one in others), f"http://127.0.0.1:{refusing_port()}"]
        peers = Peers(lambda: [peer(url, str(number)) for number, url in enumerate(urls)])
        found = await peers.active()
        assert await peers.active() == found
    assert [found[str(number)].partition(" (")[0] for number in range(len(urls))] == [
        "",
        "it is on standby itself",
        "it is starting",
        "it has no such page",
        NO_PYLB,
        "it refuses this machine or the name it is called by",
        "refused",
    ]
    assert active.requests[0].startswith("GET /activez HTTP/1.1\r\n")
    assert peers.records()[0] == {"name": "0", "page": urls[0]}  # the page shows nothing of it


async def test_they_are_named_in_the_order_of_the_config_whoever_answers_first() -> None:
    second_was_asked = asyncio.Event()
    says_active = http(b'{"status": "active"}')

    async def late(writer: asyncio.StreamWriter) -> None:
        await second_was_asked.wait()
        writer.write(says_active)

    async def early(writer: asyncio.StreamWriter) -> None:
        writer.write(says_active)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        second_was_asked.set()

    async with answering(late) as first, answering(early) as second:
        peers = Peers(lambda: [peer(first.url, "first"), peer(second.url, "second")])
        found = await peers.active()
    assert list(found.items()) == [("first", ""), ("second", "")]
