"""The cost of work, counted instead of timed: the number of function calls, in Python and in C, is the same in every run."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def counting() -> Iterator[Callable[[], int]]:
    """Count calls while the block runs. The yielded function returns their number so far."""
    calls = 0

    def profile(_frame: FrameType, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        yield lambda: calls
    finally:
        sys.setprofile(None)


@contextmanager
def counting_bytecodes() -> Iterator[Callable[[], int]]:
    """The same with the bytecodes of the functions that are called: a loop without calls is seen, too."""
    bytecodes = 0

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal bytecodes
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        bytecodes += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lambda: bytecodes
    finally:
        sys.settrace(before)
