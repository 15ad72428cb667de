"""The read-only pages and the metrics listener, in front of a real registry."""

import asyncio
import gzip
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from pylb.core.address import Listen
from pylb.core.announcement import parse_native
from pylb.core.auth import Caller
from pylb.core.errors import Refused
from pylb.core.policy import Policy, Rules, StaticFrontend
from pylb.forward.counters import Counters
from pylb.metrics.families import Scrape, gauge
from pylb.web.admin import Admin
from pylb.web.types import Handler
from tests.support.baseline import collected_as_in_service
from tests.support.ports import free_port, refusing_port
from tests.web.loopback import Reply, ask, serving, until
from tests.web.running import Control, running

PAGES = [
    "/metrics",
    "/livez",
    "/readyz",
    "/activez",
    "/v1/health",
    "/v1/table",
    "/v1/registrations",
    "/v1/sessions",
    "/v1/events",
    "/v1/rejected",
]


@dataclass
class Face:
    control: Control
    admin: Admin
    port: int

    async def get(self, path: str, **headers: str) -> Reply:
        return await ask(self.port, "GET", path, headers=headers)

    async def json(self, path: str) -> Any:
        reply = await self.get(path)
        assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
        return json.loads(reply.body)

    async def announce(self, port: int, instance: str = "pod-1", ttl: int | None = 60) -> None:
        caller = Caller("127.0.0.1", self.control.keyring.tokens[0], "native")
        body = json.dumps({"frontends": [{"port": port, "target_port": refusing_port()}], "ttl": ttl})
        await self.control.registry.calls.announce("mosquitto", instance, parse_native(body.encode()), caller)


async def _scrape() -> Scrape:
    return Scrape(gauge("pylb_state_durable", "Is it?", value=1))


@asynccontextmanager
async def facing(
    state_dir: Path, *, rules: Rules | None = None, handler: str = "admin", allow: tuple[str, ...] = (), recorded: int = 100
) -> AsyncIterator[Face]:
    async with running(state_dir, rules, recorded) as control:

        async def counters() -> Counters:
            return control.engine.counters

        admin = Admin(control.registry, counters, _scrape, hosts=["lb.example.net", "203.0.113.9"], live=control.driver)
        pages: Handler = admin.handler() if handler == "admin" else admin.metrics_handler([ip_network(net) for net in allow])
        async with serving(pages) as server:
            yield Face(control, admin, server.port)


async def test_every_page_answers_get_and_head_and_nothing_else(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        for path in PAGES:
            got = await face.get(path)
            head = await ask(face.port, "HEAD", path)
            assert (got.status, head.status) == (200, 200), path
            assert head.body == b""
            for method in ("POST", "PUT", "DELETE"):
                reply = await ask(face.port, method, path, body=b"")
                assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")
        assert (await face.get("/v1/registrations/a/b")).status == 404


async def test_the_table_says_what_goes_where_and_who_holds_it(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        port = free_port()
        await face.announce(port)
        table = await face.json("/v1/table")
        assert table["generation"] == face.control.registry.table.generation
        [frontend] = table["frontends"]
        [server] = frontend.pop("servers")
        assert frontend == {
            "name": f"mosquitto-{port}",
            "listen": f"127.0.0.1:{port}",
            "port": port,
            "balance": "leastconn",
            "unbound": None,
        }
        assert (server["name"], server["address"]) == ("pod-1", f"127.0.0.1:{refusing_port()}")
        assert (server["reachable"], server["held_by"]) == ("refused", ["mosquitto/mosquitto/pod-1"])
        assert server["hint"]


async def test_registrations_show_their_lease(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        port = free_port()
        await face.announce(port)
        [view] = (await face.json("/v1/registrations"))["registrations"]
        assert 59 <= view["lease"].pop("expires_in") <= 60
        assert view.pop("last_seen_ago") < 1
        assert view == {
            "token": "mosquitto",
            "name": "mosquitto",
            "instance": "pod-1",
            "legacy": False,
            "state": "fresh",
            "address": "127.0.0.1",
            "lease": {"ttl": 60},
            "frontends": [
                {
                    "port": port,
                    "target_port": refusing_port(),
                    "proxy_protocol": None,
                    "weight": 1,
                    "backup": False,
                    "health": None,
                }
            ],
        }


async def test_sessions_are_counted_per_frontend(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        port, target = free_port(), free_port()
        held: list[asyncio.StreamWriter] = []
        server = await asyncio.start_server(lambda _, writer: held.append(writer), "127.0.0.1", target)
        caller = Caller("127.0.0.1", face.control.keyring.tokens[0], "native")
        body = json.dumps({"frontends": [{"port": port, "target_port": target}]}).encode()
        await face.control.registry.calls.announce("mosquitto", "pod-1", parse_native(body), caller)
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        await until(lambda: face.control.engine.counters.open_sessions == 1)
        sessions = await face.json("/v1/sessions")
        assert (sessions["open"], sessions["max"]) == (1, 1000)
        assert sessions["frontends"] == [
            {"frontend": f"mosquitto-{port}", "listen": f"127.0.0.1:{port}", "sessions": 1, "sessions_total": 1}
        ]
        writer.close()
        for one in held:
            one.close()
        await until(lambda: face.control.engine.counters.open_sessions == 0)
        server.close()


async def test_live_and_ended_sessions_are_listed_for_those_who_ask(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        port = free_port()
        await face.announce(port)
        for _ in range(3):
            with suppress(ConnectionError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                await reader.read()
                writer.close()
        await until(lambda: len(face.control.records) == 3)
        assert (await face.json("/v1/sessions")).keys() == {"open", "max", "frontends"}
        found = await face.json("/v1/sessions?live=1&ended=1")
        assert (found["open"], found["live"]) == (0, [])
        [one, _, _] = found["ended"]
        assert (one["code"], one["closed_first"]["how"], one["client_tcp"]["state"]) == (
            "SC",
            "no server left",
            "ESTABLISHED",
        )
        assert [attempt["error"] for attempt in one["attempts"]] == ["ECONNREFUSED"]
        for query, count in (
            ("limit=2", 2),
            ("code=SD,SC", 3),
            ("code=--", 0),
            (f"client=127.0.0.0%2F8&frontend={port}", 3),
        ):
            assert len((await face.json(f"/v1/sessions?ended=1&{query}"))["ended"]) == count, query


async def test_live_sessions_are_listed_oldest_first(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        port, target = free_port(), free_port()
        held: list[asyncio.StreamWriter] = []
        server = await asyncio.start_server(lambda _, writer: held.append(writer), "127.0.0.1", target)
        caller = Caller("127.0.0.1", face.control.keyring.tokens[0], "native")
        body = json.dumps({"frontends": [{"port": port, "target_port": target}]}).encode()
        await face.control.registry.calls.announce("mosquitto", "pod-1", parse_native(body), caller)
        clients = [(await asyncio.open_connection("127.0.0.1", port))[1] for _ in range(3)]
        await until(lambda: len(held) == 3)
        live = (await face.json("/v1/sessions?live=1&server=pod-1"))["live"]
        addresses = ["{}:{}".format(*one.get_extra_info("sockname")) for one in clients]
        assert [one["client"] for one in live] == addresses
        assert (await face.json("/v1/sessions?live=1&limit=1"))["live"] == [live[0] | {"age": pytest.approx(0, abs=9)}]
        assert (await face.json("/v1/sessions?live=1&client=192.0.2.0/24"))["live"] == []
        for one in (*clients, *held):
            one.close()
        await until(lambda: face.control.engine.counters.open_sessions == 0)
        server.close()


@pytest.mark.parametrize(
    "query",
    [
        "code=SC",  # of nothing
        "ended=yes",
        "ended=1&cod=SC",
        "ended=1&client=nobody",
        "ended=1&client=192.0.2.1/24",
        "ended=1&limit=1001",
        "ended=1&limit=many",
        "ended=1&since=-1",
        "live=1&code=SC",
        "live=1&by=name",
        "ended=1&by=bytes",
        "live=1&counts=no",
        "counts=0&text=web",  # of nothing
    ],
)
async def test_a_query_that_is_not_understood_is_refused_and_not_answered_with_everybody(tmp_path: Path, query: str) -> None:
    async with facing(tmp_path) as face:
        reply = await face.get(f"/v1/sessions?{query}")
        assert (reply.status, json.loads(reply.body)["error"]) == (422, "invalid")


async def test_without_a_recorder_its_list_is_refused_and_the_counts_are_not(tmp_path: Path) -> None:
    async with facing(tmp_path, recorded=0) as face:
        reply = await face.get("/v1/sessions?ended=1")
        assert (reply.status, b"recorder.sessions is 0" in reply.body) == (404, True)
        assert (await face.json("/v1/sessions?ended=0&live=1"))["live"] == []


async def test_a_thousand_recorded_sessions_do_not_hold_the_loop(tmp_path: Path) -> None:
    async with facing(tmp_path, recorded=1000) as face:
        port = free_port()
        await face.announce(port)
        for _ in range(1000):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.setblocking(False)
            with suppress(ConnectionError):
                await asyncio.get_running_loop().sock_recv(sock, 1)
            sock.close()
        await until(lambda: len(face.control.records) == 1000)
        longest = []
        with collected_as_in_service():
            for _ in range(3):
                turns: list[float] = []
                async with asyncio.TaskGroup() as tasks:
                    answer = tasks.create_task(face.get("/v1/sessions?ended=1&limit=1000"))
                    while not answer.done():
                        began = time.thread_time()  # what other processes do meanwhile does not count
                        await asyncio.sleep(0)
                        turns.append(time.thread_time() - began)
                longest.append(max(turns))
                assert len(json.loads(answer.result().body)["ended"]) == 1000
        assert min(longest) < 0.010  # a collection of young garbage may fall into one of them


async def test_events_and_rejections_are_shown(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        with pytest.raises(Refused):
            await face.announce(22)
        [rejected] = (await face.json("/v1/rejected"))["rejected"]
        assert (rejected["address"], rejected["token"], rejected["error"]) == (
            "127.0.0.1",
            "mosquitto",
            "port_forbidden",
        )
        events = (await face.json("/v1/events"))["events"]
        assert events[-1]["kind"] == "refused"
        assert set(events[-1]) == {"time", "kind", "text", "alarm", "fields"}


async def test_a_port_that_cannot_be_bound_degrades_and_is_named(tmp_path: Path) -> None:
    blocker = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", free_port())
    port = blocker.sockets[0].getsockname()[1]
    rules = Rules(frontends=(StaticFrontend("web", Listen("tcp", "127.0.0.1", port)),), defaults=Policy())
    async with facing(tmp_path, rules=rules) as face:
        ready = await face.json("/readyz")
        assert (ready["status"], ready["durable"]) == ("degraded", True)
        [unbound] = ready["unbound"]
        assert unbound["listen"] == f"127.0.0.1:{port}"
        assert unbound["reason"]
        [frontend] = (await face.json("/v1/table"))["frontends"]
        assert frontend["unbound"] == unbound["reason"]
    blocker.close()


async def test_ready_means_restored(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        assert await face.json("/readyz") == {"status": "ready", "durable": True, "unbound": []}
        await face.control.registry.stop()
        reply = await face.get("/readyz")
        assert (reply.status, json.loads(reply.body)) == (503, {"status": "starting"})
        assert (await face.get("/livez")).status == 200


_LINK = {"Host": "localhost", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:8404"}, 200),
        ({"Host": "127.0.0.1"}, 200),
        ({"Host": "127.0.0.53:8404"}, 200),
        ({"Host": "[::1]:8404"}, 200),
        ({"Host": "LB.example.net."}, 200),
        ({"Host": "203.0.113.9:8404"}, 200),
        ({"Host": "localhost", "Origin": "http://localhost:3000"}, 200),
        ({"Host": "rebind.example.com"}, 403),
        ({"Host": "localhost.example.com"}, 403),
        ({"Host": "203.0.113.10"}, 403),
        ({"Host": "2130706433"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "localhost", "Origin": "https://evil.example.com"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
        ({"Host": "localhost", "Origin": "http://[bad"}, 403),
        ({"Host": "localhost", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Host": "localhost", "Sec-Fetch-Site": "CROSS-SITE"}, 403),
        ({"Host": "localhost", "Sec-Fetch-Site": "a word of the future"}, 403),
        ({**_LINK, "Sec-Fetch-Dest": "document"}, 200),
        ({**_LINK, "Sec-Fetch-Dest": "iframe"}, 403),
        ({**_LINK, "Sec-Fetch-Dest": "object"}, 403),
        (_LINK, 403),
        ({"Host": "localhost", "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, 200),
        ({"Host": "localhost", "Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, 200),
    ],
)
async def test_only_a_host_and_origin_of_this_machine_may_read(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    async with facing(tmp_path) as face:
        for path in ("/v1/table", "/metrics"):
            assert (await face.get(path, **headers)).status == status


async def test_a_scrape_is_openmetrics_or_compressed_for_those_who_accept_it(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        plain = await face.get("/metrics")
        assert plain.body == b"# HELP pylb_state_durable Is it?\n# TYPE pylb_state_durable gauge\npylb_state_durable 1.0\n"
        assert "content-encoding" not in plain.headers
        assert plain.headers["vary"] == "Accept, Accept-Encoding"
        modern = {"Accept": "application/openmetrics-text;version=1.0.0,*/*;q=0.1", "Accept-Encoding": "gzip"}
        packed = await face.get("/metrics", **modern)
        assert packed.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        assert packed.headers["content-encoding"] == "gzip"
        assert gzip.decompress(packed.body) == plain.body + b"# EOF\n"


async def test_the_metrics_listener_serves_four_pages_to_the_allowed(tmp_path: Path) -> None:
    async with facing(tmp_path, handler="metrics", allow=("127.0.0.0/8",)) as face:
        metrics = await face.get("/metrics", Host="prometheus-calls-it.example.net")
        assert metrics.status == 200
        assert metrics.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert (await face.get("/livez")).status == 200
        assert (await face.get("/readyz")).status == 200
        assert (await face.get("/v1/health", Host="lb-2.example.net:9404")).status == 200
        assert (await face.get("/v1/table")).status == 404
        assert (await face.get("/v1/registrations")).status == 404


async def test_health_is_a_word_and_a_sentence(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        empty = await face.json("/v1/health")
        assert (empty["health"], empty["sentence"], empty["sessions"]) == ("unknown", "no frontends yet", 0)
        await face.announce(free_port())
        found = await face.json("/v1/health")
        assert found["health"] == "down"
        assert found["sentence"].startswith("the one frontend is down; mosquitto-")
        assert found.keys() == {"health", "sentence", "host", "version", "sessions"}


@pytest.mark.parametrize("allow", [(), ("203.0.113.0/24", "::1/128")])
async def test_the_metrics_listener_refuses_everybody_else(tmp_path: Path, allow: tuple[str, ...]) -> None:
    async with facing(tmp_path, handler="metrics", allow=allow) as face:
        for path in ("/metrics", "/livez", "/readyz", "/activez", "/v1/health", "/v1/table"):
            reply = await face.get(path)
            assert (reply.status, b"not in metrics.allow" in reply.body) == (403, True)
