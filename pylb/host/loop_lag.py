"""How late a loop is, and where it stands when it does not turn at all. Of main's loop, and of each worker's own."""

import faulthandler

LAG_DECAY = 0.99  # per beat of 100 ms: a stall stays visible for a scrape or two (half after 7 s)
STALL = 5.0  # seconds
_ARM = 1.0  # seconds between two settings of the watch


class Pulse:
    """`beat` from the loop, every `period` seconds; `stall` seconds without one: the stacks of all threads go to stderr.

    The watch is faulthandler's: a thread that holds no lock of the interpreter's, and so sees also a loop that never yields.
    """

    def __init__(self, period: float, now: float, stall: float = STALL) -> None:
        self._period = period
        self._stall = stall
        self._due = now
        self._arm_at = now
        self.lag = 0.0  # seconds that beats came late, the worst of late

    def beat(self, now: float) -> None:
        self.lag = max(now - self._due, self.lag * LAG_DECAY)
        self._due = now + self._period
        if now >= self._arm_at:
            self._arm_at = now + _ARM
            faulthandler.dump_traceback_later(self._stall)

    def stop(self) -> None:
        faulthandler.cancel_dump_traceback_later()
