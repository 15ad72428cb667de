"""A port whose owner is gone goes to whoever asks for it: late, said aloud, and never while anything of the owner lives."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from pylb.control.health.prober import ProbeRequest
from pylb.control.registry import Registry
from pylb.control.storage.store import Store
from pylb.core.auth import Caller, Keyring, Token
from pylb.core.errors import Refused
from pylb.core.policy import Rules
from pylb.core.registration import Announcement, FrontendRequest
from tests.control.harness import NODE_A, NODE_B, Clock, Control, control, target, token
from tests.support.ports import free_ports, ports_in_a_row
from tests.support.sink import PortSink

YIELD_AFTER = 900.0
OWNER, RIVAL = token("owner"), token("rival")


async def rival_asks(c: Control, port: int) -> Refused | None:
    try:
        await c.put({port: 30002}, NODE_B, name="other", token="rival")
    except Refused as refused:
        return refused
    return None


async def test_a_dead_claim_yields_after_its_time_with_an_alarm(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path, OWNER, RIVAL) as c:
        await c.put({port: 30001})
        await c.put({port: 30001}, draining=True)
        await c.pass_time(YIELD_AFTER - 10, probing=True)
        assert await rival_asks(c, port) is not None
        await c.pass_time(20, probing=True)
        assert await rival_asks(c, port) is None
        assert [(one.token, one.name) for one in c.registry.each_registration()] == [("rival", "other")]
        (event,) = [event for event in c.heard if event.kind == "yielded"]
        assert event.alarm
        assert event.fields["token"] == "owner"
        assert "owner/web/pod-1" in event.text
        assert "rival/other/pod-1" in event.text


async def test_a_lease_that_ended_counts_from_the_moment_at_which_it_is_stale(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path, OWNER, RIVAL) as c:
        await c.put({port: 30001}, ttl=60)
        await c.pass_time(YIELD_AFTER, probing=True)
        assert await rival_asks(c, port) is not None
        await c.pass_time(80, probing=True)
        assert await rival_asks(c, port) is None


async def test_a_rival_that_tries_all_the_time_wins_no_restart_of_the_owner(tmp_path: Path) -> None:
    """The gap of five seconds in which a rival that retries would win 42 of 100 times."""
    (port,) = free_ports(1)
    async with control(tmp_path, OWNER, RIVAL) as c:
        for _ in range(20):
            await c.put({port: 30001})
            await c.put({port: 30001}, draining=True)  # its pod goes, nothing listens any more
            for _ in range(5):
                assert await rival_asks(c, port) is not None
                await c.pass_time(1, probing=True)
        assert "yielded" not in c.kinds()


@pytest.mark.parametrize("how", ["answers", "calls", "answers once in between"])
async def test_whatever_shows_that_it_lives_begins_the_time_anew(tmp_path: Path, how: str) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path, OWNER, RIVAL) as c:
        await c.put({port: 30001}, draining=False)
        await c.put({port: 30001}, draining=True)
        await c.pass_time(YIELD_AFTER - 60, probing=True)
        if how == "answers":
            with target(30001):
                await c.pass_time(120, probing=True)
                assert await rival_asks(c, port) is not None
            return
        if how == "calls":
            await c.put({port: 30001})
            await c.put({port: 30001}, draining=True)
        else:
            with target(30001):
                await c.pass_time(60, probing=True)
        await c.pass_time(YIELD_AFTER - 60, probing=True)
        assert await rival_asks(c, port) is not None
        await c.pass_time(90, probing=True)
        assert await rival_asks(c, port) is None


async def test_a_server_that_comes_back_in_the_last_moment_keeps_its_port(tmp_path: Path) -> None:
    """Nobody has asked it since: the rival's own call does."""
    (port,) = free_ports(1)
    async with control(tmp_path, OWNER, RIVAL) as c:
        await c.put({port: 30001})
        await c.put({port: 30001}, draining=True)
        await c.pass_time(YIELD_AFTER + 60, probing=True)
        with target(30001):
            assert await rival_asks(c, port) is not None
        assert await rival_asks(c, port) is not None  # from its answer on the time begins anew


async def test_a_rival_that_wants_a_range_asks_the_owner_of_each_of_its_ports(tmp_path: Path) -> None:
    first = ports_in_a_row(3)
    around = Announcement((FrontendRequest(first, 30002, last=first + 2),), None, 60.0, draining=False)
    async with control(tmp_path, OWNER, RIVAL) as c:
        await c.put({first + 1: 30001})
        await c.put({first + 1: 30001}, draining=True)
        await c.pass_time(YIELD_AFTER + 60, probing=True)
        with target(30001), pytest.raises(Refused, match="its server answers"):
            await c.registry.calls.announce("other", "pod-1", around, c.caller(NODE_B, "rival"))
        assert [(one.token, one.name) for one in c.registry.each_registration()] == [("owner", "web")]


async def test_a_stall_of_pylb_is_nobodys_silence(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path, OWNER, RIVAL) as c:
        await c.put({port: 30001})
        await c.put({port: 30001}, draining=True)
        await c.pass_time(60, probing=True)
        c.clock.now += 2 * YIELD_AFTER
        await c.pass_time(60, probing=True)
        assert await rival_asks(c, port) is not None


async def test_the_refusal_says_since_when_until_when_and_how_it_is_released(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path, OWNER, RIVAL) as c:
        await c.put({port: 30001})
        fresh = await rival_asks(c, port)
        await c.put({port: 30001}, draining=True)
        await c.pass_time(30, probing=True)
        dead = await rival_asks(c, port)
    assert fresh is not None
    assert "registration 'web' of token 'owner' (since 2023-11-14 22:30:00 UTC; it last called 0 s ago)" in fresh.detail
    assert dead is not None
    assert "it said goodbye; it has not answered since" in dead.detail
    assert "gives way from" in dead.detail
    assert f"`pylb release {port}`" in dead.hint


STEP, ASKED = 4.9, 25.0  # seconds: between two ticks, and within which a server that answers is asked


class Rivals(RuleBasedStateMachine):
    """Any order of beats, goodbyes, deaths, returns, rivals and time. `lived`: when the owner last called, or answered for
    long enough for anybody to notice."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = TemporaryDirectory()
        self.clock = Clock()
        self.answers_since: float | None = None
        self.fresh_until = self.lived = 0.0
        self.registry = Registry(
            rules=Rules(),
            keyring=Keyring((OWNER, RIVAL)),
            sink=PortSink(),
            store=Store(Path(self.folder.name)),
            clock=self.clock,
            ask=self.ask,
            uniform=lambda _low, _high: 1.0,
        )
        self.run(self.registry.start())
        self.run(self.registry.webhook_is_up())
        (self.port,) = free_ports(1)
        self.the_owner_calls(draining=False)

    def teardown(self) -> None:
        self.run(self.registry.stop())
        self.registry._state.publisher._sink.close()  # type: ignore[attr-defined]
        self.loop.close()
        self.folder.cleanup()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    async def ask(self, _question: ProbeRequest) -> str:
        return "refused" if self.answers_since is None else "yes"

    def call(self, who: Token, ip: str, *, draining: bool) -> None:
        announcement = Announcement((FrontendRequest(self.port, 30001),), None, 60.0, draining)
        self.run(self.registry.calls.announce(who.name, "pod-1", announcement, Caller(ip, who)))

    @rule(draining=st.booleans())
    def the_owner_calls(self, draining: bool) -> None:
        self.call(OWNER, NODE_A, draining=draining)
        self.lived = self.clock.now if next(iter(self.registry.each_registration())).state == "fresh" else self.lived
        self.fresh_until = 0.0 if draining else self.clock.now + 60

    @rule(answers=st.booleans())
    def its_server_turns(self, answers: bool) -> None:
        self.notice()
        self.answers_since = (self.answers_since or self.clock.now) if answers else None

    @rule(seconds=st.sampled_from((1.0, 20.0, 59.0, 300.0, 890.0, 1000.0)))
    def time_passes(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(end, self.clock.now + STEP)
            self.run(self.registry.tick())
            self.run(self.registry.probe())
        self.notice()

    def notice(self) -> None:
        now = self.clock.now
        self.lived = max(self.lived, min(now, self.fresh_until))
        if self.answers_since is not None and now - self.answers_since >= ASKED:
            self.lived = now

    @rule()
    def a_rival_asks(self) -> None:
        self.notice()
        try:
            self.call(RIVAL, NODE_B, draining=False)
        except Refused:
            return
        assert self.answers_since is None
        assert self.clock.now - self.lived >= YIELD_AFTER
        self.run(self.registry.operator.release_any("rival"))
        self.the_owner_calls(draining=False)


Rivals.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
test_a_claim_whose_server_answers_or_whose_lease_is_fresh_is_never_lost = Rivals.TestCase
