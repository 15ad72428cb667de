"""pylb/upgrade/arriving.py: what the new one takes over."""

import socket

import pytest

from pylb.core.address import Listen
from pylb.core.codec import to_plain
from pylb.forward.counters import Counters, FrontendCounters
from pylb.upgrade.arriving import Predecessors, inherit
from pylb.upgrade.protocol import VARIABLE, Conversation, Refusal
from pylb.workers.messages import frontend_count, report


@pytest.mark.parametrize("text", ["x", "-1", "²", "99999999999", "999999"])
async def test_a_channel_to_nobody_is_a_refusal(text: str) -> None:
    with pytest.raises(Refusal, match="no channel"):
        await inherit({VARIABLE: text})


async def test_counters_of_another_form_begin_anew_and_end_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """As of a version with other buckets."""
    one = frontend_count(Listen("tcp", "*", 443), FrontendCounters("web"))._replace(connect_seconds=(1, 2, 3))
    count = to_plain(tuple(report(Counters(9), 0.0, (one,))))
    ours, theirs = socket.socketpair()
    conversation, other = Conversation(ours), Conversation(theirs)
    for _ in range(3):
        other.say("count", count="nothing at all")
    other.close()
    before = Predecessors()
    await before.follow(before.add(conversation, [{"count": count}]))
    assert caplog.text.count("counting starts at zero") == 1
