"""What the operator said: of a node it follows the address and ends, of a server it ends with the registration's move."""

from pathlib import Path

from pylb.core.policy import AdminState
from tests.control.harness import NODE_A, NODE_B, Control, aio, control, target
from tests.support.ports import free_ports

DAY = 86_400.0


def states(c: Control) -> dict[str, str]:
    return {f"{view.server}@{view.address.ip}": view.state for view in c.registry.each_server()}


@aio
async def test_a_word_about_a_node_hits_what_comes_there_later_and_ends_after_a_day_over_restarts(tmp_path: Path) -> None:
    port, other = free_ports(2)
    with target(30001, NODE_A, NODE_B):
        async with control(tmp_path) as c:
            await c.put({port: 30001}, ttl=None)
            await c.registry.operator.set_admin(NODE_A, AdminState.DRAIN)
            await c.put({other: 30001}, name="mail", instance="pod-7", ttl=None)
            assert states(c) == {f"pod-1@{NODE_A}": "drain", f"pod-7@{NODE_A}": "drain"}
            ((who, word, hits),) = c.registry.operator.words()
            assert (who, len(hits), word.until) == (NODE_A, 2, 1_700_001_000 + DAY)
            await c.delete(name="mail", instance="pod-7")
            await c.put({port: 30001}, NODE_B, ttl=None)
            assert states(c)[f"pod-1@{NODE_B}"] == "up"  # it follows the address, not the pod
        async with control(tmp_path) as c:
            assert len(c.registry.operator.words()) == 1
            await c.put({other: 30001}, name="mail", instance="pod-8", ttl=None)
            assert states(c)[f"pod-8@{NODE_A}"] == "drain"
            c.clock.now += DAY
            await c.registry.tick()
            assert c.registry.operator.words() == []
            assert states(c)[f"pod-8@{NODE_A}"] == "up"
            assert "admin_over" in c.kinds()


@aio
async def test_a_word_about_a_server_ends_with_its_move_and_has_no_other_end(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with target(30001, NODE_A, NODE_B):
        async with control(tmp_path) as c:
            await c.put({port: 30001}, ttl=None)
            await c.put({port: 30001}, NODE_B, instance="pod-2", ttl=None)
            await c.registry.operator.set_admin(f"{port}/pod-1", AdminState.MAINT)
            c.clock.now += 3 * DAY
            await c.registry.tick()
            assert states(c) == {f"pod-1@{NODE_A}": "maint", f"pod-2@{NODE_B}": "up"}
            await c.put({port: 30001}, NODE_B, ttl=None)
            assert c.registry.operator.words() == []
            await c.put({port: 30001}, NODE_A, ttl=None)
            assert states(c)[f"pod-1@{NODE_A}"] == "up"


@aio
async def test_ready_of_a_node_takes_back_what_was_said_of_its_servers_too(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with target(30001):
        async with control(tmp_path) as c:
            await c.put({port: 30001}, ttl=None)
            await c.registry.operator.set_admin(f"{port}/pod-1", AdminState.MAINT)
            await c.registry.operator.set_admin(NODE_A, AdminState.DRAIN, 60.0)
            await c.registry.operator.set_admin(NODE_A, AdminState.READY)
            assert c.registry.operator.words() == []
            assert set(states(c).values()) <= {"up", "unproven"}
