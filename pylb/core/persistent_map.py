"""An immutable mapping whose edited copy costs what the edit touches, however large the mapping is.

The entries are in a fixed number of small dicts, by the hash of their keys. An edit copies the dicts that it touches and shares
all others with the original: of 10,000 entries about 40 are copied for each key that changes.
"""

from collections.abc import ItemsView, Iterable, Iterator, Mapping, ValuesView
from operator import itemgetter
from typing import Any, Generic, TypeVar, cast, overload

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

BUCKETS = 256  # a power of two: with 10,000 entries each bucket has about 40
_MASK = BUCKETS - 1

Bucket = Mapping[K, tuple[int, V]]  # the value of each key, and its place in the order


class PersistentMap(Mapping[K, V], Generic[K, V]):
    """In the order in which keys were first added, like a dict. No value is None: in an edit that means "no longer there".

    `buckets` never change, and keep their identity from one mapping to the next unless an edit touched them. So whatever is
    computed per bucket (the snapshot's text) can be cached.
    """

    __slots__ = ("_added", "_length", "buckets")

    def __init__(self, entries: Mapping[K, V] | None = None, *, base: "PersistentMap[K, V] | None" = None) -> None:
        self.buckets: tuple[Bucket[K, V], ...] = base.buckets if base is not None else _NOTHING
        self._length = len(base) if base is not None else 0
        self._added = base.added if base is not None else 0
        self._edit(entries or {})

    @property
    def added(self) -> int:
        """How many keys were ever added: the place of the next one."""
        return self._added

    def edited(self, edits: Mapping[K, V | None]) -> "PersistentMap[K, V]":
        """With other values for some keys, and without those whose new value is None. Returns the same mapping if nothing
        differs: copying buckets for a key that was not there anyway would be wasted work at each move."""
        edits = {key: value for key, value in edits.items() if self.get(key) is not value}
        if not edits:
            return self
        made = PersistentMap(base=self)
        made._edit(edits)
        return made

    def _edit(self, edits: Mapping[K, V | None]) -> None:
        """Used only while the mapping is being made."""
        buckets = cast("list[dict[K, tuple[int, V]]]", list(self.buckets))
        copied: set[int] = set()
        for key, value in edits.items():
            number = hash(key) & _MASK
            if number not in copied:
                copied.add(number)
                buckets[number] = buckets[number].copy()
            bucket = buckets[number]
            known = bucket.get(key)
            if value is not None:
                bucket[key] = (self._added if known is None else known[0], value)
                self._added += known is None
                self._length += known is None
            else:  # `edited` passes on only keys that are there
                del bucket[key]
                self._length -= 1
        self.buckets = tuple(buckets)

    def __getitem__(self, key: K) -> V:
        return self.buckets[hash(key) & _MASK][key][1]

    @overload
    def get(self, key: K, /) -> V | None: ...
    @overload
    def get(self, key: K, /, default: V | D) -> V | D: ...
    def get(self, key: K, /, default: V | D | None = None) -> V | D | None:
        entry = self.buckets[hash(key) & _MASK].get(key)
        return default if entry is None else entry[1]

    def __contains__(self, key: object) -> bool:
        return key in self.buckets[hash(key) & _MASK]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[K]:
        return (key for _, key, _ in self.ordered())

    def items(self) -> "ItemsView[K, V]":
        """Sorting 10,000 entries takes 3 ms before the first one comes; the same holds for the keys. `values` take 0.5 ms."""
        return _Items(self)

    def values(self) -> "ValuesView[V]":
        return _Values(self)

    def in_any_order(self) -> Iterator[V]:
        """The values, unsorted: for callers that let other work run between them."""
        return (value for bucket in self.buckets for _, value in bucket.values())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self.items()) == dict(other)

    def __hash__(self) -> int:
        raise TypeError("a mapping cannot be a key")

    def __repr__(self) -> str:
        return f"PersistentMap({dict(self.items())!r})"

    def ordered(self) -> list[tuple[int, K, V]]:
        """The place, the key and the value of each entry."""
        found = [(place, key, value) for bucket in self.buckets if bucket for key, (place, value) in bucket.items()]
        found.sort(key=itemgetter(0))
        return found


class _Items(ItemsView[K, V]):
    _mapping: PersistentMap[K, V]

    def __iter__(self) -> Iterator[tuple[K, V]]:
        return ((key, value) for _, key, value in self._mapping.ordered())


class _Values(ValuesView[V]):
    _mapping: PersistentMap[Any, V]

    def __iter__(self) -> Iterator[V]:
        entries = [entry for bucket in self._mapping.buckets if bucket for entry in bucket.values()]
        entries.sort(key=itemgetter(0))  # those that are there: 10,000 new ones would be ten collections of garbage, too
        return (value for _, value in entries)


_NOTHING: tuple[Bucket[Any, Any], ...] = ({},) * BUCKETS


def frozen_set(keys: Iterable[K]) -> PersistentMap[K, bool]:
    """A set with the same property: its keys are the members."""
    return PersistentMap(dict.fromkeys(keys, True))
