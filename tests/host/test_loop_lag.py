"""How late a loop is, and what a loop that does not turn leaves behind."""

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from pylb.host.loop_lag import FULL_EVERY, LAG_DECAY, FullCollections, Pulse, collect_rarely
from tests.support.baseline import freeze_what_stays
from tests.support.processes import ROOT

STALLED = """
import time
from pylb.host.loop_lag import Pulse

def stand_still():
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        pass

pulse = Pulse(0.1, time.monotonic(), stall=0.2)
pulse.beat(time.monotonic())
stand_still()
pulse.stop()
"""


@pytest.fixture
def pulse() -> Iterator[Pulse]:
    pulse = Pulse(0.1, 100.0, stall=1000.0)
    yield pulse
    pulse.stop()


def test_the_lag_is_the_worst_of_late_and_fades(pulse: Pulse) -> None:
    pulse.beat(100.0)
    assert pulse.lag == 0
    pulse.beat(100.4)  # due at 100.1
    assert pulse.lag == pytest.approx(0.3)
    pulse.beat(100.5)
    assert pulse.lag == pytest.approx(0.3 * LAG_DECAY)


def test_a_loop_that_stands_still_leaves_its_stacks() -> None:
    done = subprocess.run([sys.executable, "-c", STALLED], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    assert "Timeout (0:00:00.200000)!" in done.stderr
    assert "in stand_still" in done.stderr


def test_a_loop_that_turns_leaves_nothing() -> None:
    turning = STALLED.replace("stand_still()\npulse.stop", "pulse.stop()\nstand_still()\npulse.stop")
    done = subprocess.run([sys.executable, "-c", turning], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr == ""


class Cycle:
    """Garbage that reference counts do not free."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def heap(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is there already is frozen, as after the start, and no collection comes by itself."""
    before = gc.get_threshold()
    collect_rarely()
    gc.set_threshold(0)
    monkeypatch.setattr("pylb.host.loop_lag.CHEAP", 1000)
    yield
    gc.set_threshold(*before)
    freeze_what_stays()


def old_garbage() -> weakref.ref[Cycle]:
    """A cycle that two collections found in use, and that is in use no longer."""
    cycle = Cycle()
    gc.collect(1)
    gc.collect(1)
    return weakref.ref(cycle)


@pytest.mark.usefixtures("heap")
def test_garbage_that_grew_old_is_found_within_ten_minutes() -> None:
    collections = FullCollections(100.0)
    found = old_garbage()
    collections.consider(100.0 + FULL_EVERY - 0.1)
    assert found() is not None
    collections.consider(100.0 + FULL_EVERY)
    assert found() is None


@pytest.mark.usefixtures("heap")
def test_a_large_table_is_looked_at_once_it_has_doubled() -> None:
    collections, now = FullCollections(0.0), 0.0
    table = [[number] for number in range(3000)]
    gc.collect(1)
    expected = [True, False, True]  # it came; it grew a little; it doubled
    for more, whole in zip([0, 1000, 2500], expected, strict=True):
        table += [[number] for number in range(more)]
        found, now = old_garbage(), now + FULL_EVERY
        collections.consider(now)
        assert (found() is None) is whole


def test_a_beat_considers_it(pulse: Pulse, monkeypatch: pytest.MonkeyPatch) -> None:
    considered: list[float] = []
    monkeypatch.setattr(FullCollections, "consider", lambda _self, now: considered.append(now))
    pulse.beat(100.0)
    assert considered == [100.0]
