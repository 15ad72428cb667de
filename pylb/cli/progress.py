"""A line on a terminal that says what is being waited for, while it takes longer than a moment."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from pylb.core.text import span, visible

MOMENT = 1.0  # seconds without a word
STEP = 0.5  # seconds between two updates
_CLEAR = "\r\x1b[K"


@contextmanager
def progress(what: str) -> Iterator[Callable[[str], None]]:
    """Show `what`, and how long it has taken, on stderr until the end of the block, which may say what it does now.

    Nothing at all is written without `what` or where stderr is not a terminal, and nothing is left on one.
    """
    now = what

    def say(text: str) -> None:
        nonlocal now
        now = text

    if not what or sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM", "") in ("", "dumb"):
        yield say
        return
    done, began = threading.Event(), monotonic()

    def show() -> None:
        wait = MOMENT
        while not done.wait(wait):
            wait = STEP
            _write(f"{_CLEAR}{visible(now)} … {span(round(monotonic() - began))}")
        if wait == STEP:
            _write(_CLEAR)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield say
    finally:
        done.set()
        thread.join()


def _write(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        pass  # it is for whoever looks; what matters is said elsewhere
