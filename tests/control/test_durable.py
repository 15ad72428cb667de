"""The disk fails: what was answered stays true. Restarts are in test_restart.py."""

import asyncio
import errno
import os
import stat
import threading
import traceback
from pathlib import Path

import pytest

from pylb.control.storage import disk
from pylb.control.storage.snapshot import Encoder
from pylb.core.errors import Code, Refused
from pylb.core.policy import Rules
from tests.control.harness import NODE_A, NODE_B, NODE_C, control, disk_full, target, until
from tests.core.claiming import static
from tests.support.ports import free_ports


async def test_on_a_full_disk_new_names_and_ports_are_refused_and_change_nothing(tmp_path: Path) -> None:
    port, other = free_ports(2)
    async with control(tmp_path) as c:
        await c.put({port: 30001})
        before = c.picture()
        for call in ({"ports": {other: 30002}, "name": "new"}, {"ports": {port: 30001, other: 30002}}):
            with disk_full(), pytest.raises(Refused) as caught:
                await c.put(**call)  # type: ignore[arg-type]
            assert caught.value.code is Code.STATE_NOT_WRITABLE
            assert caught.value.retry_after
            assert c.picture() == before
        with disk_full(), pytest.raises(Refused, match="state_not_writable"):
            await c.legacy(other, 30002)
        assert c.picture() == before
        with target(other, "0.0.0.0"):
            assert c.registry.write_failures == 3


async def test_on_a_full_disk_a_new_name_is_refused_even_where_the_port_is_open_already(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    rules = Rules(frontends=(static("web", f"*:{port}", f"{NODE_C}:30001"),))
    async with control(tmp_path, rules=rules) as c:
        with disk_full(), pytest.raises(Refused, match="state_not_writable"):
            await c.put({port: 30001})
        assert set(c.ranks(port)) == {NODE_C}


async def test_on_a_full_disk_beats_moves_and_new_instances_go_on(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        await c.put({port: 30001})
        saves = c.store.saves
        with disk_full():
            assert (await c.put({port: 30001})).result == "unchanged"
            assert c.store.saves == saves
            assert c.registry.durable
            moved = await c.put({port: 30001}, NODE_B)
            second = await c.put({port: 30001}, NODE_C, instance="pod-2")
            beat = await c.put({port: 30001}, NODE_B)
        assert (moved.result, moved.durable) == ("moved", False)
        assert (second.result, second.durable) == ("created", False)
        assert (beat.result, beat.durable) == ("unchanged", False)
        assert set(c.ranks(port)) == {NODE_B, NODE_C}
        assert c.kinds().count("state_not_durable") == 1
        assert not c.registry.durable


async def test_the_retry_that_succeeds_makes_it_durable_again(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        await c.put({port: 30001})
        with disk_full():
            await c.put({port: 30001}, NODE_B)
            await c.pass_time(20)
            tries = c.registry.write_failures
        assert 3 <= tries <= 7  # backing off
        await c.pass_time(40)
        assert c.registry.durable
        assert "state_durable" in c.kinds()
        assert f'"address":"{NODE_B}"' in c.store.path.read_text()


async def test_on_a_full_disk_each_call_of_a_batch_gets_its_own_answer(tmp_path: Path) -> None:
    port, other, third = free_ports(3)
    async with control(tmp_path) as c:
        await c.put({port: 30001})
        with disk_full():
            answers = await asyncio.gather(
                c.put({other: 30002}, name="new"),
                c.put({other: 30003}, name="rival"),
                c.put({port: 30001}, NODE_B),
                c.delete(name="nobody"),
                c.put({third: 30004, port: 30001}, NODE_C, instance="pod-2"),
                return_exceptions=True,
            )
        codes = [answer.code if isinstance(answer, Refused) else None for answer in answers]
        assert codes[0] is Code.STATE_NOT_WRITABLE
        assert codes[1] in (Code.STATE_NOT_WRITABLE, Code.PORT_OWNED)  # it depends on whether they shared a write
        assert codes[2:] == [None, None, Code.STATE_NOT_WRITABLE]
        assert c.sink.ports == {port}


async def test_a_state_directory_that_vanished_is_a_disk_that_fails(tmp_path: Path) -> None:
    port, other = free_ports(2)
    state = tmp_path / "state"
    async with control(state) as c:
        await c.put({port: 30001})
        state.rename(tmp_path / "away")
        with pytest.raises(Refused, match="state_not_writable"):
            await c.put({other: 30001}, name="new")
        (tmp_path / "away").rename(state)
        assert (await c.put({other: 30001}, name="new")).durable


async def test_where_the_state_directory_cannot_be_made_static_frontends_serve_all_the_same(tmp_path: Path) -> None:
    port, other = free_ports(2)
    (tmp_path / "state").write_text("a file in its place")
    rules = Rules(frontends=(static("web", f"*:{port}", f"{NODE_A}:30001"),))
    async with control(tmp_path / "state", rules=rules) as c:
        assert c.sink.ports == {port}
        assert "state" in c.kinds()
        with pytest.raises(Refused, match="state_not_writable"):
            await c.put({other: 30001}, name="new")


async def test_many_calls_at_once_share_their_writes(tmp_path: Path) -> None:
    ports = free_ports(40)
    async with control(tmp_path) as c:
        await asyncio.gather(*(c.put({port: 30001}, instance=f"pod-{port}", name=f"n{port}") for port in ports))
        assert c.sink.ports == set(ports)
        assert c.store.saves <= 10


class Hanging:
    """Every fsync waits until `release`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._event, self._real, self.waiting = threading.Event(), os.fsync, 0
        self._event.set()
        patch.setattr(os, "fsync", self._fsync)
        patch.setattr(disk, "WRITE_TIMEOUT", 0.2)

    def _fsync(self, fd: int) -> None:
        self.waiting += 1
        self._event.wait(30)
        self.waiting -= 1
        self._real(fd)

    def hang(self) -> None:
        self._event.clear()

    def release(self) -> None:
        self._event.set()


async def test_a_hanging_disk_is_waited_for_once_and_then_every_call_is_judged_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, other = free_ports(2)
    hanging = Hanging(monkeypatch)
    async with control(tmp_path) as c:
        await c.put({port: 30001})
        hanging.hang()
        saves = c.store.saves
        moved = await c.put({port: 30001}, NODE_B)
        assert (moved.result, moved.durable) == ("moved", False)
        monkeypatch.setattr(disk, "WRITE_TIMEOUT", 30.0)  # whoever waited for it now would be too late for the test
        for node in (NODE_A, NODE_C, NODE_B):
            assert not (await c.put({port: 30001}, node)).durable
        with pytest.raises(Refused, match="state_not_writable"):
            await c.put({other: 30001}, name="new")
        assert c.store.saves == saves + 1
        await c.pass_time(10)  # retries beside, which fail at once while the first write hangs
        hanging.release()
        await until(lambda: all(job.ended for job in c.store._disk._late))
        await c.pass_time(40)
        assert c.registry.durable
        assert c.kinds().count("state_not_durable") == c.kinds().count("state_durable") == 1
        assert f'"address":"{NODE_B}"' in c.store.path.read_text()
        assert (await c.put({other: 30001}, name="new")).durable


async def test_while_the_disk_hangs_the_retry_is_made_beside_and_holds_up_no_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    hanging = Hanging(monkeypatch)
    async with control(tmp_path) as c:
        await c.put({port: 30001})
        hanging.hang()
        await c.put({port: 30001}, NODE_B)
        hanging.release()
        await until(lambda: all(job.ended for job in c.store._disk._late))
        hanging.hang()
        monkeypatch.setattr(disk, "WRITE_TIMEOUT", 30.0)
        c.clock.now += 5
        retry = asyncio.get_running_loop().create_task(c.registry.tick())
        await until(lambda: hanging.waiting)
        assert not (await c.put({port: 30001}, NODE_C)).durable  # while the retry waits for its fsync
        assert not retry.done()
        hanging.release()
        await retry
        assert c.registry.durable
        assert f'"address":"{NODE_C}"' in c.store.path.read_text()


async def test_stop_does_not_wait_for_a_disk_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    hanging = Hanging(monkeypatch)
    async with control(tmp_path) as c:
        await c.put({port: 30001})
        hanging.hang()
    assert hanging.waiting == 1  # it is still there, and nobody waits
    hanging.release()


async def test_what_only_the_directory_did_not_take_is_in_force_and_not_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    real = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    async with control(tmp_path) as c:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            created = await c.put({port: 30001})
        assert (created.result, created.durable) == ("created", False)
        assert c.sink.ports == {port}
        assert f'"port":{port}' in c.store.path.read_text()  # a 503 would have been a lie
        await c.pass_time(10)
        assert c.registry.durable


async def test_who_is_told_of_events_may_raise_and_every_call_is_answered(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:

        def hook(_event: object) -> None:
            raise RuntimeError("a bug")

        c.heard_by = hook
        assert (await c.put({port: 30001})).result == "created"
        assert (await c.put({port: 30001}, NODE_B)).result == "moved"
        assert c.registry.task_failures["events"] == 3  # the two, and the alarm about them
        assert [event.kind for event in c.registry.events()][-1] in ("moved", "task_failed")


async def test_a_bug_in_the_snapshot_is_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port, other = free_ports(2)
    async with control(tmp_path) as c:
        await c.put({port: 30001})
        with monkeypatch.context() as patch:
            patch.setattr(Encoder, "encode", lambda *_: {"a": float("nan")})
            assert not (await c.put({port: 30001}, NODE_B)).durable
            with pytest.raises(Refused, match="state_not_writable"):
                await c.put({other: 30001}, name="new")
        assert c.registry.task_failures["snapshot"] == 2
        assert (await c.put({port: 30001}, NODE_C)).durable


async def test_calls_that_a_full_disk_refuses_together_hold_no_frames(tmp_path: Path) -> None:
    """One refusal was raised for each of them, and collected the frames of all, with a picture of everything in each."""
    port, *ports = free_ports(9)
    async with control(tmp_path) as c:
        await c.put({port: 30001})
        with disk_full():
            calls = (c.put({other: 30002}, name=f"new-{other}") for other in ports)
            refused = await asyncio.gather(*calls, return_exceptions=True)
    assert len({id(one) for one in refused}) == len(ports)
    for one in refused:
        assert isinstance(one, Refused)
        frames = [frame.f_code.co_name for frame, _ in traceback.walk_tb(one.__traceback__)]
        assert "admit" not in frames
        assert len(frames) < 10
