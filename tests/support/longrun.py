"""`python -m tests.… N` of a state machine, as `make fuzz` runs it: for so long as its steps are fewer than N."""

import sys
import time
from collections.abc import Callable


def until(wanted: int, steps: Callable[[], int], run: Callable[[], None], what: str) -> None:
    """`run` again and again, another beginning each time, until there were at least `wanted` steps. It raises what it finds."""
    began = time.monotonic()
    while steps() < wanted:
        run()
        sys.stdout.write(f"{steps():,} {what}, {time.monotonic() - began:.0f} s, nothing found\n")
        sys.stdout.flush()
