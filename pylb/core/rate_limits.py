"""Limits per source: how many connections a client may have and make. Pure; the time is an argument.

A source is an IPv4 address or an IPv6 network: one customer has a /64 and can use a new address for every connection.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from pylb.core.policy import SourceLimits

MOST_SOURCES = 65_536  # remembered for the rate, per frontend: at most about 10 MiB


class SourceLimiter:
    """The current connections and the new ones per second of each source of a frontend.

    The rate is a generic cell rate algorithm (ITU-T I.371): one number per source, the time until which all that it did is paid
    for. Above MOST_SOURCES the oldest sources are forgotten, and each one when its time has passed.
    """

    def __init__(self, limits: SourceLimits) -> None:
        self.limits = limits
        self.live: dict[bytes, int] = {}  # no larger than the number of connections
        # Other processes of ours: what each source has there, and what changed here since the last report to them.
        self.elsewhere: Sequence[Mapping[bytes, int]] = ()
        self.changed: dict[bytes, int] | None = None  # and how many were admitted; None: there are no others
        self._due: OrderedDict[bytes, float] = OrderedDict()

    def source(self, address: bytes) -> bytes:
        """`address` is canonical, see core.access."""
        if len(address) == 4:
            return address
        bits = self.limits.ipv6_prefix
        return (int.from_bytes(address, "big") >> (128 - bits) << (128 - bits)).to_bytes(16, "big")

    def enter(self, source: bytes, now: float) -> str:
        """ "" if admitted: it counts until `leave`. Else the limit that refused it: "per_source" or "per_source_rate"."""
        limits = self.limits
        live = self.live.get(source, 0)
        if limits.per_source and live + sum(other.get(source, 0) for other in self.elsewhere) >= limits.per_source:
            return "per_source"
        if limits.per_source_rate and not self._in_time(source, now):
            return "per_source_rate"
        self.live[source] = live + 1
        if self.changed is not None:
            self.changed[source] = self.changed.get(source, 0) + 1
        return ""

    def leave(self, source: bytes) -> None:
        live = self.live[source] - 1
        if live:
            self.live[source] = live
        else:
            del self.live[source]
        if self.changed is not None:
            self.changed.setdefault(source, 0)

    def spend(self, source: bytes, count: int, now: float) -> None:
        """So many of this source were admitted by other processes."""
        if count and self.limits.per_source_rate:
            self._due[source] = max(self._due.pop(source, now), now) + count / self.limits.per_source_rate
            self._forget(now)

    def _in_time(self, source: bytes, now: float) -> bool:
        """A bucket that holds one second's worth."""
        due = max(self._due.pop(source, now), now)
        step = 1 / self.limits.per_source_rate
        allowed = due - now <= 1 - step + 1e-9
        self._due[source] = due + step if allowed else due
        self._forget(now)
        return allowed

    def _forget(self, now: float) -> None:
        """Two entries per call, so that no single call pays for a flood."""
        for _ in range(2):
            oldest = next(iter(self._due))
            if self._due[oldest] > now and len(self._due) <= MOST_SOURCES:
                return
            del self._due[oldest]  # never the newest entry: that is the caller's, and not yet due

    def __len__(self) -> int:
        return len(self.live.keys() | self._due.keys())
