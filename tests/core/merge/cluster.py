"""Several balancers at one etcd in memory, for the tests of single rules."""

from pylb.core.merge.local import Answer, Conflict, Memory
from pylb.core.merge.replica import Replica
from pylb.core.merge.values import PresenceKey, Slot, Wanted
from pylb.core.registration import Key
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
            for _ in one.listed(self.etcd.revision, dict(self.etcd.content), self.now):
                assert not one.linked
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
