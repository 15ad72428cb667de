"""Standby: another balancer is asked to have the floating address, so that this machine can be worked on.

Only the answer of /activez changes; what arrives is served as always. It is in memory on purpose: a standby that outlives its
reason leaves a cluster without its second machine. So it ends by itself, with the service, and by `pylb active`; an upgrade
passes on what is left of it.
"""

from collections.abc import Callable, Mapping

from pylb.control.event_log import EventLog
from pylb.core.text import span


class Standby:
    def __init__(self, event_log: EventLog, clock: Callable[[], float]) -> None:
        self._event_log = event_log
        self._clock = clock
        self._until: float | None = None  # on the clock

    @property
    def left(self) -> float:
        """Seconds until it ends by itself; 0: this pylb is not on standby."""
        return 0.0 if self._until is None else max(0.0, self._until - self._clock())

    def begin(self, seconds: float) -> None:
        """Begin standby, or move its end if it has begun."""
        self._until = self._clock() + seconds
        text = (
            f"on standby for {span(round(seconds))}: /activez answers 503, so that another balancer gets the floating address"
        )
        self._event_log.note("standby", text)

    def end(self) -> bool:
        """Returns whether it was on standby."""
        was, self._until = self._until is not None, None
        if was:
            self._event_log.note("active", "no longer on standby: /activez answers 200")
        return was

    def look(self) -> None:
        """Note its end, if it has come by itself."""
        if self._until is not None and not self.left:
            self.end()

    def totals(self) -> dict[str, int]:
        """For a successor."""
        return {"seconds": round(self.left)}

    def go_on_from(self, totals: Mapping[str, int]) -> None:
        """Continue the previous pylb's."""
        if seconds := totals.get("seconds", 0):
            self.begin(seconds)
