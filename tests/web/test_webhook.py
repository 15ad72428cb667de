"""The webhook over real HTTP, in front of a real registry and a real engine: what is answered is in force."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.web.calling import LEGACY, NATIVE, body_for, facing, legacy_body
from tests.web.loopback import ask
from tests.web.running import SECRET, WEAK


async def test_a_registration_is_created_and_its_port_forwards_when_it_is_answered(tmp_path: Path) -> None:
    async with facing(tmp_path) as face, _banner(b"hello\n") as target:
        port = free_port()
        wanted = {"frontends": [{"port": port, "target_port": target}]}
        reply = await face.put("mosquitto/pod-1", wanted)
        assert reply.status == 201
        answer = json.loads(reply.body)
        assert answer == {
            "result": "created",
            "generation": answer["generation"],
            "durable": True,
            "lease": {"ttl": 60, "expires_in": 60},
            "frontends": [{"port": port, "address": "127.0.0.1", "target_port": target, "reachable": "yes"}],
        }
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.readline() == b"hello\n"
        writer.close()
        again = await face.put("mosquitto/pod-1", wanted)
        assert (again.status, json.loads(again.body)["result"]) == (200, "unchanged")


async def test_a_delete_releases_and_repeats_are_200(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        port = free_port()
        await face.put("mosquitto/pod-1", {"frontends": [{"port": port, "target_port": 30000}], "ttl": None})
        for _ in range(2):
            reply = await face.delete("mosquitto/pod-1")
            assert reply.status == 200
            answer = json.loads(reply.body)
            assert (answer["result"], answer["durable"]) == ("released", True)
            assert "lease" not in answer
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_a_target_that_does_not_answer_is_said_with_a_hint(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        reply = await face.put("mosquitto/pod-1", {"frontends": [{"port": free_port(), "target_port": 30001}]})
        [frontend] = json.loads(reply.body)["frontends"]
        assert frontend["reachable"] == "refused"
        assert frontend["hint"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer "},
        {"Authorization": f"Basic {SECRET}"},
        {"Authorization": f"Bearer {SECRET}x"},
        {"Authorization": f"Bearer {WEAK}"},
        LEGACY,
    ],
)
async def test_without_a_strong_known_bearer_token_a_native_call_is_401(tmp_path: Path, headers: dict[str, str]) -> None:
    async with facing(tmp_path) as face:
        body = {"frontends": [{"port": free_port(), "target_port": 30000}]}
        for reply in (await face.put("mosquitto/pod-1", body, headers), await face.delete("mosquitto/p", headers)):
            assert reply.status == 401
            assert json.loads(reply.body)["error"] == "unauthorized"
            assert reply.headers["www-authenticate"] == "Bearer"
            assert SECRET.encode() not in reply.body
        assert not face.control.registry.table.frontends


async def test_refusals_say_what_and_change_nothing(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        port = free_port()
        ok = [{"port": port, "target_port": 30000}]
        cases: list[tuple[str, object, int, str]] = [
            ("mosquitto/p", b"{", 400, "invalid_json"),
            ("mosquitto/p", b'{"frontends":NaN}', 400, "invalid_json"),
            ("mosquitto/p", b"", 400, "invalid_json"),
            ("mosquitto/p", {"frontends": ok, "color": "red"}, 422, "invalid"),
            ("mosquitto/p", {"frontends": [{"port": "443 ", "target_port": 30000}]}, 422, "invalid"),
            ("mosquitto/p", {"frontends": [{"port": 0, "target_port": 30000}]}, 422, "invalid"),
            ("mosquitto/p", {"frontends": ok, "ttl": 1}, 422, "invalid"),
            ("mosquitto/..%2fp", {"frontends": ok}, 422, "invalid"),
            ("other/p", {"frontends": ok}, 403, "name_forbidden"),
            ("mosquitto/p", {"frontends": [{"port": 22, "target_port": 30000}]}, 403, "port_forbidden"),
            ("mosquitto/p", {"frontends": [{"port": port, "target_port": 22}]}, 403, "target_forbidden"),
            ("mosquitto/p", {"frontends": ok, "address": "198.51.100.1"}, 403, "target_forbidden"),
            ("mosquitto/p", {"frontends": ok, "address": "169.254.169.254"}, 422, "target_refused"),
            ("mosquitto/p", b"x" * 4097, 413, "body_too_large"),
        ]
        for path, body, status, error in cases:
            reply = await face.put(path, body)
            assert (reply.status, json.loads(reply.body)["error"]) == (status, error), (path, body)
        assert not face.control.registry.table.frontends
        assert not list(face.control.registry.each_registration())


async def test_whoami_needs_no_token_and_says_the_address_and_the_time(tmp_path: Path) -> None:
    async with facing(tmp_path, wall=lambda: 1795419669.1234) as face:
        reply = await ask(face.port, "GET", "/v1/whoami")
        assert json.loads(reply.body) == {"address": "127.0.0.1", "time": 1795419669.123}
        spoofed = await ask(face.port, "GET", "/v1/whoami", headers={"X-Forwarded-For": "198.51.100.1"})
        assert json.loads(spoofed.body)["address"] == "127.0.0.1"
        face.webhook.trusted_proxies = (ip_network("127.0.0.0/8"),)
        behind = await ask(face.port, "GET", "/v1/whoami", headers={"X-Forwarded-For": "198.51.100.1"})
        assert json.loads(behind.body)["address"] == "198.51.100.1"


async def test_unknown_paths_and_methods(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        cases = [
            ("GET", "/", 404, b'"error":"not_found"', None),
            ("GET", "/metrics", 404, b'"error":"not_found"', None),
            ("POST", "/v1/registrations/a/b", 405, b'"error":"method_not_allowed"', "PUT, DELETE"),
            ("POST", "/v1/whoami", 405, b'"error":"method_not_allowed"', "GET, HEAD"),
            ("POST", "/hooks/other", 404, b"Hook not found.", None),
            ("GET", "/hooks/", 404, b"Hook not found.", None),
        ]
        for method, path, status, body, allow in cases:
            reply = await ask(face.port, method, path, body=b"")
            assert (reply.status, body in reply.body) == (status, True), path
            assert reply.headers.get("allow") == allow


async def test_the_exact_legacy_request_is_answered_with_a_line_once_it_forwards(tmp_path: Path) -> None:
    async with facing(tmp_path) as face, _banner(b"hello\n") as target:
        port = free_port()
        reply = await face.hook(legacy_body(port, target))
        assert reply.status == 200
        assert reply.headers["content-type"].startswith("text/plain")
        assert reply.body.count(b"\n") == 1
        assert reply.body.endswith(b"\n")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.readline() == b"hello\n"
        writer.close()
        for _ in range(2):
            assert (await face.hook(legacy_body(port, target, "delete"))).status == 200
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_a_weak_token_works_on_the_legacy_route(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        reply = await face.hook(legacy_body(free_port(), 30000), {"X-Funkypenguin-Token": f" {WEAK} "})
        assert reply.status == 200


@pytest.mark.parametrize("headers", [{}, {"X-Funkypenguin-Token": ""}, {"X-Funkypenguin-Token": "wrong"}, NATIVE])
@pytest.mark.parametrize("method", ["POST", "GET", "PUT"])
async def test_a_bad_legacy_token_gets_the_words_of_old(tmp_path: Path, headers: dict[str, str], method: str) -> None:
    async with facing(tmp_path) as face:
        body = json.dumps(legacy_body(free_port(), 30000)).encode()
        reply = await ask(face.port, method, "/hooks/update-haproxy", headers=headers, body=body)
        assert (reply.status, reply.body) == (401, b"Hook rules were not satisfied.")


async def test_a_get_of_the_hook_with_a_good_token_is_405(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        reply = await ask(face.port, "GET", "/hooks/update-haproxy", headers=LEGACY)
        assert (reply.status, reply.headers["allow"]) == (405, "POST")


async def test_a_legacy_refusal_is_one_line_that_says_what_and_why(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        reply = await face.hook(legacy_body(22, 30000))
        assert reply.status == 403
        assert reply.body.count(b"\n") == 1
        assert b"may not open port 22" in reply.body
        assert (await face.hook(b"{]")).status == 400


async def test_a_page_in_dst_ip_may_be_longer_than_any_other_body(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        page = '<!DOCTYPE html>\n<html lang="en">\n' + "<p>" * 8000 + "</html>\n"
        port = free_port()
        whole = json.dumps(legacy_body(port, 30000))
        broken = whole.replace('"dst-ip": ""', f'"dst-ip": "{page}"')
        assert len(broken) > 20_000
        reply = await face.hook(broken.encode())
        assert (reply.status, b"127.0.0.1:30000" in reply.body) == (200, True)
        for large in (json.dumps(legacy_body(port, 30000) | {"name": "x" * 5000}).encode(), b"x" * 5000):
            reply = await face.hook(large)
            assert (reply.status, reply.body) == (413, b"the body is over 4096 bytes\n")


async def test_a_listener_without_legacy_knows_no_hooks(tmp_path: Path) -> None:
    async with facing(tmp_path, legacy=False) as face:
        reply = await face.hook(legacy_body(free_port(), 30000))
        assert (reply.status, reply.body) == (404, b"Hook not found.")


async def test_a_secret_in_the_wrong_place_of_a_call_is_not_remembered(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        for name, body in ((SECRET, body_for(free_port())), ("mosquitto", {SECRET: 1}), (SECRET, {})):
            assert (await face.put(f"{name}/p", body)).status in (400, 403, 422)
        assert (await face.put(f"{SECRET}/p", {}, {"Authorization": "Bearer wrong"})).status == 401
        rejected = face.control.registry.rejected()
        assert len(rejected) == 4
        assert "[secret]" in repr(rejected[0])
        assert SECRET not in repr(rejected) + repr(face.control.registry.events())


async def test_a_reload_that_replaces_the_keyring_acts_on_the_next_call(tmp_path: Path) -> None:
    async with facing(tmp_path) as face:
        body = {"frontends": [{"port": free_port(), "target_port": 30000}]}
        assert (await face.put("mosquitto/p", body)).status == 201
        face.control.keyring = type(face.control.keyring)([])
        assert (await face.put("mosquitto/p", body)).status == 401


@asynccontextmanager
async def _banner(text: bytes) -> AsyncIterator[int]:
    """A server that speaks first, on a free port a token may aim at."""

    async def speak(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(text)
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", free_port())
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_the_legacy_route_can_be_for_some_addresses_alone(tmp_path: Path) -> None:
    async with facing(tmp_path, legacy_from="192.0.2.0/24") as face:
        reply = await face.hook(legacy_body(free_port(), 30000))
        assert (reply.status, b"the legacy route is closed for 127.0.0.1" in reply.body) == (403, True)


async def test_each_accepted_call_is_a_line_of_the_log_without_the_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="pylb.audit"):
        async with facing(tmp_path) as face:
            port = free_port()
            for _ in range(2):
                await face.put("mosquitto/p", body_for(port))
            await face.delete("mosquitto/p")
    said = [record.getMessage() for record in caplog.records if record.name == "pylb.audit"]
    where = "/v1/registrations/mosquitto/p from 127.0.0.1 with token"
    assert [line.split(" accepted ")[-1].split(": ")[-1] for line in said] == ["created", "unchanged", "released"]
    assert all(where in line and SECRET not in line for line in said)
