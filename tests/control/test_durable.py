"""The disk fails, pylb restarts: what was answered stays true."""

import asyncio
import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from pylb.control.persistence import RESERVE
from pylb.control.storage import disk
from pylb.control.storage.snapshot import Encoder
from pylb.control.storage.store import StateLocked, Store
from pylb.core.errors import Code, Refused
from pylb.core.policy import Check, CheckKind, HealthOverride, LeaseBounds, Rules, WhenAllDown
from pylb.core.registration import Announcement, FrontendRequest
from tests.control.harness import (
    NODE_A,
    NODE_B,
    NODE_C,
    Control,
    control,
    disk_full,
    target,
    token,
    until,
)
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


async def test_everything_answered_is_there_after_a_restart_and_serves_before_anybody_calls(tmp_path: Path) -> None:
    ports = free_ports(5)
    with target(30001, NODE_A):
        crashed = Control(tmp_path, Rules())
        await crashed.registry.start()
        await crashed.put({ports[0]: 30001, ports[1]: 30002})
        await crashed.put({ports[0]: 30001, ports[1]: 30002}, NODE_B)
        await crashed.put({ports[0]: 30001, ports[1]: 30002}, NODE_C, instance="pod-2", ttl=None)
        await crashed.legacy(ports[2], 30003)
        await crashed.put({ports[3]: 30004}, name="gone")
        await crashed.delete(name="gone")
    held = [(view.token, view.name, view.instance, view.address) for view in crashed.registry.each_registration()]
    ranks = crashed.ranks(ports[0])
    generation = crashed.registry.table.generation
    # a crash: no final snapshot, only the kernel closing the lock and the ports
    crashed.registry._writing.cancel()  # type: ignore[union-attr]
    crashed.store.close()
    crashed.sink.close()
    async with control(tmp_path) as c:
        assert c.sink.ports == set(ports[:3])
        assert [(v.token, v.name, v.instance, v.address) for v in c.registry.each_registration()] == held
        assert c.ranks(ports[0]) == ranks == {NODE_A: 0, NODE_B: 1, NODE_C: 1}
        assert c.registry.table.generation > generation
        assert {view.instance: view.ttl for view in c.registry.each_registration()} == {"pod-1": 60.0, "pod-2": None, "": None}
        assert [view.last_seen_ago for view in c.registry.each_registration()] == [None, None, None]


async def test_a_stale_one_is_still_stale_after_a_restart_and_its_time_goes_on(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path, rules=Rules(leases=LeaseBounds(keep_stale=86_400))) as c:
        await c.put({port: 30001})
        await c.pass_time(3660)
        assert next(iter(c.registry.each_registration())).state == "stale"
    async with control(tmp_path, rules=Rules(leases=LeaseBounds(keep_stale=86_400))) as c:
        (view,) = c.registry.each_registration()
        assert view.state == "stale"
        assert view.expires_in == pytest.approx(-3600, abs=5)
        await c.pass_time(82_000)
        assert c.sink.ports == {port}
        await c.pass_time(1_000)
        assert c.sink.ports == set()


async def test_what_was_learned_of_a_legacy_client_outlives_a_restart(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        for _ in range(3):
            await c.legacy(port, 30001)
            await c.pass_time(900)
        assert next(iter(c.registry.each_registration())).ttl == pytest.approx(2700, abs=10)
    async with control(tmp_path) as c:
        assert next(iter(c.registry.each_registration())).ttl == pytest.approx(2700, abs=10)
        await c.legacy(port, 30001)
        assert next(iter(c.registry.each_registration())).expires_in == pytest.approx(2700, abs=10)


async def test_a_port_taken_meanwhile_is_kept_shown_and_opened_as_soon_as_it_is_free(tmp_path: Path) -> None:
    port, other = free_ports(2)
    async with control(tmp_path) as c:
        await c.put({port: 30001})
        await c.put({other: 30002}, name="other")
    with target(port, "0.0.0.0"):
        async with control(tmp_path) as c:
            assert c.sink.ports == {other}
            ((listen, reason),) = c.registry.unbound().items()
            assert (listen.port, reason) == (port, "Address already in use")
            assert "is not open" in (await c.put({port: 30001})).note
            assert "unbound" in c.kinds()
    async with control(tmp_path) as c:
        assert c.registry.unbound() == {}
    with target(port, "0.0.0.0"):
        crowded = control(tmp_path)
        c = await crowded.__aenter__()
    await c.pass_time(6)
    assert c.sink.ports == {port, other}
    assert c.registry.unbound() == {}
    assert "bound" in c.kinds()
    await crowded.__aexit__(None, None, None)


async def test_a_damaged_snapshot_is_loud_and_costs_only_itself(tmp_path: Path) -> None:
    port, other = free_ports(2)
    async with control(tmp_path) as c:
        await c.put({port: 30001})
        await c.put({other: 30002}, name="other")
    c.store.path.write_bytes(b"garbage")
    async with control(tmp_path) as c:
        assert c.sink.ports  # the generation before
        assert any(event.alarm and "state.json.bad-1" in event.text for event in c.registry.events())
        await c.registry.tick()
        assert c.store.path.exists()


async def test_what_the_config_no_longer_allows_is_left_out_of_a_restart_loudly(tmp_path: Path) -> None:
    port, other = free_ports(2)
    async with control(tmp_path) as c:
        await c.put({port: 30001, other: 30002})
    async with control(tmp_path, rules=Rules(frontends=(static("https", f"*:{port}"),))) as c:
        assert c.sink.ports == {port, other}
        assert [view.frontends[0].port for view in c.registry.each_registration()] == [other]
        assert "not_restored" in c.kinds()


async def test_one_bad_entry_of_a_snapshot_does_not_cost_the_others(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    good = {"token": "t", "name": "web", "instance": "p", "address": NODE_A, "frontends": [{"port": port, "target_port": 1}]}
    bad = [
        None,
        {},
        good | {"address": "x"},
        good | {"frontends": [{"port": 0, "target_port": 1}]},
        good | {"state": "confused"},
        good | {"ttl": "soon"},
    ]
    store = Store(tmp_path)
    store.open()
    payload = {"registrations": [*bad, good], "proven": ["x", f"{NODE_A}:1"], "generation": "x"}
    await store.save(lambda: payload)
    store.close()
    async with control(tmp_path) as c:
        assert c.ranks(port) == {NODE_A: 0}
        assert sum("left out" in event.text for event in c.registry.events()) == len(bad) + 1


async def test_two_pylbs_do_not_share_a_state_directory(tmp_path: Path) -> None:
    async with control(tmp_path):
        second = Control(tmp_path, Rules(), token())
        with pytest.raises(StateLocked):
            await second.registry.start()
        await second.registry.stop()


async def test_many_calls_at_once_share_their_writes(tmp_path: Path) -> None:
    ports = free_ports(40)
    async with control(tmp_path) as c:
        await asyncio.gather(*(c.put({port: 30001}, instance=f"pod-{port}", name=f"n{port}") for port in ports))
        assert c.sink.ports == set(ports)
        assert c.store.saves <= 10


async def test_a_registrations_own_check_outlives_a_restart(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    check = Check(CheckKind.HTTP, path="/up")
    said = Announcement((FrontendRequest(port, 30001, health=HealthOverride(check, when_all_down=WhenAllDown.REFUSE)),))
    async with control(tmp_path) as c:
        with target(30001):
            await c.registry.calls.announce("web", "pod-1", said, c.caller())
    async with control(tmp_path) as c:
        health = c.server(port)[1].health
        assert health is not None
        assert (health.check, health.when_all_down) == (check, WhenAllDown.REFUSE)


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


async def test_no_number_of_a_generation_is_used_twice_even_after_a_crash(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    crashed = Control(tmp_path, Rules())
    await crashed.registry.start()
    with target(30001, NODE_A):
        await crashed.put({port: 30001})
    listen, server = crashed.server(port)
    first = crashed.registry.table.generation
    while crashed.registry.table.generation < first + 2 * RESERVE:  # of health: nobody waits for a snapshot of them
        for failure in ("refused", "refused", "refused", None, None, None):
            crashed.registry.connect_ended(listen, server, failure)
            await asyncio.sleep(0)
        if crashed.registry.table.generation % (RESERVE // 4) < 3:
            crashed.clock.now += 1
            await crashed.registry.tick()
    last = crashed.registry.table.generation
    crashed.registry._writing.cancel()  # type: ignore[union-attr]
    crashed.store.close()
    crashed.sink.close()
    async with control(tmp_path) as c:
        assert c.registry.table.generation > last
        stopped = c.registry.table.generation
    async with control(tmp_path) as c:
        assert stopped < c.registry.table.generation <= stopped + 2  # an orderly stop leaves no gap


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
