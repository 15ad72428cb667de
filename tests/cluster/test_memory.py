"""What a balancer remembers over a restart: after any day, it is the same when it is written and read again."""

import json
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylb.cluster.memory import UnreadableMemory, read_memory, write_memory
from pylb.core.merge.local import Memory
from pylb.core.merge.mirror import Mirror
from pylb.core.merge.replica import Replica
from pylb.core.merge.values import Unreadable
from tests.core.merge.world import NEEDS, World, play


def compared(memory: Memory) -> tuple[Any, ...]:
    """Without what is only an index, or true only of this start."""
    mirror = memory.mirror
    hearers = {key: found for key in mirror.hearers if (found := {name for name, _ in mirror.known_by_others(key, "")})}
    values = {key: one for key, one in mirror.values.items() if not isinstance(one[0], Unreadable)}
    entries = {name: view for name, view in mirror.written.items() if view.entries or view.member.count}
    return (
        {key: replace(one, here=False) for key, one in memory.own.items()},
        {key: replace(one, here=False) for key, one in memory.unsent.items()},
        (memory.begun, memory.count, memory.unwritten, memory.processed, memory.held, memory.lost),
        (mirror.revision, values, entries, mirror.newer, mirror.newer_blocks, mirror.tombstones, hearers),
    )


def again(memory: Memory) -> Memory:
    return read_memory(json.loads(json.dumps(write_memory(memory))))


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32))
def test_a_memory_is_read_as_it_was_written_after_any_day(seed: int) -> None:
    world, rnd = World(), Random(seed)
    play(world, rnd, old_disks=True, restores=True)
    memories = [one.replica.memory() for one in world.nodes.values()]
    memories += [memory for node in world.nodes.values() for memory in node.saved[-3:]]
    for memory in memories:
        found = again(memory)
        assert compared(found) == compared(memory)
        assert compared(Replica("a", NEEDS, frozenset(), found).memory()) == compared(
            Replica("a", NEEDS, frozenset(), memory).memory()
        )


def test_one_that_remembers_nothing() -> None:
    assert again(Memory()) == Memory(mirror=Mirror())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda _: [], "is not of type dict"),
        (lambda plain: {key: value for key, value in plain.items() if key != "own"}, "the field 'own' is missing"),
        (lambda plain: plain | {"begun": -1}, "out of range"),
        (lambda plain: plain | {"own": [["released/t/w/1", "{}", 1, False]]}, "is missing"),
        (lambda plain: plain | {"own": [["members/a", "{}", 1, False]]}, "is not the name of a registration"),
        (lambda plain: plain | {"values": [["nothing/known", "{}", 1]]}, "is not a key"),
        (lambda plain: plain | {"newer": [["presence/a", "x", []]]}, "is not a member"),
        (lambda plain: plain | {"newer_blocks": [["presence/a", "x"]]}, "is not a block of claims"),
        (lambda plain: plain | {"unwritten": 7}, "is not of type list"),
        (lambda plain: plain | {"lost": [[1, 2]]}, "is not of type str"),
    ],
)
def test_of_one_that_is_damaged_nothing_is_used(change: Any, why: str) -> None:
    with pytest.raises(UnreadableMemory, match=why):
        read_memory(change(write_memory(Memory())))
