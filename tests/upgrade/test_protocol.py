"""pylb/upgrade/protocol.py: what the old and the new one say to each other."""

import socket

import pytest

from pylb.upgrade.protocol import Conversation, Refusal
from pylb.workers.channel import Channel
from tests.support.baseline import descriptors


async def test_the_end_of_the_other_one_is_noticed_while_it_takes_nothing() -> None:
    """Its own timeout could not fire if this held the loop."""
    ours, theirs = socket.socketpair()
    conversation = Conversation(ours)
    conversation.say("count", count="x" * (4 << 20))
    assert conversation.backlog
    theirs.close()
    with pytest.raises(Refusal):
        await conversation.hear(10)
    conversation.close()


@pytest.mark.parametrize("body", [b"", b"[]", b'[["say", "ready"]]', b"[" * 100_000, b"\xff"])
async def test_what_is_no_word_is_its_end_and_costs_no_descriptor(body: bytes) -> None:
    before = descriptors()
    ours, theirs = socket.socketpair()
    conversation, other = Conversation(ours), Channel(theirs)
    other.send(0, body, [0, 0])
    with pytest.raises(Refusal):
        await conversation.hear(10)
    conversation.close()
    other.close()
    assert descriptors() == before
