"""Reloads: all or nothing, and what they do to registrations."""

import asyncio
from pathlib import Path

import pytest

from pylb.core.address import Address
from pylb.core.auth import Keyring
from pylb.core.errors import Refused
from pylb.core.policy import Rules, StaticFrontend
from tests.control.harness import NODE_A, NODE_B, NODE_C, black_hole, control, target, token, until
from tests.core.claiming import static
from tests.support.ports import free_ports


async def test_a_reload_is_all_or_nothing(tmp_path: Path) -> None:
    port, static_port, taken = free_ports(3)
    async with control(tmp_path) as c:
        await c.put({port: 30001})
        before = c.picture()
        steals = Rules(frontends=(static("https", f"*:{port}"), static("new", f"*:{static_port}")))
        with pytest.raises(Refused, match="registration 'web' of token 't'"):
            await c.registry.rules.reload(steals, c.keyring)
        assert c.picture() == before
        with target(taken, "0.0.0.0"), pytest.raises(Refused, match="port_in_use"):
            await c.registry.rules.reload(
                Rules(frontends=(static("a", f"*:{static_port}"), static("b", f"*:{taken}"))), c.keyring
            )
        assert c.picture() == before


async def test_a_reload_opens_closes_and_adopts(tmp_path: Path) -> None:
    port, first, second = free_ports(3)
    old = Rules(frontends=(static("first", f"*:{first}", f"{NODE_A}:30009"),))
    async with control(tmp_path, rules=old) as c:
        await c.put({port: 30001})
        frontends: tuple[StaticFrontend, ...] = (
            static("web", f"127.0.0.1:{port}", f"{NODE_B}:30001"),
            static("second", f"*:{second}"),
        )
        diff = await c.registry.rules.reload(Rules(frontends=frontends), c.keyring)
        assert {frontend.name for frontend in diff.closed} == {f"web-{port}", "first"}
        assert c.sink.ports == {port, second}
        assert c.registry.unbound() == {}
        assert {view.server for view in c.registry.each_server()} == {f"{NODE_B}:30001", "pod-1"}
        assert (await c.put({port: 30001})).result == "unchanged"


async def test_a_token_that_was_reloaded_away_while_its_target_was_dialled_registers_nothing(tmp_path: Path) -> None:
    port, hole = free_ports(2)
    async with control(tmp_path) as c:
        with black_hole(hole):
            call = asyncio.get_running_loop().create_task(c.put({port: hole}))
            await until(lambda: c.registry._state.checker._asking)
            await c.registry.rules.reload(Rules(), Keyring([token("u")]))
            with pytest.raises(Refused, match="no longer valid"):
                await call
        assert c.sink.ports == set()
        assert c.registry._state.checker.health_records.proof(Address(NODE_A, hole)) is None


async def test_a_second_instance_behind_a_static_frontend_joins_it(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    rules = Rules(frontends=(static("web", f"*:{port}", f"{NODE_C}:30001"),))
    async with control(tmp_path, rules=rules) as c:
        await c.put({port: 30001})
        assert c.ranks(port) == {NODE_C: 0, NODE_A: 1}
        await c.delete()
        assert c.ranks(port) == {NODE_C: 0}
        assert c.sink.ports == {port}
