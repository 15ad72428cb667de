"""The last quarter of the connections is not for whoever has half of all already (`limits.source_share`).

Below that nobody is refused: a whole office behind one NAT, or another proxy in front, may have three quarters. So nothing is
counted before; then the sessions are, by source, on every tick, in steps.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from pylb.core.session import State
from pylb.forward.counters import Counters
from pylb.forward.door import pack
from pylb.forward.session import FrontendState, Session

_STEP = 256  # sessions, a tenth of a millisecond
_NETWORK = 8  # bytes of an IPv6 address that are one client: its /64


class Crowd:
    """Of one engine, and so each worker's own, as its descriptors are."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self.shares: dict[bytes, int] = {}  # percent of all connections, of sources with one or more; {}: there is room

    def refusal(self, frontend: FrontendState, ip: str) -> str:
        """Why this client is refused, a metric's label: it has its share, and there is no room to be generous. Or ""."""
        share = frontend.frontend.policy.limits.source_share
        return "source_share" if self.shares.get(source(ip), 0) >= share < 100 else ""

    def count(self, sessions: Iterable[Session]) -> Iterator[int]:
        """Until it ends the shares are those of the last time. Yields how many were counted since the last step."""
        most = self._counters.max_connections
        if self._counters.open_sessions * 4 < most * 3:
            self.shares = {}
            return
        found: Counter[bytes] = Counter()
        for number, session in enumerate(list(sessions), 1):
            if session.state is not State.AWAITING_HEADER:  # a trusted proxy is not the client
                found[source(session.address[0])] += 1
            if number % _STEP == 0:
                yield _STEP
        self.shares = {one: percent for one, count in found.items() if (percent := count * 100 // most)}


def source(ip: str) -> bytes:
    """What one client is: an IPv4 address, or the first half of an IPv6 one."""
    packed = pack(ip)
    return packed if len(packed) == 4 else packed[:_NETWORK]
