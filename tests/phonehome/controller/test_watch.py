"""List and watch against the faults of an API server, by script. Randomness is injected: each pause is as short as can be."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from phonehome.controller import objects
from phonehome.controller.kube import Access, Api, ApiError
from phonehome.controller.objects import Node
from phonehome.controller.watch import Cache, Changes, Kind, Watcher
from phonehome.credentials import read_file
from phonehome.values import parse_url
from tests.phonehome.controller.scripted import Scripted, Serve, Step, bookmark, event, gone, listing, node, status
from tests.support.waiting import eventually

Watch = Callable[..., "Watched"]
NODES = Kind("/api/v1/nodes", objects.node, 2)


class Watched:
    """A watcher of nodes; `waits` are its pauses."""

    def __init__(self, server: Scripted, token_file: Path, *, silence: float, uniform: Callable[[float, float], float]) -> None:
        self.cache: Cache[Node] = Cache(Changes())
        self.lines: list[str] = []
        api = Api(Access(parse_url(server.url), str(token_file), None), read_file)
        self.watcher = Watcher(NODES, self.cache, api, self.lines.append, uniform=uniform, silence=silence)
        self.watcher.start()

    def has(self, names: str) -> None:
        eventually(lambda: sorted(self.cache.objects) == sorted(names), what=f"{sorted(self.cache.objects)} is {names}")


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("first-token\n")
    return path


@pytest.fixture
def watch(token_file: Path) -> Iterator[Watch]:
    started: list[Watched] = []

    def start(
        server: Scripted, *, silence: float = 30.0, uniform: Callable[[float, float], float] = lambda low, _high: low
    ) -> Watched:
        started.append(Watched(server, token_file, silence=silence, uniform=uniform))
        return started[-1]

    yield start
    for one in started:
        one.watcher.stop()
        one.watcher.join(10)
        assert not one.watcher.is_alive()


def test_a_list_in_pages_then_a_watch_from_its_version(serve: Serve, watch: Watch) -> None:
    server = serve(listing(node("a"), node("b"), token="t/1"), listing(node("c"), version="12"))
    watched = watch(server)
    watched.has("abc")
    assert server.next() == {"limit": "2"}
    assert server.next() == {"limit": "2", "continue": "t/1"}
    query = server.next()
    assert (query["watch"], query["allowWatchBookmarks"], query["resourceVersion"]) == ("1", "true", "12")


def test_events_change_the_cache_and_only_a_deletion_is_one(serve: Serve, watch: Watch) -> None:
    chunks = [event("DELETED", node("a", "11")), event("ADDED", node("c", "12"))]
    watched = watch(serve(listing(node("a"), node("b")), Step(chunks=chunks, hold=True)))
    watched.has("bc")
    assert watched.cache.deleted == {"a"}


def test_what_a_later_list_lacks_is_not_deleted(serve: Serve, watch: Watch) -> None:
    watched = watch(serve(listing(node("a"), node("b")), Step(chunks=[gone()]), listing(node("b"))))
    watched.has("b")
    assert watched.cache.deleted == set()


def test_events_cut_anywhere_are_put_together_and_half_a_line_at_the_end_is_dropped(serve: Serve, watch: Watch) -> None:
    both = event("ADDED", node("b", "11")) + event("ADDED", node("c", "12"))
    chunks = [both[:5], both[5:70], both[70:], event("ADDED", node("d", "13"))[:40]]
    server = serve(listing(node("a")), Step(chunks=chunks, cut=True))
    watched = watch(server)
    watched.has("abc")
    server.next(), server.next()
    assert server.next()["resourceVersion"] == "12", "and it goes on from the last whole one"
    assert watched.lines == []


def test_bookmarks_move_the_version_on(serve: Serve, watch: Watch) -> None:
    server = serve(listing(node("a")), Step(chunks=[bookmark("40")]))
    watched = watch(server)
    server.next(), server.next()
    assert server.next()["resourceVersion"] == "40"
    watched.has("a")


@pytest.mark.parametrize("expired", [Step(chunks=[gone()]), status(410, "too old resource version")])
def test_410_means_a_new_list(serve: Serve, watch: Watch, expired: Step) -> None:
    server = serve(listing(node("a")), expired, listing(node("b"), version="20"))
    watched = watch(server)
    watched.has("b")
    assert [server.next().get("resourceVersion") for _ in range(4)] == [None, "10", None, "20"]
    assert watched.lines == []


def test_an_expired_page_means_one_list_without_pages(serve: Serve, watch: Watch) -> None:
    """The token inside that 410 would continue a list of another version."""
    expired = Step(410, [b'{"kind":"Status","code":410,"metadata":{"continue":"inconsistent"}}'])
    server = serve(listing(node("a"), token="t"), expired, listing(node("b"), node("c"), node("d")))
    watched = watch(server)
    watched.has("bcd")
    assert [server.next() for _ in range(3)] == [{"limit": "2"}, {"limit": "2", "continue": "t"}, {}]


def test_a_silent_watch_is_resumed_quietly(serve: Serve, watch: Watch) -> None:
    server = serve(listing(node("a")), Step(chunks=[bookmark("40")], hold=True))
    watched = watch(server, silence=0.2)
    server.next(), server.next()
    assert server.next()["resourceVersion"] == "40"
    assert watched.lines == []


@pytest.mark.parametrize(
    "rest",
    [
        Step(),
        Step(cut=True),
        Step(chunks=[gone()]),
        Step(chunks=[bookmark("10")]),
        Step(chunks=[b"no JSON\n"]),
        Step(chunks=[b"[]\n"]),
        Step(chunks=[event("ERROR", {"code": 500, "message": "etcd"})]),
        Step(chunks=[b'{"type":"ADDED","object":3}\n']),
        listing(),
        status(410),
        status(429),
        status(500, "etcd"),
        status(403, "forbidden"),
        Step(200, [b"<html>"]),
        Step(302, headers=(("Location", "http://127.0.0.1:1/"),)),
    ],
)
def test_no_fault_makes_a_hot_loop(serve: Serve, watch: Watch, rest: Step) -> None:
    """The pauses double from a tenth of a second on: with the most favourable draws of a quarter of the ceiling, the third
    is half a second. Counted by draws, not by the clock: each pause is drawn once, and the highest ceiling shows how far
    it went."""
    ceilings: list[float] = []
    enough = threading.Event()

    def uniform(_low: float, high: float) -> float:
        ceilings.append(high)
        if len(ceilings) >= 6:
            enough.set()
        return 0.0

    server = serve(rest=rest)
    watched = watch(server, uniform=uniform)
    assert enough.wait(20)
    assert ceilings[:6] == [1, 2, 4, 8, 16, 30]
    assert server.count <= 3 * len(ceilings) + 3
    assert len(watched.lines) <= 2


def test_retry_after_is_honoured(serve: Serve, watch: Watch) -> None:
    server = serve(status(429, "too many requests", Retry_After="1"), listing(node("a")))
    watched = watch(server)
    server.next()
    with pytest.raises(Exception):  # noqa: B017, PT011  queue.Empty
        server.requests.get(timeout=0.9)
    watched.has("a")


def test_a_version_that_never_works_is_given_up(serve: Serve, watch: Watch) -> None:
    """An API server whose etcd was restored from a backup: 'Too large resource version', for ever."""
    ahead = status(504, "Too large resource version: 99, current: 10")
    server = serve(listing(node("a"), version="99"), ahead, ahead, ahead, listing(node("b")))
    watch(server).has("b")


def test_the_token_is_read_again_before_each_call(serve: Serve, watch: Watch, token_file: Path) -> None:
    server = serve(status(401), listing(node("a")))
    watched = watch(server, uniform=lambda _low, _high: 0.2)
    server.next()
    token_file.write_text("second-token")
    watched.has("a")
    assert server.tokens[0] == "Bearer first-token"
    assert server.tokens[-1] == "Bearer second-token"
    eventually(lambda: any("works again" in line for line in watched.lines))


def test_what_happens_is_said_once_with_a_hint(serve: Serve, watch: Watch) -> None:
    forbidden = status(403, 'nodes is forbidden: User "x" cannot list resource "nodes"')
    server = serve(forbidden, forbidden, listing(node("a")))
    watched = watch(server)
    watched.has("a")
    eventually(lambda: len(watched.lines) == 2)
    assert "403" in watched.lines[0]
    assert "controller/base.yaml" in watched.lines[0]
    assert watched.lines[1] == "Kubernetes API, nodes: works again"


def test_an_endless_line_is_given_up(serve: Serve, watch: Watch) -> None:
    server = serve(listing(node("a")), Step(chunks=(b"x" * 65536 for _ in range(100)), hold=True), listing(node("b")))
    watched = watch(server)
    server.next(), server.next()
    assert server.next()["resourceVersion"] == "10"
    watched.has("a")


def test_what_the_server_says_reaches_the_log_without_control_characters() -> None:
    said = str(ApiError(500, "etcd\x1b[2J\nforged: line" + "x" * 1000))
    assert said.startswith("500 etcd [2J forged: line")
    assert said.isprintable()
    assert len(said) < 400
    assert str(ApiError(500, ["no text"])) == "500"


def test_the_files_that_hints_name_are_there() -> None:
    named = re.findall(r"deploy/[\w/.-]+", ApiError(403, "").hint)
    assert named
    assert all((Path(__file__).resolve().parents[3] / one).exists() for one in named)
