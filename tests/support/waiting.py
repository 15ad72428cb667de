"""Waiting for a condition, never for a time."""

import time
from collections.abc import Callable
from threading import Event
from typing import TypeVar

POLL = 0.02  # seconds
T = TypeVar("T")


def eventually(check: Callable[[], T], *, within: float = 10.0, what: str = "") -> T:
    """The first true answer of `check`; an AssertionError or OSError of it is a "not yet".

    Raises AssertionError after `within` seconds, with the last answer or error.
    """
    deadline = time.monotonic() + within
    while True:
        last: object
        try:
            answer = check()
            if answer:
                return answer
            last = answer
        except (AssertionError, OSError) as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within:g} s: {what or check}; last: {last!r}")
        pause(POLL)


def pause(seconds: float) -> None:
    """The distance of two tries or two calls of a steady load. Nothing may depend on what happens meanwhile."""
    Event().wait(seconds)
