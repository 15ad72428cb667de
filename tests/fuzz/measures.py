"""What a parser costs, measured so that a busy machine does not matter: events of the interpreter, memory, its own CPU time."""

import signal
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

HANG = 60.0  # seconds of CPU time for one input


class Hang(BaseException):
    """Not an Exception: no parser's own `except` may take it for one of its own."""


@contextmanager
def no_hang(seconds: float = HANG) -> Iterator[None]:
    """Raises Hang after so many seconds of this process's CPU time; also inside a regular expression: it looks for signals."""

    def over(_number: int, _frame: FrameType | None) -> None:
        raise Hang(f"more than {seconds:g} s of CPU time for one input")

    before = signal.signal(signal.SIGVTALRM, over)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def events(work: Callable[..., object], *args: object) -> int:
    """Calls of Python and C functions, and lines: the same number on every machine."""
    count = 0

    def line(_frame: FrameType, _event: str, _arg: object) -> object:
        nonlocal count
        count += 1
        return line

    def call(_frame: FrameType, _event: str, _arg: object) -> None:
        nonlocal count
        count += 1

    trace, profile = sys.gettrace(), sys.getprofile()
    sys.settrace(line)
    sys.setprofile(call)
    try:
        work(*args)
    finally:
        sys.setprofile(profile)
        sys.settrace(trace)
    return count


def memory(work: Callable[..., object], *args: object) -> int:
    """Bytes that were held at the same time at most."""
    tracemalloc.start()
    try:
        work(*args)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def seconds(work: Callable[..., object], *args: object) -> float:
    """Of CPU time of this thread."""
    began = time.thread_time()
    work(*args)
    return time.thread_time() - began
