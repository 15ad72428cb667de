"""Three balancers, etcd and the apps that call them: everything that may happen, and what must be true all the time."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from pylb.core.merge.local import Answer, Conflict, Memory
from pylb.core.merge.replica import Replica
from pylb.core.merge.values import Entry, EntryKey, MemberKey, PresenceKey, Slot, Wanted
from pylb.core.registration import Key, State, legacy_key
from tests.core.merge.etcd_model import Compacted, Etcd

TTL = 6.0
PRESENCE = 3.0
NAMES = ("a", "b", "c")
NEEDS = frozenset({"names"})


@dataclass
class App:
    """One sender of calls. `holds`: a call was answered 200, and it has not released since."""

    key: Key
    slots: tuple[Slot, ...]
    everywhere: bool
    sequenced: bool
    needs: frozenset[str] = frozenset()
    runs: bool = False
    silent: bool = False
    holds: bool = False
    address: int = 0
    sequence: int = 0
    first: int = 0  # the number of the address with which it registered
    since: int = 0  # etcd's revision by which its registration was written
    readers: set[str] = field(default_factory=set)  # balancers that have read that
    draining: bool = False
    firm: bool = False  # a balancer that knew all of etcd answered 200, and had written it
    disputed: bool = False  # registered again before every balancer knew of a release that has no sequence
    before: list[Wanted] = field(default_factory=list)  # what it asked for earlier, since its registration
    uncertain: bool = False  # a disk or etcd lost what was said

    def wanted(self) -> Wanted:
        sequence = self.sequence if self.sequenced else 0
        return Wanted(f"10.0.0.{self.address}", self.slots, sequence, TTL, self.needs)


def apps() -> list[App]:
    def one(token: str, name: str, instance: str, *slots: Slot, needs: frozenset[str] = frozenset()) -> App:
        return App(Key(token, name, instance), slots, False, True, needs)

    return [
        one("t", "x", "1", Slot("tcp", 443)),
        one("t", "x", "2", Slot("tcp", 443)),
        one("u", "y", "1", Slot("tcp", 443)),
        App(legacy_key("t", 25), (Slot("tcp", 25),), False, False),
        one("t", "w", "1", Slot("tcp", 8000), Slot("tcp", 443)),
        one("t", "n", "1", Slot("tcp", 8443, "n.example"), needs=NEEDS),
        one("t", "m", "1", Slot("tcp", 8443, "m.example"), needs=NEEDS),
        one("v", "p", "1", Slot("tcp", 8443)),
    ]


@dataclass
class Node:
    name: str
    replica: Replica
    connected: bool = True
    called: dict[Key, float] = field(default_factory=dict)
    answer: tuple[bool, int] | None = None  # of the transaction under way
    listing: Iterator[None] | None = None  # what is left of taking a list over
    saved: list[Memory] = field(default_factory=list)
    served: dict[Key, str] = field(default_factory=dict)
    beat: float = -100.0
    answered: dict[Key, float] = field(default_factory=dict)  # with 200: when it was last so, since its registration


class World:
    def __init__(self) -> None:
        self.etcd = Etcd()
        self.now = 0.0
        self.nodes = {name: Node(name, Replica(name, NEEDS, frozenset(), Memory())) for name in NAMES}
        self.apps = apps()
        self.vip = "a"
        self.backups: list[Etcd] = []
        self.restored = False
        self.violations: list[str] = []

    # ------------------------------------------------------------- apps

    def targets(self, app: App) -> list[Node]:
        return list(self.nodes.values()) if app.everywhere else [self.nodes[self.vip]]

    def call(self, app: App, node: Node, wanted: Wanted | None = None) -> None:
        late = wanted is not None
        if not app.needs <= node.replica.knowledge.needs:
            return  # an older version answers 422
        wanted = wanted or app.wanted()
        state = State.DRAINING if app.draining and not late else State.FRESH
        answer = node.replica.announce(app.key, wanted, state, now=self.now)
        if answer is Answer.IN_FORCE:
            node.called[app.key] = node.answered[app.key] = self.now
            if not late:
                app.holds = True
                app.firm |= node.replica.linked and app.key in node.replica.knowledge.mirror.view(node.name).entries
        elif isinstance(answer, Conflict) and (self.is_current(node) or not app.firm):
            if self.must_hold(app):
                self.violations.append(f"{app.key} holds {answer.slot} and {node.name} says 409: {answer.owner}")
            app.holds = app.firm = False

    def became(self, app: App) -> None:
        """What was answered 200 is written: whoever has read that knows it from then on."""
        if not app.since:
            found = [
                revision
                for key, (value, revision) in self.etcd.content.items()
                if isinstance(key, EntryKey) and key.key == app.key and isinstance(value, Entry)
                if app.key in self.nodes[key.balancer].answered
                if int(value.wanted.address.rpartition(".")[2]) >= app.first
            ]
            app.since = max(found, default=0)
        for node in self.nodes.values() if app.since else ():
            read = node.replica.knowledge.mirror.known_by_others(app.key, node.name)
            if any(known.revision >= app.since for _, known in read):
                app.readers.add(node.name)

    def must_hold(self, app: App) -> bool:
        """Whether nobody else may get its ports."""
        excused = app.uncertain or self.restored or (app.disputed and not self.is_called(app))
        return app.firm and not excused

    def is_called(self, app: App) -> bool:
        """Whether any balancer has answered it 200 within its lease."""
        return any(self.now - node.answered.get(app.key, -TTL - 1) <= TTL for node in self.nodes.values())

    def is_current(self, node: Node) -> bool:
        return node.replica.linked and node.replica.knowledge.mirror.revision == self.etcd.revision

    def beats(self) -> None:
        for app in self.apps:
            if app.runs and not app.silent:
                for node in self.targets(app):
                    self.call(app, node)

    def register(self, app: App, everywhere: bool, sequenced: bool) -> None:
        if not app.runs:
            app.everywhere, app.sequenced = everywhere, sequenced and not app.key.is_legacy
            app.runs, app.silent, app.draining, app.holds, app.firm = True, False, False, False, False
            app.since = 0
            app.readers.clear()
            app.before.clear()
            for node in self.nodes.values():
                node.answered.pop(app.key, None)
            app.disputed = any(self.knows_a_release(node, app) for node in self.nodes.values())
            self.move(app)
            app.first = app.address
            app.before.clear()

    def knows_a_release(self, node: Node, app: App) -> bool:
        """One that may still come to others. Without a sequence only leases can tell it from a registration since."""
        knowledge = node.replica.knowledge
        found = [knowledge.unsent.get(app.key), knowledge.mirror.tombstones.get(app.key)]
        saved = [memory.unsent.get(app.key) for memory in node.saved]
        return any(one is not None and not (one.sequence and app.sequenced) for one in (*found, *saved))

    def move(self, app: App) -> None:
        if app.sequence:
            app.before.append(app.wanted())
        app.address += 1
        app.sequence += 1

    def late_call(self, app: App, node: Node) -> None:
        """An earlier call was under way for longer than the later ones."""
        if app.runs and app.before and app.before[-1].sequence:
            self.call(app, node, app.before[-1])

    def move_app(self, app: App) -> None:
        if app.runs:
            self.move(app)

    def goodbye(self, app: App) -> None:
        if app.runs and not app.draining:
            app.draining = True
            app.sequence += 1

    def release(self, app: App) -> None:
        if not app.runs:
            return
        app.sequence += 1
        # A restore to before a balancer was a member: nobody waits for it before the tombstone goes.
        app.uncertain |= self.restored and any(MemberKey(name) not in self.etcd.content for name in NAMES)
        app.runs = app.holds = app.firm = False
        for node in self.targets(app):
            node.replica.release(app.key, app.sequence if app.sequenced else 0)
            node.served.pop(app.key, None)

    # ------------------------------------------------------------- the machinery

    def step(self, node: Node, lose: bool = False, most: int = 1000) -> None:
        """One turn of a balancer's loop towards etcd."""
        replica = node.replica
        if not node.connected:
            return
        if node.answer is not None:
            happened, revision = node.answer
            node.answer = None
            if not happened:
                replica.refused(revision)
            else:
                for key in replica.wrote(revision):
                    self.granted(node, key)
        if not replica.linked:
            self.etcd_list(node)
            return
        try:
            events = self.etcd.watch(replica.knowledge.mirror.revision)
        except Compacted:
            self.lose_claims(node)
            self.etcd_list(node)
            return
        for revision, changes in events[:most]:
            replica.watched(revision, changes, self.now)
        transaction, _ = replica.write(heartbeat=self.now - node.beat >= 2)
        if transaction is not None and PresenceKey(node.name) not in self.etcd.content:
            self.lose_claims(node)  # its lease is gone, which the heartbeat learns
        elif transaction is not None:
            node.beat = self.now
            happened, revision = self.etcd.try_(transaction), self.etcd.revision
            self.keep_alive(node)
            node.answer = (happened, revision)
            if lose:
                node.answer = None
                self.lose_claims(node)

    def etcd_list(self, node: Node) -> None:
        """One step of taking a list over: other things happen between two."""
        node.answer = None
        if node.listing is None or PresenceKey(node.name) in self.etcd.content:  # a list is short beside a lease
            self.keep_alive(node)
        node.listing = node.listing or node.replica.listed(self.etcd.revision, dict(self.etcd.content), self.now)
        if next(node.listing, "its end") is not None:
            node.listing = None
        self.forget_leases(node)

    def keep_alive(self, node: Node) -> None:
        node.replica.present_until = self.now + PRESENCE
        self.etcd.keep_alive(PresenceKey(node.name), node.name, self.now + PRESENCE)

    def lose_claims(self, node: Node) -> None:
        node.listing = None
        node.replica.disconnected()

    def forget_leases(self, node: Node) -> None:
        for key in node.replica.knowledge.own:
            node.called.setdefault(key, self.now)

    def granted(self, node: Node, key: Key) -> None:
        app = next(one for one in self.apps if one.key == key)
        node.called[key] = node.answered[key] = self.now
        if not app.runs:
            return
        app.holds = app.firm = True
        for other in self.apps:
            owners = {(one.token, one.name) for one in (other.key, key)}
            excluded = any(one.excludes(two) for one in app.slots for two in other.slots)
            if len(owners) > 1 and excluded and self.must_hold(other):
                self.violations.append(f"{key} was granted what {other.key} holds")

    def pass_time(self) -> None:
        self.now += 1
        self.etcd.expire(self.now)
        for app in self.apps:
            if app.disputed and not self.is_called(app):
                app.firm = False  # the lease has decided: it may be over
        for node in self.nodes.values():
            node.replica.tick(1.0)
            for key, own in list(node.replica.knowledge.own.items()):
                if own.state is not State.STALE and self.now - node.called.setdefault(key, self.now) > TTL:
                    node.replica.judged(key, State.STALE)

    def restart(self, node: Node, age: int = 0) -> None:
        memory = node.replica.memory() if age == 0 or not node.saved else node.saved[-min(age, len(node.saved))]
        if age and node.saved:
            for app in self.apps:
                app.uncertain = True
        node.replica = Replica(node.name, node.replica.knowledge.needs, frozenset(), memory)
        node.answer = node.listing = None
        node.called = dict.fromkeys(memory.own, self.now)
        if age:
            node.served = {}

    def upgrade(self, node: Node, needs: frozenset[str]) -> None:
        """Another version follows, which may be an older one."""
        node.replica = Replica(node.name, needs, frozenset(), node.replica.memory())
        node.answer = node.listing = None
        node.called = dict.fromkeys(node.replica.knowledge.own, self.now)
        node.served = self.table(node)

    def forget(self, node: Node, name: str) -> None:
        """An operator removes a balancer for good. It may live, though, and what only it heard closes elsewhere."""
        if name != node.name and node.connected and not self.nodes[name].connected:
            node.replica.forget(name)
            for app in self.apps:
                app.uncertain |= app.holds

    def restore(self, age: int, ahead: int) -> None:
        if not self.backups:
            return
        self.etcd = self.backups[-min(age, len(self.backups))].restored(self.now, ahead)
        self.restored = True
        for app in self.apps:
            app.since = app.since if app.since <= self.etcd.revision else 0
        for node in self.nodes.values():
            self.lose_claims(node)
            node.answer = None

    def cut(self, node: Node) -> None:
        node.connected = False
        node.answer = None
        self.lose_claims(node)

    def join(self, node: Node) -> None:
        node.connected = True

    def save(self, memories: bool = True, backups: bool = True) -> None:
        for node in self.nodes.values() if memories else ():
            node.saved.append(node.replica.memory())
            del node.saved[:-15]
        if backups:
            self.backups.append(self.etcd.backup())
        del self.backups[:-20]

    # ------------------------------------------------------------- what must be true

    def table(self, node: Node) -> dict[Key, str]:
        knowledge = node.replica.knowledge
        found = {}
        for key in knowledge.registered():
            one = knowledge.registration(key)
            assert one is not None
            if knowledge.rival(key, one.wanted.slots) is None and not one.lacking:
                found[key] = f"{one.wanted.address} {one.state}"
        return found

    def check(self) -> None:
        for app in self.apps:
            if app.holds:
                self.became(app)
        for node in self.nodes.values():
            now = self.table(node)
            for app in self.apps:
                called = self.now - node.answered.get(app.key, -TTL - 1) <= TTL
                excused = app.uncertain or (app.disputed and not called)
                own = node.replica.knowledge.own.get(app.key)
                contested = node.replica.knowledge.rival(app.key, app.slots) is not None
                excused |= (contested or own is None) if not app.firm else (contested and self.restored)
                excused |= (contested or own is None) and node.name not in app.readers
                if app.holds and app.key in node.served and app.key not in now and not excused:
                    self.violations.append(f"{self.now} {app.key} lives and closed at {node.name}")
            node.served = now

    def heal(self) -> None:
        for node in self.nodes.values():
            self.join(node)
            self.upgrade(node, NEEDS)
        for app in self.apps:
            app.silent = False
        for _ in range(int(TTL) * 3 + 6):
            self.round()

    def round(self) -> None:
        self.pass_time()
        self.beats()
        for _ in range(2):
            for node in self.nodes.values():
                self.step(node)
        for node in self.nodes.values():
            node.replica.accept()
        self.check()

    def converged(self) -> None:
        tables = {name: self.table(node) for name, node in self.nodes.items()}
        if len({tuple(sorted((key, text) for key, text in table.items())) for table in tables.values()}) > 1:
            self.violations.append(f"tables differ: {tables}")
        for app in self.apps:
            for name, table in tables.items():
                if app.holds and app.key not in table:
                    self.violations.append(f"{app.key} holds and is not at {name}")
                elif app.holds and not app.needs and app.key in table and table[app.key].split()[0] != app.wanted().address:
                    self.violations.append(
                        f"{app.key} has the old address at {name}: {table[app.key]}, not {app.wanted().address}"
                    )
                elif app.holds and app.key in table and "stale" in table[app.key]:
                    self.violations.append(f"{app.key} is stale at {name}")
                elif not app.runs and app.key in table and not app.uncertain:
                    self.violations.append(f"{app.key} is released and at {name}: {table[app.key]}")


def play(world: World, rnd: Random, *, old_disks: bool, restores: bool) -> None:
    """A random day, then everything is mended."""
    apps = rnd.sample(world.apps, rnd.choice((2, 3, 5, 8)))
    for _ in range(rnd.randint(20, 120)):
        happen(world, rnd, rnd.choice(apps), world.nodes[rnd.choice(NAMES)], old_disks=old_disks, restores=restores)
        for _ in range(rnd.randint(0, 3)):
            world.step(world.nodes[rnd.choice(NAMES)], lose=rnd.random() < 0.05, most=rnd.choice((1, 2, 1000)))
            world.check()
        if rnd.random() < 0.7:
            world.pass_time()
        if rnd.random() < 0.7:
            world.beats()
        world.check()
        world.save(memories=old_disks, backups=restores)
        if world.violations:
            return
    world.heal()
    world.converged()


def happen(world: World, rnd: Random, app: App, node: Node, *, old_disks: bool, restores: bool) -> None:
    events = {
        "cut or join": (10, lambda: (world.cut if node.connected else world.join)(node)),
        "the address moves": (6, lambda: setattr(world, "vip", node.name)),
        "register": (10, lambda: world.register(app, rnd.random() < 0.5, rnd.random() < 0.6)),
        "move": (6, lambda: world.move_app(app)),
        "goodbye": (3, lambda: world.goodbye(app)),
        "release": (7, lambda: world.release(app)),
        "silence": (3, lambda: setattr(app, "silent", not app.silent)),
        "restart": (4, lambda: world.restart(node, rnd.choice((0, rnd.randint(1, 15))) if old_disks else 0)),
        "restore": (1.5, lambda: world.restore(rnd.randint(1, 20), rnd.choice((0, 50))) if restores else None),
        "compact": (1.5, world.etcd.compact),
        "late call": (3, lambda: world.late_call(app, node)),
        "forget": (1, lambda: world.forget(node, rnd.choice(NAMES))),
        "upgrade": (1.5, lambda: world.upgrade(node, rnd.choice((NEEDS, frozenset())))),
        "accept": (0.5, node.replica.accept),
        "nothing": (42, lambda: None),
    }
    weights = [weight for weight, _ in events.values()]
    _, what = rnd.choices(list(events.values()), weights)[0]
    what()
