"""How far a list is believed. Pure: the clock is an argument.

A watch says what happened: an object that was deleted there is gone. A new list only lacks objects, and lists can be wrong:
an API server behind its etcd, a restored backup, a proxy, a permission that was taken away. So what a list lacks counts as
missing, not as gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Generic, TypeVar

MASS = 3  # objects: fewer are an ordinary day
HOLD = 3600.0  # seconds for which more than half of everything may be missing without an effect
CONFIRM_AGAIN = 60.0  # seconds between the two questions about one missing object
MOST_CONFIRMED = 8  # questions at once: they are single calls

T = TypeVar("T")


def is_mass(missing: int, all_of_them: int) -> bool:
    return missing >= MASS and 2 * missing > all_of_them


class Missing:
    """Services that pylb still has and that a list lacks: they are released when the API server has twice said that they
    do not exist, and if they are more than half of all, not before an hour has passed."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._confirmed: dict[str, float] = {}  # when the first 404 came
        self._asked: dict[str, float] = {}  # the last question, whatever came of it
        self._gone: set[str] = set()  # confirmed twice

    def update(self, missing: Collection[str], now: float) -> None:
        for table in (self._since, self._confirmed, self._asked):
            for key in [key for key in table if key not in missing]:
                del table[key]
        self._gone &= set(missing)
        for key in missing:
            self._since.setdefault(key, now)

    def __len__(self) -> int:
        return len(self._since)

    def questions(self, now: float) -> list[str]:
        """Which to ask the API server about now."""
        unclear = self._since.keys() - self._gone
        due = [key for key in unclear if key not in self._asked or now - self._asked[key] >= CONFIRM_AGAIN]
        return sorted(due)[:MOST_CONFIRMED]

    def answered(self, key: str, now: float, *, exists: bool | None) -> None:
        """None: no answer, or one that says nothing about it."""
        if key not in self._since:
            return
        self._asked[key] = now
        if exists is None:
            return
        if exists:
            self._confirmed.pop(key, None)  # the list lacks it all the same: it is asked about again
        elif key not in self._confirmed:
            self._confirmed[key] = now
        elif now - self._confirmed[key] >= CONFIRM_AGAIN:
            self._gone.add(key)

    def released(self, known: int, now: float) -> list[str]:
        """Which may be released now. `known`: how many registrations pylb has in all."""
        held = is_mass(len(self._since), known)
        return sorted(key for key in self._gone if not held or now - self._since[key] >= HOLD)

    def is_holding(self, known: int) -> bool:
        return is_mass(len(self._since), known)


class Nodes(Generic[T]):
    """The nodes that are used. A sudden loss of more than half of them, or of all, has no effect for an hour."""

    def __init__(self) -> None:
        self._believed: dict[str, T] = {}  # before the doubt, if there is one
        self._since: float | None = None

    def judge(self, usable: Iterable[tuple[str, T]], now: float) -> tuple[tuple[T, ...], int]:
        """The nodes to use, and how many of them are only still there because their loss is not believed."""
        current = dict(usable)
        lost = self._believed.keys() - current.keys()
        doubtful = bool(lost) and (not current or is_mass(len(lost), len(self._believed)))
        if self._since is None or not doubtful:
            self._since = now if doubtful else None
        if doubtful and not (current and self._since is not None and now - self._since >= HOLD):
            return tuple({**{key: self._believed[key] for key in lost}, **current}.values()), len(lost)
        self._since, self._believed = None, current
        return tuple(current.values()), 0
