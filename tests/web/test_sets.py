"""Sets over real HTTP: all servers of a name in one call, what a token has, and states that are older."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_port, free_ports
from tests.web.calling import NATIVE, body_for, facing, legacy_body
from tests.web.loopback import Reply, ask
from tests.web.running import WEAK

NODE_A, NODE_B = "127.0.0.11", "127.0.0.12"


def of(port: int, target: int, *ips: str, **more: object) -> dict[str, object]:
    servers = [{"instance": f"node-{number}", "address": ip} for number, ip in enumerate(ips)]
    return {"frontends": [{"port": port, "target_port": target}], "servers": servers, "ttl": 900} | more


def body(reply: Reply) -> Any:
    return json.loads(reply.body)


async def line(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await reader.readline()
    finally:
        writer.close()


@asynccontextmanager
async def speaking(port: int, *ips: str) -> AsyncIterator[None]:
    """Each says its own address."""
    servers = []
    for ip in ips:

        async def speak(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, said: str = ip) -> None:
            writer.write(f"{said}\n".encode())
            writer.close()

        servers.append(await asyncio.start_server(speak, ip, port))
    try:
        yield
    finally:
        for server in servers:
            server.close()


async def test_one_call_opens_the_port_for_all_servers_and_the_next_replaces_them(tmp_path: Path) -> None:
    port, target = free_ports(2)
    async with facing(tmp_path) as face, speaking(target, NODE_A, NODE_B):
        reply = await face.put("mosquitto", of(port, target, NODE_A, "127.0.0.13"))
        assert reply.status == 201
        assert body(reply)["frontends"] == [{"port": port, "target_port": target, "servers": 2, "answering": 1}]
        assert await line(port) == f"{NODE_A}\n".encode()
        moved = await face.put("mosquitto", of(port, target, NODE_B))
        assert (moved.status, body(moved)["result"]) == (200, "moved")
        assert await line(port) == f"{NODE_B}\n".encode()
        again = await face.put("mosquitto", of(port, target, NODE_B))
        assert body(again)["result"] == "unchanged"
        for _ in range(2):
            assert body(await face.delete("mosquitto"))["result"] == "released"
        with pytest.raises(ConnectionRefusedError):
            await line(port)


async def test_a_token_sees_what_it_has_registered_and_nothing_else(tmp_path: Path) -> None:
    one, other = free_ports(2)
    async with facing(tmp_path) as face:
        await face.put("mosquitto", of(one, 30000, NODE_A, NODE_B), NATIVE | {"Pylb-Sequence": "41"})
        await face.put("mosquitto/pod-1", body_for(other))
        another = {"X-Funkypenguin-Token": WEAK}  # a token that registers the same name
        assert (await face.hook(legacy_body(free_port(), 30001), another)).status == 200
        found = body(await ask(face.port, "GET", "/v1/registrations", headers=NATIVE))["registrations"]
        lease = {"ttl": 900, "expires_in": 900}
        assert found[0] | {"lease": lease} == {
            "name": "mosquitto",
            "instance": None,
            "legacy": False,
            "state": "fresh",
            "lease": lease,
            "frontends": [{"port": one, "target_port": 30000}],
            "servers": 2,
            "sequence": 41,
        }
        assert [entry["instance"] for entry in found] == [None, "pod-1"]
        assert (await ask(face.port, "GET", "/v1/registrations", headers={})).status == 401


async def test_an_older_state_is_answered_superseded(tmp_path: Path) -> None:
    port = free_port()
    async with facing(tmp_path) as face:
        await face.put("mosquitto", of(port, 30000, NODE_A), NATIVE | {"Pylb-Sequence": "42"})
        late = await face.put("mosquitto", of(port, 30000, NODE_B), NATIVE | {"Pylb-Sequence": "41"})
        assert (late.status, body(late)["result"]) == (200, "superseded")
        assert [str(one.address) for one in face.control.registry.each_server()] == [f"{NODE_A}:30000"]
        wrong = await face.put("mosquitto", of(port, 30000, NODE_B), NATIVE | {"Pylb-Sequence": "new"})
        assert (wrong.status, body(wrong)["error"]) == (422, "invalid")


async def test_a_refusal_says_which_port_it_is_about_and_changes_nothing(tmp_path: Path) -> None:
    port = free_port()
    async with facing(tmp_path) as face:
        wanted = of(port, 30000, NODE_A)
        wanted["frontends"] = [{"port": port, "target_port": 30000}, {"port": 19999, "target_port": 30000}]
        refused = await face.put("mosquitto", wanted)
        assert (refused.status, body(refused)["error"], body(refused)["port"]) == (403, "port_forbidden", "19999")
        assert not list(face.control.registry.each_registration())


async def test_a_long_body_is_read_of_a_valid_token_alone_and_up_to_its_bound(tmp_path: Path) -> None:
    port = free_port()
    async with facing(tmp_path) as face:
        long = of(port, 30000, *(f"127.0.1.{number}" for number in range(200)))
        assert 4096 < len(json.dumps(long)) < 256 * 1024
        assert (await face.put("mosquitto", long)).status == 201
        assert (await face.put("mosquitto/pod-1", long)).status == 413
        stranger = await face.put("mosquitto", long, {"Authorization": "Bearer of-nobody-at-all-but-long"})
        assert stranger.status == 413
        assert (await face.put("mosquitto", long | {"x": "x" * 256 * 1024})).status == 413


async def test_clients_outside_its_access_list_are_refused(tmp_path: Path) -> None:
    port, target = free_ports(2)
    async with facing(tmp_path) as face, speaking(target, NODE_A):
        await face.put("mosquitto", of(port, target, NODE_A, access=[{"allow": "198.51.100.0/24"}]))
        with pytest.raises(ConnectionResetError):
            await line(port)
        await face.put("mosquitto", of(port, target, NODE_A, access=[{"allow": "127.0.0.0/8"}], idle_timeout=7200))
        assert await line(port) == f"{NODE_A}\n".encode()
        (frontend,) = face.control.registry.table.frontends.values()
        assert frontend.policy.timeouts.idle == 7200
