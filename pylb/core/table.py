"""The routing table: all frontends and their servers as one immutable value, replaced as a whole and never edited.

Control composes a table, the engine applies it. A live session uses what it took from the table under which it was accepted.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from pylb.core.address import Address, Listen
from pylb.core.persistent_map import PersistentMap
from pylb.core.policy import AdminState, HealthPolicy, Policy, ProxyProtocol

PROVEN, UNPROVEN, BACKUP, LAST_RESORT, DOWN, OUT = range(6)


@dataclass(frozen=True, slots=True)
class Server:
    """One address that a frontend's connections may go to.

    `rank` sums up control's opinion of it: a connect goes to the servers of the lowest rank that has an untried one.
    0 fresh, up and proven · 1 fresh, but has not answered yet · 2 backup · 3 stale or draining · 4 down · 5 taken out by the
    operator, with weight 0. Among those that are down, backups come last. Those whose health says refuse while down are not
    dialled at all, see `Frontend.serves`.
    """

    name: str  # the label: static address, instance, or "legacy"
    address: Address
    weight: int = 1
    rank: int = 0
    send_proxy: ProxyProtocol = ProxyProtocol.NONE
    max_connections: int = 0  # 0: no limit
    admin: AdminState = AdminState.READY  # while drain or maint, `weight` is 0
    backup: bool = False
    health: HealthPolicy | None = None  # None: the frontend's

    def __str__(self) -> str:
        """For people: its name and its address, which for a static server may be the same."""
        return self.name if self.name == self.address.without_protocol else f"{self.name} {self.address}"


@dataclass(frozen=True, slots=True)
class Frontend:
    name: str
    listen: Listen
    policy: Policy
    servers: tuple[Server, ...]

    def health(self, server: Server) -> HealthPolicy:
        """The health policy of one of its servers."""
        return server.health or self.policy.health

    def serves(self, server: Server) -> bool:
        """May it be dialled at all, even as the last resort? Where `when_all_down` is refuse: only while it is up."""
        return server.rank != DOWN or not self.health(server).refuses


@dataclass(frozen=True, slots=True)
class Table:
    """`touched` is what may differ from the table it was made from, whose mark is `since`: see `diff`."""

    generation: int = 0
    frontends: PersistentMap[Listen, Frontend] = field(default_factory=PersistentMap)
    mark: object = field(default_factory=object, compare=False, repr=False)  # identifies this table; compared by identity
    since: object = field(default=None, compare=False, repr=False)
    touched: frozenset[Listen] = field(default=frozenset(), compare=False, repr=False)

    def edited(self, generation: int, edits: Mapping[Listen, Frontend | None]) -> "Table":
        """The next table. None: that frontend is closed."""
        return Table(generation, self.frontends.edited(edits), since=self.mark, touched=frozenset(edits))


def make_table(generation: int, frontends: Mapping[Listen, Frontend]) -> Table:
    """A table that nobody can edit, not even through the mapping it was made from."""
    return Table(generation, PersistentMap(frontends))


def differing(old: Sequence[Server], new: Sequence[Server]) -> tuple[list[Server], list[Server]]:
    """The servers of each that are not in the other as the same object: of ten servers one, when one of them moves."""
    same = set(map(id, old)).intersection(map(id, new))
    return [one for one in old if id(one) not in same], [one for one in new if id(one) not in same]


@dataclass(frozen=True, slots=True)
class Diff:
    """The result of `diff`, each field in the order of the listen address."""

    opened: tuple[Frontend, ...]
    closed: tuple[Frontend, ...]
    changed: tuple[tuple[Frontend, Frontend], ...]  # (old, new) of the same listen address

    def __bool__(self) -> bool:
        return bool(self.opened or self.closed or self.changed)


Compared = tuple[Frontend | None, Frontend | None]  # before and after; the same object twice if they are equal


def diff(old: Table, new: Table) -> Diff:
    """From `old` to `new`. Applying it to `old` gives `new`; the diff of a table and itself is empty."""
    return as_diff(compared(old, new))


def compared(old: Table, new: Table) -> Iterator[Compared]:
    """All that may differ, in the order of the listen address: for `as_diff`, and for callers that compare in steps."""
    have, want = old.frontends, new.frontends
    # Between a table and its successor only what was touched is compared; between any other two, everything.
    differ = new.touched if new.since is old.mark else {*chain(*have.buckets, *want.buckets)}
    for listen in sorted(differ):
        before, after = have.get(listen), want.get(listen)
        yield before, before if before is after or before == after else after


def as_diff(pairs: Iterable[Compared]) -> Diff:
    opened, closed, changed = [], [], []
    for before, after in pairs:
        if after is None:
            if before is not None:
                closed.append(before)
        elif before is None:
            opened.append(after)
        elif before is not after:
            changed.append((before, after))
    return Diff(tuple(opened), tuple(closed), tuple(changed))
