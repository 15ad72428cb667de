"""Balancers with one table where something is wrong: etcd is full, one is cut off, one is older, and there are very many."""

import asyncio
import logging
import time
from pathlib import Path

import pytest

from pylb.cluster import registrations, shared, sync
from pylb.core.errors import Code
from pylb.core.registration import Key
from tests.control.harness import NODE_B, NODE_C
from tests.support.balancers import until
from tests.support.etcd import Member
from tests.support.ports import free_ports
from tests.support.sharing import NODE, OTHER_NODE, WEB, Pair, refusal, shared_token

log = logging.getLogger(__name__)

THIRD_NODE = "192.0.2.3"


# ---------------------------------------------------------------- etcd's quota is used up


async def test_a_full_etcd_refuses_new_names_only_and_all_follows_when_it_has_room(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "LONG_PAUSE", 0.1)
    port, new, gone, target = free_ports(4)
    await pair.a.put({port: target}, NODE)
    await pair.a.put({gone: target}, NODE, name="gone")
    await pair.b.serves(gone, f"{NODE} fresh a")
    pair.member.ask("maintenance/alarm", {"action": "ACTIVATE", "alarm": "NOSPACE"})
    try:
        refused = await refusal(pair.a.put({new: target}, NODE, name="new"))
        assert (refused.code, "database space exceeded" in refused.detail) == (Code.STORE_UNAVAILABLE, True)
        assert (await pair.a.put({port: target}, NODE)).result == "unchanged"
        assert (await pair.a.put({port: target}, OTHER_NODE)).result == "moved"
        await pair.a.delete(name="gone")
        await until(lambda: "database space exceeded" in pair.a.shared.view().trouble)
        assert pair.a.table() == {port: f"{OTHER_NODE} fresh"}
        assert pair.b.table() == {port: f"{NODE} fresh a", gone: f"{NODE} fresh a"}
        assert pair.a.shared._replica.linked  # it reads as before, and goes to no other endpoint
    finally:
        pair.member.ask("maintenance/alarm", {"action": "DEACTIVATE", "alarm": "NOSPACE"})
    await pair.b.serves(port, f"{OTHER_NODE} fresh a")
    await pair.b.serves(gone, "")
    await pair.a.connected()
    assert (await pair.a.put({new: target}, NODE, name="new")).result == "created"
    await pair.b.serves(new, f"{NODE} fresh a")


# ---------------------------------------------------------------- one is cut off


async def test_moves_on_both_sides_of_a_cut_are_both_served_until_the_lease_of_one_is_over(pair: Pair) -> None:
    """Who cannot hear of the other serves what it heard itself; afterwards the one that is called decides."""
    port, other, target = free_ports(3)
    await pair.a.put({port: target}, NODE)
    await pair.b.put({port: target}, NODE)
    await pair.a.put({other: target}, NODE, name="other")
    await pair.b.serves(other, f"{NODE} fresh a")
    await until(lambda: pair.a.shared.is_fresh_elsewhere(WEB))
    await pair.a.shared.pause()  # its session with etcd, as a cut network
    assert (await pair.a.put({port: target}, OTHER_NODE)).result == "moved"
    assert (await pair.b.put({port: target}, THIRD_NODE)).result == "moved"
    assert (await pair.b.put({other: target}, OTHER_NODE, name="other")).result == "moved"
    assert pair.a.table() == {port: f"{OTHER_NODE} fresh", other: f"{NODE} fresh"}
    assert pair.b.table() == {port: f"{THIRD_NODE} fresh", other: f"{OTHER_NODE} fresh"}
    pair.a.shared.resume()
    await pair.a.connected()
    await until(lambda: pair.b.shared.is_fresh_elsewhere(Key("t", "other", "pod-1")))
    assert (pair.a.table()[port], pair.b.table()[port]) == (f"{OTHER_NODE} fresh", f"{THIRD_NODE} fresh")
    await pair.b.put({port: target}, THIRD_NODE)  # nobody calls a any more
    await pair.a.pass_time(62)
    await pair.a.serves(port, f"{THIRD_NODE} fresh b")
    await pair.a.serves(other, f"{OTHER_NODE} fresh b")
    assert await pair.a.shared.differences() == await pair.b.shared.differences() == []


# ---------------------------------------------------------------- versions N and N+1


async def test_a_need_that_an_older_one_does_not_know_is_kept_there_and_served_after_its_upgrade(
    member: Member, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """a is newer: what it hears of "later" needs a word that b does not know. Both ways all else is shared."""
    known = shared.KNOWN
    monkeypatch.setattr(registrations, "needs_of", lambda one: ["teleport"] if one.key.name == "later" else [])
    pair, (port, later, old, target) = Pair(member, prefix, tmp_path), free_ports(4)
    monkeypatch.setattr(shared, "KNOWN", known | {"teleport"})
    (tmp_path / "a").mkdir()
    await pair.a.__aenter__()
    monkeypatch.setattr(shared, "KNOWN", known)
    (tmp_path / "b").mkdir()
    await pair.b.__aenter__()
    await pair.b.connected()
    await pair.a.connected()
    await pair.a.put({port: target}, NODE)
    await pair.b.put({old: target}, NODE, name="old")
    await pair.a.serves(old, f"{NODE} fresh b")  # so it knows b, too: a balancer says that it is there before anything else
    assert (await pair.a.planned(later, "later")) == ["b keeps it and does not serve it: its pylb does not know teleport"]
    await pair.a.put({later: target}, NODE, name="later")
    await pair.b.serves(port, f"{NODE} fresh a")
    await until(lambda: pair.b.shared.view().unserved)
    (text,) = pair.b.shared.view().unserved
    assert "it needs teleport, which this version of pylb does not know" in text
    assert pair.b.table() == {port: f"{NODE} fresh a", old: f"{NODE} fresh"}
    assert "is owned by" in (await refusal(pair.b.put({later: target}, NODE, name="thief"))).detail  # its port is not free
    await pair.b.registry.stop()  # it is upgraded
    await pair.b.shared.pause()
    pair.b._task.cancel()
    pair.b.sink.close()
    monkeypatch.setattr(shared, "KNOWN", known | {"teleport"})
    pair.b = pair.made("b", NODE_B)
    await pair.b.__aenter__()
    await pair.b.serves(later, f"{NODE} fresh a")
    await pair.b.serves(old, f"{NODE} fresh")
    await pair.__aexit__()


# ---------------------------------------------------------------- very many


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_ten_thousand_registrations_are_shared_and_a_third_balancer_serves_them(
    member: Member, prefix: str, tmp_path: Path
) -> None:
    """1,000 ports with ten instances each. Logged: how long it takes, with all balancers in one process."""
    tokens = [shared_token(f"t{number}") for number in range(10)]
    ports = free_ports(1000)
    async with Pair(member, prefix, tmp_path, *tokens) as pair:
        (tmp_path / "c").mkdir(exist_ok=True)

        async def register(number: int, instance: int) -> None:
            who = {"name": f"web{number}", "instance": f"pod-{instance}", "token": f"t{number % 10}"}
            await pair.a.put({ports[number]: 30443}, NODE, ttl=3600.0, **who)

        began = time.monotonic()
        for instance in range(10):
            for start in range(0, 1000, 50):
                await asyncio.gather(*(register(number, instance) for number in range(start, start + 50)))
        log.info("registered: %.1f s", time.monotonic() - began)
        await until(lambda: pair.b.shared.view().heard_elsewhere == 10_000, within=120)
        log.info("and shared: %.1f s", time.monotonic() - began)
        began = time.monotonic()
        third = pair.made("c", NODE_C)
        async with third:
            await until(lambda: third.shared.view().heard_elsewhere == 10_000, within=120)
            log.info("a third serves them: %.1f s", time.monotonic() - began)
            assert len(third.registry.table.frontends) == 1000
            assert await third.shared.differences() == []
