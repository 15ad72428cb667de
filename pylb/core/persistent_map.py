"""An immutable mapping whose edited copy costs what the edit touches, however large the mapping is.

The entries are in a fixed number of small dicts (buckets), by the hash of their keys, and the buckets are in groups. An edit
copies the buckets that it touches and the two tuples on the way to each, and shares everything else with the original: of
10,000 entries some 40 for each key that changes, and 32 references. More buckets would be cheaper to copy, but the snapshot
looks at each of them: with 1,024 the disk's thread took 6.0 ms a snapshot instead of 4.8.
"""

from collections.abc import ItemsView, Iterable, Iterator, Mapping, ValuesView
from itertools import chain
from operator import itemgetter
from typing import Any, Generic, TypeVar, overload

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

_BITS = 4
_WIDTH = 1 << _BITS  # groups, and buckets of each
_MASK = _WIDTH - 1
BUCKETS = _WIDTH * _WIDTH  # with 10,000 entries each has about 40

Bucket = dict[K, tuple[int, V]]  # the value of each key, and its place in the order


class PersistentMap(Mapping[K, V], Generic[K, V]):
    """In the order in which keys were first added, like a dict. No value is None: in an edit that means "no longer there".

    Buckets never change, and keep their identity from one mapping to the next unless an edit touched them. So whatever is
    computed per bucket (the snapshot's text) can be cached.
    """

    __slots__ = ("_added", "_groups", "_length")

    def __init__(self, entries: Mapping[K, V] | None = None) -> None:
        self._groups: tuple[tuple[Bucket[K, V], ...], ...] = _NOTHING
        self._length = 0
        self._added = 0  # how many keys ever were: the place of the next one
        if entries:
            made: PersistentMap[K, V] = self.edited(entries)
            self._groups, self._length, self._added = made._groups, made._length, made._added

    @property
    def buckets(self) -> list[Bucket[K, V]]:
        """Those that are not empty."""
        return list(filter(None, chain.from_iterable(self._groups)))

    def edited(self, edits: Mapping[K, V | None]) -> "PersistentMap[K, V]":
        """With other values for some keys, and without those whose new value is None. Returns the same mapping if nothing
        differs: copying buckets for a key that was not there anyway would be wasted work at each move."""
        before, added, length = self._groups, self._added, self._length
        groups: Any = before
        copied: set[int] = set()  # the numbers of the buckets that belong to the new mapping alone
        for key, value in edits.items():
            number = hash(key)
            above, below = number >> _BITS & _MASK, number & _MASK
            group = groups[above]
            bucket = group[below]
            known = bucket.get(key)
            if value is (None if known is None else known[1]):
                continue
            if (place := above << _BITS | below) not in copied:
                copied.add(place)
                bucket, group = bucket.copy(), list(group)
                group[below] = bucket
                if groups is before:
                    groups = list(groups)
                groups[above] = tuple(group)
            if value is None:
                del bucket[key]
                length -= 1
            else:
                bucket[key] = (added if known is None else known[0], value)
                added += known is None
                length += known is None
        if groups is before:
            return self
        made: PersistentMap[K, V] = PersistentMap()
        made._groups, made._length, made._added = tuple(groups), length, added
        return made

    def __getitem__(self, key: K) -> V:
        number = hash(key)
        return self._groups[number >> _BITS & _MASK][number & _MASK][key][1]

    @overload
    def get(self, key: K, /) -> V | None: ...
    @overload
    def get(self, key: K, /, default: V | D) -> V | D: ...
    def get(self, key: K, /, default: V | D | None = None) -> V | D | None:
        number = hash(key)
        entry = self._groups[number >> _BITS & _MASK][number & _MASK].get(key)
        return default if entry is None else entry[1]

    def __contains__(self, key: object) -> bool:
        number = hash(key)
        return key in self._groups[number >> _BITS & _MASK][number & _MASK]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[K]:
        keys, _, order = self.in_order()
        return map(keys.__getitem__, order)

    def items(self) -> "ItemsView[K, V]":
        return _Items(self)

    def values(self) -> "ValuesView[V]":
        return _Values(self)

    def in_any_order(self) -> Iterator[V]:
        """The values, unsorted: for callers that let other work run between them."""
        return map(itemgetter(1), chain.from_iterable(map(dict.values, self.buckets)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self.items()) == dict(other)

    def __hash__(self) -> int:
        raise TypeError("a mapping cannot be a key")

    def __repr__(self) -> str:
        return f"PersistentMap({dict(self.items())!r})"

    def in_order(self) -> tuple[list[K], list[tuple[int, V]], list[int]]:
        """The keys and entries as they lie in the buckets, and their indexes in the order of the mapping.

        No object is made for each: 10,000 new ones would be ten collections of garbage before the first key comes.
        """
        buckets = self.buckets
        keys = list(chain.from_iterable(buckets))
        entries = list(chain.from_iterable(map(dict.values, buckets)))
        places = list(map(itemgetter(0), entries))
        return keys, entries, sorted(range(len(keys)), key=places.__getitem__)


class _Items(ItemsView[K, V]):
    _mapping: PersistentMap[K, V]

    def __iter__(self) -> Iterator[tuple[K, V]]:
        keys, entries, order = self._mapping.in_order()
        return ((keys[index], entries[index][1]) for index in order)


class _Values(ValuesView[V]):
    _mapping: PersistentMap[Any, V]

    def __iter__(self) -> Iterator[V]:
        entries = list(chain.from_iterable(map(dict.values, self._mapping.buckets)))
        entries.sort(key=itemgetter(0))  # those that are there: 10,000 new ones would be ten collections of garbage, too
        return (value for _, value in entries)


_NOTHING: tuple[tuple[Bucket[Any, Any], ...], ...] = (({},) * _WIDTH,) * _WIDTH


def frozen_set(keys: Iterable[K]) -> PersistentMap[K, bool]:
    """A set with the same property: its keys are the members."""
    return PersistentMap(dict.fromkeys(keys, True))
