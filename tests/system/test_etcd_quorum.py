"""Three etcd members: quorum, leaders, and the endpoints that balancers go to."""

from collections.abc import Iterator

import pytest

from pylb.cluster.etcd import Etcd, Waits
from pylb.cluster.gateway import Txn, Unreachable
from pylb.core.merge.local import Answer
from tests.support.balancers import MAIL, SMTP, Balancer, until, wanted
from tests.support.etcd import Member, Members

PREFIX = "/pylb/v1/"


@pytest.fixture
def members() -> Iterator[Members]:
    with Members(3) as found:
        yield found


def leader(members: Members) -> Member:
    for one in members.all:
        status = one.ask("maintenance/status", {})
        if status["leader"] == status["header"]["member_id"]:
            return one
    raise AssertionError("there is no leader")


async def test_without_a_quorum_calls_fail_in_time_and_watches_end(members: Members) -> None:
    """Without the header `hasleader` the watch would be silent for ever, and the call answered after seven seconds."""
    last = members.all[2]
    async with Etcd([last.url], waits=Waits(call=3, silence=30)) as etcd:
        await etcd.txn(Txn({b"/x": 0}, puts={b"/x": b""}))
        revision, _ = await etcd.list(b"/x")
        for one in members.all[:2]:
            one.kill()
        with pytest.raises(Unreachable, match="no leader"):
            await etcd.watch(b"/x", revision, lambda *_: None)  # would end after 30 s by its silence
        with pytest.raises(Unreachable):
            await etcd.txn(Txn({}, puts={b"/x": b"1"}))
        with pytest.raises(Unreachable):
            await etcd.list(b"/x")


async def test_one_member_less_is_not_noticed_by_whoever_calls(members: Members) -> None:
    async with Balancer("a", members.urls, PREFIX) as a, Balancer("b", members.urls[1:], PREFIX) as b:
        await a.connected()
        await b.connected()
        assert await a.announce() is Answer.IN_FORCE
        await b.showing("10.0.0.1 fresh")
        members.all[0].kill()  # a's endpoint
        await until(lambda: a.etcd.endpoint != members.all[0].url and a.replica.linked)
        await b.connected()
        assert await a.announce(MAIL, wanted("10.0.0.3", SMTP)) is Answer.IN_FORCE
        await b.showing("10.0.0.3 fresh", MAIL)


async def test_a_frozen_leader_deletes_leased_keys_when_it_wakes_and_nothing_is_released(members: Members) -> None:
    """It believes that the leases have ended while it was frozen."""
    async with Balancer("a", members.urls, PREFIX, heartbeat=1) as a, Balancer("b", members.urls, PREFIX, heartbeat=1) as b:
        await a.connected()
        await b.connected()
        assert await a.announce() is Answer.IN_FORCE
        await b.showing("10.0.0.1 fresh")
        frozen = leader(members)
        frozen.freeze()
        others = [one for one in members.all if one is not frozen]
        await until(lambda: others[0].is_up() and others[1].is_up(), within=30)
        for one in (a, b):
            await until(lambda one=one: one.etcd.endpoint != frozen.url and one.replica.linked, within=60)
        frozen.wake()
        assert await b.announce(MAIL, wanted("10.0.0.3", SMTP)) is Answer.IN_FORCE
        await a.showing("10.0.0.3 fresh", MAIL)
        for one in (a, b):
            assert one.shows() == "10.0.0.1 fresh"
            await until(lambda one=one: one.replica.knowledge.mirror.is_present("a"), within=60)
            await until(lambda one=one: one.replica.knowledge.mirror.is_present("b"), within=60)


async def test_a_quorum_that_returns_finds_balancers_that_went_on(members: Members) -> None:
    async with Balancer("a", members.urls, PREFIX) as a, Balancer("b", members.urls, PREFIX) as b:
        await a.connected()
        await b.connected()
        assert await a.announce() is Answer.IN_FORCE
        await b.showing("10.0.0.1 fresh")
        for one in members.all[1:]:
            one.kill()
        for balancer in (a, b):
            await until(lambda balancer=balancer: not balancer.replica.linked, within=30)
        assert await a.announce(what=wanted("10.0.0.2")) is Answer.IN_FORCE
        assert await b.announce(MAIL, wanted("10.0.0.3", SMTP)) is Answer.UNAVAILABLE
        for one in members.all[1:]:
            one.start(members.all)
        await b.showing("10.0.0.2 fresh")
        assert await b.announce(MAIL, wanted("10.0.0.3", SMTP)) is Answer.IN_FORCE
