"""Tables as workers get them: what changed, in pieces, each encoded once for all of them."""

from collections import Counter
from collections.abc import Iterable
from itertools import islice

from pylb.core.policy import Policy
from pylb.core.table import Diff, Frontend, Table
from pylb.workers.messages import PIECE, TableChange, TablePart, encoded, numbered_frontend

Pieces = list[tuple[int, bytes]]  # kind and body of frames


class PolicyNumbers:
    """The numbers under which policies travel: they are large, few, and shared by many frontends."""

    def __init__(self) -> None:
        self._numbers: dict[int, tuple[int, Policy]] = {}  # by identity: to hash ten thousand rules costs more
        self._next = 0
        self._uses: Counter[int] = Counter()  # by how many frontends of the table in force; by identity, too

    def number(self, policy: Policy) -> tuple[int, bool]:
        """The number of a policy, and whether it is new."""
        known = self._numbers.get(id(policy))
        if known is not None:
            return known[0], False
        self._next += 1
        self._numbers[id(policy)] = (self._next, policy)
        return self._next, True

    def unused(self, change: Diff) -> tuple[int, ...]:
        """The numbers of policies that no frontend uses any more; they are forgotten.

        Call it for each change, after its new policies have their numbers.
        """
        come, gone = (Counter(id(frontend.policy) for frontend in some) for some in _sides(change))
        self._uses.update(come)
        self._uses.subtract(gone)
        ended = [key for key in gone if not self._uses[key]]
        for key in ended:
            del self._uses[key]
        return tuple(self._numbers.pop(key)[0] for key in ended)


def _sides(change: Diff) -> tuple[list[Frontend], list[Frontend]]:
    """The policies that a change adds and those that it removes."""
    come, gone = [new for _, new in change.changed], [old for old, _ in change.changed]
    return [*change.opened, *come], [*change.closed, *gone]


class TableEncoder:
    """Encodes all tables from the first one on."""

    def __init__(self) -> None:
        self._policies = PolicyNumbers()

    def change(self, before: Table, table: Table, change: Diff) -> Pieces:
        """The messages for workers that have `before`. `change`: from that to `table`."""
        pieces = self._parts([*change.opened, *(new for _, new in change.changed)])
        closed = tuple(frontend.listen for frontend in change.closed)
        pieces.append(encoded(TableChange(before.generation, table.generation, self._policies.unused(change), closed)))
        return pieces

    def whole(self, table: Table) -> Pieces:
        """The messages for a worker that has no table. `table` is the one that the last change led to."""
        return [*self._parts(table.frontends.values(), whole=True), encoded(TableChange(0, table.generation, (), ()))]

    def _parts(self, frontends: Iterable[Frontend], *, whole: bool = False) -> Pieces:
        """These frontends, encoded once for all workers. `whole`: for a worker that knows no policy yet."""
        pieces, sent = [], set[int]()
        rest = iter(frontends)
        while some := tuple(islice(rest, PIECE)):
            lines, policies = [], {}
            for frontend in some:
                number, is_new = self._policies.number(frontend.policy)
                if is_new or (whole and number not in sent):
                    sent.add(number)
                    policies[number] = frontend.policy
                lines.append(numbered_frontend(frontend, number))
            pieces.append(encoded(TablePart(policies, tuple(lines))))
        return pieces
