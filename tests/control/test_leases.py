"""What is due by the leases' agenda is what a look at every single lease would find, after any order of calls."""

from collections.abc import Coroutine
from typing import TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pylb.control.leases import LeaseRecord, Leases
from pylb.core.claims import Claims
from pylb.core.lease import judge, lapsed_within_its_ttl
from pylb.core.ownership import become, release
from pylb.core.registration import Key, State
from tests.core.claiming import enter, legacy, native

INSTANCES = ("a", "b", "c", "d", "e")
KEEP_STALE = 500.0
T = TypeVar("T")


def finish(work: Coroutine[object, None, T]) -> T:
    """What comes out of it; nothing of it waits for anything but its next turn."""
    while True:
        try:
            work.send(None)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


class LeaseMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.leases = Leases(lambda: self.now)
        self.claims = Claims()
        self.goodbyes: set[Key] = set()
        finish(self.leases.webhook_is_up(self.claims))

    @rule(instance=st.sampled_from(INSTANCES), ttl=st.sampled_from((None, 10.0, 60.0, 300.0)), drains=st.booleans())
    def somebody_calls(self, instance: str, ttl: float | None, drains: bool) -> None:
        one = native(instance=instance, ttl=ttl, state=State.DRAINING if drains else State.FRESH)
        self.beat(one.key, enter(self.claims, one).claims)

    @rule(token=st.sampled_from(("t", "u")))
    def an_old_container_calls(self, token: str) -> None:
        one = legacy(25 if token == "t" else 26, token=token)
        self.beat(one.key, enter(self.claims, one).claims)

    def beat(self, key: Key, claims: Claims) -> None:
        self.claims = claims
        if key in claims.registrations:
            self.leases.beat(claims.registrations[key], moved=False)
            self.goodbyes.discard(key)

    @precondition(lambda self: self.claims.registrations)
    @rule(data=st.data())
    def somebody_leaves(self, data: st.DataObject) -> None:
        change = release(self.claims, [data.draw(st.sampled_from(list(self.claims.registrations)))])
        self.claims = change.claims
        self.leases.forget(change.removed)
        self.goodbyes -= set(change.removed)

    @precondition(lambda self: self.claims.registrations)
    @rule(data=st.data())
    def a_restart_finds_one_stale(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(list(self.claims.registrations)))
        self.claims = become(self.claims, [key], State.STALE).claims
        self.leases.restore(
            self.claims.registrations[key], LeaseRecord(stale_for=data.draw(st.sampled_from((0.0, 5.0, 400.0))))
        )

    @rule(seconds=st.sampled_from((0.5, 1.0, 4.0)), rounds=st.integers(1, 40))
    def time_goes_by(self, seconds: float, rounds: int) -> None:
        for _ in range(rounds):
            self.now += seconds
            self.tick()

    def tick(self) -> None:
        held, leases = self.claims.registrations, {key: self.leases.get(key) for key in self.claims.registrations}
        known = {key: lease for key, lease in leases.items() if lease is not None}
        draining = {key for key in known if held[key].state is State.DRAINING}
        gone = {key for key in draining if known[key].is_over(self.now)}
        self.goodbyes |= gone
        counted = {key: lease for key, lease in known.items() if key not in draining | self.goodbyes}
        stale = [key for key in known if held[key].state is State.STALE]
        fresh = {key: lease for key, lease in counted.items() if lease.ttl is not None and key not in stale}
        expected = judge(
            [key for key, lease in fresh.items() if lease.is_over(self.now)],
            [key for key in stale if key in counted and lapsed_within_its_ttl(counted[key], self.now)],
            len(fresh),
            preserving=self.leases.preserving,
        )
        due = finish(self.leases.due(self.claims, KEEP_STALE))
        assert set(due.gone) == gone
        assert {name: set(getattr(due.verdict, name)) for name in ("lapsed", "revived", "grace")} == {
            name: set(getattr(expected, name)) for name in ("lapsed", "revived", "grace")
        }
        assert due.verdict.preserving is expected.preserving
        assert set(due.overstayed) == (
            set() if expected.preserving else {key for key in stale if self.now - known[key].expires >= KEEP_STALE}
        )
        self.leases.preserving = due.verdict.preserving
        self.claims = become(self.claims, (*due.verdict.lapsed, *due.gone), State.STALE).claims
        self.claims = become(self.claims, due.verdict.revived, State.FRESH).claims

    @invariant()
    def what_was_learned_is_what_the_leases_say(self) -> None:
        leases = {key: self.leases.get(key) for key in self.claims.registrations if key.is_legacy}
        assert self.leases.learned == {key: lease.ttl for key, lease in leases.items() if lease and lease.ttl is not None}


LeaseMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
test_what_is_due_is_what_a_look_at_all_leases_finds = LeaseMachine.TestCase


def test_the_schedule_is_of_those_that_are_registered_however_many_come_and_go() -> None:
    """Names that are used once each left an entry behind until their TTL was over: a day, at a hundred a second."""
    leases, stays = Leases(lambda: 1000.0), native(instance="stays", ttl=86_400.0)
    leases.beat(stays, moved=False)
    for number in range(1000):
        one = native(instance=f"pod-{number}", ttl=86_400.0)
        leases.beat(one, moved=False)
        leases.forget([one.key])
    assert len(leases._schedule) < 100
    assert list(leases._planned) == [stays.key]
