"""Boundaries: a fault of pylb is counted and reported, and only the session, port or call in which it happened suffers.

Whatever is triggered from outside runs inside a boundary: an event of a session, an accept, a watched descriptor, a deadline,
a call out of this package. The rest of its batch is processed in any case, because edge-triggered events do not come again.
A boundary is `guard`, or where bytes flow a `try` whose handler is `Lifecycle.fault`, which costs nothing while nothing fails.
"""

from collections.abc import Callable
from typing import Any

from pylb.forward.counters import Counters

BURST = 10  # faults reported in a row, then RATE a second: a traceback per event would drown the log and take the CPU
RATE = 1.0

Report = Callable[[str, Exception], None]  # the beginning of a sentence that says what happened, and why


class Faults:
    """The faults of one engine."""

    def __init__(self, counters: Counters, report: Report) -> None:
        self._counters = counters
        self._report = report
        self._allowance = float(BURST)
        self._unreported = 0

    def guard(self, what: str, call: Callable[..., Any], *args: Any) -> bool:
        """Call it. False: it failed; the fault is counted, and reported as `what`."""
        try:
            call(*args)
        except Exception as error:  # noqa: BLE001 - this is the boundary
            self.add(what, error)
            return False
        return True

    def add(self, what: str, error: Exception) -> None:
        """Count and report a fault. Never raises."""
        self._counters.faults += 1
        self.report(what, error)

    def report(self, what: str, error: Exception) -> None:
        """Report something that is not pylb's fault: the kernel refuses a request. Never raises."""
        if self._allowance < 1:
            self._unreported += 1
            return
        self._allowance -= 1
        if self._unreported:
            error.add_note(f"{self._unreported} more were counted before it, but not reported one by one.")
            self._unreported = 0
        try:
            self._report(what, error)
        except Exception:  # noqa: BLE001 - the report itself failed: only the counter remains
            self._counters.faults += 1

    def tick(self, elapsed: float) -> None:
        self._allowance = min(float(BURST), self._allowance + RATE * elapsed)
