"""Each rule of pylb/core/merge by itself. The machine beside it plays any order of everything."""

from dataclasses import replace

import pytest

from pylb.core.merge import writing
from pylb.core.merge.local import Answer, Conflict, Memory, Own, Unsent, Verdict, covers, includes, judge
from pylb.core.merge.replica import Replica
from pylb.core.merge.values import (
    BlockKey,
    Entry,
    EntryKey,
    Member,
    MemberKey,
    PresenceKey,
    Slot,
    Tombstone,
    TombstoneKey,
    Transaction,
    Wanted,
)
from pylb.core.registration import Key, State
from tests.core.merge.etcd_model import Etcd

WEB, OTHER, MAIL = Key("t", "web", "1"), Key("t", "web", "2"), Key("u", "mail", "1")
HTTPS, SMTP = Slot("tcp", 443), Slot("tcp", 25)


def wanted(address: str = "10.0.0.1", *slots: Slot, sequence: int = 0, needs: frozenset[str] = frozenset()) -> Wanted:
    return Wanted(address, slots or (HTTPS,), sequence, 60.0, needs)


class Cluster:
    """Balancers at one etcd, with all turns until nobody has anything to do."""

    def __init__(self, *names: str) -> None:
        self.etcd = Etcd()
        self.replicas = {name: self.made(name) for name in names}
        self.away: set[str] = set()
        self.refused: dict[Key, Conflict] = {}
        self.now = 0.0
        self.settle()

    def made(self, name: str, memory: Memory | None = None, reserved: frozenset[Slot] = frozenset()) -> Replica:
        return Replica(name, frozenset({"names"}), reserved, memory or Memory())

    def __getitem__(self, name: str) -> Replica:
        return self.replicas[name]

    def follow(self, name: str) -> None:
        """It hears of all that happened."""
        one = self.replicas[name]
        if not one.linked:
            if PresenceKey(name) not in self.etcd.content:
                self.etcd.keep_alive(PresenceKey(name), name, 1e9)
            one.listed(self.etcd.revision, dict(self.etcd.content), self.now)
        for revision, changes in self.etcd.watch(one.knowledge.mirror.revision):
            one.watched(revision, changes, self.now)

    def write(self, name: str, *, heartbeat: bool = False) -> bool:
        transaction, refused = self.replicas[name].write(heartbeat=heartbeat)
        self.refused |= refused
        if transaction is None:
            return False
        if self.etcd.try_(transaction):
            self.replicas[name].wrote(self.etcd.revision)
        else:
            self.replicas[name].refused(self.etcd.revision)
        return True

    def settle(self) -> None:
        for _ in range(50):
            present = [name for name in self.replicas if name not in self.away]
            for name in present:
                self.follow(name)
            wrote = [self.write(name) for name in present]
            if not any(wrote) and all(self[name].linked for name in present):
                return
        raise AssertionError("they write for ever")

    def cut(self, name: str, *, presence: bool = False) -> None:
        self.away.add(name)
        self.replicas[name].disconnected()
        if not presence:
            self.etcd.leases[PresenceKey(name)] = 0
            self.etcd.expire(1)

    def join(self, name: str) -> None:
        self.away.discard(name)

    def restart(self, name: str, memory: Memory | None = None) -> None:
        self.replicas[name] = self.made(name, memory or self.replicas[name].memory())

    def restore(self, backup: Etcd) -> None:
        self.etcd = backup.restored(0, 0)
        for one in self.replicas.values():
            one.disconnected()

    def register(self, name: str, key: Key = WEB, what: Wanted | None = None) -> None:
        assert self[name].announce(key, what or wanted()) is Answer.CLAIMING
        self.settle()
        assert not self[name].is_claiming(key)

    def shown(self, name: str, key: Key = WEB) -> str | None:
        one = self[name].knowledge.registration(key)
        return None if one is None else f"{one.wanted.address} {one.state}"


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
    assert one["a"].knowledge.registered() == {MAIL}


def test_a_reserved_port_of_another_balancer_is_refused_while_that_one_lives() -> None:
    two = Cluster("a", "b")
    two.replicas["b"] = two.made("b", two["b"].memory(), frozenset({SMTP}))
    two["b"].linked = False
    two.follow("b")
    two.write("b", heartbeat=True)
    two.settle()
    assert two["a"].announce(MAIL, wanted("10.0.0.2", SMTP)) == Conflict(SMTP, None, "b")
    two.cut("b")
    two.settle()
    two.register("a", MAIL, wanted("10.0.0.2", SMTP))


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
    assert two["b"].knowledge.registered() == set()
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


def test_a_newer_sequence_elsewhere_wins_over_what_was_heard_here() -> None:
    two = Cluster("a", "b")
    two.register("a", WEB, wanted("10.0.0.1", sequence=1))
    two["b"].announce(WEB, wanted("10.0.0.2", sequence=2), State.DRAINING)
    two.settle()
    assert two.shown("a") == "10.0.0.2 draining"


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


def test_the_model_of_etcd_compares() -> None:
    etcd = Etcd()
    member = Member(1, {})
    assert etcd.try_(Transaction({MemberKey("a"): 0}, {MemberKey("a"): member}))
    assert not etcd.try_(Transaction({MemberKey("a"): 0}, {MemberKey("a"): member}))
    assert etcd.try_(Transaction({MemberKey("a"): etcd.revision}, {}, frozenset({MemberKey("a")})))
    assert etcd.content == {}
