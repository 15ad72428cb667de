"""Calls of phone-homes: what they open, what they move, what they are told."""

import asyncio
from pathlib import Path

import pytest

from pylb.control import registrar
from pylb.control.writer import DesiredState, cannot_bind
from pylb.core.address import parse_network, parse_ports
from pylb.core.errors import Code, Refused
from pylb.core.ownership import Change
from pylb.core.policy import Bounds, Rules
from tests.control.harness import NODE_A, NODE_B, NODE_C, Control, black_hole, control, target, token, until
from tests.core.claiming import on
from tests.support.ports import free_ports


async def refused(c: Control, call: object) -> Refused:
    """The refusal of `call`, having checked that it changed nothing in memory, on disk or in the kernel."""
    before = c.picture()
    with pytest.raises(Refused) as caught:
        await call  # type: ignore[misc]
    assert c.picture() == before
    return caught.value


async def test_a_registration_is_in_force_and_on_disk_when_it_is_answered(tmp_path: Path) -> None:
    port, node_port = free_ports(2)
    async with control(tmp_path) as c:
        with target(node_port):
            outcome = await c.put({port: node_port})
        assert (outcome.result, outcome.durable, outcome.ttl, outcome.expires_in) == ("created", True, 60.0, 60.0)
        (frontend,) = outcome.frontends
        assert (frontend.port, frontend.address, frontend.target_port) == (port, NODE_A, node_port)
        assert (frontend.reachable, frontend.hint) == ("yes", "")
        assert outcome.generation == c.registry.table.generation
        assert c.sink.ports == {port}
        assert f'"port":{port}' in c.store.path.read_text()
        assert c.ranks(port) == {NODE_A: 0}


async def test_a_beat_touches_neither_disk_nor_table_but_the_lease(tmp_path: Path) -> None:
    port, node_port = free_ports(2)
    async with control(tmp_path) as c:
        await c.put({port: node_port})
        before, saves, tables = c.picture()[1:], c.store.saves, len(c.sink.tables)
        c.clock.now += 20
        outcome = await c.put({port: node_port})
        assert (outcome.result, outcome.expires_in) == ("unchanged", 60.0)
        assert (c.picture()[1:], c.store.saves, len(c.sink.tables)) == (before, saves, tables)
        assert next(iter(c.registry.each_registration())).last_seen_ago == 0


async def test_several_ports_are_one_atomic_change(tmp_path: Path) -> None:
    one, two, taken = free_ports(3)
    async with control(tmp_path) as c:
        await c.put({one: 30001, two: 30002})
        assert len(c.sink.tables) == 1  # one swap for both
        with target(taken, "0.0.0.0"):
            found = await refused(c, c.put({one: 30001, two: 30002, taken: 30003}))
        assert found.code is Code.PORT_IN_USE
        assert "another process" in found.detail


async def test_a_refused_port_closes_those_that_were_opened_for_its_call(tmp_path: Path) -> None:
    first, second, taken = sorted(free_ports(3))
    async with control(tmp_path) as c:
        with target(taken, "0.0.0.0"):
            await refused(c, c.put({first: 30001, second: 30002, taken: 30003}))
        with target(first, "0.0.0.0"), target(second, "0.0.0.0"):
            assert c.sink.ports == set()


async def test_a_move_is_in_force_at_once_when_the_new_node_answers(tmp_path: Path) -> None:
    port, node_port = free_ports(2)
    async with control(tmp_path) as c:
        with target(node_port, NODE_A, NODE_B):
            await c.put({port: node_port})
            outcome = await c.put({port: node_port}, NODE_B)
        assert outcome.result == "moved"
        assert c.ranks(port) == {NODE_B: 0}


async def test_after_a_move_to_a_node_that_does_not_answer_the_old_one_serves_until_it_does(tmp_path: Path) -> None:
    port, node_port = free_ports(2)
    async with control(tmp_path) as c:
        with target(node_port, NODE_A):
            await c.put({port: node_port})
            outcome = await c.put({port: node_port}, NODE_B)
            (frontend,) = outcome.frontends
            assert (frontend.reachable, bool(frontend.hint)) == ("refused", True)
            assert c.ranks(port) == {NODE_A: 0, NODE_B: 1}
            held = {view.address.ip: [str(one) for one in view.held_by] for view in c.registry.each_server()}
            assert "until its new address has answered" in held[NODE_A][0]
            with target(node_port, NODE_B):
                await c.pass_time(4, probing=True)
        assert c.ranks(port) == {NODE_B: 0}
        await c.registry.tick()
        assert 'displaced":[]' in c.store.path.read_text()


async def test_a_black_hole_delays_only_the_call_that_names_it(tmp_path: Path) -> None:
    port, other, hole, fine = free_ports(4)
    async with control(tmp_path) as c:
        with black_hole(hole), target(fine):
            slow = asyncio.get_running_loop().create_task(c.put({port: hole}))
            await until(lambda: c.registry._state.checker._asking)
            assert (await c.put({other: fine}, name="quick")).result == "created"
            assert not slow.done()
            assert (await slow).frontends[0].reachable == "timeout"


async def test_a_known_unproven_target_is_not_dialled_again_by_a_beat(tmp_path: Path) -> None:
    port, hole = free_ports(2)
    async with control(tmp_path) as c:
        with black_hole(hole):
            await c.put({port: hole})
            started = asyncio.get_running_loop().time()
            again = await c.put({port: hole})
            assert asyncio.get_running_loop().time() - started < 0.5
        assert again.frontends[0].reachable == "timeout"


async def test_another_name_or_token_on_an_owned_port_is_told_who_owns_it(tmp_path: Path) -> None:
    port, node_port = free_ports(2)
    async with control(tmp_path, token(), token("u"), token("boss", takeover=True)) as c:
        await c.put({port: node_port})
        for found in (
            await refused(c, c.put({port: node_port}, name="other")),
            await refused(c, c.put({port: node_port}, token="u")),
            await refused(c, c.legacy(port, node_port, token="u")),
        ):
            assert found.code is Code.PORT_OWNED
            assert "registration 'web' of token 't'" in found.detail
        assert (await c.put({port: node_port}, NODE_B, token="boss")).result == "created"
        assert [view.token for view in c.registry.each_registration()] == ["boss"]
        assert (await refused(c, c.put({port: node_port}))).code is Code.PORT_OWNED


async def test_two_pods_of_a_rolling_update_share_a_server_until_the_last_one_leaves(tmp_path: Path) -> None:
    port, node_port = free_ports(2)
    async with control(tmp_path) as c:
        await c.put({port: node_port}, instance="old")
        await c.put({port: node_port}, instance="new")
        await c.put({port: node_port}, instance="old", draining=True)
        assert [str(one) for one in next(iter(c.registry.each_server())).held_by] == ["t/web/old", "t/web/new"]
        assert next(iter(c.registry.each_server())).rank == 1
        await c.delete(instance="old")
        assert c.ranks(port) == {NODE_A: 1}
        assert (await c.delete(instance="new")).result == "released"
        assert c.sink.ports == set()


async def test_releasing_is_idempotent_and_only_the_owners(tmp_path: Path) -> None:
    port, node_port = free_ports(2)
    async with control(tmp_path, token(), token("u")) as c:
        await c.put({port: node_port})
        assert (await c.delete(token="u")).note == "nothing was registered"
        assert c.sink.ports == {port}
        assert (await c.delete()).result == (await c.delete()).result == "released"
        assert c.sink.ports == set()


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ({"ports": {22: 30022}}, Code.PORT_FORBIDDEN),
        ({"ports": {9000: 30022}}, Code.PORT_FORBIDDEN),
        ({"ports": {25000: 443}}, Code.TARGET_FORBIDDEN),
        ({"ports": {25000: 30443}, "address": "198.51.100.7"}, Code.TARGET_FORBIDDEN),
        ({"ports": {25000: 30443}, "address": "169.254.169.254"}, Code.TARGET_REFUSED),
        ({"ports": {25000: 30443}, "address": "127.0.0.1"}, Code.TARGET_REFUSED),
        ({"ports": {25000: 25000}, "address": "203.0.113.9"}, Code.TARGET_REFUSED),
        ({"ports": {25000: 30443}, "name": "other"}, Code.NAME_FORBIDDEN),
        ({"ports": {25000: 30443}, "name": "a/b"}, Code.INVALID),
        ({"ports": {25000: 30443}, "ttl": 5.0}, Code.INVALID),
        ({"ports": {25000: 30443}, "ip": "192.0.2.1"}, Code.SOURCE_FORBIDDEN),
    ],
)
async def test_a_call_outside_its_tokens_scope_opens_nothing(tmp_path: Path, call: dict[str, object], code: Code) -> None:
    narrow = token(
        "web",
        ports=parse_ports(["9000", "20000-29999"]),
        names=(),
        targets=(parse_network("203.0.113.0/24"),),
        target_ports=parse_ports(["25000", "30000-32767"]),
        sources=(parse_network("203.0.113.0/24"),),
    )
    rules = Rules(own_ips=frozenset({"203.0.113.9"}), reserved_ports=frozenset({9000}))
    async with control(tmp_path, narrow, rules=rules) as c:
        found = await refused(c, c.put(**({"ip": "203.0.113.7"} | call)))  # type: ignore[arg-type]
        assert found.code is code
        assert found.detail
        last = c.registry.rejected()[-1]
        assert (last.code, last.token) == (str(code), "web")
        assert c.registry.registrations_total["refused"] == 1


def test_a_privileged_port_is_refused_naming_the_capability() -> None:
    found = cannot_bind(on(443), PermissionError(13, "Permission denied"))
    assert found.code is Code.PORT_PRIVILEGED
    assert "CAP_NET_BIND_SERVICE" in found.hint
    assert cannot_bind(on(443), OSError(99, "Cannot assign requested address")).code is Code.CANNOT_BIND


async def test_the_legacy_calls_of_a_mail_server_come_all_at_once(tmp_path: Path) -> None:
    ports = free_ports(6)
    async with control(tmp_path) as c:
        lines = await asyncio.gather(*(c.legacy(port, 30000 + index) for index, port in enumerate(ports)))
        assert all(line.startswith(f"created: port {port} -> {NODE_A}:") for port, line in zip(ports, lines, strict=True))
        assert c.sink.ports == set(ports)
        assert c.store.saves <= 3  # they share their writes
        assert all(line.startswith("unchanged") for line in [await c.legacy(ports[0], 30000)])


async def test_the_last_legacy_writer_wins_and_a_native_one_supersedes_it(tmp_path: Path) -> None:
    port, node_port = free_ports(2)
    async with control(tmp_path) as c:
        await c.legacy(port, node_port)
        assert (await c.legacy(port, node_port, NODE_B)).startswith("moved")
        assert c.ranks(port) == {NODE_B: 1}
        await c.put({port: node_port}, NODE_C)
        assert (await c.legacy(port, node_port)).startswith(f"superseded: port {port}; ")
        assert [view.address.ip for view in c.registry.each_server()] == [NODE_C]
        assert c.registry.registrations_total["superseded"] == 1


async def test_a_legacy_delete_works_from_anywhere_and_twice(tmp_path: Path) -> None:
    port, node_port = free_ports(2)
    async with control(tmp_path) as c:
        await c.legacy(port, node_port)
        for _ in range(2):
            assert (await c.legacy(port, node_port, NODE_C, action="delete")).startswith("released")
        assert c.sink.ports == set()


async def test_calls_that_race_for_a_port_have_one_order_and_one_winner(tmp_path: Path) -> None:
    port, node_port = free_ports(2)
    tokens = [token(f"t{number}") for number in range(5)]
    async with control(tmp_path, *tokens) as c:
        for _ in range(100):
            calls = [c.put({port: node_port}, ip, token=one.name) for one in tokens for ip in (NODE_A, NODE_B)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(answer, Refused) or not isinstance(answer, BaseException) for answer in answers)
            (winner,) = c.registry.each_registration()
            accepted = [index for index, answer in enumerate(answers) if not isinstance(answer, Refused)]
            assert {tokens[index // 2].name for index in accepted} == {winner.token}
            assert f'"token":"{winner.token}"' in c.store.path.read_text()
            assert [view.address.ip for view in c.registry.each_server()] == [winner.address]
            await c.delete(token=winner.token)
            assert c.sink.ports == set()


async def test_a_token_has_at_most_so_many_registrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registrar, "MOST_REGISTRATIONS", 3)
    port, node_port, other = free_ports(3)
    async with control(tmp_path, token(), token("u")) as c:
        for instance in ("a", "b", "c"):
            await c.put({port: node_port}, instance=instance)
        with pytest.raises(Refused) as caught:
            await c.put({port: node_port}, instance="d")
        assert caught.value.code is Code.TOO_MANY
        assert (await c.put({port: node_port}, NODE_B, instance="a")).result == "moved"
        assert (await c.put({other: node_port}, token="u", name="u")).result == "created"
        await c.delete(instance="b")
        assert (await c.put({port: node_port}, instance="d")).result == "created"


async def test_what_a_token_may_add_up_to_is_bounded_and_a_refusal_names_the_bound(tmp_path: Path) -> None:
    port, other, node_port = free_ports(3)
    rules = Rules(bounds=Bounds(servers_per_frontend=2, ports_per_token=3))
    async with control(tmp_path, token(), token("u"), rules=rules) as c:
        await c.put({port: node_port}, instance="a")
        await c.put({port: node_port}, NODE_B, instance="b")
        for call in ({port: node_port}, {other: node_port, port: node_port}):
            found = await refused(c, c.put(call, NODE_C, instance="c"))
            assert (found.code, "servers_per_frontend" in found.detail) == (Code.TOO_MANY, True)
        assert (await c.put({port: node_port, other: node_port}, instance="a")).result == "moved"
        found = await refused(c, c.put({other: node_port}, NODE_C, instance="c"))
        assert (found.code, "ports_per_token" in found.detail) == (Code.TOO_MANY, True)
        assert c.sink.ports == {port, other}


async def test_a_caller_that_hangs_up_is_registered_all_the_same(tmp_path: Path) -> None:
    port, node_port = free_ports(2)
    async with control(tmp_path) as c:
        call = asyncio.get_running_loop().create_task(c.put({port: node_port}))
        await until(lambda: c.registry._state.writer._busy)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await c.delete(name="somebody-else")  # its turn comes after
        (view,) = c.registry.each_registration()
        assert view.expires_in == 60.0
        assert c.sink.ports == {port}


async def test_calls_that_wait_while_pylb_stops_are_told_so(tmp_path: Path) -> None:
    ports = free_ports(3)
    async with control(tmp_path) as c:
        await c.put({ports[0]: 30001})
    with pytest.raises(Refused) as caught:
        async with asyncio.timeout(5):
            await c.put({ports[1]: 30001}, name="late")
    assert caught.value.code is Code.UNAVAILABLE


async def test_a_phone_home_that_keeps_moving_is_noticed(tmp_path: Path) -> None:
    port, node_port = free_ports(2)
    async with control(tmp_path) as c:
        await c.put({port: node_port})
        for ip in (NODE_B, NODE_A, NODE_B, NODE_A):
            assert "unstable_source" not in c.kinds()
            await c.put({port: node_port}, ip)
        assert c.kinds().count("unstable_source") == 1


async def test_a_call_without_a_valid_token_is_counted_and_shown_too(tmp_path: Path) -> None:
    async with control(tmp_path) as c:
        c.registry.calls.reject(Refused(Code.UNAUTHORIZED, "no such token"), NODE_B, "", "PUT web/pod-1")
        (last,) = c.registry.rejected()
        assert (last.ip, last.token, last.code, last.what) == (NODE_B, "", "unauthorized", "PUT web/pod-1")
        assert "without a valid token" in c.heard[-1].text
        assert c.registry.registrations_total["refused"] == 1


async def test_a_token_that_is_refused_again_and_again_is_counted_each_time_and_shown_a_few_times(tmp_path: Path) -> None:
    async with control(tmp_path) as c:
        for number in range(50):
            with pytest.raises(Refused):
                await c.put({free_ports(1)[0]: 30001}, address=f"no address {number}")
        assert c.registry.registrations_total["refused"] == 50
        assert len(c.registry.rejected()) == 10


async def test_a_bug_in_one_call_ends_that_call_only(tmp_path: Path) -> None:
    port, other = free_ports(2)

    def bug(_desired: object) -> tuple[DesiredState, Change]:
        raise ZeroDivisionError

    async with control(tmp_path) as c:
        buggy = c.registry._state.writer.perform(bug, (), by="test")
        answers = await asyncio.gather(c.put({port: 30001}), buggy, c.put({other: 30002}, name="o"), return_exceptions=True)
        assert isinstance(answers[1], ZeroDivisionError)
        assert c.sink.ports == {port, other}


async def test_a_beat_that_follows_an_unanswered_call_of_its_own_waits_for_it(tmp_path: Path) -> None:
    port, node_port = free_ports(2)
    async with control(tmp_path) as c:
        await c.put({port: node_port})
        answers = await asyncio.gather(c.delete(), c.put({port: node_port}))
        assert [answer.result for answer in answers] == ["released", "created"]
        assert c.sink.ports == {port}


async def test_a_call_that_changes_its_mind_in_one_batch_leaves_no_port_behind(tmp_path: Path) -> None:
    port, other = free_ports(2)
    async with control(tmp_path) as c:
        with target(30001):
            await c.put({other: 30001}, name="known")  # its target is known: nothing is dialled, all meet in one batch
            await asyncio.gather(c.put({port: 30001}), c.delete())
        assert c.sink.ports == {other}
        assert [view.name for view in c.registry.each_registration()] == ["known"]
