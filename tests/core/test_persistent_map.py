"""A persistent mapping is a dict of which every version stays what it was."""

import gc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylb.core.persistent_map import BUCKETS, PersistentMap, frozen_set

KEYS = st.integers(0, 5) | st.sampled_from([n * BUCKETS for n in range(5)])  # also many in one bucket
EDITS = st.lists(st.dictionaries(KEYS, st.none() | st.integers(0, 3), max_size=4), max_size=12)


@given(EDITS)
def test_any_edits_give_what_a_dict_would_hold_and_leave_the_versions_before_as_they_were(
    edits: list[dict[int, int | None]],
) -> None:
    model: dict[int, int] = {}
    now: PersistentMap[int, int] = PersistentMap()
    versions = [(now, dict(model))]
    for edit in edits:
        for key, value in edit.items():
            if value is None:
                model.pop(key, None)
            else:
                model[key] = value
        now = now.edited(edit)
        versions.append((now, dict(model)))
    for frozen, expected in versions:
        assert list(frozen.items()) == list(expected.items())  # in the same order
        assert list(frozen) == list(expected)
        assert list(frozen.values()) == list(expected.values())
        assert sorted(frozen.in_any_order()) == sorted(expected.values())
        assert len(frozen) == len(expected)
        assert frozen == expected
        for key in range(6):
            assert frozen.get(key, -1) == expected.get(key, -1)
            assert (key in frozen) is (key in expected)


@given(EDITS)
def test_an_edit_shares_all_parts_that_it_does_not_touch(edits: list[dict[int, int | None]]) -> None:
    versions = [PersistentMap({n: n for n in range(2000)})]
    for edit in edits:
        versions.append(versions[-1].edited(edit))
    for (before, after), edit in zip(pairwise(versions), edits, strict=True):
        touched = {hash(key) % BUCKETS for key in edit}
        buckets = [*before.buckets]  # held, so that no new one has an old one's identity
        known = set(map(id, buckets))
        assert sum(id(bucket) not in known for bucket in after.buckets) <= len(touched)


def test_an_edit_of_one_key_copies_one_group_and_one_bucket() -> None:
    """All 256 buckets were in one tuple, which each of the seven edits of a move copied twice."""
    before = PersistentMap({number: number for number in range(10_000)})
    after = before.edited({7: 70})
    groups = [pair for pair in zip(before._groups, after._groups, strict=True) if pair[0] is not pair[1]]
    assert len(groups) == 1
    assert sum(one is not other for one, other in zip(*groups[0], strict=True)) == 1
    assert len(groups[0][0]) ** 2 == BUCKETS


def test_no_edit_is_the_same_mapping_and_an_unknown_key_is_a_key_error() -> None:
    some = frozen_set(["a"])
    assert some.edited({}) is some
    assert some.edited({"b": None}) is some
    assert some.edited({"a": True}) is some
    with pytest.raises(KeyError):
        some["b"]
    with pytest.raises(TypeError):
        hash(some)
    assert repr(some) == "PersistentMap({'a': True})"
    assert some != 3


def test_to_put_values_in_order_makes_no_object_for_each() -> None:
    """Ten thousand new ones are ten collections of garbage, in the one step that puts them in order."""
    mapping = PersistentMap(dict(enumerate(map(str, range(10_000)))))
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        before = gc.get_count()[0]
        values = iter(mapping.values())
        first = next(values)
        made = gc.get_count()[0] - before
    finally:
        if was_enabled:
            gc.enable()
    assert (first, next(values)) == ("0", "1")
    assert made < 100
