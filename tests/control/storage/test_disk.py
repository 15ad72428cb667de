"""The disk's thread, where its answer and the end of its time come together."""

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
    release = threading.Event()

    def waits(_job: Job) -> None:
        release.wait(5)

    with pytest.raises(TimeoutError, match="the disk did not answer in time"):
        await slow.run(waits)
    with pytest.raises(TimeoutError, match="the disk has not answered yet"):
        await slow.run(waits)
    release.set()
    slow.close()
