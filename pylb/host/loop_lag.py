"""How late a loop is, where it is stuck when it does not turn at all, and how rarely the garbage collector delays it.

For main's loop, and for each worker's own.
"""

import faulthandler
import gc

LAG_DECAY = 0.99  # per beat of 100 ms: a stall stays visible for a scrape or two (half after 7 s)
STALL = 5.0  # seconds
_ARM = 1.0  # seconds between two settings of the watchdog
# With the heap of the start frozen and sessions that make no cycles, collections find almost nothing; calls break their cycles
# (core.errors.break_cycles). What matters is how long a collection holds the loop. 10,000 new registrations, CPU of the longest
# young and middle collection on a busy machine: 15 and 83 ms with (10_000, 20, 100), 4 and 12 with (2_000, 5, 2_000), 4 and 6
# with these, for the same CPU in all; but Python counts too little, see control.steps.collect_young. A full collection visits
# everything made since the start: some 0.1 s for each 100,000 objects, 27 of which are a registration. Their number
# must not cause one, as an open status page makes nine middle ones a second with 10,000 registrations: see FullCollections.
GC_THRESHOLDS = (1_000, 2, 1_000_000_000)


def collect_rarely() -> None:
    """Call it once, before the first port is served: it visits everything in one step, which takes 40 to 50 ms in main."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def freeze_the_start() -> None:
    """Exempt everything that exists now from garbage collection. Call it once, at the end of the start.

    It takes no time, however many registrations were restored: the collector's lists are joined, no object is visited. Garbage
    in cycles that is frozen, too, is never freed; a start leaves little, and the youngest generation is collected first.
    """
    gc.collect(0)
    gc.freeze()


FULL_EVERY = 600.0  # seconds between two decisions about a full collection
CHEAP = 10_000  # objects: a full collection of so many takes about 10 ms


class FullCollections:
    """Only a full collection frees cycles that were old when they became garbage, such as those of an idle HTTP connection.

    It runs where it is cheap. Where it is not, it runs once the number of old objects has doubled since the last one: either
    the table has grown, which is rare, or it is garbage, and then a pause is better than memory that only grows.
    """

    def __init__(self, now: float) -> None:
        self._due = now + FULL_EVERY
        self._survivors = CHEAP // 2  # of the last one

    def consider(self, now: float) -> None:
        """Call it often; it decides every FULL_EVERY seconds."""
        if now < self._due:
            return
        self._due = now + FULL_EVERY
        old = len(gc.get_objects(generation=2))
        if old <= CHEAP or old >= 2 * self._survivors:
            gc.collect()
            self._survivors = len(gc.get_objects(generation=2))


class Pulse:
    """`beat` is called from the loop every `period` seconds; after `stall` seconds without, all threads' stacks go to stderr.

    The watchdog is faulthandler's: a thread that does not need the interpreter lock, so it also catches a loop that never
    yields.
    """

    def __init__(self, period: float, now: float, stall: float = STALL) -> None:
        self._period = period
        self._stall = stall
        self._due = now
        self._arm_at = now
        self._collections = FullCollections(now)
        self.lag = 0.0  # seconds that beats were late, the worst of recent ones

    def beat(self, now: float) -> None:
        self.lag = max(now - self._due, self.lag * LAG_DECAY)
        self._due = now + self._period
        if now >= self._arm_at:
            self._arm_at = now + _ARM
            faulthandler.dump_traceback_later(self._stall)
            self._collections.consider(now)

    def stop(self) -> None:
        faulthandler.cancel_dump_traceback_later()
