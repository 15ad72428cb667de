"""One process, by /proc/PID/stat."""

import os
import subprocess
import sys
from pathlib import Path

from pylb.host.process_stat import process_stat


def test_a_process_is_known_by_its_start_and_by_what_it_used() -> None:
    own, parent = process_stat(os.getpid()), process_stat(os.getppid())
    assert own is not None
    assert parent is not None
    assert not own.ended
    assert 0 < int(parent.started) <= int(own.started)  # in ticks of 10 ms
    assert 0 < own.cpu_seconds < os.times().user + os.times().system + 1
    assert own.resident_bytes > 1_000_000


def test_a_name_may_hold_anything() -> None:
    before, name = process_stat(os.getpid()), Path("/proc/self/comm").read_text()
    try:
        Path("/proc/self/comm").write_text("a) Z 1 2 (b")
        named = process_stat(os.getpid())
    finally:
        Path("/proc/self/comm").write_text(name)
    assert before is not None
    assert named is not None
    assert (named.ended, named.started) == (False, before.started)


def test_one_that_ended_is_a_zombie_until_its_parent_takes_note_and_then_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    stat = process_stat(child.pid)
    assert stat is not None
    assert stat.ended
    child.wait()
    assert process_stat(child.pid) is None
