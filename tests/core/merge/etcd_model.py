"""etcd in memory: revisions, transactions with comparisons, a watch from a revision, compaction, leases, restores."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pylb.core.merge.values import ClusterKey, PresenceKey, Transaction, Value

Content = dict[ClusterKey, tuple[Value, int]]
Event = tuple[int, Mapping[ClusterKey, Value | None]]


class Compacted(Exception):  # noqa: N818 - a condition
    pass


@dataclass
class Etcd:
    revision: int = 1
    content: Content = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    compacted: int = 0
    leases: dict[PresenceKey, float] = field(default_factory=dict)  # when they end

    def try_(self, transaction: Transaction) -> bool:
        # Its --max-txn-ops is 128, and a heartbeat adds one to each.
        assert max(len(transaction.compares), len(transaction.puts) + len(transaction.deletes)) < 128
        for key, revision in transaction.compares.items():
            if (self.content[key][1] if key in self.content else 0) != revision:
                return False
        self._change({**transaction.puts, **dict.fromkeys(transaction.deletes)})
        return True

    def _change(self, changes: Mapping[ClusterKey, Value | None]) -> None:
        changes = {key: value for key, value in changes.items() if value is not None or key in self.content}
        self.revision += 1
        for key, value in changes.items():
            if value is None:
                del self.content[key]
            else:
                self.content[key] = (value, self.revision)
        self.events.append((self.revision, changes))

    def keep_alive(self, key: PresenceKey, nonce: str, until: float) -> None:
        self.leases[key] = until
        self._change({key: nonce})

    def expire(self, now: float) -> None:
        for key in [key for key, until in self.leases.items() if until <= now]:
            del self.leases[key]
            if key in self.content:
                self._change({key: None})

    def watch(self, after: int) -> list[Event]:
        if after < self.compacted:
            raise Compacted
        return [event for event in self.events if event[0] > after]

    def compact(self) -> None:
        self.compacted = self.revision
        self.events.clear()

    def backup(self) -> "Etcd":
        return Etcd(self.revision, dict(self.content), [], self.revision, dict(self.leases))

    def restored(self, now: float, ahead: int) -> "Etcd":
        """What `etcdctl snapshot restore` makes of a backup. `ahead`: --bump-revision, or an older one that ran on."""
        leases = dict.fromkeys((key for key in self.content if isinstance(key, PresenceKey)), now + 3)
        return Etcd(self.revision + ahead, dict(self.content), [], self.revision + ahead, leases)
