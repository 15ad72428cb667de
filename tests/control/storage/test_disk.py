"""The disk's thread, where its answer and the end of its time come together."""

import asyncio
import threading
from queue import SimpleQueue

import pytest

from pylb.control.storage import disk
from pylb.control.storage.disk import Disk, Job


class AtOnce(SimpleQueue[Job | None]):
    """The thread has ended a job before its caller waits: as if the loop had stood still until the time was over."""

    def put(self, item: Job | None, *_: object) -> None:
        if item is not None:
            item.run()


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr(disk, "WRITE_TIMEOUT", 0.0)
    found = Disk()
    found._jobs = AtOnce()
    found._thread = threading.current_thread()
    return found


async def test_what_is_written_when_the_loop_gets_to_it_is_no_failure_of_the_disk(late: Disk) -> None:
    written = []
    await late.run(lambda _job: written.append(1))
    assert written == [1]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), TimeoutError("called off")])
async def test_nor_is_its_error_lost(late: Disk, error: OSError) -> None:
    def fails(_job: Job) -> None:
        raise error

    with pytest.raises(OSError, match=str(error.strerror or error)) as caught:
        await late.run(fails)
    assert caught.value is error


async def test_work_that_has_not_begun_is_called_off_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "WRITE_TIMEOUT", 0.0)
    slow = Disk()
    begun, release, look_at = threading.Event(), threading.Event(), Disk._look_at

    def waits(_job: Job) -> None:
        begun.set()
        release.wait(5)

    def look(self: Disk, job: Job) -> None:
        assert begun.wait(5)  # a job that is given up before that never begins, and delays nobody
        look_at(self, job)

    monkeypatch.setattr(Disk, "_look_at", look)
    with pytest.raises(TimeoutError, match="the disk did not answer in time"):
        await slow.run(waits)
    with pytest.raises(TimeoutError, match="the disk has not answered yet"):
        await slow.run(waits)
    release.set()
    slow.close()


@pytest.fixture
async def one_look(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Is set when the disk's time was looked at for the first time."""
    monkeypatch.setattr(disk, "WRITE_TIMEOUT", 0.001)
    looked, look_at = asyncio.Event(), Disk._look_at

    def look(self: Disk, job: Job) -> None:
        look_at(self, job)
        looked.set()

    monkeypatch.setattr(Disk, "_look_at", look)
    return looked


async def test_the_time_that_it_takes_to_make_what_is_written_is_not_the_disks(
    one_look: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """25,000 servers that came at once took longer to encode than the disk may take to write them: new ports were refused. And
    so was what waited behind them."""
    busy, release, written = Disk(), threading.Event(), list[int]()

    def large(job: Job) -> None:
        job.computed(lambda: release.wait(5))
        written.append(1)

    async with asyncio.TaskGroup() as group:
        group.create_task(busy.run(large))
        group.create_task(busy.run(lambda _job: written.append(2)))
        await one_look.wait()
        monkeypatch.setattr(disk, "WRITE_TIMEOUT", 5.0)
        release.set()
    assert written == [1, 2]
    busy.close()


async def test_a_disk_that_hangs_after_that_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "WRITE_TIMEOUT", 0.001)
    slow, release = Disk(), threading.Event()

    def waits(job: Job) -> None:
        job.computed(lambda: None)
        release.wait(5)

    with pytest.raises(TimeoutError, match="the disk did not answer in time"):
        await slow.run(waits)
    release.set()
    slow.close()
