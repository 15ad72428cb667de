"""The generations of the table: what each changed, who asked for it, and when."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pylb.core.changes import PASSING, Line

KEPT = 1000  # of each kind


@dataclass(frozen=True, slots=True)
class Generation:
    number: int
    at: float  # unix time
    by: tuple[str, ...]  # who: tokens with their addresses, admin, reload, leases, health, names
    lines: tuple[Line, ...]


class History:
    """The last 1,000 that somebody asked for, and apart from them the last 1,000 moves and changes of state: an app that
    wanders must not push out who opened its port."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._asked: deque[Generation] = deque(maxlen=KEPT)
        self._passing: deque[Generation] = deque(maxlen=KEPT)

    def note(self, number: int, by: Iterable[str], lines: Iterable[Line]) -> None:
        one = Generation(number, self._wall(), tuple(by), tuple(lines))
        kind = self._passing if all(line.what in PASSING for line in one.lines) else self._asked
        kind.append(one)

    def generations(self, what: str | None = None) -> list[Generation]:
        """Oldest first; of a port, or of a frontend's name or the name that registered it."""
        found = sorted((*self._asked, *self._passing), key=lambda one: one.number)
        return found if what is None else [one for one in found if any(_is_about(line, what) for line in one.lines)]


def _is_about(line: Line, what: str) -> bool:
    return what in (str(line.listen.port), str(line.listen), line.frontend, line.frontend.rpartition("-")[0])
