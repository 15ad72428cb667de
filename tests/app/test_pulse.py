"""How late a loop is, and what a loop that does not turn leaves behind."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from pylb.host.loop_lag import LAG_DECAY, Pulse
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
