"""Balancers with one table, against the real etcd: what is registered at one is served by all, and what goes wrong between."""

from pathlib import Path

from pylb.api.explain import explain
from pylb.api.routes import rows
from pylb.cli.explain import verdict
from pylb.control.sharing import HeardView, PortView
from pylb.core.address import TCP, Listen, parse_ports
from pylb.core.errors import Code, Refused
from pylb.core.policy import JoinRule, Rules, StaticFrontend
from pylb.core.registration import Key, State
from pylb.forward.counters import Counters
from tests.control.harness import NODE_A, NODE_B, NODE_C, control, token
from tests.support.balancers import until
from tests.support.etcd import Member, one_member
from tests.support.ports import free_ports
from tests.support.sharing import NODE, OTHER_NODE, WEB, Pair, SharingControl, refusal, shared_token

# ---------------------------------------------------------------- what it is for


async def test_what_is_registered_at_one_is_served_by_the_other(pair: Pair) -> None:
    port, target = free_ports(2)
    assert (await pair.a.put({port: target}, NODE)).result == "created"
    await pair.b.serves(port, f"{NODE} fresh a")
    assert (await pair.a.put({port: target}, OTHER_NODE)).result == "moved"
    await pair.b.serves(port, f"{OTHER_NODE} fresh a")
    await pair.a.put({port: target}, OTHER_NODE, draining=True)
    await pair.b.serves(port, f"{OTHER_NODE} draining a")
    await pair.a.delete()
    await pair.b.serves(port, "")
    assert pair.a.table() == {}


async def test_everything_that_a_registration_asks_for_travels_along(pair: Pair) -> None:
    first, second, target = free_ports(3)
    await pair.a.put({first: target, second: target}, NODE, ttl=None)
    await pair.a.legacy(first + 1, target, NODE)
    await pair.b.serves(second, f"{NODE} fresh a")
    await pair.b.serves(first + 1, f"{NODE} fresh a")
    here, there = (one.registry._desired.claims.registrations for one in (pair.a, pair.b))
    assert {key: (one.wanted, one.ttl, one.name) for key, one in here.items()} == {
        key: (one.wanted, one.ttl, one.name) for key, one in there.items()
    }


async def test_of_two_owners_that_want_a_port_at_once_one_gets_it(pair: Pair) -> None:
    target = free_ports(1)[0]
    for port in free_ports(5):
        calls = [pair.a.put({port: target}, NODE, name=f"web{port}"), pair.b.put({port: target}, NODE, name=f"mail{port}")]
        answers = [await _either(call) for call in calls] if port % 2 else await _together(calls)
        assert sorted(isinstance(answer, Refused) for answer in answers) == [False, True]
        refused = next(answer for answer in answers if isinstance(answer, Refused))
        assert refused.code is Code.PORT_OWNED
        owner = f"web{port}" if not isinstance(answers[0], Refused) else f"mail{port}"
        assert f"registration {owner!r} of token 't'" in refused.detail
        winner, loser = (pair.a, pair.b) if owner.startswith("web") else (pair.b, pair.a)
        await loser.serves(port, f"{NODE} fresh {winner.name}")


async def _either(call: object) -> object:
    try:
        return await call  # type: ignore[misc]
    except Refused as refused:
        return refused


async def _together(calls: list[object]) -> list[object]:
    import asyncio

    return list(await asyncio.gather(*map(_either, calls)))


async def test_a_release_called_anywhere_is_for_all(pair: Pair) -> None:
    port, target = free_ports(2)
    await pair.a.put({port: target}, NODE)
    await pair.b.serves(port, f"{NODE} fresh a")
    await pair.b.delete()
    await pair.a.serves(port, "")
    await pair.a.put({port: target}, NODE)
    await pair.b.serves(port, f"{NODE} fresh a")
    assert await pair.b.registry.operator.release_any(str(port)) == [f"released t/web/pod-1, port {port}"]
    await pair.a.serves(port, "")


async def test_beats_are_not_written(pair: Pair) -> None:
    port, target = free_ports(2)
    await pair.a.put({port: target}, NODE)
    await until(lambda: not pair.a.shared.view().unwritten)
    before = pair.a.shared._replica._writing.begun
    for _ in range(20):
        assert (await pair.a.put({port: target}, NODE)).result == "unchanged"
    assert pair.a.shared._replica._writing.begun - before <= 1  # a heartbeat


async def test_a_port_is_shared_by_server_names_across_balancers_as_on_one(member: Member, prefix: str, tmp_path: Path) -> None:
    (port,), names = free_ports(1), shared_token(server_names=("*",))
    pair = Pair(member, prefix, tmp_path, names)
    async with pair:
        a, b = pair.a, pair.b
        await a.route(port, "web", allows_names=True)
        await b.route(port, "git", server_name="git.example.net")
        assert "owned by registration 'web'" in (await refusal(b.route(port, "other", allows_names=True))).detail
        assert "owned by registration 'git'" in (await refusal(a.route(port, "other", server_name="git.example.net"))).detail
        await a.route(port, "mail", server_name="mail.example.net")
        for one in (a, b):
            await until(lambda one=one: len(one.registry.table.frontends) == 3)
            assert not await one.shared.differences()
        assert "its default route has to wait" in (await refusal(a.route(port, "web"))).detail  # a server that speaks first
        (other,) = free_ports(1)
        await a.route(other, "ssh")
        assert "allows no names beside it" in (await refusal(b.route(other, "git", server_name="git.example.net"))).detail


# ---------------------------------------------------------------- what an operator sees of it


async def test_a_port_shows_its_owner_who_hears_it_and_why_it_is_not_served(
    member: Member, prefix: str, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    pair = Pair(member, prefix, tmp_path)
    pair.b = pair.made("b", NODE_B, tokens=(shared_token(target_ports=parse_ports(["20000"])),))
    async with pair:
        await pair.a.put({port: 30443}, NODE)
        await until(lambda: pair.b.shared.port((TCP, port)).unserved)
        view = pair.b.shared.port((TCP, port))
        assert view.owners == ((f"port {port}", "t/web"),)
        assert view.heard == (HeardView("t/web/pod-1", "a", present=True, here=False, state="fresh", address=NODE),)
        ((name, why),) = view.unserved
        assert (name, "target_port" in why or "30443" in why) == ("t/web/pod-1", True)
        found = await explain(pair.b.registry, Counters(1), (), _never, (TCP, port))
        assert verdict(found).startswith(
            f"port {port} is closed here: another balancer hears t/web/pod-1 on it, and this one may"
        )
        assert pair.a.shared.port((TCP, port)).heard[0].here
        assert pair.a.shared.port((TCP, 1)) == PortView((), (), ())
        (row,) = await rows(pair.a.registry)
        assert row["heard_by"] == ["a"]


async def _never(_listen: Listen) -> str:
    raise AssertionError("nothing is open here")


async def test_a_plan_says_what_the_others_will_see_of_a_call(pair: Pair) -> None:
    port, other = free_ports(2)
    plan = pair.a.planned
    assert await plan(port, "web") == ["b serves it as well, if its own config allows it"]
    assert await plan(port, "web", "127.0.0.1") == [
        "the other balancers do not hear of it: loopback is another machine at each of them"
    ]
    await pair.a.put({port: 30443}, NODE)
    await pair.b.serves(port, f"{NODE} fresh a")
    assert "is owned by" in (await refusal(pair.b.planned(port, "mail"))).detail
    await pair.b.shared.leave()
    await until(lambda: not all(one.present for one in pair.a.shared.view().members))
    assert await plan(port, "web") == ["b is away, and serves it when it is back"]
    await pair.a.shared._stop()
    assert "hear of it when etcd can be used again" in (await plan(port, "web"))[0]
    assert (await refusal(plan(other, "mail"))).code is Code.STORE_UNAVAILABLE


async def test_a_reload_says_which_ports_the_others_may_no_longer_register(pair: Pair) -> None:
    new = Rules((StaticFrontend("mqtt", Listen(TCP, NODE_A, 8883), ()),))
    assert pair.a.registry.rules.plan_for_others(new) == [
        "port 8883: from then on no balancer accepts registrations there, because this config has it"
    ]


# ---------------------------------------------------------------- the address moves


async def test_when_the_address_moves_the_lease_moves_and_nobody_thinks_of_a_mass_lapse(pair: Pair) -> None:
    """All phone-homes call b now. At a all leases end together, which would preserve them for ever, with old addresses."""
    ports, target = free_ports(4), free_ports(1)[0]
    for port in ports:
        await pair.a.put({port: target}, NODE, name=f"web{port}")
    for port in ports:
        await pair.b.serves(port, f"{NODE} fresh a")
        assert (await pair.b.put({port: target}, NODE, name=f"web{port}")).result == "unchanged"
    for port in ports:
        await until(lambda port=port: pair.a.shared.is_fresh_elsewhere(Key("t", f"web{port}", "pod-1")))
    await pair.a.pass_time(62)
    assert not pair.a.registry.preserving
    for port in ports:
        await pair.a.serves(port, f"{NODE} fresh b")
        await pair.b.put({port: target}, OTHER_NODE, name=f"web{port}")
        await pair.a.serves(port, f"{OTHER_NODE} fresh b")
    assert "stale" not in pair.a.kinds()


async def test_a_silent_one_is_stale_everywhere_and_its_port_stays_open(pair: Pair) -> None:
    port, target = free_ports(2)
    await pair.a.put({port: target}, NODE)
    await pair.b.serves(port, f"{NODE} fresh a")
    await pair.a.pass_time(62)
    await pair.b.serves(port, f"{NODE} stale a")
    assert pair.a.table() == {port: f"{NODE} stale"}
    assert (await pair.b.put({port: target}, NODE)).result == "unchanged"  # it calls the other one from now on
    await pair.a.serves(port, f"{NODE} fresh b")


# ---------------------------------------------------------------- somebody is away


async def test_the_death_of_a_balancer_closes_nothing(pair: Pair) -> None:
    port, target = free_ports(2)
    await pair.a.put({port: target}, NODE)
    await pair.b.serves(port, f"{NODE} fresh a")
    pair.member.ask("lease/revoke", {"ID": str(pair.a.shared._presence.lease)})  # as after 30 s
    await pair.a.die()
    await until(lambda: [one.present for one in pair.b.shared.view().members] == [False, True])
    assert pair.b.table() == {port: f"{NODE} fresh a"}
    pair.b.shared._on_change(pair.b.shared._replica.tick(61))  # a TTL later
    await pair.b.serves(port, f"{NODE} stale a")
    assert (await pair.b.put({port: target}, OTHER_NODE)).result == "moved"
    assert pair.b.table() == {port: f"{OTHER_NODE} fresh"}
    pair.a = pair.made("a", NODE_A)
    await pair.a.__aenter__()
    await until(lambda: pair.a.shared.is_fresh_elsewhere(WEB))
    assert pair.a.table() == {port: f"{NODE} fresh"}  # who knows which networks it reaches: for a lease its own word counts
    await pair.a.pass_time(62)
    await pair.a.serves(port, f"{OTHER_NODE} fresh b")


async def test_releases_of_most_ports_are_held_back_until_somebody_says_that_they_are_right(pair: Pair) -> None:
    ports, target = free_ports(3), free_ports(1)[0]
    for port in ports:
        await pair.a.put({port: target}, NODE, name=f"web{port}")
        await pair.b.serves(port, f"{NODE} fresh a")
    for port in ports:
        await pair.a.delete(name=f"web{port}")
    await until(lambda: pair.b.shared.view().held)
    await until(lambda: any(kind == "held" and alarm for kind, _, alarm in pair.b.said))
    names = {port: f"t/web{port}/pod-1" for port in ports}

    def others_are_closed() -> bool:
        return {names[port] for port in ports if port in pair.b.sink.ports} == set(pair.b.shared.view().held)

    await until(others_are_closed)
    assert pair.b.shared.accept()
    for port in ports:
        await pair.b.serves(port, "")


async def test_after_a_kill_a_balancer_is_back_at_once_with_all_it_knew(pair: Pair) -> None:
    """Its presence lives for 30 s more, and it is its own."""
    port, other, target = free_ports(3)
    await pair.a.put({port: target}, NODE)
    await pair.b.put({other: target}, NODE, name="mail")
    await pair.a.serves(other, f"{NODE} fresh b")
    await until((pair.folder / "a" / "cluster.json").exists)
    await pair.a.shared._save_now()
    await pair.a.die()
    pair.a = pair.made("a", NODE_A)
    await pair.a.__aenter__()
    assert pair.a.table() == {port: f"{NODE} fresh", other: f"{NODE} fresh b"}
    await pair.a.connected()
    assert not any("each needs a cluster.name" in text for _, text, _ in pair.a.said)
    assert (await pair.a.put({port: target}, OTHER_NODE)).result == "moved"
    await pair.b.serves(port, f"{OTHER_NODE} fresh a")


async def test_a_balancer_without_its_disk_gets_everything_back(pair: Pair) -> None:
    port, target = free_ports(2)
    await pair.a.put({port: target}, NODE)
    await pair.b.serves(port, f"{NODE} fresh a")
    await pair.a.shared.leave()
    await pair.a.die()
    for path in (pair.folder / "a").iterdir():
        path.unlink()
    pair.a = pair.made("a", NODE_A)
    await pair.a.__aenter__()
    await pair.a.serves(port, f"{NODE} fresh")
    assert pair.a.registry._state.leases.get(WEB) is not None
    assert pair.b.table() == {port: f"{NODE} fresh a"}


async def test_without_etcd_all_is_served_and_only_new_names_are_refused(prefix: str, tmp_path: Path) -> None:
    port, new, target = free_ports(3)
    with one_member() as member:
        async with Pair(member, prefix, tmp_path) as pair:
            await pair.a.put({port: target}, NODE)
            await pair.b.serves(port, f"{NODE} fresh a")
            member.kill()
            await until(lambda: pair.a.shared.view().trouble and pair.b.shared.view().trouble)
            assert (await pair.a.put({port: target}, NODE)).result == "unchanged"
            assert (await pair.a.put({port: target}, OTHER_NODE)).result == "moved"
            assert pair.b.table() == {port: f"{NODE} fresh a"}
            refused = await refusal(pair.a.put({new: target}, NODE, name="new"))
            assert (refused.code, refused.retry_after) == (Code.STORE_UNAVAILABLE, 10)
            assert "new" not in pair.a.sink.ports
            await pair.b.delete()  # it does not reach a before etcd is back
            assert pair.b.table() == {}
            assert pair.a.table() == {port: f"{OTHER_NODE} fresh"}
            await pair.a.put({port: target}, OTHER_NODE)  # called since
            member.start()
            member.wait()
            await pair.a.connected()
            await pair.b.connected()
            await pair.b.serves(port, f"{OTHER_NODE} fresh a")
            assert (await pair.a.put({new: target}, NODE, name="new")).result == "created"
            await pair.b.serves(new, f"{NODE} fresh a")


async def test_one_that_starts_without_etcd_serves_its_snapshot(pair: Pair) -> None:
    port, target = free_ports(2)
    await pair.a.put({port: target}, NODE)
    await pair.b.serves(port, f"{NODE} fresh a")
    await pair.b.die()
    pair.b = SharingControl("b", ["http://127.0.0.1:1"], pair.prefix, pair.folder / "b", NODE_B)
    await pair.b.__aenter__()
    assert pair.b.table() == {port: f"{NODE} fresh a"}
    assert pair.b.sink.ports == {port}
    await pair.b.pass_time(3600)
    assert pair.b.table() == {port: f"{NODE} fresh a"}


async def test_without_its_memory_and_etcd_nothing_of_the_snapshot_closes(pair: Pair) -> None:
    port, target = free_ports(2)
    await pair.a.put({port: target}, NODE)
    await pair.b.serves(port, f"{NODE} fresh a")
    await pair.b.die()
    (pair.folder / "b" / "cluster.json").unlink()
    pair.b = SharingControl("b", ["http://127.0.0.1:1"], pair.prefix, pair.folder / "b", NODE_B)
    await pair.b.__aenter__()
    pair.b.shared._look_at(WEB)
    await until(lambda: not pair.b.shared._dirty)
    await until(lambda: pair.b.said)
    assert pair.b.table() == {port: f"{NODE} fresh a"}


async def test_whoever_leaves_the_cluster_serves_all_as_its_own(pair: Pair) -> None:
    port, target = free_ports(2)
    await pair.a.put({port: target}, NODE)
    await pair.b.serves(port, f"{NODE} fresh a")
    await pair.b.die()
    async with control(pair.folder / "b", shared_token()) as alone:
        (one,) = alone.registry._desired.claims.registrations.values()
        assert (one.hearer, one.state) == ("", State.FRESH)
        assert alone.registry._state.leases.get(WEB) is not None
    pair.b = pair.made("b", NODE_B)
    await pair.b.__aenter__()


# ---------------------------------------------------------------- what a balancer may refuse


async def test_what_its_own_tokens_do_not_allow_is_not_served_and_it_says_so(pair: Pair) -> None:
    port, target = free_ports(2)
    c = pair.made("c", NODE_C, tokens=(token("other"),))
    async with c:
        await c.connected()
        await pair.a.put({port: target}, NODE)
        await until(lambda: c.shared.view().unserved)
        assert c.table() == {}
        (text,) = c.shared.view().unserved
        assert text.startswith("t/web/pod-1: unauthorized: there is no token 't' here")
        (row,) = await c.shared.differences()
        assert (row["registration"], row["here"], row["cluster"]) == ("t/web/pod-1", "", f"{NODE} fresh, heard by a")
        assert [alarm for kind, _, alarm in c.said if kind == "not_shared"] == [True]


async def test_loopback_is_another_machine_at_each_balancer(pair: Pair) -> None:
    port, other, target = free_ports(3)
    await pair.a.put({port: target}, "127.0.0.1")
    await pair.a.put({other: target}, NODE, name="mail")
    await pair.b.serves(other, f"{NODE} fresh a")
    assert port not in pair.b.table()
    assert (await pair.a.put({port: target}, "127.0.0.1")).result == "unchanged"


async def test_a_static_port_of_any_balancer_is_no_port_for_registrations(pair: Pair) -> None:
    port, target = free_ports(2)
    static = StaticFrontend("fixed", Listen("tcp", NODE_C, port), (), joining=JoinRule.NAME)
    async with pair.made("c", NODE_C, frontends=(static,)) as c:
        await c.connected()
        await until(lambda: "c" in dict(pair.a.shared._replica.knowledge.mirror.members()))
        refused = await refusal(pair.a.put({port: target}, NODE))
        assert (refused.code, "on balancer 'c'" in refused.detail) == (Code.PORT_OWNED, True)
        assert (await c.put({port: target}, NODE, name="fixed")).result == "created"
