"""Any order of calls, cuts, address moves, restarts, upgrades and restores: no port of a living app closes, no port has two
owners, and after all faults every balancer shows the same table."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pylb.core.merge import knowledge, mirror, replica, writing
from tests.core.merge.world import NAMES, NEEDS, App, Node, World, play

APPS = st.integers(0, 7)
NODES = st.sampled_from(NAMES)


class Cluster(RuleBasedStateMachine):
    """Calls are as frequent as everything else, so that leases end now and then."""

    old_disks = False
    restores = False

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    def app(self, number: int) -> App:
        return self.world.apps[number % self.number]

    def node(self, name: str) -> Node:
        return self.world.nodes[name]

    @initialize(number=st.sampled_from((2, 3, 5, 8)), most=st.sampled_from((2, 3, 60)))
    def start(self, number: int, most: int) -> None:
        self.number = number
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(writing, "MOST", most)
        for module in (mirror, knowledge, replica):
            self.patch.setattr(module, "STEP", most)

    @rule(turns=st.lists(st.tuples(NODES, st.booleans(), st.sampled_from((1, 2, 1000))), max_size=4))
    def turns(self, turns: list[tuple[str, bool, int]]) -> None:
        for name, lose, most in turns:
            self.world.step(self.node(name), lose=lose and most == 1, most=most)

    @rule(seconds=st.integers(1, 3), beat=st.booleans())
    def time_passes(self, seconds: int, beat: bool) -> None:
        for _ in range(seconds):
            self.world.pass_time()
            if beat:
                self.world.beats()
            self.world.save(memories=self.old_disks, backups=self.restores)

    @rule(number=APPS, everywhere=st.booleans(), sequenced=st.booleans())
    def register(self, number: int, everywhere: bool, sequenced: bool) -> None:
        self.world.register(self.app(number), everywhere, sequenced)
        self.world.beats()

    @rule(number=APPS)
    def move(self, number: int) -> None:
        self.world.move_app(self.app(number))
        self.world.beats()

    @rule(number=APPS)
    def say_goodbye(self, number: int) -> None:
        self.world.goodbye(self.app(number))

    @rule(number=APPS)
    def release(self, number: int) -> None:
        self.world.release(self.app(number))

    @rule(number=APPS)
    def fall_silent_or_speak(self, number: int) -> None:
        self.app(number).silent = not self.app(number).silent

    @rule(number=APPS, name=NODES)
    def an_old_call_arrives(self, number: int, name: str) -> None:
        self.world.late_call(self.app(number), self.node(name))

    @rule(name=NODES)
    def cut_or_join(self, name: str) -> None:
        node = self.node(name)
        (self.world.cut if node.connected else self.world.join)(node)

    @rule(name=NODES)
    def move_the_address(self, name: str) -> None:
        self.world.vip = name
        self.world.beats()

    @rule(name=NODES, age=st.integers(0, 15))
    def restart(self, name: str, age: int) -> None:
        self.world.restart(self.node(name), age if self.old_disks else 0)

    @rule(name=NODES, needs=st.sampled_from((NEEDS, frozenset())))
    def upgrade(self, name: str, needs: frozenset[str]) -> None:
        self.world.upgrade(self.node(name), needs)

    @rule(name=NODES, other=NODES)
    def forget(self, name: str, other: str) -> None:
        self.world.forget(self.node(name), other)

    @rule(name=NODES)
    def accept(self, name: str) -> None:
        self.node(name).replica.accept()

    @rule()
    def compact(self) -> None:
        self.world.etcd.compact()

    @rule(age=st.integers(1, 20), ahead=st.sampled_from((0, 50)))
    def restore(self, age: int, ahead: int) -> None:
        if self.restores:
            self.world.restore(age, ahead)

    @invariant()
    def nothing_closes_and_nothing_has_two_owners(self) -> None:
        self.world.check()
        assert self.world.violations == []

    def teardown(self) -> None:
        self.world.heal()
        self.world.converged()
        self.patch.undo()
        assert self.world.violations == []


class ClusterWithOldDisks(Cluster):
    old_disks = True


class ClusterWithRestores(Cluster):
    restores = True


class ClusterWithBoth(Cluster):
    old_disks = restores = True


def machine(of: type[Cluster]) -> type:
    case = of.TestCase
    profile = settings()
    case.settings = settings(profile, max_examples=profile.max_examples // 12, stateful_step_count=30)
    return case


TestCluster = machine(Cluster)
TestClusterWithOldDisks = machine(ClusterWithOldDisks)
TestClusterWithRestores = machine(ClusterWithRestores)
TestClusterWithBoth = machine(ClusterWithBoth)


@pytest.mark.parametrize("old_disks", [False, True])
@pytest.mark.parametrize("restores", [False, True])
def test_random_days_end_well(old_disks: bool, restores: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of an app's day is uneventful: here beats and turns are more frequent than faults, as hypothesis never has them."""

    @settings(settings(), max_examples=settings().max_examples // 6)
    @given(seed=st.integers(0, 2**32))
    def day(seed: int) -> None:
        rnd = Random(seed)
        most = rnd.choice((2, 3, 60))
        monkeypatch.setattr(writing, "MOST", most)
        for module in (mirror, knowledge, replica):
            monkeypatch.setattr(module, "STEP", most)
        world = World()
        play(world, rnd, old_disks=old_disks, restores=restores)
        assert world.violations == []

    day()
