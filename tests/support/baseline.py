"""The state to which every test that runs an engine must return.

No descriptor, session or half remains, memory has not grown, and idle processes use no CPU. Garbage collection is off while
the test runs: reference counts alone must free sessions, because pylb freezes the heap and sets high thresholds.
"""

import gc
import os
import select
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.processes import cpu_seconds
from pylb.forward.session import Half, Session
from pylb.host.loop_lag import GC_THRESHOLDS

IDLE_CPU = 0.02  # share of one core
MEMORY = 192 << 20  # bytes a single test may leave behind; kernel buffers are not ours, big literals of tests are
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Baseline:
    """For tests that start processes: `baseline.watch(pid)` measures their idle CPU at the end."""

    def __init__(self) -> None:
        gc.collect()
        gc.disable()
        self._descriptors = descriptors()
        self._memory = resident()
        self._pids: list[int] = []

    def watch(self, pid: int) -> None:
        """A process that should be idle once the test is over. One that has ended by then is not measured."""
        self._pids.append(pid)

    def check(self) -> None:
        try:
            live = [each for each in gc.get_objects() if isinstance(each, Half | Session)]
            assert not live, f"still referenced, or in a cycle: {[describe(each) for each in live[:4]]}"
        finally:
            gc.enable()
            gc.collect()
        left = descriptors().items() - self._descriptors.items()
        assert not left, f"descriptors left open: {sorted(left)}"
        assert resident() - self._memory < MEMORY
        for pid in self._pids:
            share = idle_cpu(pid)
            assert share < IDLE_CPU, f"process {pid} burns {share:.0%} of a core while nothing happens"


@pytest.fixture
def baseline() -> Iterator[Baseline]:
    """Made autouse by the conftest of tests/forward and tests/e2e."""
    line = Baseline()
    yield line
    line.check()


def freeze_what_stays() -> None:
    """Modules and collected tests stay to the end, so no later collection need visit them. There are two for each watched test,
    and each took 0.2 s: 80 % of the time of tests/forward."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@contextmanager
def collected_as_in_service() -> Iterator[None]:
    """For a test that measures steps of the loop: pylb has these thresholds, so no full collection falls into one of them."""
    before = gc.get_threshold()
    gc.collect()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def descriptors() -> dict[str, str]:
    """This process's open descriptors and what each is, without the one that lists the directory."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            pass
    return found


def resident() -> int:
    """The resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def idle_cpu(*pids: int, window: float = 0.5, windows: int = 8) -> float:
    """The CPU share of the busiest of `pids` in the first quiet window of at most `windows` (seconds each), else in the last.

    A process that has ended counts as 0.
    """
    share = 0.0
    for _ in range(windows):
        before = [cpu_seconds([pid]) for pid in pids]
        select.select([], [], [], window)  # the time over which we measure, not a wait for something to happen
        used = [cpu_seconds([pid]) - start for pid, start in zip(pids, before, strict=True)]
        share = max(used) / window
        if share < IDLE_CPU:
            return share
    return share


def describe(each: Half | Session) -> str:
    holders = [type(holder).__name__ for holder in gc.get_referrers(each)]
    return f"{type(each).__name__} held by {holders}"
