"""Calls, claims and what is served, each rule by itself. The machine beside it plays any order of everything."""

import pytest

from pylb.core.merge import writing
from pylb.core.merge.local import Answer, Conflict, Memory, Own
from pylb.core.merge.values import (
    BlockKey,
    Entry,
    EntryKey,
    MemberKey,
    Slot,
    TombstoneKey,
    Transaction,
    Unreadable,
)
from pylb.core.registration import Key, State
from tests.core.merge.cluster import HTTPS, MAIL, OTHER, SMTP, WEB, Cluster, wanted


def test_what_is_registered_at_one_is_served_by_all() -> None:
    three = Cluster("a", "b", "c")
    three.register("a")
    assert [three.shown(name) for name in "abc"] == ["10.0.0.1 fresh"] * 3
    assert three["b"].knowledge.claimant(HTTPS) == ("t", "web", False)


def test_a_port_is_claimed_by_one_owner() -> None:
    two = Cluster("a", "b")
    assert two["a"].announce(WEB, wanted()) is Answer.CLAIMING
    assert two["b"].announce(MAIL, wanted("10.0.0.2")) is Answer.CLAIMING
    two.settle()
    assert two.refused == {MAIL: Conflict(HTTPS, ("t", "web", False))}
    assert two["b"].announce(MAIL, wanted("10.0.0.2")) == Conflict(HTTPS, ("t", "web", False))
    assert two.shown("a", MAIL) is None


def test_two_claims_of_one_transaction_do_not_get_the_same_port() -> None:
    one = Cluster("a")
    one["a"].announce(WEB, wanted())
    one["a"].announce(OTHER, wanted("10.0.0.3", SMTP))
    one["a"].announce(MAIL, wanted("10.0.0.2", Slot("tcp", 443, "mail.example")))
    one.settle()
    assert one.refused == {MAIL: Conflict(Slot("tcp", 443, "mail.example"), ("t", "web", False))}


def test_who_has_never_written_answers_alone_only_for_what_it_heard_itself() -> None:
    """No release waits for it: it is no member yet."""
    two = Cluster("a", "b")
    two.register("a")
    c = two.made("c")
    for _ in c.listed(two.etcd.revision, dict(two.etcd.content), two.now):
        pass
    c.disconnected()
    assert c.announce(WEB, wanted()) is Answer.UNAVAILABLE
    assert two.made("c", Memory(own={WEB: Own(wanted(), State.FRESH, 0)})).announce(WEB, wanted()) is Answer.IN_FORCE
    two["b"].disconnected()
    assert two["b"].announce(WEB, wanted()) is Answer.IN_FORCE


def test_whom_the_others_take_for_gone_answers_nothing_at_once() -> None:
    """They may have released what it heard and given its port away, and it may not have read that yet."""
    one = Cluster("a")
    one.register("a")
    one["a"].present_until = 30.0
    assert one["a"].announce(WEB, wanted("10.0.0.2"), now=29.0) is Answer.IN_FORCE
    assert one["a"].announce(WEB, wanted("10.0.0.3"), now=30.0) is Answer.CLAIMING
    one.settle()
    assert one.shown("a") == "10.0.0.3 fresh"


def test_names_on_one_port_may_have_several_owners() -> None:
    one = Cluster("a")
    one.register("a", WEB, wanted("10.0.0.1", Slot("tcp", 443, "web.example")))
    one.register("a", MAIL, wanted("10.0.0.2", Slot("tcp", 443, "mail.example")))
    assert isinstance(one["a"].announce(Key("v", "all", "1"), wanted()), Conflict)


def test_a_takeover_takes_the_port() -> None:
    two = Cluster("a", "b")
    two.register("a")
    assert two["b"].announce(MAIL, wanted("10.0.0.2"), takeover=True) is Answer.CLAIMING
    two.settle()
    assert two["a"].knowledge.rival(WEB, (HTTPS,)) == Conflict(HTTPS, ("u", "mail", False))
    assert two["a"].announce(WEB, wanted()) == Conflict(HTTPS, ("u", "mail", False))


def test_who_lost_a_port_to_a_takeover_claims_it_again_when_it_is_free() -> None:
    two = Cluster("a", "b")
    two.register("a")
    two["b"].announce(MAIL, wanted("10.0.0.2"), takeover=True)
    two.settle()
    two["a"].judged(WEB, State.DRAINING)  # is written, without a claim
    two.settle()
    two["b"].release(MAIL)
    two.settle()
    assert two["b"].knowledge.claimant(HTTPS) is None
    assert two["b"].announce(Key("v", "third", "1"), wanted()) == Conflict(HTTPS, ("t", "web", False))
    two["a"].disconnected()
    two.settle()
    assert two["b"].knowledge.claimant(HTTPS) == ("t", "web", False)


def test_a_port_is_free_when_its_last_registration_has_left() -> None:
    one = Cluster("a")
    one.register("a")
    one["a"].release(WEB)
    one.settle()
    one.register("a", MAIL, wanted("10.0.0.2"))
    assert set(one["a"].knowledge.registered()) == {MAIL}


def test_a_reserved_port_of_another_balancer_is_refused_while_that_one_lives() -> None:
    two = Cluster("a", "b")
    two.replicas["b"] = two.made("b", two["b"].memory(), frozenset({SMTP}))
    two["b"].linked = False
    two.follow("b")
    two.write("b", heartbeat=True)
    two.settle()
    assert two["a"].announce(MAIL, wanted("10.0.0.2", SMTP)) == Conflict(SMTP, None, "b")
    assert two["a"].announce(MAIL, wanted("10.0.0.2", SMTP), takeover=True) == Conflict(SMTP, None, "b")
    two.cut("b")
    two.settle()
    two.register("a", MAIL, wanted("10.0.0.2", SMTP))


def test_who_hears_what_on_a_port_and_who_owns_it_is_known_everywhere() -> None:
    two = Cluster("a", "b")
    two.register("a")
    two.register("b")
    two.register("b", MAIL, wanted("10.0.0.2", SMTP))
    for name in "ab":
        knowledge = two[name].knowledge
        assert knowledge.hearers(WEB) == {"a": State.FRESH, "b": State.FRESH}
        assert knowledge.on_port("tcp", 443) == ({WEB}, {HTTPS: ("t", "web", False)})
        assert knowledge.on_port("tcp", 80) == (set(), {})
    two["b"].release(MAIL)
    two.settle()
    assert two["a"].knowledge.on_port("tcp", 25) == (set(), {})
    assert two["a"].knowledge.hearers(MAIL) == {}


def test_a_new_name_needs_etcd_and_a_move_does_not() -> None:
    two = Cluster("a", "b")
    two.register("a")
    two.cut("a")
    assert two["a"].announce(WEB, wanted("10.0.0.9")) is Answer.IN_FORCE
    assert two["a"].announce(OTHER, wanted("10.0.0.8")) is Answer.IN_FORCE
    assert two["a"].announce(MAIL, wanted("10.0.0.2", SMTP)) is Answer.UNAVAILABLE
    two.join("a")
    two.settle()
    assert two.shown("b") == "10.0.0.9 fresh"
    assert two.shown("b", OTHER) == "10.0.0.8 fresh"


def test_the_answer_to_a_claim_may_never_come() -> None:
    one = Cluster("a")
    one["a"].announce(WEB, wanted())
    transaction, _ = one["a"].write()
    assert transaction is not None
    assert one.etcd.try_(transaction)
    assert one["a"].disconnected() == {WEB}
    one.settle()
    assert one.shown("a") is None
    assert not any(isinstance(key, EntryKey | BlockKey) for key in one.etcd.content)


def test_a_claim_that_is_withdrawn_under_way_leaves_nothing() -> None:
    one = Cluster("a")
    one["a"].announce(WEB, wanted())
    transaction, _ = one["a"].write()
    assert transaction is not None
    assert one["a"].write() == (None, {})  # one at a time
    one["a"].withdraw(WEB)
    assert one.etcd.try_(transaction)
    assert one["a"].wrote(one.etcd.revision) == set()
    one.settle()
    assert not any(isinstance(key, EntryKey | BlockKey) for key in one.etcd.content)


def test_a_call_that_comes_again_while_its_claim_is_under_way_is_granted() -> None:
    one = Cluster("a")
    one["a"].announce(WEB, wanted())
    transaction, _ = one["a"].write()
    assert transaction is not None
    assert one["a"].announce(WEB, wanted("10.0.0.2")) is Answer.CLAIMING
    assert one.etcd.try_(transaction)
    assert one["a"].wrote(one.etcd.revision) == {WEB}
    assert one.shown("a") == "10.0.0.2 fresh"
    one.settle()
    entry = one.etcd.content[EntryKey("a", WEB)][0]
    assert isinstance(entry, Entry)
    assert entry.wanted == wanted("10.0.0.2")


def test_nothing_happened_that_nobody_began() -> None:
    with pytest.raises(ValueError, match="nobody began"):
        Cluster("a")["a"].wrote(7)


def test_a_port_that_a_call_no_longer_names_is_given_back() -> None:
    one = Cluster("a")
    one.register("a", WEB, wanted("10.0.0.1", HTTPS, SMTP))
    assert one["a"].announce(WEB, wanted("10.0.0.1", HTTPS)) is Answer.IN_FORCE
    one.settle()
    assert one["a"].knowledge.claimant(SMTP) is None
    one.register("a", MAIL, wanted("10.0.0.2", SMTP))


def test_a_move_and_a_new_port_of_one_name_may_be_written_together() -> None:
    two = Cluster("a", "b")
    two.register("a")
    assert two["a"].announce(WEB, wanted("10.0.0.2")) is Answer.IN_FORCE
    assert two["a"].announce(WEB, wanted("10.0.0.2", HTTPS, SMTP)) is Answer.CLAIMING
    two.settle()
    one = two["b"].knowledge.registration(WEB)
    assert one is not None
    assert one.wanted == wanted("10.0.0.2", HTTPS, SMTP)
    assert two["b"].knowledge.claimant(SMTP) == ("t", "web", False)


def test_loopback_is_not_replicated() -> None:
    two = Cluster("a", "b")
    two.register("a")
    two["a"].announce(WEB, wanted("127.0.0.1"))
    two.settle()
    assert two.shown("a") == "127.0.0.1 fresh"
    assert two.shown("b") is None


def test_hearers_that_are_gone_are_a_last_resort_after_a_ttl_of_our_connection() -> None:
    two = Cluster("a", "b")
    two.register("a")
    two.cut("a")
    two.settle()
    two["b"].tick(59)
    assert two.shown("b") == "10.0.0.1 fresh"
    two["b"].disconnected()
    two["b"].tick(3600)
    assert two.shown("b") == "10.0.0.1 fresh"
    two.settle()
    two["b"].tick(1)
    assert two.shown("b") == "10.0.0.1 stale"
    two.join("a")
    two.settle()
    two["b"].tick(1)
    assert two.shown("b") == "10.0.0.1 fresh"


def test_what_was_heard_here_wins_over_another_network() -> None:
    two = Cluster("a", "b")
    two.register("a", WEB, wanted("10.0.0.1"))
    two["b"].announce(WEB, wanted("192.0.2.1"))
    two.settle()
    assert (two.shown("a"), two.shown("b")) == ("10.0.0.1 fresh", "192.0.2.1 fresh")
    two["b"].judged(WEB, State.STALE)
    two.settle()
    assert two.shown("b") == "10.0.0.1 fresh"


def test_what_was_stale_for_too_long_leaves_here_only() -> None:
    two = Cluster("a", "b")
    two.register("a")
    two.register("b")
    two["b"].overstayed(WEB)
    two["b"].overstayed(WEB)
    two.settle()
    assert two.shown("b") == "10.0.0.1 fresh"
    assert EntryKey("b", WEB) not in two.etcd.content


def test_a_need_that_this_version_does_not_know_is_kept_and_named() -> None:
    two = Cluster("a", "b")
    two.register("a", WEB, wanted(needs=frozenset({"udp"})))
    one = two["b"].knowledge.registration(WEB)
    assert one is not None
    assert one.lacking == {"udp"}


def test_a_comparison_that_fails_waits_for_what_stood_in_its_way() -> None:
    two = Cluster("a", "b")
    two["a"].announce(WEB, wanted())
    two["b"].announce(MAIL, wanted("10.0.0.2"))
    assert two.write("a")
    assert two.write("b")
    assert two["b"].linked
    assert not two.write("b")
    two["b"].refused(0)  # an etcd that is older than what is known
    assert not two["b"].linked


def test_what_stood_in_its_way_may_be_known_before_the_refusal() -> None:
    two = Cluster("a", "b")
    two["a"].announce(WEB, wanted())
    two["b"].announce(MAIL, wanted("10.0.0.2"))
    transaction, _ = two["b"].write()
    assert transaction is not None
    assert two.write("a")
    assert not two.etcd.try_(transaction)
    two.follow("b")
    two["b"].refused(two.etcd.revision)
    assert two["b"].linked  # a list would cost b its claims
    assert two["b"].write() == (None, {MAIL: Conflict(HTTPS, ("t", "web", False))})


def test_nothing_is_written_before_the_watch_has_reported_what_was_in_the_way() -> None:
    two = Cluster("a", "b")
    two["a"].announce(WEB, wanted())
    two["b"].announce(MAIL, wanted("10.0.0.2", Slot("tcp", 444)))
    transaction, _ = two["b"].write()
    assert transaction is not None
    assert two.write("a")
    assert not two.etcd.try_(transaction)
    two["b"].refused(two.etcd.revision)
    assert two["b"].is_behind()
    assert two["b"].write() == (None, {})
    two.settle()
    assert not two["b"].is_behind()
    assert two.shown("a", MAIL) == "10.0.0.2 fresh"


def test_the_watch_may_be_faster_than_the_answer() -> None:
    one = Cluster("a")
    one.register("a")
    one["a"].release(WEB)
    transaction, _ = one["a"].write()
    assert transaction is not None
    assert one.etcd.try_(transaction)
    revision = one.etcd.revision
    one.follow("a")
    one["a"].release(WEB)  # again, while the first is under way
    one["a"].wrote(revision)
    assert one["a"].knowledge.unsent.keys() == {WEB}
    one.settle()
    assert one["a"].knowledge.unsent == {}


def test_an_answer_that_comes_after_what_followed_it_puts_nothing_back() -> None:
    two = Cluster("a", "b")
    two["a"].release(WEB)
    transaction, _ = two["a"].write()
    assert transaction is not None
    assert two.etcd.try_(transaction)
    revision = two.etcd.revision
    two.follow("b")
    assert two.write("b")  # collects the tombstone
    two.follow("a")
    two["a"].wrote(revision)
    assert two["a"].knowledge.mirror.tombstones == {}


def test_old_watch_events_of_ones_own_transactions_change_nothing() -> None:
    one = Cluster("a")
    one.register("a")
    before = one["a"].knowledge.mirror.copy()
    revision = before.revision
    one["a"].watched(revision, dict.fromkeys([EntryKey("x", WEB), TombstoneKey(MAIL)]), 0)
    assert one["a"].knowledge.mirror == before


def test_a_value_that_cannot_be_read_costs_itself_only_and_is_written_again() -> None:
    """Its revision counts all the same: otherwise no transaction that compares it would ever succeed."""
    two = Cluster("a", "b")
    two.register("a")
    two.register("a", MAIL, wanted("10.0.0.2", SMTP))
    garbage = Unreadable("it is not a JSON object")
    for key in (EntryKey("a", WEB), BlockKey("tcp", 1), MemberKey("b"), TombstoneKey(OTHER)):
        assert two.etcd.try_(Transaction({}, {key: garbage}))
    two.follow("b")
    assert two.shown("b") is None
    assert two.shown("b", MAIL) == "10.0.0.2 fresh"
    two.register("b", OTHER, wanted("10.0.0.3"))
    two["b"].release(OTHER)
    two.settle()
    assert two.shown("a", OTHER) is None
    two["a"].disconnected()
    two.settle()
    assert [two.shown(name) for name in "ab"] == ["10.0.0.1 fresh"] * 2
    assert garbage not in [value for value, _ in two.etcd.content.values()]


def test_a_transaction_that_etcd_takes_no_writes_for_is_tried_later() -> None:
    one = Cluster("a")
    one["a"].announce(WEB, wanted())
    transaction, _ = one["a"].write()
    assert transaction is not None
    one["a"].rejected()
    one.settle()
    assert one.shown("a") == "10.0.0.1 fresh"


def test_more_claims_than_one_transaction_has_room_for_are_cleared_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "MOST", 2)
    one = Cluster("a")
    ports = tuple(Slot("tcp", 256 * block + 1) for block in range(1, 7))
    one.register("a", WEB, wanted("10.0.0.1", *ports))
    one["a"].release(WEB)
    assert one["a"].has_more_to_check()
    one.settle()
    assert not one["a"].has_more_to_check()
    assert not any(isinstance(key, BlockKey) for key in one.etcd.content)
