"""pylb/upgrade/handover.py: what the old one does."""

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import cast

import pytest

from pylb.core.address import Listen
from pylb.forward.counters import Counters, FrontendCounters
from pylb.upgrade.handover import Running, hand_over, report_to, tell_the_last
from pylb.upgrade.protocol import Refusal, Talk, report_of
from pylb.workers.messages import Report, counted, report


async def test_counts_go_on_after_more_at_once_than_a_successor_takes_and_the_last_ones_arrive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of a thousand busy frontends are three times what the socket holds; what was left of them was never sent."""
    listens = [Listen("tcp", "*", port) for port in range(1, 3000)]
    many = tuple(counted(listen, FrontendCounters(f"web-{listen.port}")) for listen in listens)
    monkeypatch.setattr("pylb.upgrade.handover.REPORT", 0.0)

    class Old:
        async def counted(self) -> AsyncIterator[Report]:
            yield report(Counters(1), 0.0, many)

        def failures(self) -> dict[str, int]:
            return {}

    some = cast("Running", Old())

    async def until_its_end(talk: Talk) -> int:
        """How many whole reports came."""
        number = 0
        with suppress(Refusal):
            while True:
                said, _ = await talk.expect("count", 10)
                assert len(report_of(said).frontends) == len(many)
                number += 1
        return number

    ours, theirs = socket.socketpair()
    old, new = Talk(ours), Talk(theirs)
    listening = asyncio.get_running_loop().create_task(old.hear())  # for a stop, as long as it lives
    reporting = asyncio.get_running_loop().create_task(report_to(old, some))
    try:
        await new.expect("count", 10)
        await new.expect("count", 10)
    finally:
        for task in (reporting, listening):
            task.cancel()
        await asyncio.gather(reporting, listening, return_exceptions=True)
    await tell_the_last(old, some)
    assert await until_its_end(new) >= 1
    new.close()


async def test_a_successor_that_has_ended_at_once_leaves_no_watch_on_a_descriptor_that_others_get(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """uvloop would watch the number on, and call for whoever has it next."""
    channels: list[int] = []
    with subprocess.Popen(["true"]) as process:
        pass

    async def start(channel: socket.socket, _environ: object) -> int:
        channels.append(channel.fileno() - 1)  # of the pair, ours is the first
        return process.pid

    monkeypatch.setattr("pylb.upgrade.handover.launch", start)
    with pytest.raises(Refusal, match="cannot be started"):
        await hand_over(cast("Running", None), {}, lambda _pid: None)
    assert not asyncio.get_running_loop().remove_reader(channels[0])
