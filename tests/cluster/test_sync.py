"""The loop against the real etcd: two balancers, and everything that goes wrong between them and etcd."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from typing import NoReturn, Self

import pytest

from pylb.cluster import sync
from pylb.cluster.etcd import Etcd, Waits
from pylb.cluster.gateway import Event, Outcome, Txn, Unreachable
from pylb.cluster.sync import Presence
from pylb.core.merge.local import Answer, Conflict
from pylb.core.merge.values import Slot
from pylb.core.registration import Key
from tests.support.balancers import MAIL, OTHER, SMTP, WEB, Balancer, until, wanted
from tests.support.etcd import Member, b64, one_member

QUICK = Waits(call=0.5, silence=0.5)


class Two:
    """Balancers a and b, connected."""

    def __init__(self, member: Member, prefix: str) -> None:
        self.a, self.b = (Balancer(name, [member.url], prefix) for name in "ab")

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        for one in (self.a, self.b):
            await self._stack.enter_async_context(one)
            await one.connected()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


@pytest.fixture
async def two(member: Member, prefix: str) -> AsyncIterator[Two]:
    async with Two(member, prefix) as found:
        yield found


def keys(member: Member, prefix: str) -> int:
    found = member.ask("kv/range", {"key": b64(prefix), "range_end": b64(prefix[:-1] + "0"), "count_only": True})
    return int(found.get("count", 0))


def version(member: Member, key: str) -> int:
    """How often it was written."""
    found = member.ask("kv/range", {"key": b64(key)}).get("kvs", [{}])
    return int(found[0].get("version", 0))


# ---------------------------------------------------------------- what it is for


async def test_what_is_registered_at_one_is_served_by_the_other(two: Two, member: Member, prefix: str) -> None:
    assert await two.a.announce() is Answer.IN_FORCE
    await two.b.showing("10.0.0.1 fresh")
    assert {WEB} in two.b.changes
    assert await two.a.announce(what=wanted("10.0.0.2")) is Answer.IN_FORCE
    await two.b.showing("10.0.0.2 fresh")
    two.b.release()
    await two.a.showing("")
    await until(lambda: keys(member, prefix) == 4, "only members and presences are there")


async def test_of_two_that_claim_a_port_at_once_one_gets_it(two: Two) -> None:
    for port in range(1000, 1100):
        web, mail = Key("t", f"web{port}", "1"), Key("u", f"mail{port}", "1")
        one = wanted("10.0.0.1", Slot("tcp", port))
        first, second = await asyncio.gather(two.a.announce(web, one), two.b.announce(mail, one))
        assert {type(first), type(second)} == {Answer, Conflict}
        winner, owner = (first, ("t", web.name, False)) if isinstance(first, Answer) else (second, ("u", mail.name, False))
        assert winner is Answer.IN_FORCE
        assert {first, second} == {Answer.IN_FORCE, Conflict(Slot("tcp", port), owner)}


class DeafEtcd(Etcd):
    """While it is deaf, what a watch reports is lost, as behind a network that has forgotten its connection. The next hears."""

    deaf = False

    async def watch(self, prefix: bytes, after: int, seen: Callable[[int, Sequence[Event]], None]) -> NoReturn:
        self.deaf = False

        def hear(revision: int, events: Sequence[Event]) -> None:
            if not self.deaf:
                seen(revision, events)

        await super().watch(prefix, after, hear)
        raise AssertionError("it never returns")


async def test_a_watch_that_is_silent_about_what_etcd_has_is_replaced(
    two: Two, member: Member, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every claim would be refused until the watch is given up, after 30 seconds."""
    monkeypatch.setattr(sync, "BEHIND", 0.1)
    async with Balancer("c", [member.url], prefix, client=DeafEtcd, waits=Waits(call=0.5)) as c:
        await c.connected()
        c.etcd.deaf = True
        assert await two.b.announce(MAIL, wanted("10.0.0.2", SMTP)) is Answer.IN_FORCE
        one = wanted("10.0.0.3", Slot("tcp", SMTP.port + 1))  # of the same block
        assert await c.announce(OTHER, one) is Answer.UNAVAILABLE
        await c.showing("10.0.0.2 fresh", MAIL)
        await c.connected()
        assert await c.announce(OTHER, one) is Answer.IN_FORCE
        assert any("does not report what etcd has" in text for text in c.said)


async def test_of_many_moves_the_newest_is_written(two: Two, member: Member, prefix: str) -> None:
    assert await two.a.announce() is Answer.IN_FORCE
    before = version(member, f"{prefix}entries/a/t/web/1")
    for number in range(100):
        assert two.a.replica.announce(WEB, wanted(f"10.0.1.{number}")) is Answer.IN_FORCE
        two.a.sync.wake()
    await two.b.showing("10.0.1.99 fresh")
    assert version(member, f"{prefix}entries/a/t/web/1") - before <= 2


async def test_a_beat_is_not_written(two: Two, member: Member, prefix: str) -> None:
    assert await two.a.announce() is Answer.IN_FORCE
    before = version(member, f"{prefix}members/a")
    for _ in range(20):
        assert await two.a.announce() is Answer.IN_FORCE
    assert await two.a.announce(MAIL, wanted("10.0.0.3", SMTP)) is Answer.IN_FORCE
    assert version(member, f"{prefix}members/a") - before == 1
    assert version(member, f"{prefix}entries/a/t/web/1") == 1


async def test_a_new_balancer_serves_everything_the_moment_it_joins(two: Two, member: Member, prefix: str) -> None:
    assert await two.a.announce() is Answer.IN_FORCE
    async with Balancer("c", [member.url], prefix) as third:
        await third.showing("10.0.0.1 fresh")


# ---------------------------------------------------------------- presence


async def test_two_of_one_name_do_not_both_join(two: Two, member: Member, prefix: str) -> None:
    assert await two.a.announce() is Answer.IN_FORCE
    async with Balancer("a", [member.url], prefix, presence=Presence("another start")) as second:
        await until(lambda: any("each needs a cluster.name of its own" in one for one in second.said))
        assert not second.replica.linked
        assert await second.announce(MAIL) is Answer.UNAVAILABLE
        await two.a.sync.leave()
        await until(lambda: second.replica.linked)


async def test_a_successor_takes_presence_and_memory_over(member: Member, prefix: str) -> None:
    async with Balancer("a", [member.url], prefix) as before:
        await before.connected()
        assert await before.announce() is Answer.IN_FORCE
    async with Balancer("a", [member.url], prefix, memory=before.replica.memory(), presence=before.presence) as after:
        assert after.shows() == "10.0.0.1 fresh"
        await after.connected()
        assert not any("cluster.name" in one for one in after.said)
        assert version(member, f"{prefix}entries/a/t/web/1") == 1


async def test_a_presence_whose_lease_has_ended_is_made_anew_and_releases_nothing(member: Member, prefix: str) -> None:
    async with Balancer("a", [member.url], prefix, heartbeat=0.1) as a, Balancer("b", [member.url], prefix) as b:
        await a.connected()
        await b.connected()
        assert await a.announce() is Answer.IN_FORCE
        await b.showing("10.0.0.1 fresh")
        lease = a.presence.lease
        member.ask("lease/revoke", {"ID": str(lease)})
        await until(lambda: a.presence.lease not in (0, lease))
        await until(lambda: b.replica.knowledge.mirror.is_present("a"))
        assert b.shows() == "10.0.0.1 fresh"
        assert any("lease" in one for one in a.said)


async def test_the_heartbeat_writes_presence_and_member(member: Member, prefix: str) -> None:
    async with Balancer("a", [member.url], prefix, heartbeat=0.05):
        await until(lambda: version(member, f"{prefix}presence/a") > 4)
        assert version(member, f"{prefix}members/a") > 2


# ---------------------------------------------------------------- what goes wrong


async def test_a_watch_that_is_compacted_begins_with_a_list(member: Member, prefix: str) -> None:
    lists = 0

    class Compacting(Etcd):
        async def list(self, prefix: bytes) -> object:
            nonlocal lists
            lists += prefix.endswith(b"/")  # not of its own presence alone
            return await super().list(prefix)

        async def watch(self, prefix: bytes, after: int, seen: Callable[[int, Sequence[Event]], None]) -> NoReturn:
            if lists == 1:
                for _ in range(3):
                    member.put(f"{prefix.decode()}newer/x", "y")
                member.compact()
            await super().watch(prefix, after, seen)

    async with Balancer("a", [member.url], prefix, client=Compacting) as a:
        await until(lambda: lists == 2)
        await a.connected()
        assert await a.announce() is Answer.IN_FORCE
        assert any("compacted" in one for one in a.said)


async def test_an_answer_that_is_lost_is_cleared_up_by_a_list(member: Member, prefix: str) -> None:
    lose = False

    class Losing(Etcd):
        async def txn(self, txn: Txn) -> Outcome:
            nonlocal lose
            outcome = await super().txn(txn)
            if lose:
                lose = False
                raise Unreachable("no answer")
            return outcome

    async with Balancer("a", [member.url], prefix, client=Losing) as a, Balancer("b", [member.url], prefix) as b:
        await a.connected()
        await b.connected()
        lose = True
        assert await a.announce() is Answer.UNAVAILABLE  # though it has happened
        await a.connected()
        await until(lambda: keys(member, prefix) == 4, "nothing of it is left")
        assert await a.announce() is Answer.IN_FORCE
        lose = True
        assert await a.announce(what=wanted("10.0.0.2")) is Answer.IN_FORCE
        assert await a.announce(what=wanted("10.0.0.3")) is Answer.IN_FORCE
        await b.showing("10.0.0.3 fresh")
        assert not lose


async def test_without_etcd_what_is_known_goes_on_and_what_is_new_waits(prefix: str) -> None:
    with one_member() as member:
        async with Two(member, prefix) as two:
            assert await two.a.announce() is Answer.IN_FORCE
            await two.b.showing("10.0.0.1 fresh")
            member.kill()
            for one in (two.a, two.b):
                await until(lambda one=one: not one.replica.linked)
            assert await two.a.announce(what=wanted("10.0.0.2")) is Answer.IN_FORCE
            assert await two.b.announce(OTHER, wanted("10.0.0.9")) is Answer.IN_FORCE
            assert await two.b.announce(MAIL, wanted("10.0.0.3", SMTP)) is Answer.UNAVAILABLE
            assert two.b.shows() == "10.0.0.1 fresh"
            member.start()
            await two.b.showing("10.0.0.2 fresh")
            await two.a.showing("10.0.0.9 fresh", OTHER)
            assert await two.b.announce(MAIL, wanted("10.0.0.3", SMTP)) is Answer.IN_FORCE


async def test_a_frozen_etcd_is_noticed_by_its_silence(member: Member, prefix: str) -> None:
    async with Balancer("a", [member.url], prefix, waits=QUICK, heartbeat=0.1) as a:
        await a.connected()
        assert await a.announce() is Answer.IN_FORCE
        member.freeze()
        try:
            await until(lambda: not a.replica.linked)
            assert a.shows() == "10.0.0.1 fresh"
            assert await a.announce(MAIL, wanted("10.0.0.3", SMTP)) is Answer.UNAVAILABLE
        finally:
            member.wake()
        await a.connected()
        await until(lambda: a.replica.linked)
        assert await a.announce(MAIL, wanted("10.0.0.3", SMTP)) is Answer.IN_FORCE


async def test_a_full_etcd_refuses_claims_and_goes_on_with_everything_else(two: Two, member: Member, prefix: str) -> None:
    assert await two.a.announce() is Answer.IN_FORCE
    await two.b.showing("10.0.0.1 fresh")
    member.ask("maintenance/alarm", {"action": "ACTIVATE", "alarm": "NOSPACE"})
    try:
        assert await two.a.announce(MAIL, wanted("10.0.0.3", SMTP)) is Answer.UNAVAILABLE
        assert "database space exceeded" in two.a.sync.trouble
        assert two.a.replica.linked
        assert await two.a.announce(what=wanted("10.0.0.2")) is Answer.IN_FORCE
    finally:
        member.ask("maintenance/alarm", {"action": "DEACTIVATE", "alarm": "NOSPACE"})
    await two.b.showing("10.0.0.2 fresh")
    assert await two.a.announce(MAIL, wanted("10.0.0.3", SMTP)) is Answer.IN_FORCE
    assert not two.a.sync.trouble


async def test_a_claim_ends_with_its_caller_s_patience(member: Member, prefix: str) -> None:
    class Slow(Etcd):
        async def txn(self, txn: Txn) -> Outcome:
            if any(b"mail" in key for key in txn.puts):
                await asyncio.sleep(1)
            return await super().txn(txn)

    async with Balancer("a", [member.url], prefix, client=Slow, waits=Waits(call=0.3)) as a:
        await a.connected()
        assert await a.announce(MAIL) is Answer.UNAVAILABLE
        assert a.shows(MAIL) == ""
        await until(lambda: not a.replica.has_more_to_check() and keys(member, prefix) == 2, "what it wrote is gone again")


async def test_what_cannot_be_read_is_reported_once_and_costs_only_itself(two: Two, member: Member, prefix: str) -> None:
    assert await two.a.announce() is Answer.IN_FORCE
    await two.b.showing("10.0.0.1 fresh")
    for _ in range(2):
        member.put(f"{prefix}entries/x/t/web/2", "{")
    member.put(f"{prefix}newer/x", "{")
    assert await two.a.announce(MAIL, wanted("10.0.0.3", SMTP)) is Answer.IN_FORCE
    await two.b.showing("10.0.0.3 fresh", MAIL)
    assert len([one for one in two.b.said if one.startswith("entries/x/t/web/2 in etcd cannot be read")]) == 1
