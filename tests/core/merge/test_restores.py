"""What etcd or a disk has lost, and balancers that are forgotten."""

import pytest

from pylb.core.merge import writing
from pylb.core.merge.local import Answer
from pylb.core.merge.values import (
    BlockKey,
    EntryKey,
    Member,
    MemberKey,
    PresenceKey,
    Slot,
    Tombstone,
    TombstoneKey,
    Transaction,
)
from pylb.core.registration import Key, State
from tests.core.merge.cluster import HTTPS, MAIL, OTHER, SMTP, WEB, Cluster, wanted
from tests.core.merge.etcd_model import Etcd


def test_a_forgotten_balancer_takes_what_only_it_heard_with_it() -> None:
    two = Cluster("a", "b")
    two.register("a")
    two.register("a", MAIL, wanted("10.0.0.2", SMTP))
    two.cut("a")
    two["a"].judged(WEB, State.STALE)
    two.settle()
    two["b"].forget("a")
    two.settle()
    assert two.shown("b") is None
    two.join("a")
    two.settle()
    assert two.shown("a") is None  # it starts from the list, …
    assert two.shown("b", MAIL) == "10.0.0.2 fresh"  # … except for what it was called for
    assert two["b"].forget("nobody") is None
    two.settle()


def test_a_forgotten_balancer_may_have_heard_more_than_a_transaction_can_remove() -> None:
    """etcd takes 128 operations: whoever forgot one with more entries tried the same transaction for ever."""
    two = Cluster("a", "b")
    keys = [Key("t", f"web{port}", "1") for port in range(1000, 1300)]
    for port, key in enumerate(keys, 1000):
        assert two["a"].announce(key, wanted("10.0.0.1", Slot("tcp", port))) is Answer.CLAIMING
    two.settle()
    assert two.shown("b", keys[-1]) == "10.0.0.1 fresh"
    two.cut("a")
    for key in keys:
        two["a"].judged(key, State.STALE)
    two["b"].forget("a")
    two.follow("b")
    assert two.write("b")
    two.follow("b")
    assert [two.shown("b", key) for key in keys] == [None] * 300  # at once, although some are still there
    assert any(isinstance(key, EntryKey) for key in two.etcd.content)
    assert two["b"].announce(MAIL, wanted("10.0.0.9", Slot("tcp", 1299))) is Answer.CLAIMING
    two.write("b")
    two.join("a")  # before all of it is removed
    two.settle()
    assert two.shown("a", keys[-1]) is None
    assert two.shown("b", keys[-1]) is None
    assert two.shown("a", MAIL) == "10.0.0.9 fresh"
    assert {key.key for key in two.etcd.content if isinstance(key, EntryKey)} == {MAIL}
    claimed = [value for key, (value, _) in two.etcd.content.items() if isinstance(key, BlockKey)]
    assert claimed == [{Slot("tcp", 1299): ("u", "mail", False)}]


def test_a_balancer_says_which_ports_are_its_own_now() -> None:
    two = Cluster("a", "b")
    two["a"].reserve(frozenset({HTTPS}))
    two.write("a", heartbeat=True)
    two.settle()
    refused = two["b"].announce(WEB, wanted())
    assert (refused.slot, refused.owner, refused.balancer) == (HTTPS, None, "a")


def test_what_is_in_force_by_other_means_is_assumed() -> None:
    two = Cluster("a", "b")
    two["a"].assume(WEB, wanted(), State.DRAINING)
    assert two["a"].unwritten == 1
    two.settle()
    assert two["a"].unwritten == 0
    assert two.shown("b") == "10.0.0.1 draining"
    assert two["b"].knowledge.is_fresh_elsewhere(WEB)
    assert not two["a"].knowledge.is_fresh_elsewhere(WEB)
    two["a"].assume(WEB, wanted(), State.DRAINING)
    assert two["a"].unwritten == 0


def test_a_balancer_that_is_forgotten_while_it_lives_lists_again() -> None:
    two = Cluster("a", "b")
    two["b"].forget("a")  # is refused while it is present
    two.settle()
    assert not two.etcd.content[MemberKey("a")][0].forgotten
    two.etcd.leases[PresenceKey("a")] = 0
    two.etcd.expire(1)
    two["b"].forget("a")
    two.settle()
    assert not two.etcd.content[MemberKey("a")][0].forgotten


def test_what_a_restore_lost_is_remembered_over_another_one_and_a_restart() -> None:
    three = Cluster("a", "b", "c")
    three.register("a")
    three.cut("c", presence=True)
    old = three.etcd.backup()
    three["a"].release(WEB)
    three.settle()
    lost = three.etcd.content[TombstoneKey(WEB)][0]
    for _ in range(2):
        three.restore(old)
        three.follow("a")
        three.restart("a")
    three.follow("a")
    three.write("a")
    assert three.etcd.content[TombstoneKey(WEB)][0] == lost
    three.join("c")
    three.settle()
    assert [three.shown(name) for name in "abc"] == [None] * 3


def test_two_that_remember_different_releases_agree() -> None:
    three = Cluster("a", "b", "c")
    three.register("a")
    three.cut("c", presence=True)
    old = three.etcd.backup()
    three["a"].release(WEB)
    three.settle()
    three.away.add("a")
    three["b"].release(WEB)
    three.settle()
    three.away.clear()
    three.restore(old)
    three.settle()
    assert not any(isinstance(key, TombstoneKey) for key in three.etcd.content)


@pytest.mark.parametrize("most", [2, 60])
def test_a_restore_loses_nothing_that_a_balancer_remembers(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "MOST", most)
    three = Cluster("a", "b", "c")
    old = three.etcd.backup()
    three.register("a")
    three.register("a", MAIL, wanted("10.0.0.2", SMTP))
    three.cut("a")
    three.settle()
    three["b"].release(MAIL)
    three.cut("c")
    three.settle()
    three.restore(old)
    three.settle()
    assert (three.shown("b"), three.shown("b", MAIL)) == ("10.0.0.1 fresh", None)
    assert three["b"].knowledge.claimant(HTTPS) == ("t", "web", False)
    three.join("a")
    three.join("c")
    three.settle()
    assert [three.shown(name) for name in "abc"] == ["10.0.0.1 fresh"] * 3
    three["a"].judged(MAIL, State.STALE)
    three.settle()
    assert [three.shown(name, MAIL) for name in "abc"] == [None] * 3
    assert not any(isinstance(key, TombstoneKey) for key in three.etcd.content)


def test_a_restore_does_not_bring_a_forgotten_balancer_back() -> None:
    two = Cluster("a", "b")
    two.register("a")
    old = two.etcd.backup()
    two.cut("a")
    two["b"].forget("a")
    two.settle()
    two.restore(old)
    two.settle()
    assert two.shown("b") is None
    assert EntryKey("a", WEB) not in two.etcd.content


def test_an_older_tombstone_in_a_restored_etcd_gives_way_to_the_one_that_includes_it() -> None:
    two = Cluster("a", "b")
    two.cut("a", presence=True)
    two["b"].release(WEB)
    two.settle()
    old = two.etcd.backup()
    two["b"].release(WEB)
    two.settle()
    new = two.etcd.content[TombstoneKey(WEB)][0]
    two.restore(old)
    two.settle()
    assert two.etcd.content[TombstoneKey(WEB)][0] == new
    two.restore(old)
    two["b"].release(WEB)
    two.settle()
    newest = two.etcd.content[TombstoneKey(WEB)][0]
    assert isinstance(newest, Tombstone)
    assert isinstance(new, Tombstone)
    assert newest.stamp > new.stamp


def test_an_old_disk_gives_way_to_etcd() -> None:
    two = Cluster("a", "b")
    two.register("a", WEB, wanted("10.0.0.1"))
    two["a"].announce(OTHER, wanted("10.0.0.7"))
    old = two["a"].memory()  # OTHER is not written yet
    two.settle()
    two["a"].announce(WEB, wanted("10.0.0.2"))
    two.settle()
    two.register("a", MAIL, wanted("10.0.0.3", SMTP))
    two["a"].release(OTHER)
    two.settle()
    two.restart("a", old)
    two.settle()
    assert two.shown("a") == "10.0.0.2 fresh"
    assert two.shown("a", MAIL) == "10.0.0.3 fresh"
    assert two.shown("a", OTHER) == "10.0.0.7 fresh"  # on probation: released since, or never written
    two["a"].judged(OTHER, State.STALE)
    two.settle()
    assert two.shown("b", OTHER) is None


def test_an_old_disk_does_not_bring_back_what_was_written_and_is_gone() -> None:
    one = Cluster("a")
    one.register("a")
    old = one["a"].memory()
    one["a"].release(WEB)
    one.settle()
    one.restart("a", old)
    one.settle()
    assert one.shown("a") is None


def test_an_old_disk_does_not_undo_what_was_said_since_the_start() -> None:
    two = Cluster("a", "b")
    two.register("a")
    two.register("a", MAIL, wanted("10.0.0.3", SMTP))
    old = two["a"].memory()
    two["a"].announce(WEB, wanted("10.0.0.2"))
    two["a"].announce(MAIL, wanted("10.0.0.4", SMTP))
    two.settle()
    two.restart("a", old)
    assert two["a"].announce(WEB, wanted("10.0.0.9")) is Answer.IN_FORCE
    two["a"].release(MAIL)
    two.settle()
    assert two.shown("b") == "10.0.0.9 fresh"
    assert two.shown("b", MAIL) is None


def test_when_disk_and_etcd_are_both_old_the_others_know_the_count() -> None:
    two = Cluster("a", "b")
    two.register("a")
    disk, old = two["a"].memory(), two.etcd.backup()
    for address in ("10.0.0.2", "10.0.0.3"):
        two["a"].announce(WEB, wanted(address))
        two.settle()
    two.restart("a", disk)
    two.restore(old)
    two.settle()
    two["a"].announce(WEB, wanted("10.0.0.4"))
    two.settle()
    assert two.shown("b") == "10.0.0.4 fresh"


def test_the_model_of_etcd_compares() -> None:
    etcd = Etcd()
    member = Member(1, {})
    assert etcd.try_(Transaction({MemberKey("a"): 0}, {MemberKey("a"): member}))
    assert not etcd.try_(Transaction({MemberKey("a"): 0}, {MemberKey("a"): member}))
    assert etcd.try_(Transaction({MemberKey("a"): etcd.revision}, {}, frozenset({MemberKey("a")})))
    assert etcd.content == {}


def test_a_rewriting_of_which_an_answer_was_lost_is_not_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "MOST", 2)
    two = Cluster("a", "b")
    old = two.etcd.backup()
    keys = [Key("t", f"n{port}", "1") for port in range(1, 6)]
    for port, key in enumerate(keys, 1):
        two.register("a", key, wanted("10.0.0.1", Slot("tcp", port)))
    two.restore(old)
    two.follow("b")
    two.follow("a")
    transaction, _ = two["a"].write()
    assert transaction is not None
    assert two.etcd.try_(transaction)
    two["a"].disconnected()
    two.follow("a")
    while two.write("a"):
        two.follow("b")
        assert [two.shown("b", key) for key in keys] == ["10.0.0.1 fresh"] * 5
    assert all(EntryKey("a", key) in two.etcd.content for key in keys)
