"""pylb/upgrade/handover.py: what the old one does."""

import asyncio
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from subprocess import Popen
from typing import cast

import pytest

from pylb.cli.main import UPGRADE_SECONDS
from pylb.core.address import Listen
from pylb.core.flow import FlowBatch
from pylb.forward.counters import Counters, FrontendCounters
from pylb.upgrade.handover import INTRODUCED, READY, SERVING, OldProcess, hand_over, report_to, send_last_counts
from pylb.upgrade.protocol import PROTOCOL, Conversation, Refusal, report_of
from pylb.upgrade.successor import ENDED
from pylb.web.unix import UNLINK
from pylb.workers.messages import Report, frontend_count, report


async def test_counts_go_on_after_more_at_once_than_a_successor_takes_and_the_last_ones_arrive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of a thousand busy frontends are three times what the socket holds; what was left of them was never sent."""
    listens = [Listen("tcp", "*", port) for port in range(1, 3000)]
    many = tuple(frontend_count(listen, FrontendCounters(f"web-{listen.port}")) for listen in listens)
    monkeypatch.setattr("pylb.upgrade.handover.REPORT", 0.0)

    class Old:
        async def counted(self) -> AsyncIterator[Report]:
            yield report(Counters(1), 0.0, many)

        def failures(self) -> dict[str, int]:
            return {}

    some = cast("OldProcess", Old())

    async def until_its_end(conversation: Conversation) -> int:
        """How many whole reports came."""
        number = 0
        with suppress(Refusal):
            while True:
                said, _ = await conversation.expect("count", 10)
                assert len(report_of(said).frontends) == len(many)
                number += 1
        return number

    ours, theirs = socket.socketpair()
    old, new = Conversation(ours), Conversation(theirs)
    listening = asyncio.get_running_loop().create_task(old.hear())  # for a stop, as long as it lives
    reporting = asyncio.get_running_loop().create_task(report_to(old, some))
    try:
        await new.expect("count", 10)
        await new.expect("count", 10)
    finally:
        for task in (reporting, listening):
            task.cancel()
        await asyncio.gather(reporting, listening, return_exceptions=True)
    await send_last_counts(old, some)
    assert await until_its_end(new) >= 1
    new.close()


async def test_a_successor_that_has_ended_at_once_leaves_no_watch_on_a_descriptor_that_others_get(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """uvloop would watch the number on, and call for whoever has it next."""
    channels: list[int] = []
    looked_in: list[threading.Thread] = []
    with subprocess.Popen(["true"]) as process:
        pass

    def program() -> list[str]:
        looked_in.append(threading.current_thread())
        return ["/usr/bin/pylb"]

    async def start(channel: socket.socket, _environ: object) -> int:
        channels.append(channel.fileno() - 1)  # of the pair, ours is the first
        return process.pid

    monkeypatch.setattr("pylb.upgrade.handover.launch", start)
    monkeypatch.setattr("pylb.upgrade.handover.command", program)
    with pytest.raises(Refusal, match="/usr/bin/pylb cannot be started"):
        await hand_over(cast("OldProcess", None), {}, lambda _pid: True)
    assert not asyncio.get_running_loop().remove_reader(channels[0])
    assert threading.main_thread() not in looked_in  # the script may be on a disk that hangs


def test_pylb_upgrade_waits_for_the_answer_longer_than_an_upgrade_takes_that_fails_at_its_last_step() -> None:
    local_sockets = 2
    assert READY + local_sockets * UNLINK + SERVING + INTRODUCED + ENDED < UPGRADE_SECONDS


class Ready:
    """An old pylb with nothing to give; `done` is what was asked of it."""

    def __init__(self) -> None:
        self.done: list[str] = []

    async def hold(self) -> None:
        self.done.append("hold")

    async def take_back(self) -> None:
        self.done.append("take back")

    def descriptors(self) -> list[int]:
        return []

    def flows(self) -> Iterator[FlowBatch]:
        return iter(())

    async def counted(self) -> AsyncIterator[Report]:
        yield report(Counters(1), 0.0, ())

    def totals(self) -> dict[str, dict[str, int]]:
        return {}

    def failures(self) -> dict[str, int]:
        return {}


async def hand_over_to_a_sleeper(
    monkeypatch: pytest.MonkeyPatch, introduce: Callable[[int, Popen[bytes]], bool]
) -> tuple[Ready, str]:
    """A hand-over to a process that does all it should. Returns the old one, and why it stays in charge: "" if it does not.

    `introduce` is systemd.
    """
    old = Ready()
    monkeypatch.setattr("pylb.upgrade.handover.ASK_AGAIN", 0.0)

    theirs: list[Conversation] = []

    async def start(channel: socket.socket, _environ: object) -> int:
        theirs.append(Conversation(channel.dup()))
        theirs[0].say("ready", protocol=PROTOCOL)
        theirs[0].say("serving")
        return process.pid

    monkeypatch.setattr("pylb.upgrade.handover.launch", start)
    process = Popen(["sleep", "60"])
    try:
        successor = await hand_over(cast("OldProcess", old), {}, lambda pid: introduce(pid, process))
        assert successor.pid == process.pid
        for word in ("count", "yours", "go"):
            await theirs[0].expect(word, 10)
        successor.close()
    except Refusal as refusal:
        return old, str(refusal)
    finally:
        theirs[0].close()
        process.kill()
        process.wait()
    return old, ""


async def test_the_new_one_is_in_charge_once_systemd_has_taken_its_pid_and_no_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def busy(pid: int, process: Popen[bytes]) -> bool:
        assert pid == process.pid
        asked.append(pid)
        return len(asked) == 3

    old, refusal = await hand_over_to_a_sleeper(monkeypatch, busy)
    assert (len(asked), refusal, old.done) == (3, "", ["hold"])


async def test_if_systemd_takes_nothing_the_old_one_stays_in_charge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pylb.upgrade.handover.INTRODUCED", 0.1)
    old, refusal = await hand_over_to_a_sleeper(monkeypatch, lambda *_: False)
    assert (refusal, old.done) == ("systemd has taken no message for 100 ms", ["hold", "take back"])


async def test_a_new_one_that_ends_while_systemd_is_busy_is_never_in_charge(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def busy(pid: int, process: Popen[bytes]) -> bool:
        asked.append(pid)
        process.kill()
        process.wait()
        return False

    old, refusal = await hand_over_to_a_sleeper(monkeypatch, busy)
    assert (len(asked), refusal, old.done) == (1, "the other process has ended", ["hold", "take back"])
