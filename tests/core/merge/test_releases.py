"""Releases, and what they mean for what was called before and after them."""

from dataclasses import replace

import pytest

from pylb.core.merge import writing
from pylb.core.merge.local import Answer, Conflict, Own, Unsent, Verdict, covers, includes, judge
from pylb.core.merge.values import (
    BlockKey,
    Entry,
    EntryKey,
    Slot,
    Tombstone,
    TombstoneKey,
)
from pylb.core.registration import Key, State
from tests.core.merge.cluster import HTTPS, MAIL, WEB, Cluster, wanted


def test_a_release_closes_everywhere_and_its_tombstone_goes() -> None:
    two = Cluster("a", "b")
    two.register("a")
    two.register("b")
    assert two["b"].release(WEB) is Answer.IN_FORCE
    assert two.shown("b") is None  # at once, though another balancer hears it and has not agreed yet
    two["a"].write(heartbeat=True)
    two["a"].disconnected()
    two.settle()
    two["a"].judged(WEB, State.STALE)
    two.settle()
    assert (two.shown("a"), two.shown("b")) == (None, None)
    assert not any(isinstance(key, TombstoneKey | BlockKey) for key in two.etcd.content)


def test_many_releases_are_written_in_several_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "MOST", 2)
    two = Cluster("a", "b")
    keys = [Key("t", f"n{port}", "1") for port in range(1, 6)]
    for port, key in enumerate(keys, 1):
        two.register("a", key, wanted("10.0.0.1", Slot("tcp", port)))
    for key in keys:
        two["a"].release(key)
    two.settle()
    two["b"].accept()
    two.settle()
    assert set(two["b"].knowledge.registered()) == set()
    assert not any(isinstance(key, EntryKey | TombstoneKey | BlockKey) for key in two.etcd.content)


def test_a_released_port_is_nobody_elses_until_all_that_hear_it_agree() -> None:
    two = Cluster("a", "b")
    two.register("a")
    two.register("b")
    two["b"].release(WEB)
    assert two["b"].announce(MAIL, wanted("10.0.0.2")) == Conflict(HTTPS, ("t", "web", False))


def test_the_entries_of_a_balancer_that_is_away_are_released_at_once() -> None:
    two = Cluster("a", "b")
    two.register("a")
    two.cut("a")
    two.settle()
    two["b"].release(WEB)
    two.settle()
    assert two.shown("b") is None
    two.register("b", MAIL, wanted("10.0.0.2"))


def test_a_release_that_comes_late_puts_what_was_called_since_on_probation() -> None:
    two = Cluster("a", "b")
    two.register("a")
    two.register("b")
    two.cut("b")
    two["b"].release(WEB)
    two["a"].announce(WEB, wanted())
    two.join("b")
    two.settle()
    assert two.shown("b") == "10.0.0.1 fresh"
    two["a"].announce(WEB, wanted())  # the call that makes it certain
    two["a"].judged(WEB, State.STALE)
    assert two.shown("a") == "10.0.0.1 stale"


def test_a_registration_on_probation_leaves_with_its_lease() -> None:
    two = Cluster("a", "b")
    two.register("a")
    two.register("b")
    two["b"].release(WEB)
    two.settle()
    two["a"].judged(WEB, State.FRESH)  # nothing new
    two["a"].judged(WEB, State.STALE)
    two["a"].judged(WEB, State.STALE)  # it is gone
    two.settle()
    assert (two.shown("a"), two.shown("b")) == (None, None)


def test_a_sequence_says_whether_a_release_is_older() -> None:
    two = Cluster("a", "b")
    two.register("a", WEB, wanted(sequence=1))
    two.register("b", WEB, wanted(sequence=1))
    two.cut("b")
    assert two["b"].release(WEB, 2) is Answer.IN_FORCE
    assert two["a"].announce(WEB, wanted("10.0.0.2", sequence=3)) is Answer.IN_FORCE
    two.join("b")
    two.settle()
    assert (two.shown("a"), two.shown("b")) == ("10.0.0.2 fresh", "10.0.0.2 fresh")
    assert two["b"].release(WEB, 2) is Answer.LATE
    assert two["b"].announce(WEB, wanted(sequence=1)) is Answer.LATE
    assert two["a"].announce(WEB, wanted(sequence=1)) is Answer.LATE


def test_a_release_ends_claims_that_were_called_before_it() -> None:
    two = Cluster("a", "b")
    two["a"].announce(WEB, wanted(sequence=1))
    two["b"].release(WEB, 2)
    two.write("b")
    two.follow("a")
    assert not two["a"].is_claiming(WEB)
    two["a"].announce(WEB, wanted(sequence=3))
    two["b"].release(WEB, 2)
    two.write("b")
    two.follow("a")
    assert two["a"].is_claiming(WEB)


def test_two_releases_of_one_name_add_up() -> None:
    three = Cluster("a", "b", "c")
    three.register("a")
    three.cut("c", presence=True)
    three["a"].release(WEB)
    three.settle()
    before = three.etcd.content[TombstoneKey(WEB)][0]
    three["b"].release(WEB)
    three.settle()
    after = three.etcd.content[TombstoneKey(WEB)][0]
    assert isinstance(before, Tombstone)
    assert isinstance(after, Tombstone)
    assert after.writer == "b"
    assert all(after.known[name] >= count for name, count in before.known.items())


def test_a_newer_sequence_elsewhere_wins_over_what_was_heard_here() -> None:
    two = Cluster("a", "b")
    two.register("a", WEB, wanted("10.0.0.1", sequence=1))
    two["b"].announce(WEB, wanted("10.0.0.2", sequence=2), State.DRAINING)
    two.settle()
    assert two.shown("a") == "10.0.0.2 draining"


def test_releases_of_more_than_half_of_all_ports_are_held_until_they_are_accepted() -> None:
    two = Cluster("a", "b")
    keys = [Key("t", f"n{port}", "1") for port in range(1, 6)]
    for port, key in enumerate(keys, 1):
        two.register("a", key, wanted("10.0.0.1", Slot("tcp", port)))
    for key in keys[:4]:
        two["a"].release(key)
    two.settle()
    assert [two.shown("b", key) for key in keys] == ["10.0.0.1 stale"] * 4 + ["10.0.0.1 fresh"]
    assert two["b"].announce(MAIL, wanted("10.0.0.2", Slot("tcp", 1))) == Conflict(Slot("tcp", 1), ("t", "n1", False))
    assert TombstoneKey(keys[0]) in two.etcd.content
    two["a"].release(keys[0])
    two.settle()
    assert two.shown("b", keys[0]) == "10.0.0.1 stale"
    two.restart("b")
    two.settle()
    assert two.shown("b", keys[0]) == "10.0.0.1 stale"
    two["b"].accept()
    two.settle()
    assert [two.shown("b", key) for key in keys] == [None] * 4 + ["10.0.0.1 fresh"]
    assert not any(isinstance(key, TombstoneKey) for key in two.etcd.content)


def test_what_a_release_means_for_what_was_heard_here() -> None:
    own = Own(wanted(sequence=5), State.FRESH, heard=3)
    assert judge(own, Tombstone("b", 1, {}, 6), "a") is Verdict.OLDER
    assert judge(own, Tombstone("b", 1, {"a": 9}, 4), "a") is Verdict.NEWER
    assert judge(own, Tombstone("b", 1, {"a": 4}), "a") is Verdict.OLDER
    assert judge(own, Tombstone("b", 1, {"a": 3}), "a") is Verdict.UNKNOWN
    assert judge(replace(own, state=State.STALE), Tombstone("b", 1, {"a": 3}), "a") is Verdict.OLDER


def test_which_entries_of_others_a_release_covers() -> None:
    entry = Entry(wanted(sequence=5), State.FRESH, stamp=3)
    assert covers(Unsent({}, 5), "a", entry)
    assert not covers(Unsent({"a": 9}, 4), "a", entry)
    assert covers(Unsent({"a": 3}), "a", entry)
    assert not covers(Unsent({"b": 3}), "a", entry)


def test_a_tombstone_includes_an_older_one() -> None:
    new, old = Tombstone("b", 2, {"a": 2}), Tombstone("c", 1, {"a": 1})
    assert includes(new, None)
    assert includes(new, old)
    assert not includes(old, new)
    assert not includes(new, new)


def test_a_release_without_a_sequence_is_not_limited_by_an_earlier_one_with_it() -> None:
    three = Cluster("a", "b", "c")
    three.register("a", WEB, wanted(sequence=1))
    three.cut("c", presence=True)
    three["b"].release(WEB, 2)
    three.settle()
    three.register("a", WEB, wanted(sequence=3))
    three["a"].judged(WEB, State.STALE)
    three.settle()
    three["b"].release(WEB)
    three.settle()
    assert (three.shown("a"), three.shown("b")) == (None, None)


def test_releases_of_less_than_half_of_all_ports_are_not_held_back() -> None:
    two = Cluster("a", "b")
    keys = [Key("t", f"n{port}", "1") for port in range(1, 9)]
    for port, key in enumerate(keys, 1):
        two.register("a", key, wanted("10.0.0.1", Slot("tcp", port)))
    for key in keys[:3]:
        two["a"].release(key)
    two.settle()
    assert set(two["b"].knowledge.registered()) == set(keys[3:])
    assert two["b"].knowledge.held == {}


def test_what_was_released_while_this_balancer_was_away_does_not_secure_its_port() -> None:
    two = Cluster("a", "b")
    two.register("a", WEB, wanted(sequence=1))
    two.cut("a")
    two["b"].release(WEB, 2)
    assert two.write("b")  # the tombstone; with the next transaction the port is anybody's
    newer = wanted("10.0.0.9", sequence=3)
    assert two["a"].announce(WEB, newer) is Answer.IN_FORCE
    for _ in two["a"].listed(two.etcd.revision, dict(two.etcd.content), two.now):
        pass
    assert two["a"].announce(WEB, newer) is Answer.CLAIMING
    two.follow("b")
    assert two.write("b")  # it has not heard that a is back
    assert BlockKey("tcp", 1) not in two.etcd.content
    two.join("a")
    two.settle()
    assert (two.shown("a"), two.shown("b")) == ("10.0.0.9 fresh", "10.0.0.9 fresh")
    assert two["b"].knowledge.claimant(HTTPS) == ("t", "web", False)
