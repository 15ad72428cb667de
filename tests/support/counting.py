"""The cost of work, counted instead of timed: the number of function calls, in Python and in C, is the same in every run."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


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
