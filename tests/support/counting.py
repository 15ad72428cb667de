"""What work costs, counted and not timed: Python's own calls, functions and those written in C, are the same in every run."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def counting() -> Iterator[Callable[[], int]]:
    """While the block runs; the call says how many there were so far."""
    calls = 0

    def profile(_frame: FrameType, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        yield lambda: calls
    finally:
        sys.setprofile(None)
